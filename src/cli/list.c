/* list.c - the listings: functions, sandboxes, workers, data planes. Each is one table of columns.
 */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/style.h"
#include <stdio.h>
#include <string.h>

typedef void print_row(struct table *t, const json_t *item, uint64_t now_ms);
struct listing {
    const char *path, *titles, *when_empty;
    print_row *row;
};

static enum err run_listing(const struct command_input *in, const struct listing *l,
                            const char *path, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *json = NULL, *item;
    size_t i;
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, path, &json, e);
    if (err != ERR_OK)
        return err;
    json_t *items = json_object_get(json, "items");
    if (format != OUTPUT_TABLE) {
        output_json(stdout, format, json);
    } else if (json_array_size(items) == 0) {
        fprintf(stderr, "%s\n", l->when_empty);
    } else {
        struct table *t = table_new(l->titles);
        json_array_foreach(items, i, item)
        {
            l->row(t, item, clock_real_ms());
        }
        table_print(t, stdout);
        table_free(t);
    }
    json_decref(json);
    return ERR_OK;
}

static void state_cell(struct table *t, const json_t *item)
{
    const char *state = json_text(item, "state");
    table_cell(t, style_of_state(state), "%s", state);
}

static void number_cell(struct table *t, const json_t *item, const char *key)
{
    uint64_t number = json_number(item, key);
    table_cell(t, number == 0 ? STYLE_DIM : STYLE_PLAIN, "%" PRIu64, number);
}

static void age_cell(struct table *t, const json_t *item, const char *key, uint64_t now_ms)
{
    char text[HUMAN_BYTES_MAX];
    table_cell(t, STYLE_PLAIN, "%s", human_age_of(json_text(item, key), now_ms, text));
}

/* ---- functions ---- */

static void function_row(struct table *t, const json_t *f, uint64_t now_ms)
{
    const char *url = json_string_value(json_array_get(json_object_get(f, "urls"), 0));
    table_cell(t, STYLE_BOLD, "%s", json_text(f, "name"));
    state_cell(t, f);
    number_cell(t, f, "ready");
    number_cell(t, f, "wanted");
    number_cell(t, f, "in_flight");
    number_cell(t, f, "waiting");
    table_cell(t, STYLE_PLAIN, "%" PRIu64, json_number(f, "version"));
    age_cell(t, f, "updated_at", now_ms);
    table_cell(t, STYLE_CYAN, "%s", url != NULL ? url : "-");
}

static enum err run_list(const struct command_input *in, struct error *e)
{
    static const struct listing listing = {
        "/v1/functions", "NAME|STATE|>READY|>WANTED|>IN FLIGHT|>WAITING|>VERSION|>UPDATED|URL",
        "no functions; `dirigent deploy NAME --dir PATH` makes one", function_row};
    return run_listing(in, &listing, listing.path, e);
}

const struct command command_list = {.name = "list",
                                     .alias = "ls",
                                     .arguments = "",
                                     .group = GROUP_LOOK,
                                     .summary = "all functions",
                                     .is_client = true,
                                     .has_output = true,
                                     .run = run_list};

/* ---- sandboxes ---- */

static void sandbox_row(struct table *t, const json_t *s, uint64_t now_ms)
{
    char cold[HUMAN_BYTES_MAX];
    table_cell(t, STYLE_PLAIN, "%s", json_text(s, "id"));
    table_cell(t, STYLE_BOLD, "%s", json_text(s, "function"));
    table_cell(t, STYLE_PLAIN, "%" PRIu64, json_number(s, "version"));
    state_cell(t, s);
    number_cell(t, s, "in_flight");
    uint64_t us = json_number(s, "cold_start_us");
    table_cell(t, STYLE_PLAIN, "%s", us > 0 ? human_duration_us(us, cold) : "-");
    age_cell(t, s, "started_at", now_ms);
    table_cell(t, STYLE_PLAIN, "%s", json_text(s, "address"));
    table_cell(t, STYLE_PLAIN, "%s", json_text(s, "worker"));
}

