/* data_plane.c - the control thread: start and end, the connection to the control plane, routes and endpoints, demand. */
#include "data_plane/data_plane.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/privileges.h"
#include "base/program.h"
#include "base/settings.h"
#include "data_plane/internal.h"
#include "dirigent.pb-c.h"
#include "wire/link.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define REPORT_PERIOD_MS HEARTBEAT_PERIOD_MS
#define LOADS_PER_FUNCTION_MAX 256u
#define CONTROL_THREAD 0u /* calls of dispatch that name a thread come from here under the mutex only */

struct settings {
#define SETTING(key, type, default_text, help) SETTING_FIELD_##type(key)
#include "data_plane/data_plane_settings.def"
#undef SETTING
};
static const struct setting table[] = {
#define SETTING(key, type, default_text, help) SETTING_ROW(struct settings, key, type, default_text, help)
#include "data_plane/data_plane_settings.def"
#undef SETTING
};

struct control_side { /* the control thread's own */
    struct data_plane dp;
    struct settings settings;
    struct loop_signals signals;
    struct dialler *dialler;
    struct link *link;
    struct loop_timer report_timer, drain_timer;
    struct loop_deferred flush;
    struct map routes;      /* function id -> route */
    struct map endpoints;   /* sandbox id -> route it belongs to */
    Dirigent__ToControlPlane out;
    uint64_t epoch, sequence, report_count;
    bool welcome, in_snapshot, stopping;
    pthread_t *pthreads;
    char *data_dir, *run_dir;
    int data_lock, run_lock;
    /* memory rounds: what no thread can find any more is freed when every thread has been round its loop */
    struct round {
        struct dispatch_garbage **garbage;
        size_t count;
        _Atomic uint32_t left;
        struct loop_post done_post;
        bool running;
    } round;
};

static struct control_side *side_of(struct data_plane *dp)
{
    return container_of(dp, struct control_side, dp);
}

/* ---- failures ---- */

struct failure *failure_new(unsigned status, const char *code, const char *message, struct str output, unsigned retry_after_s)
{
    struct failure *f = mem_new(sizeof(*f));
    f->references = 1;
    f->status = status;
    f->retry_after_s = retry_after_s;
    f->code = mem_strdup(code);
    f->message = mem_strdup(message);
    f->output = mem_strndup(output.bytes > 0 ? output.data : "", output.bytes);
    return f;
}

void failure_release(struct failure *f)
{
    if (atomic_fetch_sub_explicit(&f->references, 1, memory_order_acq_rel) > 1)
        return;
    free(f->code);
    free(f->message);
    free(f->output);
    free(f);
}

/* ---- to the control plane ---- */

static void *grown(void *items, size_t count, size_t item_bytes)
{
    return (count & (count - 1)) == 0 ? mem_resize(items, MAX(count * 2, (size_t)4), item_bytes) : items;
}

static void out_clear(struct control_side *c)
{
    for (size_t i = 0; i < c->out.n_demands; i++)
        free(c->out.demands[i]);
    for (size_t i = 0; i < c->out.n_endpoint_failures; i++)
        dirigent__endpoint_failed__free_unpacked(c->out.endpoint_failures[i], NULL);
    for (size_t i = 0; i < c->out.n_sandbox_loads; i++)
        free(c->out.sandbox_loads[i]);
    free(c->out.demands);
    free(c->out.drained);
    free(c->out.endpoint_failures);
    free(c->out.sandbox_loads);
    dirigent__to_control_plane__init(&c->out);
}

static void on_flush(struct loop_deferred *d)
{
    struct control_side *c = container_of(d, struct control_side, flush);
    if (c->link != NULL && c->welcome && (c->out.n_demands | c->out.n_drained | c->out.n_endpoint_failures | c->out.n_sandbox_loads) != 0) {
        c->out.sequence = ++c->sequence;
        link_send(c->link, &c->out.base);
    }
    out_clear(c);
}

