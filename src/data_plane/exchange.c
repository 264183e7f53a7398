/* exchange.c - one request and its answer. */
#include "data_plane/proxy.h"
#include "base/crash_point.h"
#include <errno.h>
#include <stdio.h>

/* ---- which function ---- */

struct target {
    struct thread_route *route; /* NULL: none has the name */
    struct str name;            /* as asked for */
    struct str path, prefix;
    bool by_path;
};

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

/* Addresses and "localhost" name this data plane, never a function. */
static bool names_us(struct str host)
{
    if (host.bytes == 0 || host.data[0] == '[' || str_equal(host, STR("localhost")))
        return true;
    for (size_t i = 0; i < host.bytes; i++)
        if (host.data[i] != '.' && (host.data[i] < '0' || host.data[i] > '9'))
            return false;
    return true;
}

static struct thread_route *find_by_host(struct thread *t, struct str host, struct str *ret_name)
{
    char text[FUNCTION_NAME_BYTES_MAX + 1];
    size_t label = 0;
    while (label < host.bytes && label < sizeof(text) && host.data[label] != '.') {
        text[label] = lower(host.data[label]);
        label++;
    }
    *ret_name = (struct str){host.data, label};
    if (label == 0 || label == sizeof(text))
        return NULL;
    struct str name = {text, label};
    return names_us(label == host.bytes ? name : host) ? NULL : strmap_get(&t->table, name);
}

/* "/function/NAME" and what follows. */
static bool find_by_path(struct thread *t, struct target *target)
{
    struct str lead = STR("/function/"), path = target->path;
    if (!str_has_prefix(path, lead))
        return false;
    size_t end = lead.bytes;
    while (end < path.bytes && path.data[end] != '/')
        end++;
    target->name = (struct str){path.data + lead.bytes, end - lead.bytes};
    target->prefix = (struct str){path.data, end};
    target->path = end < path.bytes ? (struct str){path.data + end, path.bytes - end} : STR("/");
    target->route = strmap_get(&t->table, target->name);
    target->by_path = true;
    return true;
}

static void find_target(struct thread *t, const struct http_request *r, struct target *target)
{
    *target = (struct target){.path = r->path};
    target->route = find_by_host(t, r->host_name, &target->name);
    if (target->route == NULL)
        (void)find_by_path(t, target);
}

/* ---- the end of an exchange, whatever it was ---- */

static void release_slot(struct client *c)
{
    struct dispatch_endpoint *endpoint = c->endpoint;
    if (endpoint == NULL)
        return;
    c->endpoint = NULL;
    dispatch_release(c->route->route->dispatch, c->thread->index, endpoint, now_ns(c->thread));
}

static void count(struct client *c)
{
    struct route_stats *stats = thread_stats(c->thread, c->route);
    uint64_t now = now_ns(c->thread);
    stat_add(&stats->answers[c->status / 100 < STATUS_CLASSES ? c->status / 100 : 0], 1);
    histogram_add(&stats->total, now - c->arrived_ns);
    if (c->granted_ns > 0)
        histogram_add(&stats->wait, c->granted_ns - c->arrived_ns);
}

/* The slot was given back before, or goes with the connection. */
static void exchange_end(struct client *c)
{
    if (c->route == NULL)
        return;
    assert(c->endpoint == NULL);
    count(c);
    failure_drop(c->failure);
    c->failure = NULL;
    thread_keep_head(c->thread, &c->head);
    struct thread_route *tr = c->route;
    c->route = NULL;
    thread_route_leave(c->thread, tr);
}

static void let_go(struct client *c)
{
    if (c->upstream != NULL)
        upstream_abandon(c->upstream, c);
    else
        release_slot(c);
}

void exchange_fail(struct client *c, enum answer answer, struct str message)
{
    bool begun = c->state == CLIENT_ANSWERING || c->state == CLIENT_TUNNEL;
    let_go(c);
    if (begun) { /* what went out must not look complete */
        stat_add(&thread_stats(c->thread, c->route)->cut, 1);
        client_cut(c);
    } else {
        client_answer(c, answer, message);
    }
    exchange_end(c);
}

