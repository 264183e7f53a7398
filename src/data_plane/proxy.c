/* proxy.c - requests of one serving thread, from head to the last byte of the answer. RFC 9110, RFC 9112.
 *
 * A client's life: HEAD -> (WAITING ->) CONNECTING -> SENDING/ANSWERING -> HEAD …, or TUNNEL after a 101, or ENDING.
 * The request's head is written anew as soon as it is parsed, so nothing refers to the input any more. Bodies pass through the loop's
 * buffer: what the other side does not take at once is kept by its stream, and the source is paused meanwhile. */
#include "data_plane/internal.h"
#include "base/limits.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EARLY_BYTES_MAX (64u * 1024u) /* of a body, kept while a request waits */
#define IDLE_UPSTREAMS_MAX 256u
#define RETRIES_MAX 2u
#define LINGER_MS 2000u

enum client_state { CLIENT_HEAD, CLIENT_WAITING, CLIENT_CONNECTING, CLIENT_ACTIVE, CLIENT_TUNNEL, CLIENT_ENDING, CLIENT_CLOSED };

struct upstream;

struct client {
    struct serving *thread;
    struct list node;
    struct loop_stream stream;
    struct loop_timer timer;
    uint64_t deadline_ns;     /* of what the state waits for; the timer may run earlier and look again */
    enum client_state state;
    struct buf in;            /* bytes that are not taken yet */
    size_t scanned;
    char peer[INET6_ADDRSTRLEN];
    /* the request */
    struct route *route;
    struct dispatch_waiter waiter;
    struct loop_post post;    /* grant or failure from another thread */
    struct failure *failure;
    struct dispatch_endpoint *endpoint; /* whose slot it holds */
    struct upstream *upstream;
    struct buf head;          /* as it goes upstream */
    enum http_method method;
    uint8_t minor_version;
    enum http_body body;
    uint64_t body_left, body_seen;
    struct http_chunked chunked;
    uint64_t arrived_ns, granted_ns, first_byte_ns;
    bool keep_alive, expect_continue, websocket, receipt, trailers, head_only;
    bool body_done, body_started, waited, cold, answer_begun, answer_done, peer_ended, outcome_pending, closing_wanted, sent_anything;
    unsigned retries;
};

struct upstream {
    struct serving *thread;
    struct loop_stream stream;
    struct loop_timer timer;  /* connect timeout */
    struct list node;         /* in its pool while idle */
    struct dispatch_endpoint *endpoint;
    struct client *client;    /* NULL: idle or being closed */
    struct buf in;
    size_t scanned;
    bool connected, reused, head_done, chunked_in, until_close, chunked_out, closing;
    uint64_t body_left;
    bool keep_alive;
    struct http_chunked chunked;
};

struct pool { /* thread_user of an endpoint */
    struct list idle;
    uint32_t count;
};

static _Thread_local struct http_request request; /* large; parsed and used within one call */
static _Thread_local struct http_response response;

static void head_take(struct client *c);
static void client_next(struct client *c);
static void request_begin(struct client *c);
static void upstream_start(struct client *c);
static void body_forward(struct client *c);
static void refuse(struct client *c, unsigned status, const char *code, const char *message, struct str output, unsigned retry_after_s);

static uint64_t now_ns(const struct serving *t)
{
    return loop_now_ns(t->loop);
}

static void count_one(_Atomic uint64_t *counter)
{
    /* one writer: no locked instruction needed */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1, memory_order_relaxed);
}

/* ---- time: one timer for each client, started lazily ---- */

static void deadline_set(struct client *c, uint64_t at_ns)
{
    c->deadline_ns = at_ns;
    if (!loop_timer_is_running(&c->timer) || c->timer.due_ns > at_ns)
        loop_timer_start(c->thread->loop, &c->timer, at_ns);
}

static void deadline_after(struct client *c, uint64_t ms)
{
    deadline_set(c, now_ns(c->thread) + ms * NS_PER_MS);
}

/* ---- slots ---- */

static void slot_release(struct client *c)
{
    struct dispatch_endpoint *endpoint = c->endpoint;
    if (endpoint == NULL)
        return;
    c->endpoint = NULL;
    dispatch_release(c->route->dispatch, c->thread->index, endpoint, now_ns(c->thread));
}

static void route_let_go(struct client *c)
{
    if (c->route != NULL)
        route_release(c->route);
    c->route = NULL;
}

/* ---- closing a client ---- */

static void upstream_close(struct upstream *u);

static void client_close(struct client *c, bool reset)
{
    if (c->state == CLIENT_CLOSED)
        return;
    bool was_waiting = c->state == CLIENT_WAITING;
    c->state = CLIENT_CLOSED;
    loop_timer_stop(c->thread->loop, &c->timer);
    if (c->upstream != NULL) {
        struct upstream *u = c->upstream;
        c->upstream = NULL;
        u->client = NULL;
        upstream_close(u);
    }
    if (was_waiting && !c->outcome_pending) {
        if (dispatch_cancel(c->route->dispatch, &c->waiter))
            control_demand_now(c->route);
        else
            c->outcome_pending = true; /* granted or failed on another thread: its post is under way */
    }
    slot_release(c);
    if (reset)
        loop_stream_reset(&c->stream);
    else
        loop_stream_close(&c->stream);
}

static void client_free(struct client *c)
{
    struct serving *t = c->thread;
    route_let_go(c);
    list_remove(&c->node);
    t->client_count--;
    buf_done(&c->in);
    buf_done(&c->head);
    http_chunked_done(&c->chunked);
    if (c->failure != NULL)
        failure_release(c->failure);
    free(c);
    if (t->draining)
        control_client_gone(t->dp);
}

static void on_client_closed(struct loop_stream *s)
{
    struct client *c = container_of(s, struct client, stream);
    if (c->outcome_pending)
        c->closing_wanted = true; /* freed when the post has come */
    else
        client_free(c);
}

