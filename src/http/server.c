/* server.c - connections, their requests one after the other, and answers whole or streamed. RFC
 * 9112. */
#include "http/server.h"
#include "base/list.h"
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define CONNECTIONS_MAX 4096u
#define LINGER_MS 2000u
#define TIME_NEVER UINT64_MAX

enum connection_state { READING_HEAD, HANDLING, CLOSING };
enum body_mode { BODY_UNREAD, BODY_WHOLE, BODY_PIECES, BODY_DONE };

struct http_exchange { /* lives inside its connection: one request at a time */
    struct http_request request;
    char *head; /* the request's own copy of its head: spans point into it */
    void *user, *body_user;
    void (*on_gone)(struct http_exchange *x, void *user);
    void (*on_drained)(struct http_exchange *x, void *user);
    void (*on_late)(struct http_exchange *x);
    http_on_body *on_body;
    http_on_piece *on_piece;
    uint64_t body_left, body_bytes, body_max;
    enum body_mode body_mode;
    bool begun, answered, chunked_out, body_ended, paused, head_only, endless;
    struct http_chunked chunked;
    struct buf whole;
};

struct connection {
    struct http_server *server;
    struct loop_stream stream;
    struct loop_timer timer;
    struct list node;
    struct buf in; /* bytes of the next head or of a body that is not taken yet */
    size_t scanned;
    enum connection_state state;
    struct sockaddr_storage peer;
    bool keep_alive, peer_ended, in_process, in_body, in_head, is_local;
    size_t left_seen; /* what the client had not taken of its answers when the timer was set */
    struct http_exchange exchange;
};

struct http_server {
    struct loop *loop;
    struct loop_listener listener;
    const struct http_server_callbacks *callbacks;
    void *user;
    struct list connections;
    uint32_t connection_count;
    bool freed;
    struct http_server_times times;
    char address[64];
};

static void process(struct connection *c);

static struct connection *connection_of(const struct http_exchange *x)
{
    return container_of((struct http_exchange *)x, struct connection, exchange);
}

static void timer_set(struct connection *c, uint64_t ms)
{
    if (ms == TIME_NEVER)
        loop_timer_stop(c->server->loop, &c->timer);
    else
        loop_timer_start(c->server->loop, &c->timer, loop_now_ns(c->server->loop) + ms * NS_PER_MS);
}

static void exchange_clear(struct http_exchange *x)
{
    http_chunked_done(&x->chunked);
    buf_done(&x->whole);
    free(x->head);
    *x = (struct http_exchange){.answered = true};
}

static void tell_gone(struct http_exchange *x)
{
    void (*on_gone)(struct http_exchange * x, void *user) = x->on_gone;
    x->on_gone = NULL;
    if (on_gone != NULL)
        on_gone(x, x->user);
}

static void connection_close(struct connection *c)
{
    if (c->state == CLOSING)
        return;
    struct http_exchange *x = &c->exchange;
    bool tell = c->state == HANDLING && !x->answered;
    bool cut =
        tell && x->begun && !x->chunked_out; /* chunks say by themselves that they are not all */
    c->state = CLOSING;
    timer_set(c, TIME_NEVER);
    if (cut)
        loop_stream_reset(&c->stream);
    else
        loop_stream_close(&c->stream);
    if (tell)
        tell_gone(x);
}

/* Bytes that the client's kernel has not acknowledged. */
static size_t left_to_take(const struct connection *c)
{
    int in_kernel = 0;
    if (ioctl(c->stream.fd, SIOCOUTQ, &in_kernel) < 0)
        in_kernel = 0;
    return loop_stream_pending(&c->stream) + (size_t)in_kernel;
}

/* The next thing that should happen on a connection whose answers are ended: a request, or that
 * these arrive. */
static void timer_set_idle(struct connection *c)
{
    bool ours_to_wait = c->keep_alive || loop_stream_pending(&c->stream) > 0;
    c->left_seen = left_to_take(c);
    timer_set(c, ours_to_wait ? c->server->times.idle_ms : c->server->times.linger_ms);
}

/* What was sent should arrive before the end does: half-close, and give the peer a moment. */
static void connection_finish(struct connection *c)
{
    loop_stream_shutdown(&c->stream);
    c->in.bytes = 0;
    c->keep_alive = false;
    if (c->peer_ended && loop_stream_pending(&c->stream) == 0)
        connection_close(c);
    else
        timer_set_idle(c);
}

