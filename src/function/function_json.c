/* function_json.c - a spec from and to JSON. */
#include "function/fields.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct str json_str(const json_t *json)
{
    return (struct str){json_string_value(json), json_string_length(json)};
}

/* ---- unknown names: the nearest known one helps ---- */

static unsigned edit_distance(const char *a, const char *b)
{
    unsigned row[48], length = (unsigned)strlen(b);
    if (length + 1 > ARRAY_COUNT(row) || strlen(a) + 1 > ARRAY_COUNT(row))
        return UINT32_MAX;
    for (unsigned j = 0; j <= length; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1] != '\0'; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (unsigned j = 1; j <= length; j++) {
            unsigned change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(change, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[length];
}

static const char *const special_names[] = {"name", "command", "code", "env", "labels", "scaling"};

static const char *nearest_name(const char *given)
{
    const char *best = NULL;
    unsigned best_distance = 3; /* further away it is no misspelling */
    for (size_t i = 0; i < ARRAY_COUNT(special_names) + spec_field_count; i++) {
        bool special = i < ARRAY_COUNT(special_names);
        const char *name =
            special ? special_names[i] : spec_fields[i - ARRAY_COUNT(special_names)].path;
        const char *dot = strrchr(name, '.');
        unsigned whole = edit_distance(given, name);
        unsigned leaf = dot != NULL ? edit_distance(given, dot + 1) : whole;
        if (MIN(whole, leaf) < best_distance) {
            best_distance = MIN(whole, leaf);
            best = name;
        }
    }
    return best;
}

static enum err refuse_unknown(const char *path, struct error *e)
{
    const char *nearest = nearest_name(path);
    if (nearest != NULL)
        return error_field(e, ERR_INVALID, path, "there is no field '%.64s'; '%s' is near it", path,
                           nearest);
    return error_field(e, ERR_INVALID, path, "there is no field '%.64s'", path);
}

/* ---- the fields that are no plain values ---- */

static enum err read_name(const json_t *json, struct function_spec *s, struct error *e)
{
    if (!json_is_string(json))
        return error_field(e, ERR_INVALID, "name", "name must be a text");
    enum err err = function_name_check(json_str(json), e);
    if (err == ERR_OK)
        snprintf(s->name, sizeof(s->name), "%s", json_string_value(json));
    return err;
}

static bool is_digest(struct str text)
{
    if (text.bytes != CODE_DIGEST_BYTES || !str_has_prefix(text, STR("sha256:")))
        return false;
    for (size_t i = strlen("sha256:"); i < text.bytes; i++)
        if (strchr("0123456789abcdef", text.data[i]) == NULL)
            return false;
    return true;
}

static enum err read_code(const json_t *json, struct function_spec *s, struct error *e)
{
    static_assert(sizeof(s->code_digest) > CODE_DIGEST_BYTES, "a digest fits");
    bool none = json_is_string(json) && json_string_length(json) == 0;
    if (!none && (!json_is_string(json) || !is_digest(json_str(json))))
        return error_field(
            e, ERR_INVALID, "code",
            "code must be the digest of uploaded code, \"sha256:\" and 64 hex digits");
    snprintf(s->code_digest, sizeof(s->code_digest), "%s", json_string_value(json));
    return ERR_OK;
}

static enum err read_command_list(const json_t *json, char ***ret_argv, uint32_t *ret_count,
                                  struct error *e)
{
    size_t count = json_array_size(json);
    if (count > COMMAND_BYTES_MAX)
        return error_field(e, ERR_INVALID, "command", "the command has too many words");
    for (size_t i = 0; i < count; i++)
        if (!json_is_string(json_array_get(json, i)))
            return error_field(e, ERR_INVALID, "command", "word %zu of the command is no text",
                               i + 1);
    char **argv = mem_new_array(count + 1, sizeof(char *));
    for (size_t i = 0; i < count; i++)
        argv[i] = mem_strdup(json_string_value(json_array_get(json, i)));
    *ret_argv = argv;
    *ret_count = (uint32_t)count;
    return ERR_OK;
}

static enum err read_command(const json_t *json, struct function_spec *s, struct error *e)
{
    char **argv = NULL;
    uint32_t count = 0;
    enum err err;
    if (json_is_array(json)) {
        err = read_command_list(json, &argv, &count, e);
    } else if (json_is_string(json)) {
        struct error inner = {0};
        err = parse_command_line(json_str(json), &argv, &count, &inner);
        if (err != ERR_OK)
            error_field(e, err, "command", "%s", inner.text);
    } else {
        err =
            error_field(e, ERR_INVALID, "command",
                        "command must be a list of texts, or one text that is split as by a shell");
    }
    if (err != ERR_OK)
        return err;
    command_done(&s->command, &s->command_count);
    s->command = argv;
    s->command_count = count;
    return ERR_OK;
}

struct pairs_rule {
    const char *field;
    uint32_t count_max, bytes_max;
    bool is_env;
};
static const struct pairs_rule env_rule = {"env", ENV_COUNT_MAX, ENV_BYTES_MAX, true};
static const struct pairs_rule label_rule = {"labels", LABEL_COUNT_MAX, LABEL_BYTES_MAX, false};

/* POSIX 8.1 asks portable names to have only these; shells cannot reach others. */
static bool is_env_name(const char *name)
{
    bool first_ok =
        (name[0] >= 'A' && name[0] <= 'Z') || (name[0] >= 'a' && name[0] <= 'z') || name[0] == '_';
    if (!first_ok)
        return false;
    for (const char *c = name; *c != '\0'; c++)
        if (!((*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') ||
              *c == '_'))
            return false;
    return true;
}

static enum err check_pair(const struct pairs_rule *rule, const char *name, const json_t *value,
                           struct error *e)
{
    char path[ERROR_FIELD_BYTES_MAX];
    snprintf(path, sizeof(path), "%s.%s", rule->field, name);
    if (name[0] == '\0')
        return error_field(e, ERR_INVALID, rule->field, "%s has an empty name", rule->field);
    if (rule->is_env && !is_env_name(name))
        return error_field(e, ERR_INVALID, path,
                           "'%.64s' is no name of an environment variable: use A-Z, a-z, 0-9 and "
                           "'_', no digit first",
                           name);
    if (rule->is_env && strcmp(name, "PORT") == 0)
        return error_field(e, ERR_INVALID, path,
                           "PORT is set by the cluster to the function's `port`; set that instead");
    if (!json_is_string(value))
        return error_field(e, ERR_INVALID, path, "%s must be a text: put its value in quotes",
                           path);
    return ERR_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct env_var *)a)->name, ((const struct env_var *)b)->name);
}