static enum err run_sandboxes(const struct command_input *in, struct error *e)
{
    static const struct listing listing = {
        "/v1/sandboxes", "ID|FUNCTION|>VERSION|STATE|>IN FLIGHT|>COLD START|>AGE|ADDRESS|WORKER",
        "no sandboxes: nothing is being called", sandbox_row};
    if (in->argument_count == 0)
        return run_listing(in, &listing, listing.path, e);
    enum err err = client_check_name(in->arguments[0], e);
    if (err != ERR_OK)
        return err;
    cleanup(free_pointer) char *path = mem_printf("%s?function=%s", listing.path, in->arguments[0]);
    return run_listing(in, &listing, path, e);
}

const struct command command_sandboxes = {.name = "sandboxes",
                                          .alias = "ps",
                                          .arguments = "[NAME]",
                                          .group = GROUP_LOOK,
                                          .summary = "what runs now, of all functions or of one",
                                          .arguments_max = 1,
                                          .is_client = true,
                                          .has_output = true,
                                          .run = run_sandboxes};

/* ---- workers and data planes ---- */

static void heard_cell(struct table *t, const json_t *item)
{
    char text[HUMAN_BYTES_MAX];
    const json_t *heard = json_object_get(item, "heard_ms");
    if (json_is_integer(heard))
        table_cell(t, STYLE_PLAIN, "%s ago",
                   human_duration_us(json_number(item, "heard_ms") * US_PER_MS, text));
    else
        table_cell(t, STYLE_DIM, "never");
}

static void worker_row(struct table *t, const json_t *w, uint64_t now_ms)
{
    char a[HUMAN_BYTES_MAX], b[HUMAN_BYTES_MAX];
    (void)now_ms;
    const char *state = json_text(w, "state"), *use = json_text(w, "use");
    bool restricted = use[0] != '\0' && strcmp(use, "all") != 0;
    table_cell(t, STYLE_BOLD, "%s", json_text(w, "name"));
    table_cell(t, restricted ? STYLE_YELLOW : style_of_state(state), "%s%s%s", state,
               restricted ? ", " : "", restricted ? use : "");
    table_cell(t, STYLE_PLAIN, "%" PRIu64 " of %" PRIu64, json_number(w, "sandboxes"),
               json_number(w, "slots"));
    table_cell(t, STYLE_PLAIN, "%s of %s", human_cpu(json_number(w, "cpu_reserved_milli"), a),
               human_cpu(json_number(w, "cpu_milli"), b));
    table_cell(t, STYLE_PLAIN, "%s of %s", human_bytes(json_number(w, "memory_reserved_bytes"), a),
               human_bytes(json_number(w, "memory_bytes"), b));
    number_cell(t, w, "blanks_ready");
    table_cell(t, STYLE_PLAIN, "%s", human_bytes(json_number(w, "disk_free_bytes"), a));
    heard_cell(t, w);
    table_cell(t, STYLE_PLAIN, "%s", json_text(w, "address"));
}

static enum err run_workers(const struct command_input *in, struct error *e)
{
    static const struct listing listing = {
        "/v1/workers",
        "NAME|STATE|>SANDBOXES|>CPU RESERVED|>MEMORY RESERVED|>BLANKS|>DISK FREE|>HEARD|ADDRESS",
        "no workers", worker_row};
    return run_listing(in, &listing, listing.path, e);
}

const struct command command_workers = {.name = "workers",
                                        .arguments = "",
                                        .group = GROUP_LOOK,
                                        .summary = "the hosts that run sandboxes, and their room",
                                        .is_client = true,
                                        .has_output = true,
                                        .run = run_workers};

static void data_plane_row(struct table *t, const json_t *d, uint64_t now_ms)
{
    (void)now_ms;
    table_cell(t, STYLE_BOLD, "%s", json_text(d, "name"));
    state_cell(t, d);
    heard_cell(t, d);
    table_cell(t, STYLE_CYAN, "%s", json_text(d, "url"));
    table_cell(t, STYLE_PLAIN, "%s", json_text(d, "software"));
}

static enum err run_data_planes(const struct command_input *in, struct error *e)
{
    static const struct listing listing = {"/v1/data-planes", "NAME|STATE|>HEARD|URL|SOFTWARE",
                                           "no data planes", data_plane_row};
    return run_listing(in, &listing, listing.path, e);
}

const struct command command_data_planes = {.name = "data-planes",
                                            .arguments = "",
                                            .group = GROUP_LOOK,
                                            .summary = "what takes the calls of functions",
                                            .is_client = true,
                                            .has_output = true,
                                            .run = run_data_planes};
