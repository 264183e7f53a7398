/* own.c - the data plane's own pages, for requests whose Host names no function: health, readiness,
 * metrics. */
#include "data_plane/proxy.h"
#include <stdio.h>

bool own_is_page(struct str path)
{
    return str_equal(path, STR("/healthz")) || str_equal(path, STR("/health")) ||
           str_equal(path, STR("/readyz")) || str_equal(path, STR("/metrics"));
}

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* ---- of all threads ---- */

static uint64_t sum(const struct thread_shared *shared, size_t offset)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < shared->thread_count; i++)
        total += get(
            (const _Atomic uint64_t *)((const char *)thread_counters(shared->threads[i]) + offset));
    return total;
}

static void write_counters(struct buf *out, const struct thread_shared *shared)
{
    static const struct {
        const char *name, *type, *help;
        size_t offset;
    } table[] = {
#define ROW(name, type, help, field) {name, type, help, offsetof(struct thread_counters, field)}
        ROW("dirigent_data_plane_connections", "gauge", "connections of clients", connections),
        ROW("dirigent_data_plane_connections_accepted_total", "counter", "connections accepted",
            accepted),
        ROW("dirigent_data_plane_connections_refused_total", "counter",
            "connections closed for want of room", refused),
        ROW("dirigent_data_plane_requests_total", "counter", "heads of requests read", requests),
        ROW("dirigent_data_plane_parse_errors_total", "counter", "requests refused as malformed",
            parse_errors),
        ROW("dirigent_data_plane_upstream_connects_total", "counter",
            "connections made to sandboxes", upstream_connects),
        ROW("dirigent_data_plane_upstream_connect_failures_total", "counter",
            "connections to sandboxes that failed", upstream_connect_failures),
        ROW("dirigent_data_plane_received_bytes_total", "counter", "bytes from clients", bytes_in),
        ROW("dirigent_data_plane_sent_bytes_total", "counter", "bytes to clients", bytes_out),
#undef ROW
    };
    for (size_t i = 0; i < ARRAY_COUNT(table); i++)
        buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n%s %" PRIu64 "\n", table[i].name,
                   table[i].help, table[i].name, table[i].type, table[i].name,
                   sum(shared, table[i].offset));
    buf_printf(out,
               "# HELP dirigent_data_plane_errors_total answers that the data plane made itself\n"
               "# TYPE dirigent_data_plane_errors_total counter\n");
    for (enum answer a = 0; a < ANSWER_COUNT; a++)
        buf_printf(
            out, "dirigent_data_plane_errors_total{code=\"%s\"} %" PRIu64 "\n", answer_code(a),
            sum(shared, offsetof(struct thread_counters, errors) + a * sizeof(_Atomic uint64_t)));
    buf_printf(out,
               "# TYPE dirigent_data_plane_control_plane_up "
               "gauge\ndirigent_data_plane_control_plane_up %d\n",
               atomic_load(&shared->control_plane_up));
}

/* ---- of each function ---- */

struct function_sum {
    const char *name;
    uint64_t answers[STATUS_CLASSES], cold, retries, cut;
    uint64_t total[HISTOGRAM_BOUNDS + 1], total_ns, wait[HISTOGRAM_BOUNDS + 1], wait_ns;
};

static void add_histogram(const struct histogram *h, uint64_t *buckets, uint64_t *ns)
{
    for (uint32_t i = 0; i <= HISTOGRAM_BOUNDS; i++)
        buckets[i] += get(&h->buckets[i]);
    *ns += get(&h->sum_ns);
}

/* False when it never served a request. */
static bool sum_function(struct thread *t, const struct route *r, struct function_sum *ret)
{
    bool any = false;
    *ret = (struct function_sum){.name = r->name};
    for (uint32_t i = 0; i < t->shared->thread_count; i++) {
        const struct route_stats *s = atomic_load_explicit(&r->stats[i], memory_order_acquire);
        if (s == NULL)
            continue;
        any = true;
        for (uint32_t k = 0; k < STATUS_CLASSES; k++)
            ret->answers[k] += get(&s->answers[k]);
        ret->cold += get(&s->cold);
        ret->retries += get(&s->retries);
        ret->cut += get(&s->cut);
        add_histogram(&s->total, ret->total, &ret->total_ns);
        add_histogram(&s->wait, ret->wait, &ret->wait_ns);
    }
    return any;
}

