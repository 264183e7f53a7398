/* client.c - the connection to a client. */
#include "data_plane/proxy.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#define TO(s) (1u << (s))
#define ENDS (TO(CLIENT_FLUSHING) | TO(CLIENT_LINGERING) | TO(CLIENT_CLOSED))
static const struct {
    const char *name;
    unsigned next; /* the states that may follow */
} states[CLIENT_STATE_COUNT] = {
    [CLIENT_HEAD] = {"head", TO(CLIENT_WAITING) | TO(CLIENT_CONNECTING) | TO(CLIENT_SENT) | ENDS},
    [CLIENT_WAITING] = {"waiting",
                        TO(CLIENT_CONNECTING) | TO(CLIENT_SENT) | TO(CLIENT_HEAD) | ENDS},
    [CLIENT_CONNECTING] = {"connecting",
                           TO(CLIENT_WAITING) | TO(CLIENT_SENT) | TO(CLIENT_HEAD) | ENDS},
    [CLIENT_SENT] = {"sent", TO(CLIENT_WAITING) | TO(CLIENT_CONNECTING) | TO(CLIENT_ANSWERING) |
                                 TO(CLIENT_TUNNEL) | TO(CLIENT_HEAD) | ENDS},
    [CLIENT_ANSWERING] = {"answering", TO(CLIENT_HEAD) | ENDS},
    [CLIENT_TUNNEL] = {"tunnel", TO(CLIENT_FLUSHING) | TO(CLIENT_CLOSED)},
    [CLIENT_FLUSHING] = {"flushing", TO(CLIENT_HEAD) | TO(CLIENT_LINGERING) | TO(CLIENT_CLOSED)},
    [CLIENT_LINGERING] = {"lingering", TO(CLIENT_CLOSED)},
    [CLIENT_CLOSED] = {"closed", 0},
};

void client_move(struct client *c, enum client_state to)
{
    assert((states[c->state].next & TO(to)) != 0);
    c->state = to;
}

/* ---- time ---- */

void client_due(struct client *c, uint64_t due_ns)
{
    c->due_ns = due_ns;
    if (!loop_timer_is_running(&c->timer) || c->timer.due_ns > due_ns)
        loop_timer_start(c->thread->loop, &c->timer, due_ns);
}

static void head_timeout(struct client *c)
{
    if (c->in.bytes == 0) {
        client_close(c); /* idle */
        return;
    }
    c->keep_alive = false;
    client_answer(c, ANSWER_head_timeout, STR_NONE);
}

static void on_timer(struct loop_timer *timer)
{
    struct client *c = container_of(timer, struct client, timer);
    if (c->state == CLIENT_CLOSED)
        return;
    if (now_ns(c->thread) < c->due_ns) {
        loop_timer_start(c->thread->loop, timer, c->due_ns);
        return;
    }
    switch (c->state) {
    case CLIENT_HEAD:
        head_timeout(c);
        break;
    case CLIENT_WAITING:
    case CLIENT_CONNECTING:
    case CLIENT_SENT:
    case CLIENT_ANSWERING:
    case CLIENT_TUNNEL:
        exchange_timeout(c);
        break;
    case CLIENT_FLUSHING:
        client_cut(c);
        break;
    case CLIENT_LINGERING:
        client_close(c);
        break;
    case CLIENT_CLOSED:
    case CLIENT_STATE_COUNT:
        break;
    }
}

/* ---- input ---- */

static void parse_failed(struct client *c, enum err err)
{
    struct thread *t = c->thread;
    unsigned status = http_parse_error_status(err, &t->error);
    enum answer answer = status == 431   ? ANSWER_head_too_large
                         : status == 501 ? ANSWER_unsupported
                         : status == 505 ? ANSWER_version_unsupported
                                         : ANSWER_bad_request;
    stat_add(&t->counters.parse_errors, 1);
    c->keep_alive = c->head_only = c->client_is_1_0 = false;
    c->request_done = false; /* whatever follows is no request */
    client_answer(c, answer, str_of(t->error.text));
}