/* ---- answers ---- */

static void head_send(struct http_exchange *x, unsigned status, const char *content_type,
                      const char *length_line, const char *extra)
{
    struct connection *c = connection_of(x);
    struct buf head = {0};
    buf_printf(&head, "HTTP/1.1 %u %s\r\n", status, http_status_text(status));
    if (content_type != NULL)
        buf_printf(&head, "Content-Type: %s\r\n", content_type);
    /* One that speaks 1.0 must be told that its wish is granted, RFC 9112 9.3. */
    const char *connection = !c->keep_alive                  ? "Connection: close\r\n"
                             : x->request.minor_version == 0 ? "Connection: keep-alive\r\n"
                                                             : "";
    buf_printf(&head, "%s%s%s\r\n", length_line, extra != NULL ? extra : "", connection);
    loop_stream_send(&c->stream, head.data, head.bytes);
    buf_done(&head);
}

static void exchange_end(struct connection *c)
{
    struct http_exchange *x = &c->exchange;
    bool unread = x->request.body != HTTP_BODY_NONE && !x->body_ended;
    exchange_clear(x);
    if (unread)
        c->keep_alive = false; /* what is left of the body would be taken for a request */
    c->state = READING_HEAD;
    c->scanned = 0;
    loop_stream_resume(&c->stream);
    if (!c->keep_alive) {
        connection_finish(c);
        return;
    }
    timer_set_idle(c);
    if (!c->in_process && !c->in_body)
        process(c); /* the next request may be here already */
}

void http_exchange_answer(struct http_exchange *x, unsigned status, const char *content_type,
                          struct str body, const char *extra_headers)
{
    struct connection *c = connection_of(x);
    char length[64];
    if (x->answered || c->state != HANDLING)
        return;
    assert(!x->begun);
    x->answered = true;
    if (x->request.body != HTTP_BODY_NONE && !x->body_ended)
        c->keep_alive = false;
    (void)snprintf(length, sizeof(length), "Content-Length: %zu\r\n", body.bytes);
    head_send(x, status, content_type, status == 204 ? "" : length, extra_headers);
    if (body.bytes > 0 && !x->head_only)
        loop_stream_send(&c->stream, body.data, body.bytes);
    exchange_end(c);
}

void http_exchange_begin(struct http_exchange *x, unsigned status, const char *content_type,
                         const char *extra_headers,
                         void (*on_drained)(struct http_exchange *x, void *user))
{
    struct connection *c = connection_of(x);
    if (x->answered || c->state != HANDLING)
        return;
    assert(!x->begun);
    x->begun = true;
    x->on_late = NULL;
    x->on_drained = on_drained;
    x->chunked_out = x->request.minor_version >= 1;
    if (!x->chunked_out)
        c->keep_alive = false; /* HTTP/1.0: the end of the connection is the end of the answer */
    if (!x->body_ended && x->body_mode == BODY_UNREAD)
        c->keep_alive = false;
    head_send(x, status, content_type, x->chunked_out ? "Transfer-Encoding: chunked\r\n" : "",
              extra_headers);
    timer_set(c, TIME_NEVER);
}

void http_exchange_write(struct http_exchange *x, struct str data)
{
    struct connection *c = connection_of(x);
    char head[24];
    if (x->answered || !x->begun || data.bytes == 0 || x->head_only || c->state != HANDLING)
        return;
    if (!x->chunked_out) {
        loop_stream_send(&c->stream, data.data, data.bytes);
        return;
    }
    struct iovec parts[3] = {{head, http_chunk_head(data.bytes, head)},
                             {(void *)data.data, data.bytes},
                             {(void *)"\r\n", 2}};
    loop_stream_sendv(&c->stream, parts, 3);
}

size_t http_exchange_pending(const struct http_exchange *x)
{
    return loop_stream_pending(&connection_of(x)->stream);
}

void http_exchange_end(struct http_exchange *x)
{
    struct connection *c = connection_of(x);
    if (x->answered || !x->begun || c->state != HANDLING)
        return;
    x->answered = true;
    if (x->chunked_out && !x->head_only)
        loop_stream_send(&c->stream, "0\r\n\r\n", 5);
    exchange_end(c);
}