/* The client is no more. */
void exchange_client_gone(struct client *c)
{
    if (c->state == CLIENT_WAITING && c->handover_due) {
        client_cut(c);
        return; /* the slot is given back when it arrives */
    }
    if (c->state == CLIENT_WAITING && !dispatch_cancel(c->route->route->dispatch, &c->waiter)) {
        c->handover_due = true;
        client_cut(c);
        return;
    }
    if (c->route != NULL) {
        c->status = 0;
        let_go(c);
        exchange_end(c);
    }
    client_cut(c);
}

/* ---- time ---- */

static struct str timeout_text(struct client *c, const char *what, bool mention_control_plane)
{
    struct buf *text = &c->thread->extra;
    bool away = mention_control_plane &&
                !atomic_load_explicit(&c->thread->shared->control_plane_up, memory_order_relaxed);
    text->bytes = 0;
    buf_printf(text, "%s within the function's timeout of %.3f s%s", what,
               (double)(c->deadline_ns - c->arrived_ns) / 1e9,
               away ? "; the control plane cannot be reached, so no sandbox can be started" : "");
    return buf_str(text);
}

void exchange_timeout(struct client *c)
{
    char text[256];
    struct str message = STR_NONE;
    enum answer answer = ANSWER_answer_timeout;
    switch (c->state) {
    case CLIENT_WAITING:
        if (c->handover_due || !dispatch_cancel(c->route->route->dispatch, &c->waiter)) {
            c->handover_due = true;
            return; /* it was granted or failed this moment: that arrives now */
        }
        answer = ANSWER_wait_timeout;
        message = timeout_text(c, "no sandbox was free", true);
        break;
    case CLIENT_CONNECTING:
        message = timeout_text(c, "the sandbox could not be connected", false);
        break;
    case CLIENT_SENT:
        message = timeout_text(
            c,
            c->request_done
                ? "the function did not begin to answer"
                : "the client did not send its whole request, nor did the function answer,",
            false);
        break;
    case CLIENT_HEAD:
    case CLIENT_ANSWERING:
    case CLIENT_TUNNEL:
    case CLIENT_FLUSHING:
    case CLIENT_LINGERING:
    case CLIENT_CLOSED:
    case CLIENT_STATE_COUNT:
        break;
    }
    if (message.bytes > 0) { /* the scratch is used again for the answer */
        size_t bytes = MIN(message.bytes, sizeof(text));
        memcpy(text, message.data, bytes);
        message = (struct str){text, bytes};
    }
    exchange_fail(c, answer, message);
}

/* ---- a slot ---- */

static void granted(struct client *c, struct dispatch_endpoint *endpoint);

static void queue_full(struct client *c)
{
    char text[128];
    snprintf(text, sizeof(text), "%u requests of function '%s' wait already, which is its limit",
             dispatch_waiting(c->route->route->dispatch), c->route->route->name);
    exchange_fail(c, ANSWER_queue_full, str_of(text));
}

/* On to a slot, at once when there is one. `release` is one that it has, and must not get again if
 * another is free. */
static void acquire(struct client *c, struct dispatch_endpoint *release)
{
    struct thread *t = c->thread;
    struct route *r = c->route->route;
    struct dispatch_endpoint *endpoint = NULL;
    enum err err = dispatch_acquire(r->dispatch, t->index, &c->waiter, now_ns(t), &endpoint);
    if (err == ERR_MORE) {
        c->was_queued = true;
        if (c->state != CLIENT_WAITING)
            client_move(c, CLIENT_WAITING);
        route_tell_demand(r);
        CRASH_POINT("data_plane.queued");
    }
    if (release != NULL)
        dispatch_release(r->dispatch, t->index, release, now_ns(t));
    if (err == ERR_OK)
        granted(c, endpoint);
    else if (err == ERR_BUSY)
        queue_full(c);
    else if (err != ERR_MORE)
        exchange_fail(c, err == ERR_TIMEOUT ? ANSWER_wait_timeout : ANSWER_function_deleted,
                      STR_NONE);
}

/* Any thread: on to our own. */
static void hand_over(struct client *c)
{
    struct thread *t = c->thread;
    if (pthread_equal(pthread_self(), t->id))
        loop_defer(t->loop, &c->handover_here);
    else
        loop_post(t->loop, &c->handover_post);
}

static void on_grant(struct dispatch_waiter *w)
{
    hand_over(container_of(w, struct client, waiter));
}