static enum err check_pairs(const struct pairs_rule *rule, const json_t *json, struct error *e)
{
    if (!json_is_object(json))
        return error_field(e, ERR_INVALID, rule->field, "%s must be an object of names and texts",
                           rule->field);
    if (json_object_size(json) > rule->count_max)
        return error_field(e, ERR_INVALID, rule->field,
                           "%s has %zu entries, at most %u are allowed", rule->field,
                           json_object_size(json), rule->count_max);
    const char *name;
    json_t *value;
    size_t bytes = 0;
    json_object_foreach((json_t *)json, name, value)
    {
        enum err err = check_pair(rule, name, value, e);
        if (err != ERR_OK)
            return err;
        bytes += strlen(name) + json_string_length(value) + 2;
    }
    if (bytes > rule->bytes_max)
        return error_field(e, ERR_INVALID, rule->field, "%s has %zu bytes, at most %u are allowed",
                           rule->field, bytes, rule->bytes_max);
    return ERR_OK;
}

static enum err read_pairs(const struct pairs_rule *rule, const json_t *json,
                           struct env_var **items, uint32_t *count, struct error *e)
{
    enum err err = check_pairs(rule, json, e);
    if (err != ERR_OK)
        return err;
    env_list_done(items, count);
    if (json_object_size(json) == 0)
        return ERR_OK;
    *items = mem_new_array(json_object_size(json), sizeof(**items));
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        (*items)[(*count)++] =
            (struct env_var){mem_strdup(name), mem_strdup(json_string_value(value))};
    }
    qsort(*items, *count, sizeof(**items), compare_names);
    return ERR_OK;
}

