/* describe.c - `dirigent describe`: all about one function; and `dirigent status`: all about the
 * cluster. */
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/rollout.h"
#include "cli/style.h"
#include "function/function.h"
#include <stdio.h>
#include <string.h>

static void print_key(const char *key)
{
    printf("%s%-14s%s ", style_begin(stdout, STYLE_DIM), key, style_end(stdout));
}

static void print_text(const char *key, const char *text)
{
    if (text[0] == '\0')
        return;
    print_key(key);
    for (; *text != '\0'; text++)
        fputc((unsigned char)*text < ' ' ? ' ' : *text, stdout);
    fputc('\n', stdout);
}

/* A value of a spec as a person reads it. */
static void print_value(const char *key, const json_t *value)
{
    print_key(key);
    if (json_is_string(value))
        printf("%s\n", json_string_value(value));
    else if (json_is_real(value))
        printf("%g\n", json_real_value(value));
    else if (json_is_integer(value))
        printf("%" PRId64 "\n", (int64_t)json_integer_value(value));
    else
        printf("%s\n", json_is_true(value) ? "yes" : "no");
}

static void print_pairs(const char *key, const json_t *pairs)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)pairs, name, value)
    {
        print_key(key);
        printf("%s=%s\n", name, json_string_value(value));
        key = "";
    }
}

static void print_command(const json_t *command)
{
    print_key("command");
    for (size_t i = 0; i < json_array_size(command); i++) {
        const char *word = json_string_value(json_array_get(command, i));
        bool quote = word[0] == '\0' || strpbrk(word, " \t\n'\"\\$") != NULL;
        printf("%s%s%s%s", i > 0 ? " " : "", quote ? "'" : "", word, quote ? "'" : "");
    }
    printf("\n");
}

static void print_spec(const json_t *spec)
{
    const char *key;
    json_t *value;
    print_command(json_object_get(spec, "command"));
    print_text("code", json_text(spec, "code"));
    print_pairs("env", json_object_get(spec, "env"));
    print_pairs("labels", json_object_get(spec, "labels"));
    json_object_foreach((json_t *)spec, key, value)
    {
        if (!json_is_object(value) && !json_is_array(value) && strcmp(key, "name") != 0 &&
            strcmp(key, "code") != 0)
            print_value(key, value);
    }
    printf("%sscaling%s\n", style_begin(stdout, STYLE_BOLD), style_end(stdout));
    json_object_foreach(json_object_get(spec, "scaling"), key, value)
    {
        char padded[64];
        (void)snprintf(padded, sizeof(padded), "  %-26s", key);
        print_value(padded, value);
    }
}

static void print_sandboxes(const json_t *items)
{
    char cold[HUMAN_BYTES_MAX], age[HUMAN_BYTES_MAX];
    if (json_array_size(items) == 0)
        return;
    struct table *t = table_new("  SANDBOX|>VERSION|STATE|>IN FLIGHT|>COLD START|>AGE|ADDRESS");
    for (size_t i = 0; i < json_array_size(items); i++) {
        const json_t *s = json_array_get(items, i);
        const char *state = json_text(s, "state");
        uint64_t us = json_number(s, "cold_start_us");
        table_cell(t, STYLE_PLAIN, "  %s", json_text(s, "id"));
        table_cell(t, STYLE_PLAIN, "%" PRIu64, json_number(s, "version"));
        table_cell(t, style_of_state(state), "%s", state);
        table_cell(t, STYLE_PLAIN, "%" PRIu64, json_number(s, "in_flight"));
        table_cell(t, STYLE_PLAIN, "%s", us > 0 ? human_duration_us(us, cold) : "-");
        table_cell(t, STYLE_PLAIN, "%s",
                   human_age_of(json_text(s, "started_at"), clock_real_ms(), age));
        table_cell(t, STYLE_PLAIN, "%s", json_text(s, "address"));
    }
    table_print(t, stdout);
    table_free(t);
}