static void on_failed(struct dispatch_waiter *w, enum err err, void *reason)
{
    struct client *c = container_of(w, struct client, waiter);
    c->failure = reason;
    c->failure_err = err;
    if (reason != NULL)
        failure_hold(reason);
    hand_over(c);
}

static void waiting_failed(struct client *c)
{
    if (c->failure != NULL) {
        client_answer_failure(c, c->failure);
        exchange_end(c);
        return;
    }
    exchange_fail(c, c->failure_err == ERR_TIMEOUT ? ANSWER_wait_timeout : ANSWER_function_deleted,
                  STR_NONE);
}

static void handed_over(struct client *c)
{
    struct thread *t = c->thread;
    struct dispatch_endpoint *endpoint = NULL;
    if (c->waiter.state == DISPATCH_GRANTED)
        endpoint = dispatch_take_grant(c->route->route->dispatch, t->index, &c->waiter, now_ns(t));
    if (c->state == CLIENT_CLOSED) { /* it went away meanwhile */
        c->endpoint = endpoint;
        c->status = 0;
        release_slot(c);
        exchange_end(c);
    } else if (endpoint == NULL) {
        waiting_failed(c);
    } else if (now_ns(t) >= c->deadline_ns) {
        c->endpoint = endpoint;
        exchange_fail(c, ANSWER_wait_timeout, STR_NONE);
    } else {
        granted(c, endpoint);
    }
    client_handed_over(c);
}

static void on_handover_post(struct loop_post *post)
{
    handed_over(container_of(post, struct client, handover_post));
}

static void on_handover_here(struct loop_deferred *d)
{
    handed_over(container_of(d, struct client, handover_here));
}

/* A program that serves one connection at a time would not accept ours while another thread keeps
 * one. */
static void claim_connection(struct client *c, struct sandbox *sandbox)
{
    struct thread_shared *shared = c->thread->shared;
    uint32_t kept_by = atomic_load_explicit(&sandbox->kept_by, memory_order_relaxed);
    if (kept_by == 0 || kept_by == c->thread->index + 1 ||
        atomic_load_explicit(&c->route->route->concurrency, memory_order_relaxed) != 1)
        return;
    thread_post_forget(shared->threads[kept_by - 1], sandbox->id);
}

static void connect_or_reuse(struct client *c);
static void send_request(struct client *c);

static void granted(struct client *c, struct dispatch_endpoint *endpoint)
{
    if (dispatch_endpoint_is_gone(endpoint)) { /* between the grant and now: another one */
        acquire(c, endpoint);
        return;
    }
    if (c->was_queued)
        CRASH_POINT("data_plane.dequeued");
    c->endpoint = endpoint;
    c->granted_ns = now_ns(c->thread);
    claim_connection(c, endpoint->user);
    connect_or_reuse(c);
}

static void connect_or_reuse(struct client *c)
{
    struct pool *pool = pool_of(c->thread, c->endpoint);
    struct upstream *u = pool_take_idle(pool);
    if (u != NULL) {
        upstream_attach(u, c);
        send_request(c);
        return;
    }
    client_move(c, CLIENT_CONNECTING);
    upstream_connect(pool, c);
}

void exchange_connected(struct client *c)
{
    c->connect_us = (uint32_t)((now_ns(c->thread) - c->granted_ns) / NS_PER_US);
    send_request(c);
}

/* Nothing answers on its worker: what else this function has there is not tried by one request after
 * the other. Of other functions nothing is said: a program that lets its backlog fill is silent,
 * too, and must not take the neighbours' away. */
static void eject_neighbours(struct client *c, const struct dispatch_endpoint *endpoint)
{
    struct dispatch *d = c->route->route->dispatch;
    const struct sandbox *sandbox = endpoint->user;
    struct dispatch_endpoint *all[NEIGHBOURS_MAX];
    size_t count = dispatch_endpoints(d, all, ARRAY_COUNT(all));
    for (size_t i = 0; i < MIN(count, ARRAY_COUNT(all)); i++) {
        const struct sandbox *other = all[i]->user;
        if (all[i] != endpoint && strcmp(other->worker, sandbox->worker) == 0 &&
            dispatch_endpoint_eject(d, other->id))
            thread_report_endpoint(c->thread, other->id, NULL);
    }
}

