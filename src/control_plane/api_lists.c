/* api_lists.c - workers, data planes, sandboxes, status, health, metrics. */
#include "base/log.h"
#include "control_plane/api_internal.h"
#include "control_plane/blobs.h"
#include "control_plane/leadership.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static json_t *heard_json(uint64_t heard_ms_ago)
{
    return heard_ms_ago == UINT64_MAX ? json_null() : json_integer((json_int_t)heard_ms_ago);
}

/* ---- workers ---- */

static const char *worker_state_name(const struct worker_view *v)
{
    static const char *const names[] = {[WORKER_AWAITED] = "awaited",
                                        [WORKER_ALIVE] = "alive",
                                        [WORKER_SUSPECTED] = "suspected",
                                        [WORKER_DEAD] = "dead"};
    return names[v->state];
}

static json_t *worker_to_json(const struct control_plane *cp, const struct worker_view *v)
{
    struct peer_view peer = {.software = "", .heard_ms_ago = UINT64_MAX};
    (void)links_peer(cp->links, v->worker_id, &peer);
    return json_pack(
        "{s:I, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:o}",
        "id", (json_int_t)v->worker_id, "name", v->name, "state", worker_state_name(v), "address",
        peer.record != NULL ? peer.record->address : "", "software", peer.software, "cpu_milli",
        (json_int_t)v->cpu_milli, "cpu_reserved_milli", (json_int_t)v->cpu_reserved_milli,
        "cpu_used_milli", (json_int_t)peer.load.cpu_used_milli, "memory_bytes",
        (json_int_t)v->memory_bytes, "memory_reserved_bytes", (json_int_t)v->memory_reserved_bytes,
        "memory_used_bytes", (json_int_t)peer.load.memory_used_bytes, "slots", (json_int_t)v->slots,
        "sandboxes", (json_int_t)v->sandboxes, "blanks_ready", (json_int_t)peer.load.blanks_ready,
        "disk_free_bytes", (json_int_t)peer.load.disk_free_bytes, "use", worker_use_name(v->use),
        "heard_ms", heard_json(peer.heard_ms_ago));
}

void handle_workers_list(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    json_t *items = json_array();
    size_t cursor = 0;
    struct worker_view v;
    while (control_worker_next(cp->core, &cursor, &v))
        json_array_append_new(items, worker_to_json(cp, &v));
    answer_json(x, 200, json_pack("{s:o}", "items", items));
}

static bool worker_find(const struct control_plane *cp, const char *name, struct worker_view *ret)
{
    size_t cursor = 0;
    while (control_worker_next(cp->core, &cursor, ret))
        if (strcmp(ret->name, name) == 0)
            return true;
    return false;
}

void handle_worker_get(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct worker_view v;
    if (worker_find(cp, name, &v))
        answer_json(x, 200, worker_to_json(cp, &v));
    else
        answer_error_status(x, 404, err_name(ERR_NOT_FOUND), "there is no worker of this name",
                            "name");
}

struct peer_call { /* one change by an operator */
    struct control_plane *cp;
    struct http_exchange *x; /* NULL: the client went away */
    struct links_change change;
};

static void on_peer_changed(struct links_change *change, enum err err, const struct error *e)
{
    struct peer_call *call = container_of(change, struct peer_call, change);
    struct worker_view v;
    if (call->x != NULL && err != ERR_OK)
        answer_error(call->x, err, e);
    else if (call->x != NULL && !change->remove && worker_find(call->cp, change->name, &v))
        answer_json(call->x, 200, worker_to_json(call->cp, &v));
    else if (call->x != NULL)
        answer_json(call->x, 200, json_pack("{s:s}", "name", change->name));
    if (err == ERR_OK)
        log_info(change->is_worker ? "worker.changed" : "data_plane.changed",
                 LOG_STR("name", change->name),
                 LOG_STR("to", change->remove ? "removed" : worker_use_name(change->use)));
    free(call);
}

static void on_peer_client_gone(struct http_exchange *x, void *user)
{
    struct peer_call *call = user;
    if (call->change.links == NULL) /* not under way: its body is awaited */
        free(call);
    else
        call->x = NULL;
}

