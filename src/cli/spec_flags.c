/* spec_flags.c - from flags to a spec. */
#include "cli/spec_flags.h"
#include "base/str.h"
#include "function/function.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ENV_FILE_BYTES_MAX MIB

enum value_kind { KIND_TEXT, KIND_NUMBER, KIND_REAL };
static const struct {
    const char *flag, *field;
    enum value_kind kind;
    size_t offset;
} rows[] = {
#define SPEC_FLAG(member, flag, letter, kind, field, argument, help) \
    {flag, field, KIND_##kind, offsetof(struct spec_flags, member)},
#include "cli/spec_flags.def"
#undef SPEC_FLAG
};

const char *spec_flag_of_field(const char *field)
{
    static const struct {
        const char *field, *flag;
    } others[] = {{"env", "env"}, {"labels", "label"}, {"command", "command"},
                  {"min", "min"}, {"max", "max"},      {"concurrency", "concurrency"}};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++)
        if (strcmp(rows[i].field, field) == 0)
            return rows[i].flag;
    for (size_t i = 0; i < ARRAY_COUNT(others); i++)
        if (strcmp(others[i].field, field) == 0)
            return others[i].flag;
    return NULL;
}

/* ---- one value ---- */

static json_t *value_to_json(enum value_kind kind, const char *text)
{
    char *end = NULL;
    errno = 0;
    if (kind == KIND_TEXT)
        return json_string(text);
    if (kind == KIND_REAL) {
        double real = strtod(text, &end);
        return *text != '\0' && *end == '\0' && errno == 0 ? json_real(real) : NULL;
    }
    long long number = strtoll(text, &end, 10);
    return *text != '\0' && *end == '\0' && errno == 0 ? json_integer(number) : NULL;
}

static void set_field(json_t *spec, const char *field, json_t *value)
{
    const char *dot = strchr(field, '.');
    if (dot == NULL) {
        json_object_set_new(spec, field, value);
        return;
    }
    cleanup(free_pointer) char *outer = mem_strndup(field, (size_t)(dot - field));
    json_t *inner = json_object_get(spec, outer);
    if (inner == NULL) {
        inner = json_object();
        json_object_set_new(spec, outer, inner);
    }
    json_object_set_new(inner, dot + 1, value);
}

/* Reads a spec of this one field: whatever is wrong with it is wrong with the flag. */
static enum err check_alone(const char *flag, const char *field, const json_t *value,
                            struct error *e)
{
    struct function_spec spec;
    struct error inner = {0};
    json_t *alone = json_object();
    set_field(alone, field, json_incref((json_t *)value));
    function_spec_init(&spec);
    enum err err = function_spec_from_json(alone, &spec, &inner);
    function_spec_done(&spec);
    json_decref(alone);
    if (err == ERR_OK)
        return ERR_OK;
    /* "memory: '12q' is …" after "--memory" says it twice */
    size_t field_bytes = strlen(field);
    bool twice = strncmp(inner.text, field, field_bytes) == 0 &&
                 strncmp(inner.text + field_bytes, ": ", 2) == 0;
    return error_set(e, ERR_USAGE, "--%s: %s", flag, inner.text + (twice ? field_bytes + 2 : 0));
}

/* ---- env and labels ---- */

static enum err add_pair(json_t *pairs, const char *flag, const char *text, bool from_environment,
                         struct error *e)
{
    const char *equals = strchr(text, '=');
    size_t bytes = strlen(text);
    if (equals == text || bytes == 0)
        return error_set(e, ERR_USAGE, "--%s '%s': a name is missing; write NAME=VALUE", flag,
                         text);
    if (equals != NULL) {
        cleanup(free_pointer) char *name = mem_strndup(text, (size_t)(equals - text));
        json_t *value = json_string(equals + 1);
        if (value == NULL || json_object_set_new(pairs, name, value) < 0)
            return error_set(e, ERR_USAGE, "--%s '%s' is no valid UTF-8", flag, name);
        return ERR_OK;
    }
    if (text[bytes - 1] == '-') {
        cleanup(free_pointer) char *name = mem_strndup(text, bytes - 1);
        json_object_set_new(pairs, name, json_null());
        return ERR_OK;
    }
    const char *value = from_environment ? getenv(text) : NULL;
    if (value == NULL)
        return error_set(e, ERR_USAGE, "--%s %s: write NAME=VALUE, or NAME- to take it away%s",
                         flag, text,
                         from_environment ? "; there is no such variable here to copy" : "");
    json_object_set_new(pairs, text, json_string(value));
    return ERR_OK;
}