static void eject(struct client *c, const struct dispatch_endpoint *endpoint, bool is_silent,
                  const char *why)
{
    if (dispatch_endpoint_eject(c->route->route->dispatch, endpoint->sandbox_id))
        thread_report_endpoint(c->thread, endpoint->sandbox_id, why);
    if (is_silent)
        eject_neighbours(c, endpoint);
}

void exchange_connect_failed(struct client *c, bool is_silent, const char *why)
{
    struct dispatch_endpoint *endpoint = c->endpoint;
    struct sandbox *sandbox = endpoint->user;
    char text[256];
    c->upstream = NULL;
    c->endpoint = NULL;
    eject(c, endpoint, is_silent, why);
    if (++c->connect_attempts < CONNECT_ATTEMPTS_MAX) {
        client_move(c, CLIENT_WAITING);
        acquire(c, endpoint);
        return;
    }
    snprintf(text, sizeof(text), "sandbox %016" PRIx64 " on worker '%s' could not be connected: %s",
             sandbox->id, sandbox->worker, why);
    c->endpoint = endpoint;
    exchange_fail(c, ANSWER_connect_failed, str_of(text));
}

/* ---- the request goes out ---- */

static void send_request(struct client *c)
{
    struct iovec part = {.iov_base = c->head.data, .iov_len = c->head.bytes};
    client_move(c, CLIENT_SENT);
    c->sent_ns = now_ns(c->thread);
    thread_await_ack(c->thread);
    c->replayable = true;
    upstream_send(c->upstream, &part, 1);
    if (c->expect_continue) { /* RFC 9110 10.1.1: a slot is there, the body may come */
        c->expect_continue = false;
        if (!c->request_done && c->body_bytes == 0 && c->in.bytes == 0)
            client_write(c, STR("HTTP/1.1 100 Continue\r\n\r\n"));
    }
    if (c->in.bytes > 0 || c->stream.paused)
        loop_defer(c->thread->loop,
                   &c->again); /* what came while it waited, when this callback is over */
}

/* ---- when the sandbox fails ---- */

static bool may_resend(const struct client *c)
{
    const struct upstream *u = c->upstream;
    bool is_stale = u->is_reused && !c->was_stale;
    if (!c->replayable || u->in.bytes > 0 || (!is_stale && c->resends >= RESENDS_MAX))
        return false;
    /* Of a host that fell silent the acknowledgement may be what was lost. */
    return c->is_idempotent || (u->stream.error_number != ETIMEDOUT && upstream_took_nothing(u));
}

/* The connection broke before any byte of the answer. A kept one may just have been closed by a
 * program that had enough of waiting: the same sandbox is tried with a new one. Else it is given to
 * another sandbox, if there is one. */
static void broke_before_answer(struct client *c, enum answer answer)
{
    struct upstream *u = c->upstream;
    if (!may_resend(c)) {
        exchange_fail(c, answer, STR_NONE);
        return;
    }
    struct dispatch_endpoint *endpoint = c->endpoint;
    bool was_stale = u->is_reused && !c->was_stale && !u->pool->gone;
    stat_add(&thread_stats(c->thread, c->route)->retries, 1);
    c->endpoint = NULL; /* the slot stays ours, the connection goes alone */
    upstream_abandon(u, c);
    if (was_stale) {
        c->was_stale = true;
        struct pool *pool = pool_of(c->thread, endpoint);
        c->endpoint = endpoint;
        pool_forget_idle(pool);
        client_move(c, CLIENT_CONNECTING);
        upstream_connect(pool, c);
        return;
    }
    c->resends++;
    client_move(c, CLIENT_WAITING);
    acquire(c, endpoint);
}

/* A request that was not acknowledged may have arrived: the acknowledgement is what was lost. */
void exchange_unheard(struct client *c)
{
    struct dispatch_endpoint *endpoint = c->endpoint;
    bool again = c->replayable && c->is_idempotent && c->upstream->in.bytes == 0 &&
                 ++c->connect_attempts < CONNECT_ATTEMPTS_MAX;
    eject(c, endpoint, true, "a request was not acknowledged");
    if (!again) {
        exchange_fail(c, ANSWER_sandbox_unheard, STR_NONE);
        return;
    }
    stat_add(&thread_stats(c->thread, c->route)->retries, 1);
    c->endpoint = NULL; /* the slot stays ours, the connection goes alone */
    upstream_abandon(c->upstream, c);
    client_move(c, CLIENT_WAITING);
    acquire(c, endpoint);
}