/* As the inside of a JSON string: what the client sent may be quoted in it. */
static void append_escaped(struct buf *out, const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            buf_append(out, "\\", 1);
        buf_append(out, c < 0x20 || c > 0x7e ? "?" : text, 1);
    }
}

/* An answer of the server's own, in the API's form for errors. Behind the beginning of another one
 * it would be taken for a part of that: there the connection breaks. */
static void refuse(struct http_exchange *x, unsigned status, const char *code, const char *message)
{
    struct buf body = {0};
    struct connection *c = connection_of(x);
    if (x->begun) {
        connection_close(c);
        return;
    }
    c->keep_alive = false;
    buf_printf(&body, "{\"error\":{\"code\":\"%s\",\"message\":\"", code);
    append_escaped(&body, message);
    buf_printf(&body, "\"}}\n");
    http_exchange_answer(x, status, "application/json", buf_str(&body), NULL);
    buf_done(&body);
}

/* ---- bodies ---- */

static bool is_reading_body(const struct connection *c)
{
    const struct http_exchange *x = &c->exchange;
    return c->state == HANDLING && !x->answered &&
           (x->body_mode == BODY_WHOLE || x->body_mode == BODY_PIECES);
}

static void body_finish(struct http_exchange *x)
{
    x->body_ended = true;
    enum body_mode mode = x->body_mode;
    x->body_mode = BODY_DONE;
    timer_set(connection_of(x), TIME_NEVER); /* the answer may take its time */
    if (mode == BODY_PIECES) {
        x->on_piece(x, x->body_user, ERR_OK, NULL, 0);
    } else if (mode == BODY_WHOLE) {
        /* The handler may answer inside, which ends the exchange: the text is ours until it
         * returns. */
        size_t bytes = x->whole.bytes;
        char *text = buf_take_text(&x->whole);
        x->on_body(x, x->body_user, ERR_OK, text, bytes);
        free(text);
    }
}

/* The body will not come whole: the handler lets go of the exchange. */
static void body_tell_failure(struct connection *c, enum err err)
{
    struct http_exchange *x = &c->exchange;
    enum body_mode mode = x->body_mode;
    x->body_mode = BODY_DONE;
    if (mode == BODY_PIECES)
        x->on_piece(x, x->body_user, err, NULL, 0);
    else
        x->on_body(x, x->body_user, err, NULL, 0);
    if (c->state == HANDLING && !x->answered)
        tell_gone(x);
}

static void body_refuse(struct connection *c, enum err err, unsigned status, const char *message)
{
    struct http_exchange *x = &c->exchange;
    body_tell_failure(c, err);
    if (c->state == HANDLING && !x->answered)
        refuse(x, status, err == ERR_CLOSED ? err_name(ERR_PROTOCOL) : err_name(err), message);
}

/* False when the exchange has ended inside. */
static bool body_piece(struct connection *c, const char *data, size_t bytes)
{
    struct http_exchange *x = &c->exchange;
    x->body_bytes += bytes;
    if (x->body_bytes > x->body_max) {
        body_refuse(c, ERR_TOO_LARGE, 413, "the body is larger than what is accepted here");
        return false;
    }
    if (x->body_mode == BODY_WHOLE)
        buf_append(&x->whole, data, bytes);
    else if (bytes > 0)
        x->on_piece(x, x->body_user, ERR_OK, data, bytes);
    return c->state == HANDLING && !x->answered;
}

/* Of a body with a length: false when there is no more to do now. */
static bool body_take_length(struct connection *c)
{
    struct http_exchange *x = &c->exchange;
    size_t n = (size_t)MIN((uint64_t)c->in.bytes, x->body_left);
    if (n > 0 && !body_piece(c, c->in.data, n))
        return false;
    x->body_left -= n;
    buf_consume(&c->in, n);
    if (x->body_left == 0 && !x->paused)
        body_finish(x);
    return false;
}

static bool body_take_chunk(struct connection *c)
{
    struct http_exchange *x = &c->exchange;
    struct str piece;
    size_t used;
    enum err err = http_chunked_next(&x->chunked, c->in.data, c->in.bytes, &piece, &used);
    if (err != ERR_OK && err != ERR_MORE) {
        body_refuse(c, ERR_PROTOCOL, 400, "the chunked body is malformed");
        return false;
    }
    if (piece.bytes > 0 && !body_piece(c, piece.data, piece.bytes))
        return false;
    buf_consume(&c->in, used);
    if (!x->chunked.done)
        return err == ERR_OK;
    body_finish(x);
    return false;
}

