/* command.h - what a command is: one entry of the table from which dispatch, --help, checks of
 * flags and shell completion are made. A command's flags are a table too, and are read into a
 * struct of its own:
 *
 *   struct scale_values { const char *min, *max; };
 *   static const struct option options[] = {
 *       {"min", 0, OPTION_TEXT, "N", "sandboxes kept running", offsetof(struct scale_values, min)},
 * …
 *
 * A command that is a program of its own (`up`, `worker`, …) reads its arguments itself, by
 * base/settings.h. */
#pragma once
#include "base/base.h"

enum option_kind {
    OPTION_FLAG, /* bool */
    OPTION_TEXT, /* const char *, NULL when not given; the last one given counts */
    OPTION_LIST, /* struct option_list, may be given several times */
};
struct option_list {
    const char **items; /* borrowed texts; the array is the parser's to free */
    size_t count;
};
struct option {
    const char *name; /* "min": flag --min */
    char letter;      /* 'e': flag -e; 0: none */
    enum option_kind kind;
    const char *argument; /* what --help calls its value */
    const char *help;
    size_t offset; /* in the command's values */
};

/* Read for every client command. */
struct common_values {
    const char *api;
    const char *output; /* -o; NULL: table */
    bool help;
};
struct command_input {
    const struct command *command;
    const struct common_values *common;
    const void *values;     /* the command's own struct */
    const char **arguments; /* what is no flag */
    size_t argument_count;
};

enum command_group { GROUP_RUN, GROUP_DEPLOY, GROUP_LOOK, GROUP_OTHER, GROUP_COUNT };
struct command {
    const char *name;
    const char *alias;     /* NULL: none */
    const char *arguments; /* "NAME...", as --help shows it */
    const char *summary;   /* one line */
    const char *details;   /* more for its --help, or NULL */
    enum command_group group;
    size_t arguments_min, arguments_max;
    const struct option *options;
    size_t option_count, values_bytes;
    bool is_client;  /* has --api */
    bool has_output; /* has -o table|json|yaml */
    /* One of the two. `run` returns what main() makes the exit code of; when `e` has no text then
     * all has been said already. `program` gets argv[0] = its name and returns the exit code. */
    enum err (*run)(const struct command_input *in, struct error *e);
    int (*program)(int argc, char **argv);
};

extern const struct command *const commands[];
extern const size_t command_count;
/* By name or alias; NULL: there is none. */
const struct command *command_find(const char *name);

/* Reads argv[1..] into `values` (zeroed, command->values_bytes) and `ret_input`, which borrows from
 * argv and values. ERR_USAGE names the flag and, when one is near, what may have been meant. */
must_check enum err command_parse(const struct command *command, int argc, char **argv,
                                  struct common_values *common, void *values,
                                  struct command_input *ret_input, struct error *e);
void command_input_done(struct command_input *in, void *values);
void command_print_help(const struct command *command);
/* Calls `visit` for each flag of a command, its own and the shared ones. */
void command_each_option(const struct command *command,
                         void (*visit)(const struct option *option, void *user), void *user);

/* Edits to get from a to b; for "did you mean". SIZE_MAX when either is long. */
size_t edit_distance(const char *a, const char *b);