/* "out of memory, 3m ago (version 1, sandbox 0000000100000003)" */
static void print_last_exit(const json_t *exit)
{
    char age[HUMAN_BYTES_MAX], reason[64];
    if (!json_is_object(exit))
        return;
    (void)snprintf(reason, sizeof(reason), "%s", json_text(exit, "reason"));
    for (char *c = reason; *c != '\0'; c++)
        *c = *c == '_' ? ' ' : *c;
    print_key("last exit");
    printf("%s", reason);
    if (json_object_get(exit, "exit_code") != NULL)
        printf(" with code %" PRIi64,
               (int64_t)json_integer_value(json_object_get(exit, "exit_code")));
    if (json_object_get(exit, "signal") != NULL)
        printf(" by signal %" PRIu64, json_number(exit, "signal"));
    printf(", %s ago (version %" PRIu64 ", sandbox %s)\n",
           human_age_of(json_text(exit, "at"), clock_real_ms(), age), json_number(exit, "version"),
           json_text(exit, "sandbox"));
}

static void print_function(const json_t *f, const json_t *sandboxes)
{
    char age[HUMAN_BYTES_MAX];
    const char *state = json_text(f, "state");
    uint64_t version = json_number(f, "version"), active = json_number(f, "active_version");
    printf("%s%s%s  %s%s%s\n", style_begin(stdout, STYLE_BOLD), json_text(f, "name"),
           style_end(stdout), style_begin(stdout, style_of_state(state)), state, style_end(stdout));
    print_text("failure", json_text(f, "failure"));
    for (size_t i = 0; i < json_array_size(json_object_get(f, "urls")); i++)
        print_text(i == 0 ? "url" : "",
                   json_string_value(json_array_get(json_object_get(f, "urls"), i)));
    print_key("version");
    printf("%" PRIu64, version);
    if (active != version && active > 0)
        printf(" (version %" PRIu64 " serves)", active);
    printf(", changed %s ago\n", human_age_of(json_text(f, "updated_at"), clock_real_ms(), age));
    print_key("sandboxes");
    printf("%" PRIu64 " ready, %" PRIu64 " starting, %" PRIu64 " draining; %" PRIu64
           " wanted (min %" PRIu64 ", max %" PRIu64 ")\n",
           json_number(f, "ready"), json_number(f, "starting"), json_number(f, "draining"),
           json_number(f, "wanted"), json_number(f, "min"), json_number(f, "max"));
    print_key("requests");
    printf("%" PRIu64 " in flight, %" PRIu64 " waiting\n", json_number(f, "in_flight"),
           json_number(f, "waiting"));
    print_last_exit(json_object_get(f, "last_exit"));
    print_spec(json_object_get(f, "spec"));
    print_sandboxes(sandboxes);
}

static enum err run_describe(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    const char *name = in->arguments[0];
    cleanup(client_done) struct client c = {0};
    json_t *function = NULL, *list = NULL;
    cleanup(free_pointer) char *path = mem_printf("/v1/functions/%s", name);
    cleanup(free_pointer) char *list_path = mem_printf("/v1/sandboxes?function=%s", name);
    enum err err = client_check_name(name, e);
    if (err == ERR_OK)
        err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, path, &function, e);
    if (err == ERR_OK && format == OUTPUT_TABLE)
        err = client_get(&c, list_path, &list, e);
    if (err == ERR_OK && format == OUTPUT_TABLE)
        print_function(function, json_object_get(list, "items"));
    else if (err == ERR_OK)
        output_json(stdout, format, function);
    json_decref(function);
    json_decref(list);
    return err;
}

const struct command command_describe = {.name = "describe",
                                         .alias = "inspect",
                                         .arguments = "NAME",
                                         .group = GROUP_LOOK,
                                         .summary = "all about one function",
                                         .arguments_min = 1,
                                         .arguments_max = 1,
                                         .is_client = true,
                                         .has_output = true,
                                         .run = run_describe};

/* ---- status ---- */

static void print_alive(const char *key, const json_t *counts)
{
    uint64_t alive = json_number(counts, "alive"), total = json_number(counts, "total");
    print_key(key);
    enum style style = alive == total && total > 0 ? STYLE_GREEN : STYLE_RED;
    printf("%s%" PRIu64 " of %" PRIu64 " alive%s\n", style_begin(stdout, style), alive, total,
           style_end(stdout));
}