void exchange_sandbox_gone(struct client *c)
{
    if (c->state == CLIENT_SENT)
        broke_before_answer(c, ANSWER_sandbox_gone);
    else if (c->state == CLIENT_CONNECTING)
        exchange_connect_failed(c, false, "the sandbox is gone");
    else
        exchange_fail(c, ANSWER_sandbox_gone, STR_NONE);
}

/* ---- the answer ---- */

static void write_receipt(struct client *c, struct buf *out)
{
    uint64_t now = now_ns(c->thread);
    struct sandbox *sandbox = c->endpoint->user;
    bool is_cold = c->was_queued && sandbox->added_ns > c->arrived_ns;
    buf_printf(out, "Server-Timing: queue;dur=%.3f", (double)(c->granted_ns - c->arrived_ns) / 1e6);
    if (is_cold)
        buf_printf(out, ", place;dur=%.3f, create;dur=%.3f, exec;dur=%.3f, listen;dur=%.3f",
                   sandbox->place_us / 1e3, sandbox->create_us / 1e3, sandbox->exec_us / 1e3,
                   sandbox->listen_us / 1e3);
    if (c->connect_us > 0)
        buf_printf(out, ", connect;dur=%.3f", c->connect_us / 1e3);
    buf_printf(out,
               ", first-byte;dur=%.3f, total;dur=%.3f\r\nDirigent-Cold: %d\r\nDirigent-Sandbox: "
               "%016" PRIx64 "\r\nDirigent-Worker: %s\r\n",
               (double)(now - c->sent_ns) / 1e6, (double)(now - c->arrived_ns) / 1e6, is_cold,
               sandbox->id, sandbox->worker);
}

/* How the client is told where the answer ends. */
static enum http_body answer_framing(struct client *c, const struct http_response *r)
{
    switch (r->body) {
    case HTTP_BODY_NONE:
    case HTTP_BODY_LENGTH:
        return r->body;
    case HTTP_BODY_CHUNKED:
    case HTTP_BODY_UNTIL_CLOSE:
        if (!c->client_is_1_0)
            return HTTP_BODY_CHUNKED;
        c->keep_alive = false;
        return HTTP_BODY_UNTIL_CLOSE;
    }
    assert(false);
}

static void begin_answer(struct client *c, const struct http_response *r)
{
    struct thread *t = c->thread;
    struct upstream *u = c->upstream;
    struct sandbox *sandbox = c->endpoint->user;
    CRASH_POINT("data_plane.first_byte");
    client_move(c, CLIENT_ANSWERING);
    c->status = r->status;
    c->answer_body = r->body;
    c->answer_left = r->content_length;
    if (c->was_queued && sandbox->added_ns > c->arrived_ns)
        stat_add(&thread_stats(t, c->route)->cold, 1);
    if (!c->request_done || t->stopping)
        c->keep_alive = false; /* an answer that is earlier than the end of its request */
    enum http_body framing = answer_framing(c, r);
    c->answer_chunked = framing == HTTP_BODY_CHUNKED;
    u->spoiled |= !r->keep_alive;
    if (r->body == HTTP_BODY_CHUNKED) {
        http_chunked_done(&u->chunked);
        http_chunked_init(&u->chunked);
    }
    t->extra.bytes = 0;
    if (c->receipt)
        write_receipt(c, &t->extra);
    struct head_answer a = {.body = framing,
                            .content_length = r->content_length,
                            .has_content_length = r->has_content_length && r->status != 204,
                            .keep_alive = c->keep_alive,
                            .client_is_1_0 = c->client_is_1_0,
                            .trailers = c->trailers_accepted,
                            .date = thread_date(t),
                            .extra = buf_str(&t->extra)};
    t->out.bytes = 0;
    head_write_answer(&t->out, r, &a);
}

