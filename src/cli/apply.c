/* apply.c - `dirigent apply`: functions as files say they are. Each is complete: what a file does
 * not say has its default. All files are read and checked before anything is sent. */
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/rollout.h"
#include "cli/style.h"
#include "function/function_yaml.h"
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct apply_values {
    struct option_list files;
    bool no_wait;
};
static const struct option options[] = {
    {"filename", 'f', OPTION_LIST, "FILE.yaml", "functions in YAML; - is stdin",
     offsetof(struct apply_values, files)},
    {"no-wait", 0, OPTION_FLAG, "", "do not wait until they are ready",
     offsetof(struct apply_values, no_wait)},
};

/* One function of one file. */
struct wanted {
    const char *file;
    char *name;
    json_t *spec;
    struct code code;
};
struct plan {
    struct wanted *items;
    size_t count;
};

static void plan_done(struct plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        free(plan->items[i].name);
        json_decref(plan->items[i].spec);
        code_done(&plan->items[i].code);
    }
    free(plan->items);
    *plan = (struct plan){0};
}

/* ---- reading ---- */

static enum err read_stdin(char **ret_text, size_t *ret_bytes, struct error *e)
{
    struct buf text = {0};
    for (;;) {
        char *room = buf_reserve(&text, 64 * KIB);
        ssize_t n = read(STDIN_FILENO, room, 64 * KIB);
        if (n < 0)
            return error_errno(e, "read stdin");
        if (n == 0)
            break;
        text.bytes += (size_t)n;
        if (text.bytes > YAML_BYTES_MAX)
            return error_set(e, ERR_USAGE, "stdin is larger than %u bytes", YAML_BYTES_MAX);
    }
    *ret_bytes = text.bytes;
    *ret_text = buf_take_text(&text);
    return ERR_OK;
}

static enum err at_line(const char *file, const struct function_document *d, const char *field,
                        const struct error *inner, struct error *e)
{
    return error_set(e, ERR_USAGE, "%s:%u: %s%s%s", file, function_yaml_line(d, field),
                     strstr(inner->text, field) == NULL ? field : "",
                     strstr(inner->text, field) == NULL ? ": " : "", inner->text);
}

/* Takes `dir:` or `zip:` out; *ret_path is relative to the file, and NULL when there is none. */
static enum err take_path(const char *file, const struct function_document *d, const char *key,
                          char **ret_path, struct error *e)
{
    const json_t *value = json_object_get(d->json, key);
    *ret_path = NULL;
    if (value == NULL)
        return ERR_OK;
    const char *text = json_string_value(value);
    if (text == NULL || text[0] == '\0')
        return error_set(e, ERR_USAGE, "%s:%u: %s must be a path", file, function_yaml_line(d, key),
                         key);
    cleanup(free_pointer) char *copy = mem_strdup(file);
    if (text[0] == '/' || strcmp(file, "-") == 0)
        *ret_path = mem_strdup(text);
    else
        *ret_path = mem_printf("%s/%s", dirname(copy), text);
    json_object_del(d->json, key);
    return ERR_OK;
}

static enum err open_code(const char *file, const struct function_document *d, struct wanted *w,
                          struct error *e)
{
    cleanup(free_pointer) char *directory = NULL;
    cleanup(free_pointer) char *zip = NULL;
    struct error inner = {0};
    enum err err = take_path(file, d, "dir", &directory, e);
    if (err == ERR_OK)
        err = take_path(file, d, "zip", &zip, e);
    if (err != ERR_OK)
        return err;
    bool digest = json_object_get(d->json, "code") != NULL;
    if ((directory != NULL) + (zip != NULL) + digest > 1)
        return error_set(e, ERR_USAGE, "%s:%u: only one of dir, zip and code", file, d->line);
    const struct code_source source = {directory, zip};
    if (code_open(&source, &w->code, &inner) != ERR_OK)
        return at_line(file, d, directory != NULL ? "dir" : "zip", &inner, e);
    if (json_object_get(d->json, "command") == NULL && w->code.guessed != NULL)
        json_object_set_new(d->json, "command", json_string(w->code.guessed));
    return ERR_OK;
}

static enum err check_document(const char *file, const struct function_document *d, struct error *e)
{
    struct function_spec spec;
    struct error inner = {0};
    function_spec_init(&spec);
    enum err err = function_spec_from_json(d->json, &spec, &inner);
    if (err == ERR_OK)
        err = function_spec_check(&spec, &inner);
    function_spec_done(&spec);
    return err == ERR_OK ? ERR_OK : at_line(file, d, inner.field, &inner, e);
}