/* After the last answer: our direction ends, the client's is read and dropped for a moment, so that no reset overtakes the answer. */
static void client_end(struct client *c)
{
    c->state = CLIENT_ENDING;
    c->in.bytes = 0;
    loop_stream_shutdown(&c->stream);
    loop_stream_resume(&c->stream);
    if (c->peer_ended)
        client_close(c, false);
    else
        deadline_after(c, LINGER_MS);
}

/* ---- the end of an exchange ---- */

static void exchange_end(struct client *c)
{
    bool unread = !c->body_done;
    slot_release(c);
    route_let_go(c);
    c->upstream = NULL;
    if (!c->keep_alive || unread || c->thread->draining) {
        client_end(c);
        return;
    }
    client_next(c);
}

static void client_next(struct client *c)
{
    c->state = CLIENT_HEAD;
    c->scanned = 0;
    deadline_after(c, HTTP_IDLE_TIMEOUT_MS);
    loop_stream_resume(&c->stream);
    if (c->in.bytes > 0)
        head_take(c);
}

/* ---- answers of our own ---- */

static void json_text(struct buf *b, struct str text)
{
    for (size_t i = 0; i < text.bytes; i++) {
        unsigned char ch = (unsigned char)text.data[i];
        if (ch == '"' || ch == '\\')
            buf_printf(b, "\\%c", ch);
        else if (ch == '\n')
            buf_append(b, "\\n", 2);
        else if (ch < 0x20 || ch >= 0x7f)
            buf_printf(b, "\\u%04x", ch);
        else
            buf_append(b, text.data + i, 1);
    }
}

static void answer_count(struct client *c, unsigned status)
{
    unsigned class = MIN(status / 100, STATUS_CLASSES - 1);
    count_one(&c->thread->counters.answers[class]);
    if (c->route != NULL)
        atomic_fetch_add_explicit(&c->route->answers[class], 1, memory_order_relaxed);
}

static void plain_answer(struct client *c, unsigned status, const char *type, struct str body, const char *extra)
{
    cleanup(buf_done) struct buf out = {0};
    buf_printf(&out, "HTTP/1.1 %u %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s%s\r\n", status, http_status_text(status), type, body.bytes,
               extra, c->keep_alive ? "" : "Connection: close\r\n");
    if (!c->head_only)
        buf_append_str(&out, body);
    answer_count(c, status);
    loop_stream_send(&c->stream, out.data, out.bytes);
    exchange_end(c);
}

/* The reason stands in a header and in the body. */
static void refuse(struct client *c, unsigned status, const char *code, const char *message, struct str output, unsigned retry_after_s)
{
    cleanup(buf_done) struct buf body = {0}, extra = {0};
    if (c->upstream != NULL) {
        struct upstream *u = c->upstream;
        c->upstream = NULL;
        u->client = NULL;
        upstream_close(u);
    }
    if (!c->body_done && c->body != HTTP_BODY_NONE)
        c->keep_alive = false;
    buf_printf(&body, "{\"error\":{\"code\":\"%s\",\"message\":\"", code);
    json_text(&body, str_of(message));
    buf_printf(&body, "\"");
    if (c->route != NULL)
        buf_printf(&body, ",\"function\":\"%s\"", c->route->name);
    if (output.bytes > 0) {
        buf_printf(&body, ",\"last_output\":\"");
        json_text(&body, output);
        buf_printf(&body, "\"");
    }
    buf_printf(&body, "}}\n");
    buf_printf(&extra, "Dirigent-Error: %s\r\n", code);
    if (retry_after_s > 0)
        buf_printf(&extra, "Retry-After: %u\r\n", retry_after_s);
    buf_append(&extra, "", 1);
    plain_answer(c, status, "application/json", buf_str(&body), extra.data);
}

/* ---- upstream connections ---- */

static struct pool *pool_of(struct dispatch_endpoint *endpoint, uint32_t thread)
{
    struct pool *p = endpoint->thread_user[thread];
    if (p == NULL) {
        p = mem_new(sizeof(*p));
        list_init(&p->idle);
        endpoint->thread_user[thread] = p;
    }
    return p;
}

static void upstream_unpool(struct upstream *u)
{
    if (!list_is_linked(&u->node))
        return;
    list_remove(&u->node);
    pool_of(u->endpoint, u->thread->index)->count--;
}

static void upstream_close(struct upstream *u)
{
    if (u->closing)
        return;
    u->closing = true;
    upstream_unpool(u);
    loop_timer_stop(u->thread->loop, &u->timer);
    loop_stream_close(&u->stream);
}

static void on_upstream_closed(struct loop_stream *s)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    buf_done(&u->in);
    http_chunked_done(&u->chunked);
    free(u);
}

void proxy_pool_close(struct dispatch_endpoint *endpoint, uint32_t thread)
{
    struct pool *p = endpoint->thread_user[thread];
    if (p == NULL)
        return;
    while (!list_is_empty(&p->idle))
        upstream_close(list_entry(p->idle.next, struct upstream, node));
}

void proxy_endpoint_free(struct dispatch_endpoint *endpoint, uint32_t threads)
{
    for (uint32_t i = 0; i < threads; i++)
        free(endpoint->thread_user[i]); /* emptied by proxy_pool_close() */
    free(endpoint->user);
}

/* The answer is complete: the connection is kept when it is clean. */
static void upstream_done(struct upstream *u, bool clean)
{
    struct pool *p = pool_of(u->endpoint, u->thread->index);
    u->client = NULL;
    if (!clean || !u->keep_alive || u->in.bytes > 0 || p->count >= IDLE_UPSTREAMS_MAX || dispatch_endpoint_is_gone(u->endpoint)) {
        upstream_close(u);
        return;
    }
    http_chunked_done(&u->chunked);
    u->head_done = false;
    u->scanned = 0;
    list_push_front(&p->idle, &u->node); /* the warmest first */
    p->count++;
    loop_stream_resume(&u->stream);
}

/* ---- failures upstream ---- */

/* Tries again elsewhere when that cannot do harm: nothing was sent, or the method is idempotent; nothing of an answer has come; and the body,
 * if any, has not been taken yet. */