static struct peer_call *peer_call_new(struct control_plane *cp, struct http_exchange *x,
                                       const char *name, bool is_worker)
{
    struct peer_call *call = mem_new(sizeof(*call));
    call->cp = cp;
    call->x = x;
    call->change.is_worker = is_worker;
    call->change.on_done = on_peer_changed;
    (void)snprintf(call->change.name, sizeof(call->change.name), "%s", name);
    http_exchange_set_user(x, call, on_peer_client_gone);
    return call;
}

static void peer_remove(struct control_plane *cp, struct http_exchange *x, const char *name,
                        bool is_worker)
{
    struct peer_call *call = peer_call_new(cp, x, name, is_worker);
    call->change.remove = true;
    store_await(x);
    links_change(cp->links, &call->change);
}

void handle_worker_delete(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    peer_remove(cp, x, name, true);
}

void handle_data_plane_delete(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    peer_remove(cp, x, name, false);
}

/* {"use": "all" | "cordoned" | "draining"} and nothing else. */
static enum err read_use(struct str body, enum worker_use *ret_use, struct error *e)
{
    json_t *json = NULL, *value;
    const char *key, *use = NULL;
    enum err err = json_text_parse(body, &json, e);
    if (err == ERR_OK && !json_is_object(json))
        err = error_set(e, ERR_INVALID, "the body must be a JSON object with \"use\"");
    json_object_foreach(json, key, value)
    {
        if (err == ERR_OK && strcmp(key, "use") != 0)
            err = error_field(e, ERR_INVALID, key,
                              "there is no field '%.64s'; the one there is is \"use\"", key);
        use = json_string_value(value);
    }
    if (err == ERR_OK && (use == NULL || !worker_use_find(use, ret_use)))
        err =
            error_field(e, ERR_INVALID, "use", "use must be \"all\", \"cordoned\" or \"draining\"");
    json_decref(json);
    return err;
}

static void on_worker_body(struct http_exchange *x, void *user, enum err err, char *data,
                           size_t bytes)
{
    struct peer_call *call = user;
    struct error e = {0};
    if (err != ERR_OK)
        return; /* on_gone is next */
    err = read_use((struct str){data, bytes}, &call->change.use, &e);
    if (err == ERR_OK) {
        store_await(x);
        links_change(call->cp->links, &call->change);
        return;
    }
    answer_error(x, err, &e);
    free(call);
}

void handle_worker_patch(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct peer_call *call = peer_call_new(cp, x, name, true);
    http_exchange_read_body(x, 4096, on_worker_body, call);
}

/* ---- data planes ---- */

void handle_data_planes_list(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    json_t *items = json_array();
    size_t cursor = 0;
    struct peer_view v;
    while (links_peer_next(cp->links, &cursor, &v)) {
        char address[128];
        if (v.is_worker)
            continue;
        links_public_address(&v, address, sizeof(address));
        json_array_append_new(items, json_pack("{s:I, s:s, s:s, s:s, s:o, s:s, s:o}", "id",
                                               (json_int_t)v.record->id, "name", v.record->name,
                                               "state", v.connected ? "alive" : "dead",
                                               "listen_address", v.record->address, "url",
                                               json_sprintf("http://%s/", address), "software",
                                               v.software, "heard_ms", heard_json(v.heard_ms_ago)));
    }
    answer_json(x, 200, json_pack("{s:o}", "items", items));
}

/* ---- sandboxes ---- */

static const char *sandbox_state_name(enum sandbox_state state)
{
    static const char *const names[SANDBOX_STATE_COUNT] = {[SANDBOX_STARTING] = "starting",
                                                           [SANDBOX_READY] = "ready",
                                                           [SANDBOX_DRAINING] = "draining",
                                                           [SANDBOX_STOPPING] = "stopping",
                                                           [SANDBOX_GONE] = "gone"};
    return names[state];
}

static json_t *sandbox_to_json(const struct control_plane *cp, const struct sandbox_view *v)
{
    char id[24], started[40] = "";
    const struct function *f = registry_get(cp->registry, v->function_id);
    struct peer_view worker = {0};
    (void)links_peer(cp->links, v->worker_id, &worker);
    snprintf(id, sizeof(id), "%016" PRIx64, v->sandbox_id);
    if (v->started_at_ms > 0)
        text_of_time(v->started_at_ms, started, sizeof(started));
    return json_pack(
        "{s:s, s:s, s:I, s:s, s:s, s:s, s:I, s:s, s:I, s:I, s:I, s:I}", "id", id, "function",
        f != NULL ? f->record.latest.name : "", "version", (json_int_t)v->version, "worker",
        worker.record != NULL ? worker.record->name : "", "address",
        v->address->direct[0] != '\0' ? v->address->direct : v->address->host, "state",
        sandbox_state_name(v->state), "in_flight",
        (json_int_t)links_sandbox_in_flight(cp->links, v->sandbox_id), "started_at", started,
        "cold_start_us", (json_int_t)v->listen_us, "create_us", (json_int_t)v->create_us, "exec_us",
        (json_int_t)v->exec_us, "listen_us", (json_int_t)v->listen_us);
}