static bool names_websocket(const struct http_response *r)
{
    bool upgrade = false, connection = false;
    for (uint32_t i = 0; i < r->header_count; i++) {
        const struct http_header *h = &r->headers[i];
        upgrade |= h->field == HTTP_FIELD_UPGRADE && str_equal_nocase(h->value, STR("websocket"));
        connection |= h->field == HTTP_FIELD_CONNECTION && http_list_has(h->value, STR("upgrade"));
    }
    return upgrade && connection;
}

static void begin_tunnel(struct client *c, const struct http_response *r, struct str first)
{
    struct thread *t = c->thread;
    if (!c->upgrade || !names_websocket(r)) {
        exchange_fail(c, ANSWER_bad_upgrade, STR_NONE);
        return;
    }
    client_move(c, CLIENT_TUNNEL);
    c->status = 101;
    c->keep_alive = false;
    c->tunnel_client_ended = c->tunnel_upstream_ended = false;
    c->upstream->spoiled = true;
    t->extra.bytes = 0;
    if (c->receipt)
        write_receipt(c, &t->extra);
    struct head_answer a = {
        .upgrade = true, .keep_alive = true, .date = thread_date(t), .extra = buf_str(&t->extra)};
    t->out.bytes = 0;
    head_write_answer(&t->out, r, &a);
    buf_append_str(&t->out, first);
    client_write(c, buf_str(&t->out));
    client_due(c, now_ns(t) +
                      atomic_load_explicit(&c->route->route->timeout_ns, memory_order_relaxed));
    if (c->in.bytes > 0) { /* what the client said before it knew (RFC 9931: only now it goes on) */
        struct iovec part = {.iov_base = c->in.data, .iov_len = c->in.bytes};
        upstream_send(c->upstream, &part, 1);
        buf_done(&c->in);
    }
    if (loop_stream_pending(&c->upstream->stream) == 0)
        loop_stream_resume(&c->stream);
}

static void pass_on_interim(struct client *c, const struct http_response *r)
{
    struct thread *t = c->thread;
    if (r->status == 100 || c->client_is_1_0) /* RFC 9110 15.2: not to 1.0; 100 was said by us */
        return;
    struct head_answer a = {.keep_alive = true};
    t->out.bytes = 0;
    head_write_answer(&t->out, r, &a);
    client_write(c, buf_str(&t->out));
}

static void bad_answer(struct client *c)
{
    char text[ERROR_TEXT_BYTES_MAX + 64];
    snprintf(text, sizeof(text), "the function's answer is no valid HTTP/1.1: %s",
             c->thread->error.text);
    exchange_fail(c, ANSWER_bad_answer, str_of(text));
}

/* The answer is complete. The slot first: others wait for it. */
static void finish(struct client *c)
{
    struct upstream *u = c->upstream;
    CRASH_POINT("data_plane.last_byte");
    c->upstream = NULL;
    u->spoiled |= !c->request_done;
    upstream_finish(u);
    release_slot(c);
    exchange_end(c);
    client_answered(c);
}

/* Reads heads at `data` until one begins the answer's body; returns how much was used. */
static size_t take_heads(struct client *c, const char *data, size_t bytes)
{
    struct thread *t = c->thread;
    struct upstream *u = c->upstream;
    size_t used = 0;
    while (c->state == CLIENT_SENT && used < bytes) {
        enum err err = http_response_parse(data + used, bytes - used, &u->scanned, c->method,
                                           &t->response, &t->error);
        if (err == ERR_MORE)
            return used;
        if (err != ERR_OK) {
            bad_answer(c);
            return used;
        }
        u->scanned = 0;
        used += t->response.head_bytes;
        if (t->response.status == 101)
            begin_tunnel(c, &t->response, (struct str){data + used, bytes - used});
        else if (t->response.status < 200)
            pass_on_interim(c, &t->response);
        else
            begin_answer(c, &t->response);
    }
    return used;
}

static void take_body(struct client *c, struct str head, const char *data, size_t bytes)
{
    size_t used;
    bool done;
    if (body_answer(c, head, data, bytes, &used, &done) != ERR_OK) {
        error_set(&c->thread->error, ERR_PROTOCOL, "the chunks of its body are not valid");
        bad_answer(c); /* cuts */
        return;
    }
    if (!done)
        return;
    c->upstream->spoiled |= used < bytes; /* more than was announced */
    finish(c);
}

