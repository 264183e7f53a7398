/* deploy.c - `dirigent deploy`: creates or updates one function. What is not said stays as it is.
 */
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/rollout.h"
#include "cli/spec_flags.h"
#include "cli/style.h"
#include "function/function.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct deploy_values {
    struct spec_flags s;
    const char *directory, *zip, *image, *command, *wait;
    bool no_wait;
};

static const struct option options[] = {
    {"dir", 0, OPTION_TEXT, "PATH", "a directory to upload; .dirigentignore leaves files out",
     offsetof(struct deploy_values, directory)},
    {"zip", 0, OPTION_TEXT, "FILE", "an archive to upload: zip, tar, tar.gz, tar.xz or tar.zst",
     offsetof(struct deploy_values, zip)},
    {"image", 0, OPTION_TEXT, "REF", "a container image (not yet)",
     offsetof(struct deploy_values, image)},
    {"command", 0, OPTION_TEXT, "COMMAND",
     "what runs it: 'python3 app.py' (guessed from the files)",
     offsetof(struct deploy_values, command)},
    {"env", 'e', OPTION_LIST, "K=V", "environment; K copies it from here, K- takes it away",
     offsetof(struct deploy_values, s.env)},
    {"env-file", 0, OPTION_LIST, "FILE", "environment: lines K=V",
     offsetof(struct deploy_values, s.env_files)},
    {"label", 'l', OPTION_LIST, "K=V", "for people; K- takes it away",
     offsetof(struct deploy_values, s.labels)},
#define SPEC_FLAG(member, flag, letter, kind, field, argument, help) \
    SPEC_OPTION_ROW(deploy_values, flag, letter, argument, help, member),
#include "cli/spec_flags.def"
#undef SPEC_FLAG
    {"wait", 0, OPTION_TEXT, "DURATION",
     "longest wait for the version to be ready (start deadline + 30s)",
     offsetof(struct deploy_values, wait)},
    {"no-wait", 0, OPTION_FLAG, "", "do not wait until it is ready",
     offsetof(struct deploy_values, no_wait)},
};

static enum err check_values(const struct deploy_values *v, const char *name, uint64_t *ret_wait_ms,
                             struct error *e)
{
    struct error inner = {0};
    uint32_t wait_ms = 0;
    if (client_check_name(name, e) != ERR_OK)
        return ERR_USAGE;
    if (v->image != NULL)
        return error_set(e, ERR_USAGE,
                         "--image: container images cannot be run yet; use --dir or --zip");
    if (v->directory != NULL && v->zip != NULL)
        return error_set(e, ERR_USAGE, "--dir and --zip: the code comes from one of them");
    if (v->no_wait && v->wait != NULL)
        return error_set(e, ERR_USAGE, "--wait and --no-wait contradict each other");
    if (v->wait != NULL && parse_duration_ms(str_of(v->wait), &wait_ms, &inner) != ERR_OK)
        return error_set(e, ERR_USAGE, "--wait: %s", inner.text);
    if (v->wait != NULL && (wait_ms == 0 || wait_ms > 3600000))
        return error_set(e, ERR_USAGE, "--wait: from 1ms to 1h");
    *ret_wait_ms = wait_ms;
    return ERR_OK;
}

/* *ret_old stays NULL when there is no such function. */
static enum err get_function(struct client *c, const char *name, json_t **ret_old, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("/v1/functions/%s", name);
    cleanup(answer_done) struct answer answer = {0};
    struct client_call call = {.method = "GET", .path = path};
    enum err err = client_call(c, &call, &answer, e);
    if (err != ERR_OK)
        return err;
    const char *code = json_text(json_object_get(answer.json, "error"), "code");
    if (answer.status == 404 && strcmp(code, "not_found") == 0)
        return ERR_OK;
    err = answer_check(c, &answer, e);
    if (err == ERR_OK)
        *ret_old = json_incref(answer.json);
    return err;
}

static char *join_command(const json_t *spec)
{
    struct buf text = {0};
    const json_t *command = json_object_get(spec, "command");
    for (size_t i = 0; i < json_array_size(command); i++)
        buf_printf(&text, "%s%s", i > 0 ? " " : "", json_string_value(json_array_get(command, i)));
    return buf_take_text(&text);
}

/* Says what runs when nobody said it. */
static enum err choose_command(const struct deploy_values *v, const struct code *code,
                               const json_t *old, json_t *spec, struct error *e)
{
    if (v->command != NULL) {
        char **words;
        uint32_t count;
        struct error inner = {0};
        if (parse_command_line(str_of(v->command), &words, &count, &inner) != ERR_OK)
            return error_set(e, ERR_USAGE, "--command: %s", inner.text);
        for (uint32_t i = 0; i < count; i++)
            free(words[i]);
        free(words);
        if (count == 0)
            return error_set(e, ERR_USAGE, "--command is empty");
        json_object_set_new(spec, "command", json_string(v->command));
        return ERR_OK;
    }
    if (old != NULL) {
        cleanup(free_pointer) char *kept = join_command(json_object_get(old, "spec"));
        if (code->guessed != NULL && strcmp(kept, code->guessed) != 0 && code_is_there(code))
            style_print_note("its command stays '%s'; --command changes it", kept);
        return ERR_OK;
    }
    if (code->guessed != NULL) {
        fprintf(stderr, "command: %s (guessed from %s)\n", code->guessed, code->guessed_from);
        json_object_set_new(spec, "command", json_string(code->guessed));
        return ERR_OK;
    }
    if (!code_is_there(code))
        return error_set(
            e, ERR_USAGE,
            "where is the code? --dir PATH or --zip FILE, or --command of a program of the host");
    return error_set(
        e, ERR_USAGE,
        "--command is missing: what runs it could not be guessed (there is no Procfile, app.py, "
        "main.py, index.js, server.js, executable 'server' or 'bootstrap')");
}