/* Takes what is in c->in for the body. Not from inside itself: the handler may resume in its
 * callback. */
static void body_take(struct connection *c)
{
    struct http_exchange *x = &c->exchange;
    if (c->in_body)
        return;
    c->in_body = true;
    while (is_reading_body(c) && !x->paused)
        if (!(x->request.body == HTTP_BODY_CHUNKED ? body_take_chunk(c) : body_take_length(c)))
            break;
    if (c->peer_ended && is_reading_body(c) && !x->paused)
        body_refuse(c, ERR_CLOSED, 400, "the body ended before its announced end");
    c->in_body = false;
    if (c->state == READING_HEAD && !c->in_process)
        process(c);
}

static void body_begin(struct http_exchange *x, enum body_mode mode, uint64_t bytes_max)
{
    struct connection *c = connection_of(x);
    x->body_mode = mode;
    x->body_max = bytes_max;
    x->body_left = x->request.content_length;
    http_chunked_init(&x->chunked);
    if (x->request.body == HTTP_BODY_LENGTH && x->body_left > bytes_max) {
        x->body_bytes = bytes_max;
        (void)body_piece(c, "", 1); /* refused before a byte of it is read */
        return;
    }
    if (x->request.expect_continue && !x->begun)
        loop_stream_send(&c->stream, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    timer_set(c, c->server->times.idle_ms);
    loop_stream_resume(&c->stream); /* it may have waited for somebody to want it */
    if (x->request.body == HTTP_BODY_NONE)
        body_finish(x);
    else
        body_take(c);
}

void http_exchange_read_body(struct http_exchange *x, size_t bytes_max, http_on_body *on_body,
                             void *user)
{
    x->on_body = on_body;
    x->body_user = user;
    body_begin(x, BODY_WHOLE, bytes_max);
}

void http_exchange_stream_body(struct http_exchange *x, uint64_t bytes_max, http_on_piece *on_piece,
                               void *user)
{
    x->on_piece = on_piece;
    x->body_user = user;
    body_begin(x, BODY_PIECES, bytes_max);
}

void http_exchange_pause_body(struct http_exchange *x)
{
    struct connection *c = connection_of(x);
    if (!is_reading_body(c))
        return;
    x->paused = true;
    timer_set(c, TIME_NEVER); /* it is not the client who is slow */
    loop_stream_pause(&c->stream);
}

void http_exchange_resume_body(struct http_exchange *x)
{
    struct connection *c = connection_of(x);
    if (!x->paused || !is_reading_body(c))
        return;
    x->paused = false;
    timer_set(c, c->server->times.idle_ms);
    loop_stream_resume(&c->stream);
    body_take(c);
}

/* ---- heads ---- */

static void head_refused(struct connection *c, enum err err, const struct error *e)
{
    struct http_exchange *x = &c->exchange;
    *x = (struct http_exchange){0};
    x->request.minor_version = 1;
    c->state = HANDLING;
    refuse(x, http_parse_error_status(err, e), err_name(err), e->text);
}

static void head_taken(struct connection *c)
{
    struct http_exchange *x = &c->exchange;
    struct error e = {0};
    size_t scanned = 0, bytes = c->in.bytes;
    /* The head gets memory of its own, for the body comes into the buffer after it. */
    struct http_request *probe = mem_new(sizeof(*probe));
    enum err err = http_request_parse(c->in.data, bytes, &c->scanned, probe, &e);
    size_t head_bytes = probe->head_bytes;
    free(probe);
    if (err == ERR_MORE) {
        if (bytes == 0)
            return;
        if (!c->in_head)
            timer_set(c, c->server->times.head_ms);
        c->in_head = true;
        return;
    }
    c->in_head = false;
    if (err != ERR_OK) {
        head_refused(c, err, &e);
        return;
    }
    *x = (struct http_exchange){0};
    x->head = mem_strndup(c->in.data, head_bytes);
    err = http_request_parse(x->head, head_bytes, &scanned, &x->request, &e);
    assert(err == ERR_OK);
    buf_consume(&c->in, head_bytes);
    c->state = HANDLING;
    c->keep_alive = x->request.keep_alive;
    x->head_only = x->request.method == HTTP_HEAD;
    x->body_ended = x->request.body == HTTP_BODY_NONE;
    timer_set(c, TIME_NEVER);
    c->server->callbacks->on_request(x, c->server->user);
}

/* Requests that wait in the buffer, one after the other. */
static void process(struct connection *c)
{
    c->in_process = true;
    for (size_t before = SIZE_MAX;
         c->state == READING_HEAD && c->keep_alive && c->in.bytes > 0 && c->in.bytes != before;) {
        before = c->in.bytes;
        head_taken(c);
    }
    c->in_process = false;
    if (c->state == READING_HEAD && c->keep_alive && c->peer_ended)
        connection_finish(c); /* nothing more will come */
}

/* The client has ended its direction: it may still read ours. */
static void on_peer_ended(struct connection *c)
{
    struct http_exchange *x = &c->exchange;
    c->peer_ended = true;
    if (c->state == READING_HEAD && (c->keep_alive || loop_stream_pending(&c->stream) == 0))
        connection_finish(c);
    else if (is_reading_body(c))
        body_take(c);
    else if (c->state == HANDLING && x->begun && x->endless)
        connection_close(c);
}

static void on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct connection *c = container_of(s, struct connection, stream);
    if (err == ERR_END) {
        on_peer_ended(c);
        return;
    }
    if (err != ERR_OK) {
        c->peer_ended = true;
        if (is_reading_body(c))
            body_tell_failure(c, ERR_CLOSED);
        connection_close(c);
        return;
    }
    if (c->state == READING_HEAD && !c->keep_alive)
        return; /* after our last answer nothing is read any more */
    buf_append(&c->in, data, bytes);
    if (c->state == READING_HEAD) {
        process(c);
    } else if (is_reading_body(c)) {
        timer_set(c, c->server->times.idle_ms);
        body_take(c);
    } else if (c->in.bytes > 2 * LOOP_RECV_BYTES_MAX) {
        loop_stream_pause(s); /* pipelined requests wait in the kernel */
    }
}