static bool retry(struct client *c)
{
    bool harmless = !c->sent_anything || http_method_is_idempotent(c->method);
    if (c->answer_begun || !harmless || c->body_started || c->retries >= RETRIES_MAX)
        return false;
    c->retries++;
    count_one(&c->thread->counters.retries);
    slot_release(c);
    request_begin(c);
    return true;
}

static void upstream_failed(struct upstream *u, const char *code, const char *message)
{
    struct client *c = u->client;
    u->client = NULL;
    upstream_close(u);
    if (c == NULL)
        return;
    c->upstream = NULL;
    if (c->answer_begun) {
        client_close(c, true); /* a cut answer must not look complete */
        return;
    }
    if (!retry(c))
        refuse(c, 502, code, message, STR_NONE, 0);
}

static void connect_failed(struct upstream *u, const char *why)
{
    struct client *c = u->client;
    struct route *route = c != NULL ? c->route : NULL;
    if (route != NULL && dispatch_endpoint_eject(route->dispatch, u->endpoint->sandbox_id))
        control_endpoint_failed(u->thread->dp, u->endpoint->sandbox_id, why);
    upstream_failed(u, "sandbox_unreachable", "the sandbox does not take connections");
}

static void on_upstream_timer(struct loop_timer *timer)
{
    connect_failed(container_of(timer, struct upstream, timer), "connect timed out");
}

static void on_upstream_connect(struct loop_stream *s, enum err err)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    loop_timer_stop(u->thread->loop, &u->timer);
    if (u->client == NULL) {
        upstream_close(u);
    } else if (err != ERR_OK) {
        connect_failed(u, strerror(s->error_number));
    } else {
        u->connected = true;
        upstream_start(u->client);
    }
}

/* ---- the answer, towards the client ---- */

static void answer_end(struct upstream *u)
{
    struct client *c = u->client;
    c->answer_done = true;
    if (u->until_close && !u->chunked_out)
        c->keep_alive = false;
    bool clean = c->body_done; /* an answer before the end of the request: the rest of it has nowhere to go */
    c->upstream = NULL;
    upstream_done(u, clean);
    exchange_end(c);
}

static void receipt_put(struct client *c, struct buf *out)
{
    const struct target *t = c->endpoint->user;
    double queue_ms = (double)(c->granted_ns - c->arrived_ns) / 1e6;
    double answer_ms = (double)(now_ns(c->thread) - c->granted_ns) / 1e6;
    buf_printf(out, "Server-Timing: queue;dur=%.3f", queue_ms);
    if (c->cold)
        buf_printf(out, ", place;dur=%.3f, create;dur=%.3f, exec;dur=%.3f, listen;dur=%.3f", t->place_us / 1e3, t->create_us / 1e3,
                   (t->exec_us - MIN(t->create_us, t->exec_us)) / 1e3, (t->listen_us - MIN(t->exec_us, t->listen_us)) / 1e3);
    buf_printf(out, ", first-byte;dur=%.3f\r\nDirigent-Cold: %d\r\nDirigent-Sandbox: %016" PRIx64 "\r\nDirigent-Worker: %s\r\n", answer_ms, c->cold,
               c->endpoint->sandbox_id, t->worker);
}

static bool is_hop_by_hop(enum http_field field)
{
    return field == HTTP_FIELD_CONNECTION || field == HTTP_FIELD_KEEP_ALIVE || field == HTTP_FIELD_PROXY_CONNECTION || field == HTTP_FIELD_TE ||
           field == HTTP_FIELD_TRANSFER_ENCODING || field == HTTP_FIELD_UPGRADE || field == HTTP_FIELD_CONTENT_LENGTH ||
           field == HTTP_FIELD_PROXY_AUTHENTICATE;
}

/* Named in Connection, RFC 9110 7.6.1. */
static bool is_named(const struct http_header *headers, uint32_t count, struct str name)
{
    for (uint32_t i = 0; i < count; i++)
        if (headers[i].field == HTTP_FIELD_CONNECTION && http_list_has(headers[i].value, name))
            return true;
    return false;
}

static bool has_connection(const struct http_header *headers, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (headers[i].field == HTTP_FIELD_CONNECTION)
            return true;
    return false;
}

static void header_put(struct buf *out, const struct http_header *h)
{
    char *at = buf_reserve(out, h->name.bytes + h->value.bytes + 4);
    memcpy(at, h->name.data, h->name.bytes);
    at += h->name.bytes;
    *at++ = ':';
    *at++ = ' ';
    memcpy(at, h->value.data, h->value.bytes);
    at += h->value.bytes;
    *at++ = '\r';
    *at++ = '\n';
    out->bytes += h->name.bytes + h->value.bytes + 4;
}