void handle_sandboxes_list(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    char wanted[FUNCTION_NAME_BYTES_MAX + 1];
    struct error e = {0};
    enum err err = query_get(x, "function", wanted, sizeof(wanted), &e);
    if (err != ERR_OK) {
        answer_error(x, err, &e);
        return;
    }
    const struct function *f = registry_find(cp->registry, str_of(wanted));
    json_t *items = json_array();
    size_t cursor = 0;
    struct sandbox_view v;
    while (control_sandbox_next(cp->core, &cursor, &v)) {
        bool shown = wanted[0] == '\0' || (f != NULL && f->record.id == v.function_id);
        if (shown && v.state != SANDBOX_GONE)
            json_array_append_new(items, sandbox_to_json(cp, &v));
    }
    answer_json(x, 200, json_pack("{s:o}", "items", items));
}

/* ---- numbers ---- */

static void count_sandboxes(const struct control_plane *cp, struct cluster_numbers *n)
{
    size_t cursor = 0;
    struct sandbox_view v;
    while (control_sandbox_next(cp->core, &cursor, &v)) {
        n->sandboxes_starting += v.state == SANDBOX_STARTING;
        n->sandboxes_ready += v.state == SANDBOX_READY;
        n->sandboxes_draining += v.state == SANDBOX_DRAINING;
        n->sandboxes_stopping += v.state == SANDBOX_STOPPING;
    }
}

static void count_peers(const struct control_plane *cp, struct cluster_numbers *n)
{
    size_t cursor = 0;
    struct peer_view peer;
    struct worker_view worker;
    while (links_peer_next(cp->links, &cursor, &peer)) {
        n->data_planes += !peer.is_worker;
        n->data_planes_alive += !peer.is_worker && peer.connected;
    }
    cursor = 0;
    while (control_worker_next(cp->core, &cursor, &worker)) {
        n->workers++;
        n->workers_alive += worker.state == WORKER_ALIVE;
    }
}

static void count_requests(const struct control_plane *cp, struct cluster_numbers *n)
{
    size_t cursor = 0;
    struct function_view v;
    while (control_function_next(cp->core, &cursor, &v)) {
        n->requests_in_flight += v.in_flight;
        n->requests_waiting += v.waiting;
    }
}

void cluster_numbers(const struct control_plane *cp, struct cluster_numbers *ret)
{
    struct cluster_numbers n = {0};
    struct store_numbers store = {0};
    count_sandboxes(cp, &n);
    count_peers(cp, &n);
    count_requests(cp, &n);
    store_numbers(cp->store, &store);
    n.functions = registry_count(cp->registry);
    n.code_archives = blobs_count(cp->blobs);
    n.code_bytes = blobs_bytes(cp->blobs);
    n.events = cp->events;
    n.orders = cp->orders_count;
    n.api_requests = cp->api->requests;
    n.store_writes = store.writes;
    n.store_transactions = store.transactions;
    n.store_failures = store.failures;
    n.store_commit_us_last = store.commit_us_last;
    n.store_commit_us_max = store.commit_us_max;
    n.epoch = cp->epoch;
    n.uptime_s = (loop_now_ns(cp->loop) - cp->started_ns) / NS_PER_S;
    n.ready = api_not_ready(cp)[0] == '\0';
    *ret = n;
}

const char *api_not_ready(const struct control_plane *cp)
{
    size_t awaited = control_awaited_workers(cp->core);
    return awaited > 0 ? "workers that are registered have not come back yet" : "";
}

/* ---- status and health ---- */