/* ---- a whole spec ---- */

static const struct spec_field *find_field(const char *path)
{
    for (size_t i = 0; i < spec_field_count; i++)
        if (strcmp(spec_fields[i].path, path) == 0)
            return &spec_fields[i];
    return NULL;
}

static const struct spec_field *find_alias(const char *name)
{
    for (size_t i = 0; i < spec_field_count; i++)
        if (spec_fields[i].alias != NULL && strcmp(spec_fields[i].alias, name) == 0)
            return &spec_fields[i];
    return NULL;
}

static bool is_given(const json_t *json, const char *name)
{
    return json_object_get(json_object_get(json, "scaling"), name) != NULL;
}

static enum err read_alias(const json_t *json, const char *name, const struct spec_field *field,
                           struct function_spec *s, struct error *e)
{
    const char *leaf = strchr(field->path, '.') + 1;
    const json_t *value = json_object_get(json, name);
    const json_t *twin = json_object_get(json_object_get(json, "scaling"), leaf);
    if (twin != NULL && !json_equal(value, twin))
        return error_field(e, ERR_INVALID, name,
                           "%s is given twice, also as %s, with another value", name, field->path);
    return spec_field_from_json(field, name, value, s, e);
}

static enum err read_scaling(const json_t *json, struct function_spec *s, struct error *e)
{
    if (!json_is_object(json))
        return error_field(e, ERR_INVALID, "scaling", "scaling must be an object");
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        char path[64];
        snprintf(path, sizeof(path), "scaling.%s", name);
        const struct spec_field *field = find_field(path);
        enum err err = field != NULL ? spec_field_from_json(field, path, value, s, e)
                                     : refuse_unknown(path, e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

static enum err read_field(const json_t *json, const char *name, struct function_spec *s,
                           struct error *e)
{
    const json_t *value = json_object_get(json, name);
    if (strcmp(name, "name") == 0)
        return read_name(value, s, e);
    if (strcmp(name, "command") == 0)
        return read_command(value, s, e);
    if (strcmp(name, "code") == 0)
        return read_code(value, s, e);
    if (strcmp(name, "env") == 0)
        return read_pairs(&env_rule, value, &s->env, &s->env_count, e);
    if (strcmp(name, "labels") == 0)
        return read_pairs(&label_rule, value, &s->labels, &s->label_count, e);
    if (strcmp(name, "scaling") == 0)
        return read_scaling(value, s, e);
    if (strcmp(name, "image") == 0)
        return error_field(e, ERR_UNSUPPORTED, "image",
                           "container images cannot be run yet: upload code and give a command");
    const struct spec_field *alias = find_alias(name);
    if (alias != NULL)
        return read_alias(json, name, alias, s, e);
    const struct spec_field *field = strchr(name, '.') == NULL ? find_field(name) : NULL;
    return field != NULL ? spec_field_from_json(field, name, value, s, e) : refuse_unknown(name, e);
}

/* A person who shortens one window means the shorter ones inside it, too. */
static void shrink_silent_windows(const json_t *json, struct scaling_policy *p)
{
    bool stable = is_given(json, "stable_window"), panic = is_given(json, "panic_window");
    if (stable && !panic)
        p->panic_window_ms = MIN(p->panic_window_ms, p->stable_window_ms);
    if ((stable || panic) && !is_given(json, "period"))
        p->period_ms = MIN(p->period_ms, p->panic_window_ms);
}

enum err function_spec_from_json(const json_t *json, struct function_spec *s, struct error *e)
{
    if (!json_is_object(json))
        return error_set(e, ERR_INVALID, "a function must be a JSON object");
    struct function_spec read;
    function_spec_copy(s, &read);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)json, name, value)
    {
        enum err err = read_field(json, name, &read, e);
        if (err != ERR_OK) {
            function_spec_done(&read);
            return err;
        }
    }
    shrink_silent_windows(json, &read.scaling);
    function_spec_done(s);
    *s = read; /* ownership leaves here */
    return ERR_OK;
}

