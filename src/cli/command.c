/* command.c - flags of client commands: POSIX 12.2 and the GNU long form; flags and arguments may
 * be mixed. */
#include "cli/command.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISTANCE_TEXT_MAX 64

static const struct option api_option = {"api",
                                         0,
                                         OPTION_TEXT,
                                         "URL",
                                         "address of the API (DIRIGENT_API; http://127.0.0.1:9091)",
                                         offsetof(struct common_values, api)};
static const struct option output_option = {"output",
                                            'o',
                                            OPTION_TEXT,
                                            "FORMAT",
                                            "table, json or yaml (table)",
                                            offsetof(struct common_values, output)};
static const struct option help_option = {
    "help", 'h', OPTION_FLAG, "", "show this", offsetof(struct common_values, help)};

size_t edit_distance(const char *a, const char *b)
{
    size_t row[DISTANCE_TEXT_MAX + 1], length = strlen(b);
    if (strlen(a) > DISTANCE_TEXT_MAX || length > DISTANCE_TEXT_MAX)
        return SIZE_MAX;
    for (size_t j = 0; j <= length; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= length; j++) {
            size_t change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(change, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[length];
}

/* ---- which flags there are ---- */

void command_each_option(const struct command *command,
                         void (*visit)(const struct option *option, void *user), void *user)
{
    for (size_t i = 0; i < command->option_count; i++)
        visit(&command->options[i], user);
    if (command->has_output)
        visit(&output_option, user);
    if (command->is_client)
        visit(&api_option, user);
    visit(&help_option, user);
}

struct search {
    const char *name; /* of a long flag, or NULL */
    size_t name_bytes;
    char letter;
    const struct option *found;
    const struct option *nearest;
    size_t distance;
};

static void search_visit(const struct option *option, void *user)
{
    struct search *s = user;
    if (s->name == NULL) {
        if (option->letter == s->letter && s->letter != 0)
            s->found = option;
        return;
    }
    char name[DISTANCE_TEXT_MAX];
    if (strlen(option->name) == s->name_bytes && strncmp(option->name, s->name, s->name_bytes) == 0)
        s->found = option;
    if (s->name_bytes >= sizeof(name))
        return;
    memcpy(name, s->name, s->name_bytes);
    name[s->name_bytes] = '\0';
    size_t distance = edit_distance(name, option->name);
    if (distance < s->distance) {
        s->distance = distance;
        s->nearest = option;
    }
}

/* ---- reading ---- */

struct parser {
    const struct command *command;
    struct common_values *common;
    char *values;
    int argc;
    char **argv;
    int next;
    struct error *e;
};

static bool is_common(const struct option *option)
{
    return option == &api_option || option == &output_option || option == &help_option;
}

static void store(struct parser *p, const struct option *option, const char *text)
{
    char *place = (is_common(option) ? (char *)p->common : p->values) + option->offset;
    switch (option->kind) {
    case OPTION_FLAG:
        *(bool *)place = true;
        return;
    case OPTION_TEXT:
        *(const char **)place = text;
        return;
    case OPTION_LIST: {
        struct option_list *list = (struct option_list *)place;
        list->items = mem_resize(list->items, list->count + 1, sizeof(*list->items));
        list->items[list->count++] = text;
        return;
    }
    }
}

static enum err parse_long(struct parser *p, const char *flag)
{
    const char *equals = strchr(flag + 2, '=');
    struct search s = {.name = flag + 2, .distance = 4};
    s.name_bytes = equals != NULL ? (size_t)(equals - s.name) : strlen(s.name);
    command_each_option(p->command, search_visit, &s);
    int shown = (int)MIN(s.name_bytes, DISTANCE_TEXT_MAX);
    if (s.found == NULL && s.nearest != NULL)
        return error_set(p->e, ERR_USAGE, "--%.*s is not known; did you mean --%s?", shown, s.name,
                         s.nearest->name);
    if (s.found == NULL)
        return error_set(p->e, ERR_USAGE, "--%.*s is not known; `dirigent %s --help` lists what is",
                         shown, s.name, p->command->name);
    if (s.found->kind == OPTION_FLAG) {
        if (equals != NULL)
            return error_set(p->e, ERR_USAGE, "--%s takes no value", s.found->name);
        store(p, s.found, NULL);
        return ERR_OK;
    }
    if (equals == NULL && p->next == p->argc)
        return error_set(p->e, ERR_USAGE, "--%s needs a value: %s", s.found->name,
                         s.found->argument);
    store(p, s.found, equals != NULL ? equals + 1 : p->argv[p->next++]);
    return ERR_OK;
}

/* "-f", "-fo json", "-ojson", "-e K=V" */
static enum err parse_letters(struct parser *p, const char *letters)
{
    for (const char *c = letters; *c != '\0'; c++) {
        struct search s = {.letter = *c};
        command_each_option(p->command, search_visit, &s);
        if (s.found == NULL)
            return error_set(p->e, ERR_USAGE,
                             "-%c is not known; `dirigent %s --help` lists what is", *c,
                             p->command->name);
        if (s.found->kind == OPTION_FLAG) {
            store(p, s.found, NULL);
            continue;
        }
        if (c[1] == '\0' && p->next == p->argc)
            return error_set(p->e, ERR_USAGE, "-%c needs a value: %s", *c, s.found->argument);
        store(p, s.found, c[1] != '\0' ? c + 1 : p->argv[p->next++]);
        return ERR_OK;
    }
    return ERR_OK;
}

static enum err check_counts(const struct command *command, const struct command_input *in,
                             struct error *e)
{
    if (in->argument_count < command->arguments_min)
        return error_set(e, ERR_USAGE, "something is missing; usage: dirigent %s %s", command->name,
                         command->arguments);
    if (in->argument_count > command->arguments_max)
        return error_set(e, ERR_USAGE, "'%s' is not expected here; usage: dirigent %s %s",
                         in->arguments[command->arguments_max], command->name, command->arguments);
    return ERR_OK;
}

static enum err check_output(const struct common_values *common, struct error *e)
{
    static const char *const formats[] = {"table", "json", "yaml"};
    for (size_t i = 0; i < ARRAY_COUNT(formats); i++)
        if (common->output == NULL || strcmp(common->output, formats[i]) == 0)
            return ERR_OK;
    return error_set(e, ERR_USAGE, "-o %s: table, json or yaml", common->output);
}

enum err command_parse(const struct command *command, int argc, char **argv,
                       struct common_values *common, void *values, struct command_input *ret_input,
                       struct error *e)
{
    struct parser p = {command, common, values, argc, argv, 1, e};
    struct command_input in = {.command = command, .common = common, .values = values};
    in.arguments = mem_new_array((size_t)argc + 1, sizeof(*in.arguments));
    bool flags_ended = false;
    enum err err = ERR_OK;
    while (err == ERR_OK && p.next < argc) {
        const char *word = argv[p.next++];
        if (flags_ended || word[0] != '-' || word[1] == '\0')
            in.arguments[in.argument_count++] = word;
        else if (strcmp(word, "--") == 0)
            flags_ended = true;
        else if (word[1] == '-')
            err = parse_long(&p, word);
        else
            err = parse_letters(&p, word + 1);
    }
    *ret_input = in;
    if (err == ERR_OK && !common->help)
        err = check_counts(command, &in, e);
    if (err == ERR_OK)
        err = check_output(common, e);
    return err;
}

void command_input_done(struct command_input *in, void *values)
{
    for (size_t i = 0; in->command != NULL && i < in->command->option_count; i++)
        if (in->command->options[i].kind == OPTION_LIST)
            free(((struct option_list *)((char *)values + in->command->options[i].offset))->items);
    free(in->arguments);
    in->arguments = NULL;
}

/* ---- help ---- */

static void print_option(const struct option *option, void *user)
{
    char left[64], letter[8] = "    ";
    (void)user;
    if (option->letter != 0)
        (void)snprintf(letter, sizeof(letter), "-%c, ", option->letter);
    (void)snprintf(left, sizeof(left), "%s--%s %s", letter, option->name, option->argument);
    printf("  %-34s %s\n", left, option->help);
}

void command_print_help(const struct command *command)
{
    printf("usage: dirigent %s %s%s[flags]\n\n%s\n", command->name, command->arguments,
           command->arguments[0] != '\0' ? " " : "", command->summary);
    if (command->details != NULL)
        printf("\n%s\n", command->details);
    if (command->alias != NULL)
        printf("\nalso: dirigent %s\n", command->alias);
    printf("\nflags:\n");
    command_each_option(command, print_option, NULL);
}
