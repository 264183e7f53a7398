/* spec_flags.h - what is said about a function on the command line, as JSON for the API. No I/O but
 * --env-file. */
#pragma once
#include "cli/command.h"
#include <jansson.h>

struct spec_flags {
#define SPEC_FLAG(member, flag, letter, kind, field, argument, help) const char *member;
#include "cli/spec_flags.def"
#undef SPEC_FLAG
    struct option_list env, env_files, labels;
};

/* The flags that were given, as a spec that says no more than they do: an object with "scaling"
 * inside. Each value is checked alone, so that a wrong one is named by its flag (ERR_USAGE) before
 * anything is sent.
 * `-e K` takes the value of our own environment, `-e K-` becomes null (take it away). */
must_check enum err spec_flags_to_json(const struct spec_flags *flags, json_t **ret_spec,
                                       struct error *e);
/* "scaling.min" -> "--min"; NULL: no flag has this field. */
const char *spec_flag_of_field(const char *field);
/* Lines K=V of a file: blank lines, # comments and `export` are skipped, quotes around a value are
 * taken off. Sets members of `env`. Errors name the line. */
must_check enum err env_file_parse(const char *text, json_t *env, struct error *e);
/* Rows of a table of options, for those who have a `struct spec_flags` as member `s` of their
 * values. */
#define SPEC_OPTION_ROW(values, name, letter, argument, help, member)                \
    {                                                                                \
        name, letter, OPTION_TEXT, argument, help, offsetof(struct values, s.member) \
    }