static void demand_put(struct control_side *c, struct route *r)
{
    struct dispatch_demand now;
    dispatch_demand(r->dispatch, &now);
    Dirigent__Demand *d = mem_new(sizeof(*d));
    dirigent__demand__init(d);
    d->function_id = r->function_id;
    d->in_flight = now.in_flight;
    d->waiting = now.waiting;
    d->requests_total = now.requests_total;
    d->in_flight_average = r->average;
    r->reported_nonzero = now.in_flight > 0 || now.waiting > 0 || r->average > 0;
    c->out.demands = grown(c->out.demands, c->out.n_demands, sizeof(void *));
    c->out.demands[c->out.n_demands++] = d;
    loop_defer(c->dp.loop, &c->flush);
}

static void on_demand_post(struct loop_post *post)
{
    struct route *r = container_of(post, struct route, demand_post);
    atomic_store_explicit(&r->demand_posted, false, memory_order_release);
    demand_put(side_of(r->dp), r);
    route_release(r);
}

void control_demand_now(struct route *r)
{
    if (atomic_exchange_explicit(&r->demand_posted, true, memory_order_acq_rel))
        return; /* told, and not looked at yet */
    atomic_fetch_add_explicit(&r->references, 1, memory_order_relaxed);
    loop_post(r->dp->loop, &r->demand_post);
}

struct news { /* of one sandbox, from a serving thread */
    struct loop_post post;
    struct control_side *side;
    uint64_t sandbox_id;
    char why[96]; /* "": drained */
};

static void on_news(struct loop_post *post)
{
    struct news *n = container_of(post, struct news, post);
    struct control_side *c = n->side;
    if (n->why[0] == '\0') {
        c->out.drained = grown(c->out.drained, c->out.n_drained, sizeof(uint64_t));
        c->out.drained[c->out.n_drained++] = n->sandbox_id;
    } else {
        Dirigent__EndpointFailed failed = DIRIGENT__ENDPOINT_FAILED__INIT;
        failed.sandbox_id = n->sandbox_id;
        failed.reason = n->why;
        uint8_t packed[256];
        size_t bytes = dirigent__endpoint_failed__pack(&failed, packed);
        c->out.endpoint_failures = grown(c->out.endpoint_failures, c->out.n_endpoint_failures, sizeof(void *));
        c->out.endpoint_failures[c->out.n_endpoint_failures++] = dirigent__endpoint_failed__unpack(NULL, bytes, packed);
        log_warn("endpoint.failed", LOG_U64("sandbox", n->sandbox_id), LOG_STR("why", n->why));
    }
    loop_defer(c->dp.loop, &c->flush);
    free(n);
}

static void news_post(struct data_plane *dp, uint64_t sandbox_id, const char *why)
{
    struct news *n = mem_new(sizeof(*n));
    n->post.on_post = on_news;
    n->side = side_of(dp);
    n->sandbox_id = sandbox_id;
    (void)snprintf(n->why, sizeof(n->why), "%s", why);
    loop_post(dp->loop, &n->post);
}

void control_endpoint_failed(struct data_plane *dp, uint64_t sandbox_id, const char *why)
{
    news_post(dp, sandbox_id, why[0] != '\0' ? why : "failed");
}

/* Any thread: a draining endpoint has no request left. */
static void on_idle(void *user, struct dispatch_endpoint *endpoint)
{
    struct route *r = user;
    news_post(r->dp, endpoint->sandbox_id, "");
}

/* What each sandbox of a function has in flight, for people who look. */
static void loads_put(struct control_side *c, struct route *r)
{
    struct dispatch_endpoint *endpoints[LOADS_PER_FUNCTION_MAX];
    size_t count = dispatch_endpoints(r->dispatch, endpoints, ARRAY_COUNT(endpoints));
    for (size_t i = 0; i < MIN(count, ARRAY_COUNT(endpoints)); i++) {
        Dirigent__SandboxLoad *load = mem_new(sizeof(*load));
        dirigent__sandbox_load__init(load);
        load->sandbox_id = endpoints[i]->sandbox_id;
        load->in_flight = dispatch_endpoint_in_flight(endpoints[i]);
        c->out.sandbox_loads = grown(c->out.sandbox_loads, c->out.n_sandbox_loads, sizeof(void *));
        c->out.sandbox_loads[c->out.n_sandbox_loads++] = load;
    }
}