static void print_control_plane(const json_t *status, const json_t *one)
{
    const char *state = json_text(one, "state");
    bool alive = strcmp(state, "alive") == 0, dead = strcmp(state, "dead") == 0;
    uint64_t has = json_number(one, "functions"), all = json_number(status, "functions");
    printf("%s%s%s%s", style_begin(stdout, alive ? STYLE_PLAIN : STYLE_RED), json_text(one, "name"),
           style_end(stdout),
           json_is_true(json_object_get(one, "leads")) ? ", leads"
           : alive                                     ? ", stands by"
           : dead                                      ? ", not reached"
                                                       : ", suspected");
    if (!dead && strcmp(json_text(one, "name"), json_text(status, "leader")) != 0)
        printf(", heard %" PRIu64 " ms ago, epoch %" PRIu64, json_number(one, "heard_ms"),
               json_number(one, "epoch"));
    if (!dead && has < all)
        printf(", %" PRIu64 " functions behind", all - has);
    if (!dead && !json_is_true(json_object_get(one, "store_reached")))
        printf(", does not reach the store");
    printf("%s%s\n", dead ? "" : ", ", dead ? "" : json_text(one, "software"));
}

/* Nothing where there is one control plane with the embedded store. */
static void print_control_planes(const json_t *s)
{
    const json_t *all = json_object_get(s, "control_planes"), *store = json_object_get(s, "store");
    json_t *one;
    size_t i;
    if (strcmp(json_text(store, "kind"), "etcd") != 0)
        return;
    json_array_foreach(all, i, one)
    {
        print_key(i == 0 ? "control planes" : "");
        print_control_plane(s, one);
    }
    bool reached = json_is_true(json_object_get(store, "reached"));
    print_text("store", reached ? "etcd" : "etcd, which is not reached: registrations fail");
}

static void print_status(const char *api, const json_t *s)
{
    char text[HUMAN_BYTES_MAX];
    const json_t *sandboxes = json_object_get(s, "sandboxes"),
                 *requests = json_object_get(s, "requests");
    const json_t *code = json_object_get(s, "code");
    bool ready = json_is_true(json_object_get(s, "ready"));
    print_key("cluster");
    printf("%s%s%s%s%s, up %s, version %s, epoch %" PRIu64 "\n",
           style_begin(stdout, ready ? STYLE_GREEN : STYLE_YELLOW), ready ? "ready" : "not ready",
           style_end(stdout), ready ? "" : ": ", ready ? "" : json_text(s, "reason"),
           human_age_ms(json_number(s, "uptime_s") * MS_PER_S, text), json_text(s, "version"),
           json_number(s, "epoch"));
    print_control_planes(s);
    print_alive("workers", json_object_get(s, "workers"));
    print_alive("data planes", json_object_get(s, "data_planes"));
    print_key("functions");
    printf("%" PRIu64 "\n", json_number(s, "functions"));
    print_key("sandboxes");
    printf("%" PRIu64 " ready, %" PRIu64 " starting, %" PRIu64 " draining, %" PRIu64 " stopping\n",
           json_number(sandboxes, "ready"), json_number(sandboxes, "starting"),
           json_number(sandboxes, "draining"), json_number(sandboxes, "stopping"));
    print_key("requests");
    printf("%" PRIu64 " in flight, %" PRIu64 " waiting\n", json_number(requests, "in_flight"),
           json_number(requests, "waiting"));
    print_key("code");
    printf("%" PRIu64 " archives, %s\n", json_number(code, "archives"),
           human_bytes(json_number(code, "bytes"), text));
    print_text("api", api);
    print_text("cluster port", json_text(s, "cluster"));
}

static enum err run_status(const struct command_input *in, struct error *e)
{
    enum output_format format = output_format_of(in->common->output);
    cleanup(client_done) struct client c = {0};
    json_t *status = NULL;
    enum err err = client_open(&c, in, e);
    if (err == ERR_OK)
        err = client_get(&c, "/v1/status", &status, e);
    if (err == ERR_OK && format == OUTPUT_TABLE)
        print_status(c.api, status);
    else if (err == ERR_OK)
        output_json(stdout, format, status);
    json_decref(status);
    return err;
}

const struct command command_status = {.name = "status",
                                       .arguments = "",
                                       .group = GROUP_LOOK,
                                       .summary = "the cluster in numbers",
                                       .is_client = true,
                                       .has_output = true,
                                       .run = run_status};