static void take_answer(struct client *c, const char *data, size_t bytes)
{
    struct upstream *u = c->upstream;
    if (c->state == CLIENT_SENT) {
        bool is_kept = u->in.bytes > 0;
        if (is_kept) {
            buf_append(&u->in, data, bytes);
            data = u->in.data;
            bytes = u->in.bytes;
        }
        size_t used = take_heads(c, data, bytes);
        if (c->state == CLIENT_SENT) { /* the rest of a head is still to come */
            if (is_kept)
                buf_consume(&u->in, used);
            else
                buf_append(&u->in, data + used, bytes - used);
            return;
        }
        if (c->state != CLIENT_ANSWERING)
            return;
        take_body(c, buf_str(&c->thread->out), data + used, bytes - used);
        return;
    }
    take_body(c, STR_NONE, data, bytes);
}

/* Both directions have ended: what is on its way still arrives. */
static void end_tunnel(struct client *c)
{
    let_go(c);
    exchange_end(c);
    c->request_done = true;
    client_answered(c);
}

void exchange_tunnel_client_ended(struct client *c, enum err err)
{
    c->tunnel_client_ended = true;
    if (err != ERR_END)
        exchange_client_gone(c);
    else if (c->tunnel_upstream_ended)
        end_tunnel(c);
    else
        loop_stream_shutdown(&c->upstream->stream);
}

static void tunnel_receive(struct client *c, enum err err, const char *data, size_t bytes)
{
    if (err == ERR_OK) {
        client_due(c, now_ns(c->thread) +
                          atomic_load_explicit(&c->route->route->timeout_ns, memory_order_relaxed));
        client_write(c, (struct str){data, bytes});
        if (loop_stream_pending(&c->stream) > 0)
            loop_stream_pause(&c->upstream->stream);
        return;
    }
    if (err != ERR_END) {
        exchange_fail(c, ANSWER_sandbox_closed, STR_NONE);
        return;
    }
    c->tunnel_upstream_ended = true;
    if (c->tunnel_client_ended)
        end_tunnel(c);
    else
        loop_stream_shutdown(&c->stream);
}

static void answer_ended(struct client *c, enum err err)
{
    if (c->state == CLIENT_SENT) {
        broke_before_answer(c, ANSWER_sandbox_closed);
        return;
    }
    if (err != ERR_END || c->answer_body != HTTP_BODY_UNTIL_CLOSE) {
        exchange_fail(c, ANSWER_sandbox_closed, STR_NONE); /* cuts */
        return;
    }
    if (c->answer_chunked)
        client_write(c, STR("0\r\n\r\n"));
    finish(c);
}

void exchange_receive(struct client *c, enum err err, const char *data, size_t bytes)
{
    if (c->state == CLIENT_TUNNEL)
        tunnel_receive(c, err, data, bytes);
    else if (err != ERR_OK)
        answer_ended(c, err);
    else
        take_answer(c, data, bytes);
}

/* ---- begin ---- */

static void read_request(struct client *c, const struct http_request *r)
{
    c->method = r->method;
    c->keep_alive = r->keep_alive;
    c->client_is_1_0 = r->minor_version == 0;
    c->head_only = r->method == HTTP_HEAD;
    c->is_idempotent = http_method_is_idempotent(r->method);
    c->trailers_accepted = r->trailers_accepted;
    c->expect_continue = r->expect_continue;
    c->upgrade = r->upgrade_websocket && r->body == HTTP_BODY_NONE;
    c->receipt = c->was_queued = c->was_stale = c->gone = false;
    c->connect_attempts = c->resends = 0;
    c->connect_us = 0;
    c->granted_ns = c->sent_ns = 0;
    c->status = 0;
    for (uint32_t i = 0; i < r->header_count; i++)
        if (r->headers[i].field == HTTP_FIELD_DIRIGENT_RECEIPT)
            c->receipt = str_equal(r->headers[i].value, STR("1"));
    body_begin(c, r);
}

/* An answer of ours needs no body: one that is here already is passed over, so that the connection
 * can stay. */
static size_t pass_over_body(struct client *c, size_t bytes)
{
    if (c->body != HTTP_BODY_LENGTH || c->request_done || c->body_left > bytes)
        return 0;
    c->request_done = true;
    return (size_t)c->body_left;
}