static void on_report_timer(struct loop_timer *timer)
{
    struct control_side *c = container_of(timer, struct control_side, report_timer);
    size_t cursor = 0;
    loop_timer_start(c->dp.loop, timer, loop_now_ns(c->dp.loop) + REPORT_PERIOD_MS * NS_PER_MS);
    if (!c->welcome)
        return;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;) {
        bool active = atomic_exchange_explicit(&r->active, false, memory_order_relaxed);
        if (!active && !r->reported_nonzero)
            continue;
        r->average = dispatch_average(r->dispatch, loop_now_ns(c->dp.loop));
        demand_put(c, r);
        loads_put(c, r);
    }
}

/* ---- memory rounds ---- */

static void on_round_done(struct loop_post *post)
{
    struct round *round = container_of(post, struct round, done_post);
    for (size_t i = 0; i < round->count; i++)
        dispatch_garbage_free(round->garbage[i]);
    round->count = 0;
    round->running = false;
}

static void on_round(struct loop_post *post)
{
    struct serving *t = container_of(post, struct serving, round_post);
    struct round *round = &side_of(t->dp)->round;
    if (atomic_fetch_sub_explicit(&round->left, 1, memory_order_acq_rel) == 1)
        loop_post(t->dp->loop, &round->done_post);
}

static void round_begin(struct control_side *c)
{
    size_t cursor = 0;
    if (c->round.running)
        return;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;) {
        struct dispatch_garbage *g = dispatch_collect(r->dispatch);
        if (g == NULL)
            continue;
        c->round.garbage = grown(c->round.garbage, c->round.count, sizeof(void *));
        c->round.garbage[c->round.count++] = g;
    }
    if (c->round.count == 0)
        return;
    c->round.running = true;
    c->round.done_post.on_post = on_round_done;
    atomic_store(&c->round.left, c->dp.thread_count);
    for (uint32_t i = 0; i < c->dp.thread_count; i++) {
        c->dp.threads[i].round_post.on_post = on_round;
        loop_post(c->dp.threads[i].loop, &c->dp.threads[i].round_post);
    }
}

/* ---- routes ---- */

static void on_endpoint_free(void *user, struct dispatch_endpoint *endpoint)
{
    struct route *r = user;
    proxy_endpoint_free(endpoint, r->dp->thread_count);
}

void route_release(struct route *r)
{
    if (atomic_fetch_sub_explicit(&r->references, 1, memory_order_acq_rel) > 1)
        return;
    dispatch_free(r->dispatch);
    free(r->name);
    free(r);
}

struct table_change { /* one thread's table learns or forgets a route */
    struct loop_post post;
    struct serving *thread;
    struct route *route;
    bool add;
};

static void on_table_change(struct loop_post *post)
{
    struct table_change *ch = container_of(post, struct table_change, post);
    struct strmap *by_name = &ch->thread->by_name;
    struct str name = str_of(ch->route->name);
    if (ch->add) {
        struct route *old = strmap_get(by_name, name);
        strmap_put(by_name, name, ch->route); /* keeps the reference that came with the change */
        if (old != NULL)
            route_release(old);
    } else {
        if (strmap_get(by_name, name) == ch->route) {
            (void)strmap_remove(by_name, name);
            route_release(ch->route);
        }
        route_release(ch->route);
    }
    free(ch);
}

static void tables_change(struct control_side *c, struct route *r, bool add)
{
    for (uint32_t i = 0; i < c->dp.thread_count; i++) {
        struct table_change *ch = mem_new(sizeof(*ch));
        *ch = (struct table_change){.post.on_post = on_table_change, .thread = &c->dp.threads[i], .route = r, .add = add};
        atomic_fetch_add_explicit(&r->references, 1, memory_order_relaxed);
        loop_post(c->dp.threads[i].loop, &ch->post);
    }
}