static void answer_head(struct client *c, struct upstream *u, struct buf *out)
{
    const struct http_response *r = &response;
    bool upgraded = r->status == 101;
    char line[64];
    int n = snprintf(line, sizeof(line), "HTTP/1.1 %u ", r->status);
    buf_append(out, line, (size_t)n);
    buf_append_str(out, r->reason);
    buf_append(out, "\r\n", 2);
    bool named = has_connection(r->headers, r->header_count);
    for (uint32_t i = 0; i < r->header_count; i++) {
        const struct http_header *h = &r->headers[i];
        if (h->field == HTTP_FIELD_OTHER || !is_hop_by_hop(h->field))
            if (!named || !is_named(r->headers, r->header_count, h->name))
                header_put(out, h);
    }
    if (upgraded) {
        buf_append_str(out, STR("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    } else {
        u->chunked_out = (r->body == HTTP_BODY_CHUNKED || r->body == HTTP_BODY_UNTIL_CLOSE) && c->minor_version >= 1;
        if (r->has_content_length && r->status >= 200 && r->status != 204) {
            n = snprintf(line, sizeof(line), "Content-Length: %" PRIu64 "\r\n", r->content_length);
            buf_append(out, line, (size_t)n);
        } else if (u->chunked_out) {
            buf_append_str(out, STR("Transfer-Encoding: chunked\r\n"));
        } else if (r->body != HTTP_BODY_NONE) {
            c->keep_alive = false;
        }
        if (!c->body_done)
            c->keep_alive = false; /* answered before the request was whole */
        if (!c->keep_alive || c->thread->draining)
            buf_append_str(out, STR("Connection: close\r\n"));
        else if (c->minor_version == 0)
            buf_append_str(out, STR("Connection: keep-alive\r\n"));
    }
    if (c->receipt)
        receipt_put(c, out);
    buf_append(out, "\r\n", 2);
}

/* Body bytes of the answer to the client, `out` goes in front of the first of them. */
static void answer_send(struct client *c, struct upstream *u, struct str head, struct str piece)
{
    struct iovec parts[4];
    char chunk[24];
    int count = 0;
    if (head.bytes > 0)
        parts[count++] = (struct iovec){(void *)head.data, head.bytes};
    if (piece.bytes > 0 && u->chunked_out)
        parts[count++] = (struct iovec){chunk, http_chunk_head(piece.bytes, chunk)};
    if (piece.bytes > 0)
        parts[count++] = (struct iovec){(void *)piece.data, piece.bytes};
    if (piece.bytes > 0 && u->chunked_out)
        parts[count++] = (struct iovec){(void *)"\r\n", 2};
    if (count == 0)
        return;
    loop_stream_sendv(&c->stream, parts, count);
    if (loop_stream_pending(&c->stream) > 0)
        loop_stream_pause(&u->stream); /* until the client has taken it */
}

static void chunked_finish(struct client *c, struct upstream *u)
{
    if (!u->chunked_out)
        return;
    cleanup(buf_done) struct buf end = {0};
    buf_append(&end, "0\r\n", 3);
    if (u->chunked_in && c->trailers)
        buf_append(&end, u->chunked.trailers.data, u->chunked.trailers.bytes);
    buf_append(&end, "\r\n", 2);
    loop_stream_send(&c->stream, end.data, end.bytes);
}

/* `data` is body of the answer; returns false when the exchange is over. */
static bool answer_body(struct upstream *u, struct str head, const char *data, size_t bytes)
{
    struct client *c = u->client;
    if (u->chunked_in) {
        size_t at = 0;
        answer_send(c, u, head, STR_NONE);
        while (!u->chunked.done) {
            struct str piece;
            size_t used;
            enum err err = http_chunked_next(&u->chunked, data + at, bytes - at, &piece, &used);
            if (err != ERR_OK && err != ERR_MORE) {
                upstream_failed(u, "bad_answer", "the function's answer is malformed");
                return false;
            }
            answer_send(c, u, STR_NONE, piece);
            at += used;
            if (err == ERR_MORE)
                return true;
        }
        if (at < bytes)
            u->keep_alive = false; /* more than it said */
        chunked_finish(c, u);
        answer_end(u);
        return false;
    }
    size_t take = u->until_close ? bytes : (size_t)MIN((uint64_t)bytes, u->body_left);
    answer_send(c, u, head, (struct str){data, take});
    if (u->until_close)
        return true;
    u->body_left -= take;
    if (u->body_left > 0)
        return true;
    if (take < bytes)
        u->keep_alive = false;
    answer_end(u);
    return false;
}

static void tunnel_begin(struct client *c, struct upstream *u, const char *rest, size_t rest_bytes)
{
    c->state = CLIENT_TUNNEL;
    c->deadline_ns = UINT64_MAX;
    loop_timer_stop(c->thread->loop, &c->timer);
    if (rest_bytes > 0)
        loop_stream_send(&c->stream, rest, rest_bytes);
    if (c->in.bytes > 0)
        loop_stream_send(&u->stream, c->in.data, c->in.bytes);
    c->in.bytes = 0;
    loop_stream_resume(&c->stream);
}

/* Returns how many bytes of data the head took, SIZE_MAX when the exchange is over or more is needed (*ret_more). */
static void answer_take(struct upstream *u, const char *data, size_t bytes)
{
    static _Thread_local struct buf out;
    struct client *c = u->client;
    struct error e = {0};
    for (;;) {
        enum err err = http_response_parse(data, bytes, &u->scanned, c->method, &response, &e);
        if (err == ERR_MORE) {
            if (data != u->in.data)
                buf_append(&u->in, data, bytes);
            return;
        }
        if (err != ERR_OK) {
            upstream_failed(u, "bad_answer", e.text);
            return;
        }
        u->scanned = 0;
        if (response.status >= 200 || response.status == 101)
            break;
        /* Interim answers pass; 100 is ours to give. */
        if (response.status != 100 && c->minor_version >= 1)
            loop_stream_send(&c->stream, data, response.head_bytes);
        data += response.head_bytes;
        bytes -= response.head_bytes;
        if (bytes == 0) {
            u->in.bytes = 0;
            return;
        }
    }
    if (response.status == 101 && !c->websocket) {
        upstream_failed(u, "bad_answer", "the function switched protocols without being asked");
        return;
    }
    u->head_done = true;
    u->keep_alive = response.keep_alive && response.minor_version >= 1;
    u->chunked_in = response.body == HTTP_BODY_CHUNKED;
    u->until_close = response.body == HTTP_BODY_UNTIL_CLOSE;
    u->body_left = response.body == HTTP_BODY_LENGTH ? response.content_length : 0;
    u->chunked_out = false;
    if (u->chunked_in)
        http_chunked_init(&u->chunked);
    c->answer_begun = true;
    out.bytes = 0;
    answer_head(c, u, &out);
    answer_count(c, response.status);
    uint16_t status = response.status;
    struct str head = buf_str(&out);
    const char *rest = data + response.head_bytes;
    size_t rest_bytes = bytes - response.head_bytes;
    if (status == 101) {
        answer_send(c, u, head, STR_NONE);
        tunnel_begin(c, u, rest, rest_bytes);
        u->in.bytes = 0;
        return;
    }
    if (response.body == HTTP_BODY_NONE || (response.body == HTTP_BODY_LENGTH && u->body_left == 0)) {
        answer_send(c, u, head, STR_NONE);
        if (rest_bytes > 0)
            u->keep_alive = false;
        u->in.bytes = 0;
        answer_end(u);
        return;
    }
    if (rest == data + bytes && data == u->in.data) {
        answer_send(c, u, head, STR_NONE);
        u->in.bytes = 0;
        return;
    }
    bool from_in = data >= u->in.data && u->in.bytes > 0;
    struct buf kept = {0};
    if (from_in) { /* the buffer is emptied before the exchange can end inside */
        kept = u->in;
        u->in = (struct buf){0};
    }
    (void)answer_body(u, head, rest, rest_bytes);
    buf_done(&kept);
}

static void on_upstream_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    struct client *c = u->client;
    if (c == NULL) { /* idle: whatever comes now ends it */
        upstream_close(u);
        return;
    }
    if (err == ERR_OK && c->state == CLIENT_TUNNEL) {
        loop_stream_send(&c->stream, data, bytes);
        if (loop_stream_pending(&c->stream) > 0)
            loop_stream_pause(s);
        return;
    }
    if (err == ERR_OK) {
        if (u->head_done) {
            (void)answer_body(u, STR_NONE, data, bytes);
        } else if (u->in.bytes > 0) {
            buf_append(&u->in, data, bytes);
            answer_take(u, u->in.data, u->in.bytes);
        } else {
            answer_take(u, data, bytes);
        }
        return;
    }
    if (c->state == CLIENT_TUNNEL) {
        if (err == ERR_END)
            loop_stream_shutdown(&c->stream);
        else
            client_close(c, true);
        if (err == ERR_END && c->peer_ended)
            client_close(c, false);
        return;
    }
    if (err == ERR_END && u->head_done && u->until_close) {
        u->keep_alive = false;
        chunked_finish(c, u);
        answer_end(u);
        return;
    }
    upstream_failed(u, "sandbox_closed", c->answer_begun ? "the function broke off its answer" : "the function closed the connection without an answer");
}

static void on_upstream_drained(struct loop_stream *s)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    struct client *c = u->client;
    if (c == NULL || c->state == CLIENT_CLOSED)
        return;
    loop_stream_resume(&c->stream);
    if (c->state == CLIENT_ACTIVE && c->in.bytes > 0)
        body_forward(c);
}