static struct str unquote(struct str value)
{
    char quote = value.bytes >= 2 ? value.data[0] : '\0';
    if ((quote == '"' || quote == '\'') && value.data[value.bytes - 1] == quote)
        return (struct str){value.data + 1, value.bytes - 2};
    return value;
}

enum err env_file_parse(const char *text, json_t *env, struct error *e)
{
    struct str rest = str_of(text);
    for (unsigned line_number = 1; rest.data != NULL; line_number++) {
        struct str line = str_split(rest, '\n', &rest), value;
        if (line.bytes > 0 && line.data[line.bytes - 1] == '\r')
            line.bytes--;
        line = str_trim(line);
        if (line.bytes == 0 || line.data[0] == '#')
            continue;
        if (str_has_prefix(line, STR("export ")))
            line = str_trim((struct str){line.data + 7, line.bytes - 7});
        struct str name = str_trim(str_split(line, '=', &value));
        if (value.data == NULL || name.bytes == 0)
            return error_set(e, ERR_USAGE, "line %u: '%.*s' is not NAME=VALUE", line_number,
                             (int)MIN(line.bytes, 80), line.data);
        value = unquote(str_trim(value));
        cleanup(free_pointer) char *key = mem_strndup(name.data, name.bytes);
        json_t *json = json_stringn(value.bytes > 0 ? value.data : "", value.bytes);
        if (json == NULL || json_object_set_new(env, key, json) < 0)
            return error_set(e, ERR_USAGE, "line %u is no valid UTF-8", line_number);
    }
    return ERR_OK;
}

static enum err read_env_files(const struct option_list *paths, json_t *env, struct error *e)
{
    for (size_t i = 0; i < paths->count; i++) {
        cleanup(free_pointer) char *text = NULL;
        size_t bytes = 0;
        enum err err = file_read(paths->items[i], ENV_FILE_BYTES_MAX, &text, &bytes, e);
        if (err == ERR_OK && strlen(text) != bytes)
            err = error_set(e, ERR_USAGE, "it holds NUL bytes");
        if (err == ERR_OK)
            err = env_file_parse(text, env, e);
        if (err != ERR_OK) {
            error_prefix(e, "--env-file '%s'", paths->items[i]);
            return ERR_USAGE;
        }
    }
    return ERR_OK;
}

/* null members are for a patch only: a check must not see them. */
static enum err check_pairs(const char *flag, const char *field, const json_t *pairs,
                            struct error *e)
{
    json_t *present = json_object();
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)pairs, name, value)
    {
        if (!json_is_null(value))
            json_object_set(present, name, value);
    }
    enum err err = check_alone(flag, field, present, e);
    json_decref(present);
    return err;
}

static enum err add_pairs(const struct option_list *list, const struct option_list *files,
                          const char *flag, const char *field, json_t *spec, struct error *e)
{
    json_t *pairs = json_object();
    enum err err = ERR_OK;
    if (files != NULL)
        err = read_env_files(files, pairs, e);
    for (size_t i = 0; err == ERR_OK && i < list->count; i++)
        err = add_pair(pairs, flag, list->items[i], files != NULL, e);
    if (err == ERR_OK)
        err = check_pairs(flag, field, pairs, e);
    if (err == ERR_OK && json_object_size(pairs) > 0)
        json_object_set(spec, field, pairs);
    json_decref(pairs);
    return err;
}

enum err spec_flags_to_json(const struct spec_flags *flags, json_t **ret_spec, struct error *e)
{
    json_t *spec = json_object();
    enum err err = ERR_OK;
    for (size_t i = 0; err == ERR_OK && i < ARRAY_COUNT(rows); i++) {
        const char *text = *(const char *const *)((const char *)flags + rows[i].offset);
        if (text == NULL)
            continue;
        json_t *value = value_to_json(rows[i].kind, text);
        if (value == NULL) {
            err = error_set(e, ERR_USAGE, "--%s: '%s' is no %snumber", rows[i].flag, text,
                            rows[i].kind == KIND_NUMBER ? "whole " : "");
            break;
        }
        err = check_alone(rows[i].flag, rows[i].field, value, e);
        set_field(spec, rows[i].field, value);
    }
    if (err == ERR_OK)
        err = add_pairs(&flags->env, &flags->env_files, "env", "env", spec, e);
    if (err == ERR_OK)
        err = add_pairs(&flags->labels, NULL, "label", "labels", spec, e);
    if (err != ERR_OK) {
        json_decref(spec);
        return err;
    }
    *ret_spec = spec;
    return ERR_OK;
}