static void route_put(struct control_side *c, const Dirigent__FunctionRoute *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    bool is_new = r == NULL;
    if (is_new) {
        r = mem_new(sizeof(*r));
        r->dp = &c->dp;
        r->references = 1;
        r->function_id = m->function_id;
        r->name = mem_strdup(m->name);
        r->demand_post.on_post = on_demand_post;
        r->dispatch = dispatch_new(&(struct dispatch_options){.concurrency = m->concurrency,
                                                              .queue_max = m->queue_max,
                                                              .policy = (enum dispatch_policy)MIN((unsigned)m->load_balancing, DISPATCH_POLICY_COUNT - 1u),
                                                              .threads = c->dp.thread_count,
                                                              .seed = m->function_id,
                                                              .on_idle = on_idle,
                                                              .on_free = on_endpoint_free,
                                                              .user = r});
        map_put(&c->routes, r->function_id, r);
    } else {
        dispatch_configure(r->dispatch, m->concurrency, m->queue_max, (enum dispatch_policy)MIN((unsigned)m->load_balancing, DISPATCH_POLICY_COUNT - 1u),
                           CONTROL_THREAD, loop_now_ns(c->dp.loop));
    }
    atomic_store(&r->timeout_ms, m->timeout_ms);
    atomic_store(&r->body_bytes_max, m->request_body_bytes_max > 0 ? m->request_body_bytes_max : UINT64_MAX);
    r->in_snapshot = true;
    if (is_new)
        tables_change(c, r, true);
}

/* Kept connections to an endpoint are closed on each thread, before its memory goes. */
struct pool_change {
    struct loop_post post;
    struct serving *thread;
    struct dispatch_endpoint *endpoint;
    struct route *route;
};

static void on_pool_change(struct loop_post *post)
{
    struct pool_change *ch = container_of(post, struct pool_change, post);
    proxy_pool_close(ch->endpoint, ch->thread->index);
    route_release(ch->route);
    free(ch);
}

static void pools_close(struct control_side *c, struct route *r, struct dispatch_endpoint *endpoint)
{
    for (uint32_t i = 0; i < c->dp.thread_count; i++) {
        struct pool_change *ch = mem_new(sizeof(*ch));
        *ch = (struct pool_change){.post.on_post = on_pool_change, .thread = &c->dp.threads[i], .endpoint = endpoint, .route = r};
        atomic_fetch_add_explicit(&r->references, 1, memory_order_relaxed);
        loop_post(c->dp.threads[i].loop, &ch->post);
    }
}

static void endpoint_remove(struct control_side *c, uint64_t sandbox_id)
{
    struct route *r = map_remove(&c->endpoints, sandbox_id);
    struct dispatch_endpoint *endpoint = r != NULL ? dispatch_endpoint_find(r->dispatch, sandbox_id) : NULL;
    if (endpoint == NULL)
        return;
    (void)dispatch_endpoint_remove(r->dispatch, sandbox_id);
    pools_close(c, r, endpoint); /* posted before the next memory round, so it runs before it */
}

static void endpoint_put(struct control_side *c, const Dirigent__Endpoint *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    struct error e = {0};
    if (r == NULL)
        return;
    if (map_get(&c->endpoints, m->sandbox_id) != NULL) {
        (void)dispatch_endpoint_admit(r->dispatch, m->sandbox_id, CONTROL_THREAD, loop_now_ns(c->dp.loop));
        return;
    }
    struct target *t = mem_new(sizeof(*t));
    if (address_parse(m->address, &t->address, &t->address_bytes, &e) != ERR_OK) {
        log_warn("endpoint.bad_address", LOG_STR("address", m->address));
        free(t);
        return;
    }
    t->route = r;
    t->added_ns = loop_now_ns(c->dp.loop);
    t->place_us = m->place_us;
    t->create_us = m->create_us;
    t->exec_us = m->exec_us;
    t->listen_us = m->listen_us;
    (void)snprintf(t->worker, sizeof(t->worker), "%s", m->worker);
    map_put(&c->endpoints, m->sandbox_id, r);
    if (!dispatch_endpoint_add(r->dispatch, m->sandbox_id, t, CONTROL_THREAD, t->added_ns))
        free(t);
}

static void route_remove(struct control_side *c, uint64_t function_id)
{
    struct route *r = map_get(&c->routes, function_id);
    if (r == NULL)
        return;
    struct failure *gone = failure_new(404, "function_deleted", "the function has been deleted", STR_NONE, 0);
    (void)dispatch_close(r->dispatch, ERR_NOT_FOUND, gone);
    failure_release(gone);
    tables_change(c, r, false);
    /* Its endpoints are drained or removed by name; what is left of them goes with it. */
    struct dispatch_endpoint *left[256];
    size_t count = dispatch_endpoints(r->dispatch, left, ARRAY_COUNT(left));
    for (size_t i = 0; i < MIN(count, ARRAY_COUNT(left)); i++) {
        pools_close(c, r, left[i]);
        if (dispatch_endpoint_in_flight(left[i]) == 0)
            endpoint_remove(c, left[i]->sandbox_id);
    }
    (void)map_remove(&c->routes, function_id);
    size_t cursor = 0;
    bool again = true;
    while (again) { /* endpoints that still serve: forgotten here, they live as long as the route */
        again = false;
        cursor = 0;
        for (size_t i = 0; i < c->endpoints.capacity; i++)
            if (c->endpoints.entries[i].value == r) {
                (void)map_remove(&c->endpoints, c->endpoints.entries[i].key);
                again = true;
                break;
            }
    }
    (void)cursor;
    route_release(r);
}