static const struct loop_stream_callbacks upstream_callbacks = {
    .on_connect = on_upstream_connect, .on_recv = on_upstream_recv, .on_drained = on_upstream_drained, .on_closed = on_upstream_closed};

/* ---- the request, towards the sandbox ---- */

/* Body bytes that are in c->in. */
static void body_forward(struct client *c)
{
    struct upstream *u = c->upstream;
    uint64_t max = atomic_load_explicit(&c->route->body_bytes_max, memory_order_relaxed);
    while (!c->body_done && c->in.bytes > 0 && loop_stream_pending(&u->stream) == 0) {
        struct str piece;
        size_t used;
        c->body_started = true;
        if (c->body == HTTP_BODY_LENGTH) {
            used = (size_t)MIN((uint64_t)c->in.bytes, c->body_left);
            loop_stream_send(&u->stream, c->in.data, used);
            c->body_left -= used;
            c->body_done = c->body_left == 0;
        } else {
            enum err err = http_chunked_next(&c->chunked, c->in.data, c->in.bytes, &piece, &used);
            c->body_seen += piece.bytes;
            if ((err != ERR_OK && err != ERR_MORE) || c->body_seen > max) {
                bool large = c->body_seen > max;
                c->keep_alive = false;
                if (c->answer_begun)
                    client_close(c, true);
                else
                    refuse(c, large ? 413 : 400, large ? "body_too_large" : "bad_request",
                           large ? "the body is larger than this function accepts" : "the chunked body is malformed", STR_NONE, 0);
                return;
            }
            char chunk[24];
            struct iovec parts[3] = {{chunk, http_chunk_head(piece.bytes, chunk)}, {(void *)piece.data, piece.bytes}, {(void *)"\r\n", 2}};
            if (piece.bytes > 0)
                loop_stream_sendv(&u->stream, parts, 3);
            if (c->chunked.done) {
                c->body_done = true;
                loop_stream_send(&u->stream, "0\r\n", 3);
                loop_stream_send(&u->stream, c->chunked.trailers.data, c->chunked.trailers.bytes);
                loop_stream_send(&u->stream, "\r\n", 2);
            }
            if (err == ERR_MORE && used == 0)
                return;
        }
        buf_consume(&c->in, used);
    }
    if (!c->body_done && loop_stream_pending(&u->stream) > 0)
        loop_stream_pause(&c->stream);
}

