/* nodes.c - what operators do with workers and data planes: `dirigent worker
 * cordon|uncordon|drain|remove`, `dirigent data-plane remove`. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/style.h"
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOOK_EVERY_US (200u * US_PER_MS)

static enum err change(struct client *c, const char *kind, const char *name, const char *use,
                       json_t **ret_json, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("/v1/%s/%s", kind, name);
    json_t *body = use != NULL ? json_pack("{s:s}", "use", use) : NULL;
    enum err err = client_send(c, use != NULL ? "PATCH" : "DELETE", path, body, ret_json, e);
    json_decref(body);
    return err;
}

/* For all names given; goes on after one that fails. */
static enum err change_all(const struct command_input *in, struct client *c, const char *kind,
                           const char *use, const char *done, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    enum err result = ERR_OK;
    for (size_t i = 0; i < in->argument_count; i++)
        if (client_check_plain_name(in->arguments[i], e) != ERR_OK)
            return ERR_USAGE;
    json_t *items = json_array();
    for (size_t i = 0; i < in->argument_count; i++) {
        struct error one = {0};
        json_t *answer = NULL;
        enum err err = change(c, kind, in->arguments[i], use, &answer, &one);
        if (err == ERR_OK) {
            json_array_append_new(items, answer);
            if (format == OUTPUT_TABLE)
                printf("%s %s\n", in->arguments[i], done);
            continue;
        }
        style_print_error(&one);
        result = result == ERR_OK ? err : result;
        if (err == ERR_UNREACHABLE)
            break;
    }
    json_t *list = json_pack("{s:o}", "items", items);
    if (format != OUTPUT_TABLE)
        output_json(stdout, format, list);
    json_decref(list);
    return result;
}

static enum err run_change(const struct command_input *in, const char *kind, const char *use,
                           const char *done, struct error *e)
{
    cleanup(client_done) struct client c = {0};
    enum err err = client_open(&c, in, e);
    return err == ERR_OK ? change_all(in, &c, kind, use, done, e) : err;
}

static enum err run_cordon(const struct command_input *in, struct error *e)
{
    return run_change(in, "workers", "cordoned", "gets no new sandboxes", e);
}

static enum err run_uncordon(const struct command_input *in, struct error *e)
{
    return run_change(in, "workers", "all", "gets sandboxes again", e);
}

static enum err run_remove_worker(const struct command_input *in, struct error *e)
{
    return run_change(in, "workers", NULL, "removed", e);
}

static enum err run_remove_data_plane(const struct command_input *in, struct error *e)
{
    return run_change(in, "data-planes", NULL, "removed", e);
}

/* ---- drain: cordons, moves what serves, and waits until nothing is left ---- */

struct drain_values {
    bool no_wait;
    const char *timeout;
};

static enum err timeout_read(const char *text, uint64_t *ret_ms, struct error *e)
{
    char *rest = NULL;
    unsigned long long number = strtoull(text, &rest, 10);
    static const struct {
        const char *unit;
        uint64_t ms;
    } units[] = {{"s", 1000}, {"m", 60000}, {"h", 3600000}};
    for (size_t i = 0; i < ARRAY_COUNT(units); i++)
        if (isdigit((unsigned char)text[0]) && strcmp(rest, units[i].unit) == 0 &&
            number < 100000) {
            *ret_ms = number * units[i].ms;
            return ERR_OK;
        }
    return error_set(e, ERR_USAGE, "--timeout: '%.40s' is no duration such as 30s, 5m or 1h", text);
}

static enum err wait_empty(struct client *c, const char *name, uint64_t deadline_ms,
                           struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("/v1/workers/%s", name);
    for (;;) {
        json_t *worker = NULL;
        enum err err = client_get(c, path, &worker, e);
        if (err != ERR_OK)
            return err;
        uint64_t left = json_number(worker, "sandboxes");
        json_decref(worker);
        if (left == 0)
            return ERR_OK;
        if (clock_mono_ns() / NS_PER_MS >= deadline_ms)
            return error_set(e, ERR_TIMEOUT,
                             "worker '%s' still has %" PRIu64
                             " sandboxes: other workers may lack room for them, or requests "
                             "last longer; it goes on draining",
                             name, left);
        (void)usleep(LOOK_EVERY_US);
    }
}

static enum err run_drain(const struct command_input *in, struct error *e)
{
    const struct drain_values *values = in->values;
    cleanup(client_done) struct client c = {0};
    uint64_t timeout_ms = 0;
    enum err err = timeout_read(values->timeout != NULL ? values->timeout : "10m", &timeout_ms, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = change_all(in, &c, "workers", "draining", "drains", e);
    uint64_t deadline_ms = clock_mono_ns() / NS_PER_MS + timeout_ms;
    for (size_t i = 0; i < in->argument_count && err == ERR_OK && !values->no_wait; i++) {
        err = wait_empty(&c, in->arguments[i], deadline_ms, e);
        if (err == ERR_OK && output_format_of(in->common->output) == OUTPUT_TABLE)
            printf("%s is empty\n", in->arguments[i]);
    }
    return err;
}

static const struct option drain_options[] = {
    {"no-wait", 0, OPTION_FLAG, "", "do not wait until it is empty",
     offsetof(struct drain_values, no_wait)},
    {"timeout", 0, OPTION_TEXT, "DURATION", "how long to wait; 10m when not given",
     offsetof(struct drain_values, timeout)},
};

#define NODE_COMMAND(variable, words, text, run_it)             \
    const struct command variable = {.name = words,             \
                                     .arguments = "NAME...",    \
                                     .group = GROUP_RUN,        \
                                     .summary = text,           \
                                     .arguments_min = 1,        \
                                     .arguments_max = SIZE_MAX, \
                                     .is_client = true,         \
                                     .has_output = true,        \
                                     .run = run_it}
NODE_COMMAND(command_worker_cordon, "worker cordon", "give a worker no new sandboxes", run_cordon);
NODE_COMMAND(command_worker_uncordon, "worker uncordon",
             "give it sandboxes again, also after drain", run_uncordon);
NODE_COMMAND(command_worker_remove, "worker remove", "forget a worker that has stopped",
             run_remove_worker);
NODE_COMMAND(command_data_plane_remove, "data-plane remove", "forget a data plane that has stopped",
             run_remove_data_plane);
const struct command command_worker_drain = {
    .name = "worker drain",
    .arguments = "NAME...",
    .group = GROUP_RUN,
    .summary = "move its sandboxes to other workers",
    .details = "Its sandboxes serve on until others serve in their place; no request is lost. "
               "Without room elsewhere\n"
               "they stay. `dirigent worker uncordon NAME` ends it.",
    .arguments_min = 1,
    .arguments_max = SIZE_MAX,
    .options = drain_options,
    .option_count = ARRAY_COUNT(drain_options),
    .values_bytes = sizeof(struct drain_values),
    .is_client = true,
    .has_output = true,
    .run = run_drain};