static enum err add_document(struct plan *plan, const char *file, const struct function_document *d,
                             struct error *e)
{
    plan->items = mem_resize(plan->items, plan->count + 1, sizeof(*plan->items));
    struct wanted *w = &plan->items[plan->count++];
    *w = (struct wanted){.file = file, .code = {.zip_fd = -1}};
    enum err err = open_code(file, d, w, e);
    if (err == ERR_OK)
        err = check_document(file, d, e);
    if (err != ERR_OK)
        return err;
    w->spec = json_incref(d->json);
    w->name = mem_strdup(json_text(d->json, "name"));
    for (size_t i = 0; i + 1 < plan->count; i++)
        if (strcmp(plan->items[i].name, w->name) == 0)
            return error_set(e, ERR_USAGE, "%s:%u: function '%s' is there twice", file,
                             function_yaml_line(d, "name"), w->name);
    return ERR_OK;
}

static enum err add_file(struct plan *plan, const char *file, struct error *e)
{
    cleanup(free_pointer) char *text = NULL;
    size_t bytes = 0;
    struct error inner = {0};
    struct function_file functions;
    enum err err = strcmp(file, "-") == 0 ? read_stdin(&text, &bytes, e)
                                          : file_read(file, YAML_BYTES_MAX, &text, &bytes, e);
    if (err != ERR_OK)
        return ERR_USAGE;
    if (function_yaml_parse((struct str){text, bytes}, &functions, &inner) != ERR_OK)
        return error_set(e, ERR_USAGE, "%s: %s", file, inner.text);
    for (size_t i = 0; err == ERR_OK && i < functions.count; i++)
        err = add_document(plan, file, &functions.items[i], e);
    function_file_done(&functions);
    return err;
}

/* ---- doing ---- */

static enum err apply_one(struct client *c, const struct apply_values *v, struct wanted *w,
                          enum output_format format, json_t *results, struct error *e)
{
    json_t *function = NULL;
    uint64_t wait_ms = v->no_wait ? 0 : rollout_wait_ms(w->spec, NULL);
    if (code_is_there(&w->code)) {
        cleanup(free_pointer) char *digest = NULL;
        enum err err = code_stage(c, w->name, &w->code, &digest, e);
        if (err != ERR_OK)
            return err;
        json_object_set_new(w->spec, "code", json_string(digest));
    }
    enum err err = rollout(c, "PUT", w->name, w->spec, wait_ms, &function, e);
    if (err != ERR_OK)
        return err;
    if (format == OUTPUT_TABLE)
        rollout_print(function, wait_ms > 0);
    json_array_append_new(results, function);
    return ERR_OK;
}

/* One that fails does not keep the others from being applied; the first failure is the result. */
static enum err apply_all(struct client *c, const struct apply_values *v, struct plan *plan,
                          enum output_format format, json_t *results, struct error *e)
{
    enum err result = ERR_OK;
    for (size_t i = 0; i < plan->count; i++) {
        struct error one = {0};
        enum err err = apply_one(c, v, &plan->items[i], format, results, &one);
        if (err == ERR_OK)
            continue;
        if (one.text[0] != '\0')
            error_prefix(&one, "function '%s'", plan->items[i].name);
        if (err == ERR_UNREACHABLE) { /* neither are the others */
            *e = one;
            return err;
        }
        if (one.text[0] != '\0')
            style_print_error(&one);
        result = result == ERR_OK ? err : result;
    }
    return result;
}

static enum err run_apply(const struct command_input *in, struct error *e)
{
    const struct apply_values *v = in->values;
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    cleanup(plan_done) struct plan plan = {0};
    if (v->files.count == 0)
        return error_set(e, ERR_USAGE, "which file? dirigent apply -f FILE.yaml");
    enum err err = ERR_OK;
    for (size_t i = 0; err == ERR_OK && i < v->files.count; i++)
        err = add_file(&plan, v->files.items[i], e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err != ERR_OK)
        return err;
    json_t *results = json_array();
    err = apply_all(&c, v, &plan, format, results, e);
    json_t *list = json_pack("{s:o}", "items", results);
    if (format != OUTPUT_TABLE)
        output_json(stdout, format, list);
    json_decref(list);
    return err;
}

const struct command command_apply = {
    .name = "apply",
    .arguments = "",
    .group = GROUP_DEPLOY,
    .summary = "create or update the functions of a file",
    .details = "A file holds one function or many (a list, or documents divided by ---). Each is "
               "said whole: what is\n"
               "left out has its default. `dir:` and `zip:` are relative to the file. Applying the "
               "same again changes nothing.\n\n"
               "  dirigent apply -f examples/apply.yaml",
    .options = options,
    .option_count = ARRAY_COUNT(options),
    .values_bytes = sizeof(struct apply_values),
    .is_client = true,
    .has_output = true,
    .run = run_apply};