/* ---- from the control plane ---- */

static void snapshot_begin(struct control_side *c)
{
    size_t cursor = 0;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
        r->in_snapshot = false;
}

/* What a snapshot does not name is forgotten. */
static void snapshot_end(struct control_side *c, const Dirigent__FromControlPlane *m)
{
    struct map named = {0};
    for (size_t i = 0; i < m->n_endpoints; i++)
        map_put(&named, m->endpoints[i]->sandbox_id, m->endpoints[i]);
    uint64_t *gone = mem_new_array(c->endpoints.count + c->routes.count, sizeof(*gone));
    size_t count = 0, cursor = 0;
    for (size_t i = 0; i < c->endpoints.capacity; i++)
        if (c->endpoints.entries[i].value != NULL && map_get(&named, c->endpoints.entries[i].key) == NULL)
            gone[count++] = c->endpoints.entries[i].key;
    for (size_t i = 0; i < count; i++)
        endpoint_remove(c, gone[i]);
    count = 0;
    for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
        if (!r->in_snapshot)
            gone[count++] = r->function_id;
    for (size_t i = 0; i < count; i++)
        route_remove(c, gone[i]);
    free(gone);
    map_done(&named);
}

static void fail_waiting(struct control_side *c, const Dirigent__FailWaiting *m)
{
    struct route *r = map_get(&c->routes, m->function_id);
    if (r == NULL)
        return;
    struct failure *f = failure_new(m->status != 0 ? m->status : 502, m->code, m->message,
                                    (struct str){(const char *)m->last_output.data, m->last_output.len}, m->retry_after_s);
    (void)dispatch_fail_waiting(r->dispatch, ERR_FAILED, f);
    failure_release(f);
    demand_put(c, r);
}

static void drain(struct control_side *c, uint64_t sandbox_id)
{
    struct route *r = map_get(&c->endpoints, sandbox_id);
    if (r == NULL || !dispatch_endpoint_drain(r->dispatch, sandbox_id))
        news_post(&c->dp, sandbox_id, ""); /* not known here: nothing of it is in flight */
    else {
        struct dispatch_endpoint *endpoint = dispatch_endpoint_find(r->dispatch, sandbox_id);
        if (endpoint != NULL)
            pools_close(c, r, endpoint); /* kept connections would be cut by the stop */
    }
}