static json_t *pairs_to_json(const struct env_var *items, uint32_t count)
{
    json_t *object = json_object();
    for (uint32_t i = 0; i < count; i++)
        json_object_set_new(object, items[i].name, json_string(items[i].value));
    return object;
}

json_t *function_spec_to_json(const struct function_spec *s)
{
    json_t *json = json_object(), *scaling = json_object(), *command = json_array();
    for (uint32_t i = 0; i < s->command_count; i++)
        json_array_append_new(command, json_string(s->command[i]));
    json_object_set_new(json, "name", json_string(s->name));
    json_object_set_new(json, "command", command);
    json_object_set_new(json, "code", json_string(s->code_digest));
    json_object_set_new(json, "env", pairs_to_json(s->env, s->env_count));
    for (size_t i = 0; i < spec_field_count; i++) {
        const char *dot = strchr(spec_fields[i].path, '.');
        json_object_set_new(dot != NULL ? scaling : json,
                            dot != NULL ? dot + 1 : spec_fields[i].path,
                            spec_field_to_json(&spec_fields[i], s));
    }
    json_object_set_new(json, "scaling", scaling);
    json_object_set_new(json, "labels", pairs_to_json(s->labels, s->label_count));
    return json;
}

/* ---- partial changes ---- */

/* `patch` merged into a copy of `base`, name by name. */
static json_t *merge_pairs(const json_t *base, const json_t *patch)
{
    json_t *merged = json_copy((json_t *)base);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)patch, name, value)
    {
        if (json_is_null(value))
            json_object_del(merged, name);
        else
            json_object_set(merged, name, value);
    }
    return merged;
}

/* What the patch means when it is read onto the spec: nulls are defaults, pairs are complete. */
static json_t *resolve_patch(const json_t *patch, const json_t *present, const json_t *standard)
{
    json_t *resolved = json_object();
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)patch, name, value)
    {
        const json_t *old = json_object_get(present, name);
        const json_t *plain = json_object_get(standard, name);
        bool pairs = strcmp(name, "env") == 0 || strcmp(name, "labels") == 0;
        const struct spec_field *alias = find_alias(name);
        if (plain == NULL && alias != NULL)
            plain = json_object_get(json_object_get(standard, "scaling"), name);
        if (json_is_null(value) && plain != NULL)
            json_object_set(resolved, name, (json_t *)plain);
        else if (pairs && json_is_object(value))
            json_object_set_new(resolved, name, merge_pairs(old, value));
        else if (strcmp(name, "scaling") == 0 && json_is_object(value))
            json_object_set_new(resolved, name, resolve_patch(value, old, plain));
        else
            json_object_set(resolved, name, value);
    }
    return resolved;
}

enum err function_spec_patch(struct function_spec *s, const json_t *patch, struct error *e)
{
    if (!json_is_object(patch))
        return error_set(e, ERR_INVALID, "a change must be a JSON object");
    cleanup(function_spec_done) struct function_spec plain, changed;
    function_spec_init(&plain);
    function_spec_copy(s, &changed);
    json_t *present = function_spec_to_json(s), *standard = function_spec_to_json(&plain);
    json_t *resolved = resolve_patch(patch, present, standard);
    enum err err = function_spec_from_json(resolved, &changed, e);
    json_decref(present);
    json_decref(standard);
    json_decref(resolved);
    if (err == ERR_OK)
        err = function_spec_check(&changed, e);
    if (err != ERR_OK)
        return err;
    struct function_spec old = *s;
    *s = changed; /* swapped: the old one leaves with `changed` */
    changed = old;
    return ERR_OK;
}