static void unknown_function(struct client *c, const struct target *target,
                             const struct http_request *r)
{
    char text[400];
    bool ready = atomic_load_explicit(&c->thread->shared->ready, memory_order_relaxed);
    if (target->by_path)
        snprintf(text, sizeof(text), "there is no function '%.*s'",
                 (int)MIN(target->name.bytes, (size_t)100), target->name.data);
    else if (names_us(r->host_name))
        snprintf(text, sizeof(text),
                 "no function is named: send 'Host: NAME', or call the path /function/NAME/");
    else
        snprintf(text, sizeof(text), "there is no function '%.*s' (taken from 'Host: %.*s')",
                 (int)MIN(target->name.bytes, (size_t)100), target->name.data,
                 (int)MIN(r->host.bytes, (size_t)150), r->host.data);
    client_answer(c, ready ? ANSWER_function_unknown : ANSWER_not_ready,
                  ready ? str_of(text) : STR_NONE);
}

static void write_head(struct client *c, const struct http_request *r, const struct target *target)
{
    struct thread *t = c->thread;
    struct head_origin origin = {.client_ip = {c->ip, c->ip_bytes},
                                 .path = target->path,
                                 .prefix = target->prefix,
                                 .host = str_of(c->route->route->name),
                                 .trace_id = {rng_next(&t->rng), rng_next(&t->rng) | 1},
                                 .span_id = rng_next(&t->rng) | 1};
    c->head = thread_spare_head(t);
    head_write_request(&c->head, r, &origin);
}

static size_t begin_call(struct client *c, const struct http_request *r,
                         const struct target *target, const char *data, size_t bytes)
{
    struct thread *t = c->thread;
    struct route *route = target->route->route;
    uint64_t now = now_ns(t),
             limit = atomic_load_explicit(&route->request_body_bytes_max, memory_order_relaxed);
    c->route = target->route;
    c->route->users++;
    c->arrived_ns = now;
    c->deadline_ns = now + atomic_load_explicit(&route->timeout_ns, memory_order_relaxed);
    c->waiter = (struct dispatch_waiter){.arrived_ns = now,
                                         .deadline_ns = c->deadline_ns,
                                         .on_grant = on_grant,
                                         .on_failed = on_failed};
    c->handover_post.on_post = on_handover_post;
    c->handover_here.on_turn_end = on_handover_here;
    if (c->body_left > limit) {
        char text[192];
        size_t used = pass_over_body(c, bytes);
        snprintf(text, sizeof(text),
                 "the body has %" PRIu64 " bytes, and function '%s' takes at most %" PRIu64,
                 r->content_length, route->name, limit);
        exchange_fail(c, ANSWER_body_too_large, str_of(text));
        return used;
    }
    route_tell_active(route);
    client_due(c, c->deadline_ns);
    write_head(c, r, target);
    size_t used;
    if (body_take_small(c, data, bytes, &used) != ERR_OK) {
        exchange_fail(c, ANSWER_bad_request, STR("the chunks of the body are not valid"));
        return bytes;
    }
    if (c->body_bytes > limit) { /* chunked */
        exchange_fail(c, ANSWER_body_too_large, STR_NONE);
        return used;
    }
    CRASH_POINT("data_plane.request_in");
    acquire(c, NULL);
    if (c->state == CLIENT_SENT && !c->request_done && used < bytes)
        used += body_send(c, data + used, bytes - used);
    return used;
}

size_t exchange_begin(struct client *c, const char *data, size_t bytes)
{
    struct thread *t = c->thread;
    const struct http_request *r = &t->request;
    struct target target;
    stat_add(&t->counters.requests, 1);
    read_request(c, r);
    c->arrived_ns = now_ns(t);
    if (r->method == HTTP_CONNECT) {
        c->request_done = false;
        client_answer(c, ANSWER_unsupported, STR("CONNECT is not spoken here"));
        return bytes;
    }
    find_target(t, r, &target);
    if (target.route != NULL)
        return begin_call(c, r, &target, data, bytes);
    size_t used = pass_over_body(c, bytes);
    if (names_us(r->host_name) && own_is_page(r->path))
        own_answer(c, r);
    else
        unknown_function(c, &target, r);
    return used;
}