/* All replicas; with the embedded store there is this one. */
static json_t *control_planes_json(const struct control_plane *cp)
{
    json_t *items = json_array();
    struct member_view v = {.name = cp->name,
                            .api_address = api_address(cp->api),
                            .is_self = true,
                            .up = true,
                            .leads = true,
                            .epoch = cp->epoch,
                            .functions = registry_count(cp->registry),
                            .reaches_store = true,
                            .software = "dirigent " DIRIGENT_VERSION};
    size_t cursor = 0;
    bool more = cp->leadership == NULL || leadership_member_next(cp->leadership, &cursor, &v);
    while (more) {
        const char *state = !v.up                                ? "dead"
                            : v.heard_ms_ago > MEMBER_SUSPECT_MS ? "suspected"
                                                                 : "alive";
        json_t *one = json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:b, s:s}", "name", v.name, "api",
                                v.api_address, "state", state, "leads", v.leads, "epoch",
                                (json_int_t)v.epoch, "functions", (json_int_t)v.functions,
                                "store_reached", v.reaches_store, "software", v.software);
        if (v.up)
            json_object_set_new(one, "heard_ms", json_integer((json_int_t)v.heard_ms_ago));
        json_array_append_new(items, one);
        more = cp->leadership != NULL && leadership_member_next(cp->leadership, &cursor, &v);
    }
    return items;
}

void handle_status(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    struct cluster_numbers n;
    char started[40];
    cluster_numbers(cp, &n);
    text_of_time(cp->started_at_ms, started, sizeof(started));
    json_t *json = json_pack("{s:s, s:I, s:s, s:I, s:b, s:s, s:I, s:s, s:s}", "version",
                             DIRIGENT_VERSION, "epoch", (json_int_t)n.epoch, "started_at", started,
                             "uptime_s", (json_int_t)n.uptime_s, "ready", (int)n.ready, "reason",
                             api_not_ready(cp), "functions", (json_int_t)n.functions, "api",
                             api_address(cp->api), "cluster", links_address(cp->links));
    json_object_set_new(
        json, "sandboxes",
        json_pack("{s:I, s:I, s:I, s:I}", "starting", (json_int_t)n.sandboxes_starting, "ready",
                  (json_int_t)n.sandboxes_ready, "draining", (json_int_t)n.sandboxes_draining,
                  "stopping", (json_int_t)n.sandboxes_stopping));
    json_object_set_new(json, "workers",
                        json_pack("{s:I, s:I}", "alive", (json_int_t)n.workers_alive, "total",
                                  (json_int_t)n.workers));
    json_object_set_new(json, "data_planes",
                        json_pack("{s:I, s:I}", "alive", (json_int_t)n.data_planes_alive, "total",
                                  (json_int_t)n.data_planes));
    json_object_set_new(json, "requests",
                        json_pack("{s:I, s:I}", "in_flight", (json_int_t)n.requests_in_flight,
                                  "waiting", (json_int_t)n.requests_waiting));
    json_object_set_new(json, "code",
                        json_pack("{s:I, s:I}", "archives", (json_int_t)n.code_archives, "bytes",
                                  (json_int_t)n.code_bytes));
    json_object_set_new(json, "leader", json_string(cp->name));
    json_object_set_new(
        json, "store",
        json_pack("{s:s, s:b}", "kind", cp->settings.store, "reached",
                  cp->leadership == NULL || leadership_store_reached(cp->leadership)));
    json_object_set_new(json, "control_planes", control_planes_json(cp));
    answer_json(x, 200, json);
}

void handle_healthz(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    answer_text(x, 200, "ok\n");
}

void handle_readyz(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    const char *reason = api_not_ready(cp);
    if (reason[0] == '\0')
        answer_text(x, 200, "ready\n");
    else
        answer_error_status(x, 503, "not_ready", reason, NULL);
}

/* ---- metrics: Prometheus text exposition format 0.0.4 ---- */

struct metric {
    const char *name, *type, *help;
    size_t offset; /* in struct cluster_numbers */
    double factor;
};
#define METRIC(name, type, member, factor, help)                                       \
    {                                                                                  \
        "dirigent_" name, type, help, offsetof(struct cluster_numbers, member), factor \
    }