/* The sandbox is connected: head, and what is there of the body, in one write when possible. */
static void upstream_start(struct client *c)
{
    struct upstream *u = c->upstream;
    c->state = CLIENT_ACTIVE;
    c->sent_anything = true;
    if (c->expect_continue && !c->body_started && c->in.bytes == 0)
        loop_stream_send(&c->stream, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    c->expect_continue = false;
    if (c->body == HTTP_BODY_LENGTH && c->in.bytes > 0) {
        size_t n = (size_t)MIN((uint64_t)c->in.bytes, c->body_left);
        struct iovec parts[2] = {{c->head.data, c->head.bytes}, {c->in.data, n}};
        c->body_started = true;
        loop_stream_sendv(&u->stream, parts, 2);
        c->body_left -= n;
        c->body_done = c->body_left == 0;
        buf_consume(&c->in, n);
    } else {
        loop_stream_send(&u->stream, c->head.data, c->head.bytes);
    }
    if (!c->body_done) {
        loop_stream_resume(&c->stream);
        body_forward(c);
    }
}

static void upstream_get(struct client *c)
{
    struct serving *t = c->thread;
    struct dispatch_endpoint *endpoint = c->endpoint;
    const struct target *target = endpoint->user;
    struct pool *p = pool_of(endpoint, t->index);
    c->state = CLIENT_CONNECTING;
    c->granted_ns = now_ns(t);
    c->cold = c->waited && target->added_ns >= c->arrived_ns;
    if (c->cold) {
        count_one(&t->counters.cold);
        atomic_fetch_add_explicit(&c->route->cold, 1, memory_order_relaxed);
    }
    if (!list_is_empty(&p->idle)) {
        struct upstream *u = list_entry(p->idle.next, struct upstream, node);
        upstream_unpool(u);
        u->client = c;
        u->reused = true;
        c->upstream = u;
        upstream_start(c);
        return;
    }
    struct upstream *u = mem_new(sizeof(*u));
    struct error e = {0};
    u->thread = t;
    u->endpoint = endpoint;
    u->client = c;
    loop_timer_init(&u->timer, on_upstream_timer);
    c->upstream = u;
    count_one(&t->counters.upstream_connects);
    if (loop_stream_connect(t->loop, &u->stream, &upstream_callbacks, (const struct sockaddr *)&target->address, target->address_bytes, &u->connected, &e) !=
        ERR_OK) {
        free(u);
        c->upstream = NULL;
        refuse(c, 503, "no_descriptors", e.text, STR_NONE, 1);
        return;
    }
    if (u->connected)
        upstream_start(c);
    else
        loop_timer_start(t->loop, &u->timer, now_ns(t) + UPSTREAM_CONNECT_TIMEOUT_MS * NS_PER_MS);
}

/* ---- waiting ---- */

static void outcome_take(struct client *c)
{
    c->outcome_pending = false;
    if (c->failure == NULL) {
        struct dispatch_endpoint *endpoint = dispatch_take_grant(c->route->dispatch, c->thread->index, &c->waiter, now_ns(c->thread));
        c->endpoint = endpoint;
        if (c->state == CLIENT_CLOSED)
            slot_release(c);
        else if (dispatch_endpoint_is_gone(endpoint)) {
            slot_release(c);
            request_begin(c);
        } else
            upstream_get(c);
    } else if (c->state != CLIENT_CLOSED) {
        struct failure *f = c->failure;
        c->failure = NULL;
        refuse(c, f->status, f->code, f->message, str_of(f->output), f->retry_after_s);
        failure_release(f);
    }
    if (c->state == CLIENT_CLOSED && c->closing_wanted)
        client_free(c);
}

static void on_outcome(struct loop_post *post)
{
    outcome_take(container_of(post, struct client, post));
}

/* Any thread. */
static void on_grant(struct dispatch_waiter *w)
{
    struct client *c = container_of(w, struct client, waiter);
    c->outcome_pending = true;
    loop_post(c->thread->loop, &c->post);
}

static void on_failed(struct dispatch_waiter *w, enum err err, void *reason)
{
    struct client *c = container_of(w, struct client, waiter);
    struct failure *f = reason;
    if (f != NULL)
        atomic_fetch_add_explicit(&f->references, 1, memory_order_relaxed);
    else
        f = failure_new(504, "queue_timeout", "the request waited longer than the function's timeout for a sandbox", STR_NONE, 0);
    c->failure = f;
    c->outcome_pending = true;
    loop_post(c->thread->loop, &c->post);
}

static void request_begin(struct client *c)
{
    struct serving *t = c->thread;
    struct dispatch_endpoint *endpoint;
    c->waiter.on_grant = on_grant;
    c->waiter.on_failed = on_failed;
    c->waiter.arrived_ns = c->arrived_ns;
    c->waiter.deadline_ns = c->deadline_ns;
    c->waiter.state = DISPATCH_IDLE;
    c->state = CLIENT_WAITING;
    enum err err = dispatch_acquire(c->route->dispatch, t->index, &c->waiter, now_ns(t), &endpoint);
    if (!atomic_load_explicit(&c->route->active, memory_order_relaxed))
        atomic_store_explicit(&c->route->active, true, memory_order_relaxed);
    if (err == ERR_OK) {
        c->endpoint = endpoint;
        upstream_get(c);
        return;
    }
    if (err == ERR_MORE) {
        c->waited = true;
        control_demand_now(c->route);
        return;
    }
    c->state = CLIENT_ACTIVE;
    if (err == ERR_BUSY)
        refuse(c, 503, "queue_full", "too many requests wait for this function", STR_NONE, 1);
    else if (err == ERR_NOT_FOUND)
        refuse(c, 404, "function_deleted", "the function has been deleted", STR_NONE, 0);
    else
        refuse(c, 504, "queue_timeout", "the request waited longer than the function's timeout for a sandbox", STR_NONE, 0);
}

/* ---- heads ---- */

static void trace_make(struct serving *t, struct buf *out)
{
    buf_printf(out, "traceparent: 00-%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "-00\r\n", rng_next(&t->rng), rng_next(&t->rng) | 1, rng_next(&t->rng) | 1);
}

/* The request as it goes upstream; `target` is its path and query there, `prefix` what was taken from it. */
static void request_head(struct client *c, struct str target, struct str prefix)
{
    const struct http_request *r = &request;
    struct buf *out = &c->head;
    out->bytes = 0;
    buf_append_str(out, r->method_text);
    buf_append(out, " ", 1);
    buf_append_str(out, target.bytes > 0 ? target : STR("/"));
    buf_append_str(out, STR(" HTTP/1.1\r\nHost: "));
    buf_append_str(out, r->host);
    buf_append(out, "\r\n", 2);
    bool traced = false, named = has_connection(r->headers, r->header_count);
    for (uint32_t i = 0; i < r->header_count; i++) {
        const struct http_header *h = &r->headers[i];
        if (h->field != HTTP_FIELD_OTHER) {
            if (is_hop_by_hop(h->field) || h->field == HTTP_FIELD_HOST || h->field == HTTP_FIELD_EXPECT || h->field == HTTP_FIELD_FORWARDED ||
                h->field == HTTP_FIELD_X_FORWARDED_FOR || h->field == HTTP_FIELD_X_FORWARDED_PROTO || h->field == HTTP_FIELD_X_FORWARDED_HOST ||
                h->field == HTTP_FIELD_DIRIGENT_RECEIPT || h->field == HTTP_FIELD_PROXY_AUTHORIZATION)
                continue;
            traced |= h->field == HTTP_FIELD_TRACEPARENT;
        }
        if (!named || !is_named(r->headers, r->header_count, h->name))
            header_put(out, h);
    }
    char line[64];
    if (c->body == HTTP_BODY_LENGTH) {
        int n = snprintf(line, sizeof(line), "Content-Length: %" PRIu64 "\r\n", r->content_length);
        buf_append(out, line, (size_t)n);
    } else if (c->body == HTTP_BODY_CHUNKED) {
        buf_append_str(out, STR("Transfer-Encoding: chunked\r\n"));
    }
    if (c->websocket)
        buf_append_str(out, STR("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
    else if (c->trailers)
        buf_append_str(out, STR("Connection: TE\r\nTE: trailers\r\n"));
    buf_append_str(out, STR("X-Forwarded-For: "));
    buf_append_str(out, str_of(c->peer));
    buf_append_str(out, STR("\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: "));
    buf_append_str(out, r->host);
    buf_append(out, "\r\n", 2);
    if (prefix.bytes > 0) {
        buf_append_str(out, STR("X-Forwarded-Prefix: "));
        buf_append_str(out, prefix);
        buf_append(out, "\r\n", 2);
    }
    if (!traced)
        trace_make(c->thread, out);
    buf_append(out, "\r\n", 2);
}

/* By Host (whole, or its first label), else by /function/NAME/…: then *target loses its prefix. */
static struct route *route_find(struct serving *t, struct str *target, struct str *ret_prefix)
{
    const struct http_request *r = &request;
    struct str rest, label = str_split(r->host_name, '.', &rest);
    struct route *route = strmap_get(&t->by_name, label);
    *ret_prefix = STR_NONE;
    if (route != NULL)
        return route;
    struct str mark = STR("/function/");
    if (!str_has_prefix(*target, mark))
        return NULL;
    struct str tail = {target->data + mark.bytes, target->bytes - mark.bytes};
    size_t name = 0;
    while (name < tail.bytes && tail.data[name] != '/' && tail.data[name] != '?')
        name++;
    route = strmap_get(&t->by_name, (struct str){tail.data, name});
    if (route == NULL)
        return NULL;
    *ret_prefix = (struct str){target->data, mark.bytes + name};
    *target = (struct str){tail.data + name, tail.bytes - name};
    return route;
}

static void own_path(struct client *c, struct str path)
{
    cleanup(buf_done) struct buf body = {0};
    if (str_equal(path, STR("/healthz"))) {
        plain_answer(c, 200, "text/plain", STR("ok\n"), "");
    } else if (str_equal(path, STR("/readyz"))) {
        bool ready = atomic_load(&c->thread->dp->connected) && !c->thread->draining;
        plain_answer(c, ready ? 200 : 503, "text/plain", ready ? STR("ok\n") : STR("the control plane is not reached\n"), "");
    } else if (str_equal(path, STR("/metrics"))) {
        control_metrics(c->thread->dp, &body);
        plain_answer(c, 200, "text/plain; version=0.0.4", buf_str(&body), "");
    } else {
        char message[400];
        (void)snprintf(message, sizeof(message), "no function '%.*s'; a function is named by the first label of Host or by /function/NAME/",
                       (int)MIN(request.host_name.bytes, (size_t)100), request.host_name.bytes > 0 ? request.host_name.data : "");
        refuse(c, 404, "function_not_found", message, STR_NONE, 0);
    }
}

static void request_take(struct client *c)
{
    struct serving *t = c->thread;
    struct str prefix, target = request.path;
    if (request.query.data != NULL)
        target.bytes = (size_t)(request.query.data + request.query.bytes - request.path.data);
    c->method = request.method;
    c->minor_version = request.minor_version;
    c->keep_alive = request.keep_alive;
    c->head_only = request.method == HTTP_HEAD;
    c->expect_continue = request.expect_continue;
    c->websocket = request.upgrade_websocket;
    c->trailers = request.trailers_accepted;
    c->body = request.body;
    c->body_left = request.content_length;
    c->body_seen = 0;
    c->body_done = request.body == HTTP_BODY_NONE || (request.body == HTTP_BODY_LENGTH && request.content_length == 0);
    c->body_started = c->waited = c->cold = c->answer_begun = c->answer_done = c->sent_anything = c->receipt = false;
    c->retries = 0;
    c->arrived_ns = now_ns(t);
    if (c->body == HTTP_BODY_CHUNKED) {
        http_chunked_done(&c->chunked);
        http_chunked_init(&c->chunked);
    }
    count_one(&t->counters.requests);
    c->state = CLIENT_ACTIVE;
    struct route *route = route_find(t, &target, &prefix);
    if (route == NULL) {
        own_path(c, request.path);
        return;
    }
    atomic_fetch_add_explicit(&route->references, 1, memory_order_relaxed);
    c->route = route;
    if (request.method == HTTP_CONNECT) {
        refuse(c, 501, "not_implemented", "CONNECT is not served", STR_NONE, 0);
        return;
    }
    if (c->body == HTTP_BODY_LENGTH && c->body_left > atomic_load_explicit(&route->body_bytes_max, memory_order_relaxed)) {
        refuse(c, 413, "body_too_large", "the body is larger than this function accepts", STR_NONE, 0);
        return;
    }
    for (uint32_t i = 0; i < request.header_count; i++)
        if (request.headers[i].field == HTTP_FIELD_DIRIGENT_RECEIPT)
            c->receipt = str_equal(request.headers[i].value, STR("1"));
    request_head(c, target, prefix);
    deadline_set(c, c->arrived_ns + (uint64_t)atomic_load_explicit(&route->timeout_ms, memory_order_relaxed) * NS_PER_MS);
    request_begin(c);
}

static void head_refused(struct client *c, enum err err, const struct error *e)
{
    c->keep_alive = false;
    c->body_done = true;
    c->head_only = false;
    c->body = HTTP_BODY_NONE;
    c->state = CLIENT_ACTIVE;
    refuse(c, http_parse_error_status(err, e), "bad_request", e->text, STR_NONE, 0);
}

/* A head that lies in c->in. */
static void head_take(struct client *c)
{
    struct error e = {0};
    enum err err = http_request_parse(c->in.data, c->in.bytes, &c->scanned, &request, &e);
    if (err == ERR_MORE) {
        deadline_set(c, MIN(c->deadline_ns, now_ns(c->thread) + HTTP_HEAD_TIMEOUT_MS * NS_PER_MS));
        return;
    }
    if (err != ERR_OK) {
        head_refused(c, err, &e);
        return;
    }
    /* The head is used up within request_take(), but what follows it must be in front by then. */
    struct buf whole = c->in;
    c->in = (struct buf){0};
    buf_append(&c->in, whole.data + request.head_bytes, whole.bytes - request.head_bytes);
    request_take(c);
    buf_done(&whole);
}

/* ---- the client's side ---- */

static void on_client_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct client *c = container_of(s, struct client, stream);
    struct error e = {0};
    if (err != ERR_OK) {
        c->peer_ended = true;
        if (err == ERR_END && c->state == CLIENT_TUNNEL) {
            loop_stream_shutdown(&c->upstream->stream);
            return;
        }
        if (err == ERR_END && c->body_done && (c->state == CLIENT_ACTIVE || c->state == CLIENT_CONNECTING)) {
            c->keep_alive = false; /* it has only ended its direction: the answer still goes out */
            return;
        }
        client_close(c, false);
        return;
    }
    switch (c->state) {
    case CLIENT_HEAD:
        if (c->in.bytes > 0) {
            buf_append(&c->in, data, bytes);
            head_take(c);
            return;
        }
        err = http_request_parse(data, bytes, &c->scanned, &request, &e);
        if (err == ERR_OK) {
            if (request.head_bytes < bytes)
                buf_append(&c->in, data + request.head_bytes, bytes - request.head_bytes);
            request_take(c);
        } else if (err == ERR_MORE) {
            buf_append(&c->in, data, bytes);
            deadline_set(c, MIN(c->deadline_ns, now_ns(c->thread) + HTTP_HEAD_TIMEOUT_MS * NS_PER_MS));
        } else {
            head_refused(c, err, &e);
        }
        break;
    case CLIENT_TUNNEL:
        loop_stream_send(&c->upstream->stream, data, bytes);
        if (loop_stream_pending(&c->upstream->stream) > 0)
            loop_stream_pause(s);
        break;
    case CLIENT_WAITING:
    case CLIENT_CONNECTING:
    case CLIENT_ACTIVE:
        buf_append(&c->in, data, bytes);
        if (c->state == CLIENT_ACTIVE && !c->body_done && c->upstream != NULL)
            body_forward(c);
        else if (c->in.bytes > EARLY_BYTES_MAX)
            loop_stream_pause(s);
        break;
    case CLIENT_ENDING:
    case CLIENT_CLOSED:
        break;
    }
}

static void on_client_drained(struct loop_stream *s)
{
    struct client *c = container_of(s, struct client, stream);
    if (c->upstream != NULL)
        loop_stream_resume(&c->upstream->stream);
}

static const struct loop_stream_callbacks client_callbacks = {.on_recv = on_client_recv, .on_drained = on_client_drained, .on_closed = on_client_closed};

static void on_client_timer(struct loop_timer *timer)
{
    struct client *c = container_of(timer, struct client, timer);
    struct serving *t = c->thread;
    if (now_ns(t) < c->deadline_ns) {
        if (c->deadline_ns != UINT64_MAX)
            loop_timer_start(t->loop, timer, c->deadline_ns);
        return;
    }
    switch (c->state) {
    case CLIENT_HEAD:
        if (c->in.bytes == 0) {
            client_close(c, false); /* idle */
        } else {
            c->keep_alive = false;
            c->body_done = true;
            c->state = CLIENT_ACTIVE;
            refuse(c, 408, "head_timeout", "the request's head did not come within 10 s", STR_NONE, 0);
        }
        break;
    case CLIENT_WAITING:
        if (c->outcome_pending || !dispatch_cancel(c->route->dispatch, &c->waiter))
            break; /* its outcome is on the way */
        control_demand_now(c->route);
        c->state = CLIENT_ACTIVE;
        refuse(c, 504, "queue_timeout",
               atomic_load(&t->dp->connected) ? "the request waited longer than the function's timeout for a sandbox"
                                              : "the request waited longer than the function's timeout; the control plane is not reached, so no sandbox can be started",
               STR_NONE, 0);
        break;
    case CLIENT_CONNECTING:
    case CLIENT_ACTIVE:
        if (c->answer_begun)
            client_close(c, true);
        else
            refuse(c, 504, "function_timeout", "the function did not answer within its timeout", STR_NONE, 0);
        break;
    case CLIENT_ENDING:
        client_close(c, false);
        break;
    case CLIENT_TUNNEL:
    case CLIENT_CLOSED:
        break;
    }
}

void proxy_on_accept(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer)
{
    struct serving *t = container_of(listener, struct serving, listener);
    struct error e = {0};
    struct client *c = mem_new(sizeof(*c));
    c->thread = t;
    c->state = CLIENT_HEAD;
    c->post.on_post = on_outcome;
    loop_timer_init(&c->timer, on_client_timer);
    if (peer->ss_family == AF_INET)
        (void)inet_ntop(AF_INET, &((const struct sockaddr_in *)peer)->sin_addr, c->peer, sizeof(c->peer));
    else
        (void)inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)peer)->sin6_addr, c->peer, sizeof(c->peer));
    if (loop_stream_init(t->loop, &c->stream, &client_callbacks, fd, &e) != ERR_OK) {
        fd_close(&fd);
        free(c);
        return;
    }
    list_push_back(&t->clients, &c->node);
    t->client_count++;
    count_one(&t->counters.connections);
    deadline_after(c, HTTP_IDLE_TIMEOUT_MS);
}

void proxy_drain(struct serving *t)
{
    t->draining = true;
    list_for_each(c, &t->clients, struct client, node)
    {
        if (c->state == CLIENT_HEAD && c->in.bytes == 0)
            client_close(c, false);
    }
}