static void on_drained(struct loop_stream *s)
{
    struct connection *c = container_of(s, struct connection, stream);
    struct http_exchange *x = &c->exchange;
    if (c->state == HANDLING && x->begun && !x->answered && x->on_drained != NULL)
        x->on_drained(x, x->user);
    else if (c->state == READING_HEAD && !c->keep_alive)
        connection_finish(c);
    else if (c->state == READING_HEAD && !c->in_head)
        timer_set_idle(c);
}

static void on_closed(struct loop_stream *s)
{
    struct connection *c = container_of(s, struct connection, stream);
    struct http_server *server = c->server;
    list_remove(&c->node);
    server->connection_count--;
    exchange_clear(&c->exchange);
    buf_done(&c->in);
    free(c);
    if (server->freed && server->connection_count == 0)
        free(server);
}

static const struct loop_stream_callbacks stream_callbacks = {
    .on_recv = on_recv, .on_drained = on_drained, .on_closed = on_closed};

static void on_timer(struct loop_timer *timer)
{
    struct connection *c = container_of(timer, struct connection, timer);
    struct http_exchange *x = &c->exchange;
    if (is_reading_body(c)) {
        body_refuse(c, ERR_TIMEOUT, 408, "the request's body stopped coming");
    } else if (c->state == READING_HEAD && c->keep_alive && c->in_head) {
        char message[96];
        (void)snprintf(message, sizeof(message), "the request's head did not come within %u ms",
                       c->server->times.head_ms);
        *x = (struct http_exchange){0};
        x->request.minor_version = 1;
        c->state = HANDLING;
        c->in_head = false;
        refuse(x, 408, err_name(ERR_TIMEOUT), message);
    } else if (c->state == READING_HEAD && left_to_take(c) < c->left_seen) {
        timer_set_idle(c); /* the client takes its answer, slowly */
    } else if (c->state == HANDLING && x->on_late != NULL) {
        tell_gone(x);
        x->on_late(x);
    } else {
        connection_close(c);
    }
}