/* A new function has to be whole: what is wrong with it is found before the upload. */
static enum err check_whole(const char *name, const json_t *spec, struct error *e)
{
    struct function_spec whole;
    struct error inner = {0};
    function_spec_init(&whole);
    (void)snprintf(whole.name, sizeof(whole.name), "%s", name);
    enum err err = function_spec_from_json(spec, &whole, &inner);
    if (err == ERR_OK)
        err = function_spec_check(&whole, &inner);
    function_spec_done(&whole);
    if (err == ERR_OK)
        return ERR_OK;
    const char *flag = spec_flag_of_field(inner.field);
    return error_set(e, ERR_USAGE, "%s%s%s%s", flag != NULL ? "--" : "", flag != NULL ? flag : "",
                     flag != NULL ? ": " : "", inner.text);
}

static void drop_nulls(json_t *spec, const char *field)
{
    const char *name;
    json_t *value;
    void *next;
    json_object_foreach_safe(json_object_get(spec, field), next, name, value)
    {
        if (json_is_null(value))
            json_object_del(json_object_get(spec, field), name);
    }
}

static enum err deploy(struct client *c, const struct command_input *in, const char *name,
                       struct code *code, json_t *spec, const json_t *old, uint64_t wait_ms,
                       struct error *e)
{
    const struct deploy_values *v = in->values;
    cleanup(free_pointer) char *digest = NULL;
    json_t *function = NULL;
    enum output_format format = output_format_of(in->common->output);
    if (code_is_there(code)) {
        enum err err = code_stage(c, name, code, &digest, e);
        if (err != ERR_OK)
            return err;
        json_object_set_new(spec, "code", json_string(digest));
    }
    if (v->no_wait)
        wait_ms = 0;
    else if (wait_ms == 0)
        wait_ms = rollout_wait_ms(spec, json_object_get(old, "spec"));
    enum err err = rollout(c, old != NULL ? "PATCH" : "PUT", name, spec, wait_ms, &function, e);
    if (err != ERR_OK) {
        uint64_t active = json_number(old, "active_version");
        if (old != NULL && active > 0 && e->text[0] == '\0')
            fprintf(stderr, "version %" PRIu64 " serves on\n", active);
        return err;
    }
    if (format == OUTPUT_TABLE)
        rollout_print(function, wait_ms > 0);
    else
        output_json(stdout, format, function);
    json_decref(function);
    return ERR_OK;
}

static enum err run_deploy(const struct command_input *in, struct error *e)
{
    const struct deploy_values *v = in->values;
    const char *name = in->arguments[0];
    const struct code_source source = {v->directory, v->zip};
    cleanup(client_done) struct client c = {0};
    struct code code = {.zip_fd = -1};
    json_t *spec = NULL, *old = NULL;
    uint64_t wait_ms = 0;
    enum err err = check_values(v, name, &wait_ms, e);
    if (err == ERR_OK)
        err = spec_flags_to_json(&v->s, &spec, e);
    if (err == ERR_OK)
        err = code_open(&source, &code, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = get_function(&c, name, &old, e);
    if (err == ERR_OK)
        err = choose_command(v, &code, old, spec, e);
    if (err == ERR_OK && old == NULL) {
        drop_nulls(spec, "env");
        drop_nulls(spec, "labels");
        err = check_whole(name, spec, e);
    }
    if (err == ERR_OK)
        err = deploy(&c, in, name, &code, spec, old, wait_ms, e);
    json_decref(spec);
    json_decref(old);
    code_done(&code);
    return err;
}

const struct command command_deploy = {
    .name = "deploy",
    .arguments = "NAME",
    .group = GROUP_DEPLOY,
    .summary = "create or update a function and wait until it is ready",
    .details = "What is not said stays as it was. Updating proves the new version first; the old "
               "one serves\n"
               "until then, and on when the new one does not start.\n\n"
               "  dirigent deploy hello --dir examples/python\n"
               "  dirigent deploy hello -e GREETING=hi --memory 128Mi --concurrency 10",
    .arguments_min = 1,
    .arguments_max = 1,
    .options = options,
    .option_count = ARRAY_COUNT(options),
    .values_bytes = sizeof(struct deploy_values),
    .is_client = true,
    .has_output = true,
    .run = run_deploy};
