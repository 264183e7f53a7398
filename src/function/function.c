/* function.c - a spec's life: defaults, copies, comparison. Its fields are in fields.c. */
#include "function/fields.h"
#include <stdlib.h>
#include <string.h>

void scaling_policy_default(struct scaling_policy *p)
{
    cleanup(function_spec_done) struct function_spec s;
    function_spec_init(&s);
    *p = s.scaling;
}

void scaling_policy_cold_start_sweep(struct scaling_policy *p)
{
    scaling_policy_default(p);
    p->scale_max = 1;
    p->stable_window_ms = 6000;
    p->panic_window_ms = 2000;
}

void function_spec_init(struct function_spec *s)
{
    *s = (struct function_spec){0};
    for (size_t i = 0; i < spec_field_count; i++)
        spec_field_set_default(&spec_fields[i], s);
}

void env_list_done(struct env_var **items, uint32_t *count)
{
    for (uint32_t i = 0; i < *count; i++) {
        free((*items)[i].name);
        free((*items)[i].value);
    }
    free(*items);
    *items = NULL;
    *count = 0;
}

void command_done(char ***command, uint32_t *count)
{
    for (uint32_t i = 0; i < *count; i++)
        free((*command)[i]);
    free(*command);
    *command = NULL;
    *count = 0;
}

void function_spec_done(struct function_spec *s)
{
    command_done(&s->command, &s->command_count);
    env_list_done(&s->env, &s->env_count);
    env_list_done(&s->labels, &s->label_count);
}

static struct env_var *env_list_copy(const struct env_var *from, uint32_t count)
{
    if (count == 0)
        return NULL;
    struct env_var *copy = mem_new_array(count, sizeof(*copy));
    for (uint32_t i = 0; i < count; i++)
        copy[i] = (struct env_var){mem_strdup(from[i].name), mem_strdup(from[i].value)};
    return copy;
}

void function_spec_copy(const struct function_spec *from, struct function_spec *ret_to)
{
    struct function_spec copy = *from;
    copy.command = NULL;
    if (from->command_count > 0) {
        copy.command = mem_new_array(from->command_count + 1u, sizeof(char *));
        for (uint32_t i = 0; i < from->command_count; i++)
            copy.command[i] = mem_strdup(from->command[i]);
    }
    copy.env = env_list_copy(from->env, from->env_count);
    copy.labels = env_list_copy(from->labels, from->label_count);
    *ret_to = copy;
}

static bool env_list_equal(const struct env_var *a, uint32_t a_count, const struct env_var *b,
                           uint32_t b_count)
{
    if (a_count != b_count)
        return false;
    for (uint32_t i = 0; i < a_count; i++)
        if (strcmp(a[i].name, b[i].name) != 0 || strcmp(a[i].value, b[i].value) != 0)
            return false;
    return true;
}

static bool command_equal(const struct function_spec *a, const struct function_spec *b)
{
    if (a->command_count != b->command_count)
        return false;
    for (uint32_t i = 0; i < a->command_count; i++)
        if (strcmp(a->command[i], b->command[i]) != 0)
            return false;
    return true;
}

/* What a sandbox is made from; `all` adds what only steers it. */
static bool fields_equal(const struct function_spec *a, const struct function_spec *b, bool all)
{
    for (size_t i = 0; i < spec_field_count; i++)
        if ((all || spec_fields[i].makes_version) && !spec_field_equal(&spec_fields[i], a, b))
            return false;
    return strcmp(a->name, b->name) == 0 && strcmp(a->code_digest, b->code_digest) == 0 &&
           command_equal(a, b) && env_list_equal(a->env, a->env_count, b->env, b->env_count);
}

bool function_spec_equal(const struct function_spec *a, const struct function_spec *b)
{
    return fields_equal(a, b, true) &&
           env_list_equal(a->labels, a->label_count, b->labels, b->label_count);
}

bool function_spec_needs_new_version(const struct function_spec *a, const struct function_spec *b)
{
    return !fields_equal(a, b, false);
}

enum err function_name_check(struct str name, struct error *e)
{
    if (name.bytes == 0)
        return error_field(e, ERR_INVALID, "name", "a function needs a name");
    if (name.bytes > FUNCTION_NAME_BYTES_MAX)
        return error_field(
            e, ERR_INVALID, "name",
            "the name has %zu characters, at most %u are allowed (it is a DNS label)", name.bytes,
            FUNCTION_NAME_BYTES_MAX);
    for (size_t i = 0; i < name.bytes; i++) {
        char c = name.data[i];
        bool inside = i > 0 && i + 1 < name.bytes;
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c == '-' && inside))
            continue;
        return error_field(e, ERR_INVALID, "name",
                           "'%.*s' is no function name: use a-z, 0-9 and '-' (not first or last)",
                           STR_ARG(name));
    }
    return ERR_OK;
}

static enum err check_command(const struct function_spec *s, struct error *e)
{
    size_t bytes = 0;
    if (s->command_count == 0 || s->command[0][0] == '\0')
        return error_field(e, ERR_INVALID, "command",
                           "a function needs a command, for example [\"python3\", \"app.py\"]");
    for (uint32_t i = 0; i < s->command_count; i++)
        bytes += strlen(s->command[i]) + 1;
    if (bytes > COMMAND_BYTES_MAX)
        return error_field(e, ERR_INVALID, "command",
                           "the command has %zu bytes, at most %u are "
                           "allowed",
                           bytes, COMMAND_BYTES_MAX);
    return ERR_OK;
}

static enum err check_scaling(const struct scaling_policy *p, struct error *e)
{
    if (p->scale_min > p->scale_max)
        return error_field(e, ERR_INVALID, "scaling.min",
                           "the minimum of %u sandboxes is above the maximum of %u", p->scale_min,
                           p->scale_max);
    if (p->panic_window_ms > p->stable_window_ms)
        return error_field(e, ERR_INVALID, "scaling.panic_window",
                           "the panic window of %u ms is longer than the stable window of %u ms",
                           p->panic_window_ms, p->stable_window_ms);
    if (p->period_ms > p->panic_window_ms)
        return error_field(e, ERR_INVALID, "scaling.period",
                           "the period of %u ms is longer than the panic window of %u ms",
                           p->period_ms, p->panic_window_ms);
    return ERR_OK;
}

enum err function_spec_check(const struct function_spec *s, struct error *e)
{
    enum err err = function_name_check(str_of(s->name), e);
    if (err == ERR_OK)
        err = check_command(s, e);
    for (size_t i = 0; i < spec_field_count && err == ERR_OK; i++)
        err = spec_field_check(&spec_fields[i], s, e);
    return err == ERR_OK ? check_scaling(&s->scaling, e) : err;
}