static bool is_loopback(const struct sockaddr_storage *peer)
{
    if (peer->ss_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)peer)->sin_addr.s_addr) >> 24 == 127;
    const struct in6_addr *a = &((const struct sockaddr_in6 *)peer)->sin6_addr;
    return peer->ss_family == AF_INET6 &&
           (IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127));
}

bool http_exchange_is_local(const struct http_exchange *x)
{
    return connection_of(x)->is_local;
}

void http_exchange_peer(const struct http_exchange *x, char *ret_text, size_t bytes)
{
    address_format((const struct sockaddr *)&connection_of(x)->peer, ret_text, bytes);
}

static void on_accept(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer)
{
    struct http_server *server = container_of(listener, struct http_server, listener);
    struct error e = {0};
    if (server->callbacks->on_connection != NULL &&
        server->callbacks->on_connection(fd, is_loopback(peer), server->user))
        return;
    if (server->connection_count >= CONNECTIONS_MAX) {
        fd_close(&fd);
        return;
    }
    struct connection *c = mem_new(sizeof(*c));
    c->server = server;
    c->keep_alive = true;
    c->exchange.answered = true;
    c->is_local = is_loopback(peer);
    c->peer = *peer;
    loop_timer_init(&c->timer, on_timer);
    if (loop_stream_init(server->loop, &c->stream, &stream_callbacks, fd, &e) != ERR_OK) {
        fd_close(&fd);
        free(c);
        return;
    }
    list_push_back(&server->connections, &c->node);
    server->connection_count++;
    timer_set(c, server->times.idle_ms);
}

enum err http_server_new(struct loop *loop, const char *listen_address,
                         const struct http_server_callbacks *callbacks, void *user,
                         struct http_server **ret_server, struct error *e)
{
    int fd;
    enum err err = socket_listen(listen_address, false, &fd, e);
    if (err != ERR_OK)
        return err;
    struct http_server *s = mem_new(sizeof(*s));
    struct sockaddr_storage address = {0};
    socklen_t bytes = sizeof(address);
    s->loop = loop;
    s->callbacks = callbacks;
    s->user = user;
    s->times = (struct http_server_times){HTTP_HEAD_TIMEOUT_MS, HTTP_IDLE_TIMEOUT_MS, LINGER_MS};
    list_init(&s->connections);
    s->listener.on_accept = on_accept;
    if (getsockname(fd, (struct sockaddr *)&address, &bytes) == 0)
        address_format((struct sockaddr *)&address, s->address, sizeof(s->address));
    err = loop_listener_start(loop, &s->listener, fd, e);
    if (err != ERR_OK) {
        fd_close(&fd);
        free(s);
        return err;
    }
    *ret_server = s;
    return ERR_OK;
}

void http_server_free(struct http_server *s)
{
    if (s == NULL)
        return;
    loop_listener_stop(&s->listener);
    s->freed = true;
    if (s->connection_count == 0) {
        free(s);
        return;
    }
    list_for_each(c, &s->connections, struct connection, node)
    {
        connection_close(c);
    }
}

const char *http_server_address(const struct http_server *s)
{
    return s->address;
}

const struct http_request *http_exchange_request(const struct http_exchange *x)
{
    return &x->request;
}

void http_exchange_set_user(struct http_exchange *x, void *user,
                            void (*on_gone)(struct http_exchange *x, void *user))
{
    x->user = user;
    x->on_gone = on_gone;
}

void http_exchange_answer_within(struct http_exchange *x, uint64_t ms,
                                 void (*on_late)(struct http_exchange *x))
{
    assert(!is_reading_body(connection_of(x)));
    x->on_late = ms > 0 ? on_late : NULL;
    timer_set(connection_of(x), ms > 0 ? ms : TIME_NEVER);
}

void http_server_set_times(struct http_server *s, const struct http_server_times *times)
{
    s->times = *times;
}

void http_exchange_endless(struct http_exchange *x)
{
    struct connection *c = connection_of(x);
    int on = 1, idle_s = 30, probe_s = 10, probes = 3;
    if (x->answered || c->state != HANDLING)
        return;
    x->endless = true;
    (void)setsockopt(c->stream.fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(c->stream.fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(c->stream.fd, IPPROTO_TCP, TCP_KEEPINTVL, &probe_s, sizeof(probe_s));
    (void)setsockopt(c->stream.fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}