static const struct metric metrics[] = {
    METRIC("functions", "gauge", functions, 1, "registered functions"),
    METRIC("sandboxes_starting", "gauge", sandboxes_starting, 1,
           "sandboxes that do not listen yet"),
    METRIC("sandboxes_ready", "gauge", sandboxes_ready, 1, "sandboxes that take requests"),
    METRIC("sandboxes_draining", "gauge", sandboxes_draining, 1,
           "sandboxes that end their requests"),
    METRIC("sandboxes_stopping", "gauge", sandboxes_stopping, 1, "sandboxes told to stop"),
    METRIC("workers", "gauge", workers, 1, "registered workers"),
    METRIC("workers_alive", "gauge", workers_alive, 1, "workers that take sandboxes"),
    METRIC("data_planes", "gauge", data_planes, 1, "registered data planes"),
    METRIC("data_planes_alive", "gauge", data_planes_alive, 1, "connected data planes"),
    METRIC("requests_in_flight", "gauge", requests_in_flight, 1,
           "requests in sandboxes, as last reported"),
    METRIC("requests_waiting", "gauge", requests_waiting, 1,
           "requests that wait for a sandbox, as last reported"),
    METRIC("code_archives", "gauge", code_archives, 1, "archives of code kept"),
    METRIC("code_bytes", "gauge", code_bytes, 1, "their size"),
    METRIC("core_events_total", "counter", events, 1, "events given to the core"),
    METRIC("core_orders_total", "counter", orders, 1, "orders given by the core"),
    METRIC("api_requests_total", "counter", api_requests, 1, "requests to the HTTP API"),
    METRIC("store_writes_total", "counter", store_writes, 1, "registrations made durable"),
    METRIC("store_transactions_total", "counter", store_transactions, 1, "transactions they took"),
    METRIC("store_failures_total", "counter", store_failures, 1, "writes that failed"),
    METRIC("store_commit_seconds_last", "gauge", store_commit_us_last, 1e-6,
           "time of the last transaction"),
    METRIC("store_commit_seconds_max", "gauge", store_commit_us_max, 1e-6,
           "time of the slowest transaction"),
    METRIC("epoch", "gauge", epoch, 1, "number of this leadership"),
    METRIC("uptime_seconds", "gauge", uptime_s, 1, "time since the start"),
    METRIC("ready", "gauge", ready, 1, "1 when all known workers have been heard"),
};

static uint64_t resident_bytes(void)
{
    char *text = NULL;
    size_t bytes = 0;
    unsigned long long size = 0, resident = 0;
    if (file_read("/proc/self/statm", 4096, &text, &bytes, NULL) == ERR_OK)
        (void)!sscanf(text, "%llu %llu", &size, &resident);
    free(text);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Functions at rest are left out: there may be many, and nothing happens to them. */
static void write_function_metrics(const struct control_plane *cp, struct buf *out)
{
    size_t cursor = 0;
    struct function_view v;
    buf_printf(out,
               "# HELP dirigent_function_sandboxes sandboxes of functions that are not at rest\n"
               "# TYPE dirigent_function_sandboxes gauge\n");
    while (control_function_next(cp->core, &cursor, &v)) {
        if (v.wanted + v.starting + v.ready + v.draining + v.waiting == 0)
            continue;
        const char *name = v.spec->name;
        buf_printf(out, "dirigent_function_sandboxes{function=\"%s\",state=\"wanted\"} %u\n", name,
                   v.wanted);
        buf_printf(out, "dirigent_function_sandboxes{function=\"%s\",state=\"starting\"} %u\n",
                   name, v.starting);
        buf_printf(out, "dirigent_function_sandboxes{function=\"%s\",state=\"ready\"} %u\n", name,
                   v.ready);
        buf_printf(out, "dirigent_function_sandboxes{function=\"%s\",state=\"draining\"} %u\n",
                   name, v.draining);
    }
}

void handle_metrics(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    cleanup(buf_done) struct buf out = {0};
    struct cluster_numbers n;
    cluster_numbers(cp, &n);
    for (size_t i = 0; i < ARRAY_COUNT(metrics); i++) {
        const struct metric *m = &metrics[i];
        uint64_t value;
        memcpy(&value, (const char *)&n + m->offset, sizeof(value));
        buf_printf(&out, "# HELP %s %s\n# TYPE %s %s\n%s %.17g\n", m->name, m->help, m->name,
                   m->type, m->name, (double)value * m->factor);
    }
    buf_printf(&out,
               "# HELP process_resident_memory_bytes Resident memory size in bytes.\n"
               "# TYPE process_resident_memory_bytes gauge\n"
               "process_resident_memory_bytes %" PRIu64 "\n",
               resident_bytes());
    write_function_metrics(cp, &out);
    http_exchange_answer(x, 200, "text/plain; version=0.0.4; charset=utf-8", buf_str(&out), NULL);
}