static void orders_take(struct control_side *c, const Dirigent__FromControlPlane *m)
{
    if (m->snapshot)
        snapshot_begin(c);
    for (size_t i = 0; i < m->n_routes; i++)
        route_put(c, m->routes[i]);
    for (size_t i = 0; i < m->n_endpoints; i++)
        endpoint_put(c, m->endpoints[i]);
    if (m->snapshot)
        snapshot_end(c, m);
    for (size_t i = 0; i < m->n_drain_sandboxes; i++)
        drain(c, m->drain_sandboxes[i]);
    for (size_t i = 0; i < m->n_remove_sandboxes; i++)
        endpoint_remove(c, m->remove_sandboxes[i]);
    for (size_t i = 0; i < m->n_removed_functions; i++)
        route_remove(c, m->removed_functions[i]);
    for (size_t i = 0; i < m->n_fail_waiting; i++)
        fail_waiting(c, m->fail_waiting[i]);
    for (size_t i = 0; i < m->n_want_demand; i++) {
        struct route *r = map_get(&c->routes, m->want_demand[i]);
        if (r != NULL)
            demand_put(c, r);
    }
    if (m->snapshot) { /* who waits here is news to a control plane that was away */
        size_t cursor = 0;
        for (struct route *r; (r = map_next(&c->routes, &cursor)) != NULL;)
            if (dispatch_waiting(r->dispatch) > 0 || r->reported_nonzero)
                demand_put(c, r);
    }
    round_begin(c);
}

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct control_side *c = user;
    Dirigent__FromControlPlane *m = dirigent__from_control_plane__unpack(NULL, bytes, data);
    if (m == NULL) {
        link_close(link, ERR_PROTOCOL, "a message could not be read");
        return;
    }
    if (m->epoch < c->epoch) {
        link_close(link, ERR_STALE, "orders of an older epoch");
    } else {
        c->epoch = m->epoch;
        if (m->welcome != NULL && m->welcome->refused[0] != '\0') {
            log_error("control_plane.refused", LOG_STR("why", m->welcome->refused));
        } else if (m->welcome != NULL) {
            c->welcome = true;
            link_set_timers(link, m->welcome->heartbeat_ms, m->welcome->dead_after_ms);
            atomic_store(&c->dp.connected, true);
            log_info("control_plane.joined", LOG_STR("name", c->dp.name), LOG_U64("epoch", c->epoch));
        }
        if (c->welcome)
            orders_take(c, m);
    }
    dirigent__from_control_plane__free_unpacked(m, NULL);
}

static void on_link_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct control_side *c = user;
    c->link = NULL;
    c->welcome = false;
    atomic_store(&c->dp.connected, false);
    if (!c->stopping)
        log_warn("control_plane.lost", LOG_STR("why", why));
}

static void on_up(struct dialler *d, void *user, struct link *link)
{
    struct control_side *c = user;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    c->link = link;
    c->sequence = 0;
    out_clear(c);
    hello.protocol_min = PROTOCOL_VERSION_MIN;
    hello.protocol_max = PROTOCOL_VERSION_MAX;
    hello.cluster = c->settings.cluster_name;
    hello.role = DIRIGENT__ROLE__ROLE_DATA_PLANE;
    hello.name = c->dp.name;
    hello.software = (char *)DIRIGENT_VERSION;
    hello.listen_address = c->settings.listen;
    uint64_t *known = mem_new_array(c->endpoints.count, sizeof(*known));
    for (size_t i = 0; i < c->endpoints.capacity; i++)
        if (c->endpoints.entries[i].value != NULL)
            known[hello.n_known_sandbox_ids++] = c->endpoints.entries[i].key;
    hello.known_sandbox_ids = known;
    m.hello = &hello;
    link_send(link, &m.base);
    free(known);
}

/* ---- metrics: any serving thread asks; counters are read without locks ---- */

void control_metrics(struct data_plane *dp, struct buf *out)
{
    struct counters sum = {0};
    for (uint32_t i = 0; i < dp->thread_count; i++) {
        const struct counters *k = &dp->threads[i].counters;
        sum.requests += atomic_load_explicit(&k->requests, memory_order_relaxed);
        sum.connections += atomic_load_explicit(&k->connections, memory_order_relaxed);
        sum.upstream_connects += atomic_load_explicit(&k->upstream_connects, memory_order_relaxed);
        sum.retries += atomic_load_explicit(&k->retries, memory_order_relaxed);
        sum.cold += atomic_load_explicit(&k->cold, memory_order_relaxed);
        for (unsigned s = 0; s < STATUS_CLASSES; s++)
            sum.answers[s] += atomic_load_explicit(&k->answers[s], memory_order_relaxed);
    }
    const struct {
        const char *name, *help;
        uint64_t value;
    } rows[] = {{"requests", "Requests whose head was read.", sum.requests},
                {"connections", "Connections of clients accepted.", sum.connections},
                {"upstream_connects", "Connections to sandboxes opened.", sum.upstream_connects},
                {"retries", "Requests tried again at another sandbox.", sum.retries},
                {"cold_starts", "Requests that waited for a sandbox to start.", sum.cold}};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++)
        buf_printf(out, "# HELP dirigent_data_plane_%s_total %s\n# TYPE dirigent_data_plane_%s_total counter\ndirigent_data_plane_%s_total %" PRIu64 "\n",
                   rows[i].name, rows[i].help, rows[i].name, rows[i].name, rows[i].value);
    buf_printf(out, "# HELP dirigent_data_plane_answers_total Answers by class of status.\n# TYPE dirigent_data_plane_answers_total counter\n");
    for (unsigned s = 1; s < STATUS_CLASSES; s++)
        buf_printf(out, "dirigent_data_plane_answers_total{code=\"%uxx\"} %llu\n", s, (unsigned long long)sum.answers[s]);
    buf_printf(out, "# HELP dirigent_data_plane_connected Whether the control plane is reached.\n# TYPE dirigent_data_plane_connected gauge\n"
                    "dirigent_data_plane_connected %d\n", atomic_load(&dp->connected));
}

