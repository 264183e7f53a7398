/* log_requests.c - output on its way from workers to a client. */
#include "control_plane/log_requests.h"
#include "base/hash.h"
#include <stdlib.h>

#define PENDING_BYTES_MAX ((size_t)64 * MIB) /* of one client; a slower one is cut */
#define ANSWER_TIMEOUT_NS (30 * NS_PER_S) /* without a word from any worker, when not following */

struct log_requests {
    struct control_plane *cp;
    struct map requests; /* id → struct log_request */
    uint64_t next_id;
};
struct log_request { /* freed when answered, or when its client went */
    struct log_requests *owner;
    struct log_query query;
    struct http_exchange *x;
    struct map waiting; /* worker ids that have not said their end (value: the request) */
    uint64_t heard_ms;  /* wall clock, of the newest chunk */
    struct loop_timer timer;
};

struct log_requests *log_requests_new(struct control_plane *cp)
{
    struct log_requests *r = mem_new(sizeof(*r));
    r->cp = cp;
    r->next_id = 1;
    return r;
}

static void request_free(struct log_request *q)
{
    map_remove(&q->owner->requests, q->query.request_id);
    loop_timer_stop(q->owner->cp->loop, &q->timer);
    map_done(&q->waiting);
    free(q);
}

void log_requests_free(struct log_requests *r)
{
    if (r == NULL)
        return;
    size_t cursor = 0;
    struct log_request *q;
    while ((q = map_next(&r->requests, &cursor)) !=
           NULL) { /* their exchanges went with the server */
        loop_timer_stop(r->cp->loop, &q->timer);
        map_done(&q->waiting);
        free(q);
    }
    map_done(&r->requests);
    free(r);
}

static void end(struct log_request *q, const char *why)
{
    if (why[0] != '\0') {
        cleanup(buf_done) struct buf line = {0};
        buf_printf(&line, "[dirigent: %s]\n", why);
        http_exchange_write(q->x, buf_str(&line));
    }
    if (q->waiting.count > 0)
        links_logs_cancel(q->owner->cp->links, q->query.request_id);
    http_exchange_end(q->x);
    request_free(q);
}

static void on_gone(struct http_exchange *x, void *user)
{
    struct log_request *q = user;
    if (q->waiting.count > 0)
        links_logs_cancel(q->owner->cp->links, q->query.request_id);
    request_free(q);
}

static void restart_timer(struct log_request *q)
{
    struct loop *loop = q->owner->cp->loop;
    if (!q->query.follow)
        loop_timer_start(loop, &q->timer, loop_now_ns(loop) + ANSWER_TIMEOUT_NS);
}

static void on_timeout(struct loop_timer *timer)
{
    end(container_of(timer, struct log_request, timer), "a worker did not answer in time");
}

void log_requests_begin(struct log_requests *r, struct http_exchange *x,
                        const struct log_query *query)
{
    struct log_request *q = mem_new(sizeof(*q));
    q->owner = r;
    q->query = *query;
    q->query.request_id = r->next_id++;
    q->x = x;
    loop_timer_init(&q->timer, on_timeout);
    map_put(&r->requests, q->query.request_id, q);
    http_exchange_set_user(x, q, on_gone);
    http_exchange_begin(x, 200, "text/plain; charset=utf-8", "Cache-Control: no-store\r\n", NULL);
    if (query->follow)
        http_exchange_endless(x);

    size_t cursor = 0;
    struct peer_view view;
    while (links_peer_next(r->cp->links, &cursor, &view))
        if (view.is_worker && view.connected)
            map_put(&q->waiting, view.record->id, q);
    q->heard_ms = clock_real_ms();
    if (links_logs_ask(r->cp->links, &q->query) == 0 && !query->follow) {
        end(q, "no worker is connected");
        return;
    }
    restart_timer(q);
}

void log_requests_chunk(struct log_requests *r, uint64_t request_id, uint64_t worker_id,
                        struct str data, bool is_end, const char *error)
{
    struct log_request *q = map_get(&r->requests, request_id);
    if (q == NULL || map_get(&q->waiting, worker_id) == NULL)
        return; /* its client went */
    restart_timer(q);
    q->heard_ms = clock_real_ms();
    if (data.bytes > 0)
        http_exchange_write(q->x, data);
    if (error[0] != '\0') {
        cleanup(buf_done) struct buf line = {0};
        buf_printf(&line, "[dirigent: %s]\n", error);
        http_exchange_write(q->x, buf_str(&line));
    }
    if (is_end)
        map_remove(&q->waiting, worker_id);
    if (q->waiting.count == 0 && !q->query.follow)
        end(q, "");
    else if (http_exchange_pending(q->x) > PENDING_BYTES_MAX)
        end(q, "the reader was too slow: some output is missing");
}

void log_requests_worker_closed(struct log_requests *r, uint64_t worker_id)
{
    for (;;) { /* end() changes the map */
        size_t cursor = 0;
        struct log_request *q;
        while ((q = map_next(&r->requests, &cursor)) != NULL &&
               map_get(&q->waiting, worker_id) == NULL)
            ;
        if (q == NULL)
            return;
        map_remove(&q->waiting, worker_id);
        if (q->waiting.count == 0 && !q->query.follow)
            end(q, "the worker left");
    }
}

void log_requests_worker_up(struct log_requests *r, uint64_t worker_id)
{
    size_t cursor = 0;
    struct log_request *q;
    while ((q = map_next(&r->requests, &cursor)) != NULL) {
        struct log_query query = q->query;
        if (!query.follow || map_get(&q->waiting, worker_id) != NULL)
            continue;
        query.since_ms = q->heard_ms;
        query.lines = 0;
        map_put(&q->waiting, worker_id, q);
        links_logs_ask_one(r->cp->links, worker_id, &query);
    }
}

void log_requests_function_deleted(struct log_requests *r, uint64_t function_id)
{
    for (;;) { /* end() changes the map */
        size_t cursor = 0;
        struct log_request *q;
        while ((q = map_next(&r->requests, &cursor)) != NULL && q->query.function_id != function_id)
            ;
        if (q == NULL)
            return;
        end(q, "the function was deleted");
    }
}