/* Looks for a head at `data`; returns how many bytes were used. */
static size_t take_head(struct client *c, const char *data, size_t bytes)
{
    struct thread *t = c->thread;
    bool is_first = c->scanned == 0;
    enum err err = http_request_parse(data, bytes, &c->scanned, &t->request, &t->error);
    if (err == ERR_MORE) {
        if (is_first)
            client_due(c, now_ns(t) + t->shared->head_timeout_ns);
        return 0;
    }
    c->scanned = 0;
    if (err != ERR_OK) {
        parse_failed(c, err);
        return bytes;
    }
    size_t head_bytes = t->request.head_bytes;
    return head_bytes + exchange_begin(c, data + head_bytes, bytes - head_bytes);
}

/* Kept input is used first; what is left of it stays. Neither path changes c->in while it is looked
 * at. */
static void take_input(struct client *c, const char *data, size_t bytes)
{
    size_t used;
    if (c->in.bytes == 0) {
        used = take_head(c, data, bytes);
        if (c->state != CLIENT_CLOSED && c->state != CLIENT_LINGERING)
            buf_append(&c->in, data + used, bytes - used);
    } else {
        buf_append(&c->in, data, bytes);
        used = take_head(c, c->in.data, c->in.bytes);
        buf_consume(&c->in, used);
    }
    if (c->state == CLIENT_HEAD && used > 0 && c->in.bytes > 0)
        loop_defer(c->thread->loop,
                   &c->again); /* answered at once: the next one, without recursion */
}

/* Input that can be used now: after an answer, or since a connection to the sandbox is there. */
void client_take_kept(struct client *c)
{
    size_t used = 0;
    if (c->in.bytes > 0) {
        if (c->state == CLIENT_HEAD)
            used = take_head(c, c->in.data, c->in.bytes);
        else if ((c->state == CLIENT_SENT || c->state == CLIENT_ANSWERING) && !c->request_done)
            used = body_send(c, c->in.data, c->in.bytes);
        buf_consume(&c->in, used);
        if (c->state == CLIENT_HEAD && used > 0 && c->in.bytes > 0)
            loop_defer(c->thread->loop, &c->again);
    }
    if (c->in.bytes == 0)
        buf_done(&c->in); /* idle connections hold no buffer */
    bool blocked = c->upstream != NULL && loop_stream_pending(&c->upstream->stream) > 0;
    if (c->in.bytes <= INPUT_KEPT_BYTES_MAX && !blocked && c->state != CLIENT_CLOSED)
        loop_stream_resume(&c->stream);
}

static void on_again(struct loop_deferred *d)
{
    struct client *c = container_of(d, struct client, again);
    if (c->state != CLIENT_CLOSED)
        client_take_kept(c);
}

static void keep_input(struct client *c, const char *data, size_t bytes)
{
    buf_append(&c->in, data, bytes);
    if (c->in.bytes > INPUT_KEPT_BYTES_MAX)
        loop_stream_pause(&c->stream);
}

static void tunnel_input(struct client *c, const char *data, size_t bytes)
{
    struct iovec part = {.iov_base = (void *)data, .iov_len = bytes};
    client_due(c, now_ns(c->thread) +
                      atomic_load_explicit(&c->route->route->timeout_ns, memory_order_relaxed));
    upstream_send(c->upstream, &part, 1);
    if (loop_stream_pending(&c->upstream->stream) > 0)
        loop_stream_pause(&c->stream);
}

static void input_ended(struct client *c, enum err err)
{
    switch (c->state) {
    case CLIENT_HEAD:
    case CLIENT_LINGERING:
        client_close(c);
        break;
    case CLIENT_WAITING:
    case CLIENT_CONNECTING:
    case CLIENT_SENT:
    case CLIENT_ANSWERING:
        exchange_client_gone(c);
        break;
    case CLIENT_TUNNEL:
        exchange_tunnel_client_ended(c, err);
        break;
    case CLIENT_FLUSHING:
        c->close_after_flush = true;
        if (err != ERR_END)
            client_close(c);
        break;
    case CLIENT_CLOSED:
    case CLIENT_STATE_COUNT:
        break;
    }
}