/* ---- serving threads ---- */

static void on_thread_stop(struct loop_post *post)
{
    struct serving *t = container_of(post, struct serving, stop_post);
    loop_listener_stop(&t->listener);
    proxy_drain(t);
    control_client_gone(t->dp);
}

static void on_thread_end(struct loop_post *post)
{
    loop_stop(container_of(post, struct serving, end_post)->loop);
}

static void *thread_run(void *argument)
{
    struct serving *t = argument;
    loop_run(t->loop);
    return NULL;
}

static void on_drained_check(struct loop_post *post)
{
    struct control_side *c = container_of(post, struct control_side, dp.drained_post);
    atomic_store(&c->dp.drained_posted, false);
    uint32_t left = 0;
    for (uint32_t i = 0; i < c->dp.thread_count; i++)
        left += __atomic_load_n(&c->dp.threads[i].client_count, __ATOMIC_RELAXED);
    if (left == 0)
        loop_stop(c->dp.loop);
}

/* A thread that drains has one client less, or has just begun. */
void control_client_gone(struct data_plane *dp)
{
    if (!atomic_exchange(&dp->drained_posted, true))
        loop_post(dp->loop, &dp->drained_post);
}

static void on_drain_deadline(struct loop_timer *timer)
{
    struct control_side *c = container_of(timer, struct control_side, drain_timer);
    log_warn("data_plane.drain", LOG_STR("why", "requests outlived the drain deadline"));
    loop_stop(c->dp.loop);
}

static void on_signal(struct loop_signals *s, int signo)
{
    struct control_side *c = container_of(s, struct control_side, signals);
    if (c->stopping) {
        loop_stop(c->dp.loop);
        return;
    }
    c->stopping = true;
    log_info("data_plane.draining", LOG_I64("signal", signo));
    loop_timer_start(c->dp.loop, &c->drain_timer, loop_now_ns(c->dp.loop) + c->settings.drain_deadline * NS_PER_MS);
    for (uint32_t i = 0; i < c->dp.thread_count; i++)
        loop_post(c->dp.threads[i].loop, &c->dp.threads[i].stop_post);
}

static enum err threads_make(struct control_side *c, struct error *e)
{
    uint32_t count = (uint32_t)c->settings.threads;
    if (c->settings.threads > DISPATCH_THREADS_MAX)
        return error_field(e, ERR_USAGE, "threads", "--threads: more than %u", DISPATCH_THREADS_MAX);
    if (count == 0)
        count = (uint32_t)MIN(sysconf(_SC_NPROCESSORS_ONLN), (long)DISPATCH_THREADS_MAX);
    c->dp.threads = mem_new_array(count, sizeof(*c->dp.threads));
    c->pthreads = mem_new_array(count, sizeof(*c->pthreads));
    c->dp.thread_count = count;
    for (uint32_t i = 0; i < count; i++) {
        struct serving *t = &c->dp.threads[i];
        int fd;
        t->dp = &c->dp;
        t->index = i;
        t->listener.on_accept = proxy_on_accept;
        t->stop_post.on_post = on_thread_stop;
        t->end_post.on_post = on_thread_end;
        list_init(&t->clients);
        rng_init(&t->rng, clock_mono_ns() + i);
        enum err err = loop_new(&t->loop, e);
        if (err == ERR_OK)
            err = socket_listen(c->settings.listen, count > 1, &fd, e);
        if (err == ERR_OK)
            err = loop_listener_start(t->loop, &t->listener, fd, e);
        if (err != ERR_OK)
            return err;
    }
    return ERR_OK;
}