static void write_histogram(struct buf *out, const char *metric, const char *function,
                            const uint64_t *buckets, uint64_t ns)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i <= HISTOGRAM_BOUNDS; i++) {
        total += buckets[i];
        buf_printf(out, "%s_bucket{function=\"%s\",le=\"", metric, function);
        if (i < HISTOGRAM_BOUNDS)
            buf_printf(out, "%g\"} %" PRIu64 "\n", (double)histogram_bounds_us[i] / 1e6, total);
        else
            buf_printf(out, "+Inf\"} %" PRIu64 "\n", total);
    }
    buf_printf(out, "%s_sum{function=\"%s\"} %.9f\n%s_count{function=\"%s\"} %" PRIu64 "\n", metric,
               function, (double)ns / 1e9, metric, function, total);
}

static void write_function(struct buf *out, struct thread *t, const struct route *r)
{
    static const char *const classes[STATUS_CLASSES] = {"gone", "1xx", "2xx", "3xx", "4xx", "5xx"};
    struct function_sum s;
    struct dispatch_demand demand;
    bool served = sum_function(t, r, &s);
    dispatch_demand(r->dispatch, &demand);
    if (!served && demand.waiting == 0)
        return;
    for (uint32_t k = 0; k < STATUS_CLASSES; k++)
        buf_printf(out,
                   "dirigent_function_requests_total{function=\"%s\",status=\"%s\"} %" PRIu64 "\n",
                   s.name, classes[k], s.answers[k]);
    buf_printf(out,
               "dirigent_function_cold_requests_total{function=\"%s\"} %" PRIu64 "\n"
               "dirigent_function_retries_total{function=\"%s\"} %" PRIu64 "\n"
               "dirigent_function_cut_answers_total{function=\"%s\"} %" PRIu64 "\n"
               "dirigent_function_in_flight{function=\"%s\"} %u\n"
               "dirigent_function_waiting{function=\"%s\"} %u\n"
               "dirigent_function_endpoints{function=\"%s\"} %u\n",
               s.name, s.cold, s.name, s.retries, s.name, s.cut, s.name, demand.in_flight, s.name,
               demand.waiting, s.name, demand.endpoints_ready);
    write_histogram(out, "dirigent_function_request_seconds", s.name, s.total, s.total_ns);
    write_histogram(out, "dirigent_function_wait_seconds", s.name, s.wait, s.wait_ns);
}

static void answer_metrics(struct client *c)
{
    struct thread *t = c->thread;
    cleanup(buf_done) struct buf out = {0};
    struct thread_route *tr;
    struct str name;
    write_counters(&out, t->shared);
    buf_printf(&out,
               "# TYPE dirigent_function_requests_total counter\n# TYPE "
               "dirigent_function_cold_requests_total counter\n"
               "# TYPE dirigent_function_retries_total counter\n# TYPE "
               "dirigent_function_cut_answers_total counter\n"
               "# TYPE dirigent_function_in_flight gauge\n# TYPE dirigent_function_waiting gauge\n"
               "# TYPE dirigent_function_endpoints gauge\n# TYPE dirigent_function_request_seconds "
               "histogram\n"
               "# TYPE dirigent_function_wait_seconds histogram\n");
    for (size_t cursor = 0; (tr = strmap_next(&t->table, &cursor, &name)) != NULL;)
        write_function(&out, t, tr->route);
    client_answer_page(c, 200, "text/plain; version=0.0.4", buf_str(&out));
}

void own_answer(struct client *c, const struct http_request *r)
{
    struct thread *t = c->thread;
    if (r->method != HTTP_GET && r->method != HTTP_HEAD)
        client_answer(c, ANSWER_method_not_allowed, STR_NONE);
    else if (str_equal(r->path, STR("/metrics")))
        answer_metrics(c);
    else if (!str_equal(r->path, STR("/readyz")))
        client_answer_page(c, 200, "text/plain", STR("ok\n"));
    else if (t->stopping)
        client_answer(c, ANSWER_stopping, STR_NONE);
    else if (!atomic_load_explicit(&t->shared->ready, memory_order_relaxed))
        client_answer(c, ANSWER_not_ready, STR_NONE);
    else
        client_answer_page(c, 200, "text/plain", STR("ok\n"));
}