static void on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct client *c = container_of(s, struct client, stream);
    if (err != ERR_OK) {
        input_ended(c, err);
        return;
    }
    stat_add(&c->thread->counters.bytes_in, bytes);
    switch (c->state) {
    case CLIENT_HEAD:
        take_input(c, data, bytes);
        break;
    case CLIENT_SENT:
    case CLIENT_ANSWERING:
        if (!c->request_done && c->in.bytes == 0) {
            size_t used = body_send(c, data, bytes);
            if (used < bytes && c->state != CLIENT_CLOSED && c->state != CLIENT_LINGERING)
                keep_input(c, data + used, bytes - used);
            break;
        }
        keep_input(c, data, bytes);
        break;
    case CLIENT_WAITING:
    case CLIENT_CONNECTING:
    case CLIENT_FLUSHING:
        keep_input(c, data, bytes);
        break;
    case CLIENT_TUNNEL:
        tunnel_input(c, data, bytes);
        break;
    case CLIENT_LINGERING:
    case CLIENT_CLOSED:
    case CLIENT_STATE_COUNT:
        break;
    }
}

/* It sends a large body ahead and is paused: who has gone does not wait for a sandbox, nor hold
 * one. */
static void on_peer_ended(struct loop_stream *s, bool all)
{
    struct client *c = container_of(s, struct client, stream);
    bool has_exchange = c->state == CLIENT_WAITING || c->state == CLIENT_CONNECTING ||
                        c->state == CLIENT_SENT || c->state == CLIENT_ANSWERING ||
                        c->state == CLIENT_TUNNEL;
    if (c->state == CLIENT_WAITING || (all && has_exchange))
        exchange_client_gone(c);
}

/* ---- output ---- */

void client_write(struct client *c, struct str data)
{
    stat_add(&c->thread->counters.bytes_out, data.bytes);
    loop_stream_send(&c->stream, data.data, data.bytes);
}

static struct answer_frame frame_of(struct client *c, struct str extra)
{
    return (struct answer_frame){.head_only = c->head_only,
                                 .keep_alive = c->keep_alive,
                                 .client_is_1_0 = c->client_is_1_0,
                                 .date = thread_date(c->thread),
                                 .extra = extra};
}

/* The connection stays only when the request was read to its end. */
static void settle_keep_alive(struct client *c)
{
    c->keep_alive = c->keep_alive && c->request_done && !c->thread->stopping;
}

void client_answer_page(struct client *c, unsigned status, const char *content_type,
                        struct str body)
{
    struct buf out = {0};
    settle_keep_alive(c);
    struct answer_frame frame = frame_of(c, STR_NONE);
    answer_write(&out, status, content_type, body, &frame);
    client_write(c, buf_str(&out));
    buf_done(&out);
    client_answered(c);
}

static void answer_error(struct client *c, struct answer_error *error)
{
    struct thread *t = c->thread;
    settle_keep_alive(c);
    t->extra.bytes = 0;
    if (c->receipt)
        buf_printf(&t->extra, "Server-Timing: queue;dur=%.3f\r\n",
                   (double)(now_ns(t) - c->arrived_ns) / 1e6);
    if (c->route != NULL)
        error->function = str_of(c->route->route->name);
    struct answer_frame frame = frame_of(c, buf_str(&t->extra));
    t->out.bytes = 0;
    answer_write_error(&t->out, error, &frame);
    c->status = error->status;
    client_write(c, buf_str(&t->out));
}

void client_answer(struct client *c, enum answer answer, struct str message)
{
    struct answer_error error = {.status = answer_status(answer),
                                 .retry_after_s = answer_retry_after_s(answer),
                                 .code = str_of(answer_code(answer)),
                                 .message =
                                     message.bytes > 0 ? message : str_of(answer_message(answer))};
    stat_add(&c->thread->counters.errors[answer], 1);
    answer_error(c, &error);
    client_answered(c);
}

void client_answer_failure(struct client *c, const struct failure *f)
{
    struct answer_error error = {.status = f->status,
                                 .retry_after_s = f->retry_after_s,
                                 .code = str_of(f->code),
                                 .message = str_of(f->message),
                                 .last_output = buf_str(&f->last_output)};
    stat_add(&c->thread->counters.errors[ANSWER_waiting_failed], 1);
    answer_error(c, &error);
    client_answered(c);
}

/* ---- after an answer ---- */

static void begin_linger(struct client *c)
{
    client_move(c, CLIENT_LINGERING);
    loop_stream_shutdown(&c->stream);
    loop_stream_resume(&c->stream);
    client_due(c, now_ns(c->thread) + LINGER_NS);
}