static void name_find(struct control_side *c)
{
    char host[48] = "data-plane";
    if (c->settings.name[0] != '\0') {
        (void)snprintf(c->dp.name, sizeof(c->dp.name), "%s", c->settings.name);
        return;
    }
    (void)gethostname(host, sizeof(host) - 1);
    (void)snprintf(c->dp.name, sizeof(c->dp.name), "%s-%s", host, strrchr(c->settings.listen, ':') + 1);
}

static enum err start(struct control_side *c, struct error *e)
{
    static const int signals[] = {SIGTERM, SIGINT};
    static const struct dialler_callbacks callbacks = {.on_up = on_up, .link = {.on_frame = on_frame, .on_closed = on_link_closed}};
    uid_t uid;
    gid_t gid;
    struct rlimit files;
    enum err err = privileges_resolve(c->settings.user, PRIVILEGES_UID_DATA_PLANE, &uid, &gid, e);
    if (err == ERR_OK)
        err = program_dir_open(c->settings.data_dir, "data-plane", uid, gid, &c->data_dir, &c->data_lock, e);
    if (err == ERR_OK)
        err = program_dir_open(c->settings.run_dir, "data-plane", uid, gid, &c->run_dir, &c->run_lock, e);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    if (err == ERR_OK)
        err = loop_new(&c->dp.loop, e);
    c->signals.on_signal = on_signal;
    if (err == ERR_OK)
        err = loop_signals_start(c->dp.loop, &c->signals, signals, ARRAY_COUNT(signals), e);
    if (err == ERR_OK)
        err = threads_make(c, e);
    if (err == ERR_OK)
        err = privileges_drop(uid, gid, e);
    if (err == ERR_OK)
        err = dialler_new(c->dp.loop, c->settings.control_plane, &callbacks, c, &c->dialler, e);
    for (uint32_t i = 0; err == ERR_OK && i < c->dp.thread_count; i++)
        if (pthread_create(&c->pthreads[i], NULL, thread_run, &c->dp.threads[i]) != 0)
            err = error_set(e, ERR_NO_MEMORY, "start a thread");
    return err;
}

static enum log_level level_of(const char *text)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0)
            return (enum log_level)i;
    return LOG_LEVEL_INFO;
}

static void end(struct control_side *c)
{
    if (c->link != NULL && c->welcome) {
        Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
        m.goodbye = true;
        link_send(c->link, &m.base);
        loop_run_once(c->dp.loop, 0);
    }
    /* Not the stop_post: a thread may not have come to that one yet, and a node can wait only once. */
    for (uint32_t i = 0; i < c->dp.thread_count; i++)
        loop_post(c->dp.threads[i].loop, &c->dp.threads[i].end_post);
    for (uint32_t i = 0; i < c->dp.thread_count; i++)
        (void)pthread_join(c->pthreads[i], NULL);
    /* Connections that are left end with the process. */
}

int data_plane_main(int argc, char **argv)
{
    static struct control_side c = {.data_lock = -1, .run_lock = -1};
    struct error e = {0};
    enum err err = settings_load("data-plane", "Takes calls of functions and passes them to sandboxes.", table, ARRAY_COUNT(table), argc, argv,
                                 &c.settings, &e);
    if (err == ERR_END)
        return 0;
    dirigent__to_control_plane__init(&c.out);
    c.flush.on_turn_end = on_flush;
    c.dp.drained_post.on_post = on_drained_check;
    loop_timer_init(&c.report_timer, on_report_timer);
    loop_timer_init(&c.drain_timer, on_drain_deadline);
    if (err == ERR_OK) {
        log_init("data-plane", level_of(c.settings.log_level));
        (void)signal(SIGPIPE, SIG_IGN);
        name_find(&c);
        err = start(&c, &e);
    }
    if (err != ERR_OK) {
        fprintf(stderr, "dirigent data-plane: %s\n", e.text);
        return err_exit_code(err);
    }
    log_info("data_plane.up", LOG_STR("listen", c.settings.listen), LOG_U64("threads", c.dp.thread_count));
    loop_timer_start(c.dp.loop, &c.report_timer, loop_now_ns(c.dp.loop) + REPORT_PERIOD_MS * NS_PER_MS);
    loop_run(c.dp.loop);
    end(&c);
    log_info("data_plane.stopped", LOG_STR("name", c.dp.name));
    return 0;
}