static void next_request(struct client *c)
{
    if (c->state != CLIENT_HEAD)
        client_move(c, CLIENT_HEAD);
    client_due(c, now_ns(c->thread) + c->thread->shared->idle_timeout_ns);
    if (c->in.bytes > 0 || c->stream.paused)
        loop_defer(c->thread->loop, &c->again);
    else if (c->thread->stopping)
        client_close(c);
}

static void flushed(struct client *c)
{
    if (!c->close_after_flush)
        next_request(c);
    else if (c->request_done && c->in.bytes == 0)
        client_close(c);
    else
        begin_linger(c);
}

void client_answered(struct client *c)
{
    c->close_after_flush = !c->keep_alive;
    if (loop_stream_pending(&c->stream) > 0) {
        client_move(c, CLIENT_FLUSHING);
        client_due(c, now_ns(c->thread) + c->thread->shared->idle_timeout_ns);
        return;
    }
    flushed(c);
}

static void on_drained(struct loop_stream *s)
{
    struct client *c = container_of(s, struct client, stream);
    if (c->state == CLIENT_FLUSHING)
        flushed(c);
    else if ((c->state == CLIENT_ANSWERING || c->state == CLIENT_TUNNEL) && c->upstream != NULL)
        loop_stream_resume(&c->upstream->stream);
}

/* ---- life ---- */

static void free_when_done(struct client *c)
{
    struct thread *t = c->thread;
    if (!c->gone || c->handover_due)
        return;
    buf_done(&c->in);
    buf_done(&c->head);
    http_chunked_done(&c->chunked);
    list_remove(&c->node);
    t->client_count--;
    atomic_store_explicit(&t->counters.connections, t->client_count, memory_order_relaxed);
    free(c);
    thread_check_stopped(t);
}

static void on_closed(struct loop_stream *s)
{
    struct client *c = container_of(s, struct client, stream);
    c->gone = true;
    free_when_done(c);
}

static void end_connection(struct client *c)
{
    client_move(c, CLIENT_CLOSED);
    loop_timer_stop(c->thread->loop, &c->timer);
    loop_defer_cancel(&c->again);
}

void client_close(struct client *c)
{
    if (c->state == CLIENT_CLOSED)
        return;
    end_connection(c);
    loop_stream_close(&c->stream);
}

void client_cut(struct client *c)
{
    if (c->state == CLIENT_CLOSED)
        return;
    end_connection(c);
    loop_stream_reset(&c->stream);
}

void client_handed_over(struct client *c)
{
    c->handover_due = false;
    if (c->gone)
        free_when_done(c);
}

static const struct loop_stream_callbacks stream_callbacks = {.on_recv = on_recv,
                                                              .on_drained = on_drained,
                                                              .on_closed = on_closed,
                                                              .on_peer_ended = on_peer_ended};

static void set_ip(struct client *c, const struct sockaddr_storage *peer)
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)peer;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)peer;
    strcpy(c->ip, "unknown");
    if (peer->ss_family == AF_INET)
        (void)inet_ntop(AF_INET, &v4->sin_addr, c->ip, sizeof(c->ip));
    else if (peer->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
        (void)inet_ntop(AF_INET, v6->sin6_addr.s6_addr + 12, c->ip, sizeof(c->ip));
    else if (peer->ss_family == AF_INET6)
        (void)inet_ntop(AF_INET6, &v6->sin6_addr, c->ip, sizeof(c->ip));
    c->ip_bytes = (uint8_t)strlen(c->ip);
}

void client_accept(struct thread *t, int fd, const struct sockaddr_storage *peer)
{
    struct error e = {0};
    if (t->client_count >= t->shared->connections_max) {
        stat_add(&t->counters.refused, 1);
        fd_close(&fd);
        return;
    }
    struct client *c = mem_new(sizeof(*c));
    c->thread = t;
    c->again.on_turn_end = on_again;
    loop_timer_init(&c->timer, on_timer);
    http_chunked_init(&c->chunked);
    set_ip(c, peer);
    if (loop_stream_init(t->loop, &c->stream, &stream_callbacks, fd, &e) != ERR_OK) {
        stat_add(&t->counters.refused, 1);
        fd_close(&fd);
        free(c);
        return;
    }
    list_push_back(&t->clients, &c->node);
    t->client_count++;
    atomic_store_explicit(&t->counters.connections, t->client_count, memory_order_relaxed);
    client_due(c, now_ns(t) + t->shared->head_timeout_ns);
}
