/* server.h - a small HTTP/1.1 server on the loop, for the API and /metrics (the data plane's proxy
 * does not use it: it has no bodies in memory). Loop thread only. Keep-alive, Expect, chunked in
 * and out, HEAD, streaming bodies, bounded in head, body, connections and time.
 *
 * Handler protocol: on_request when the head is there. The handler either answers at once, or asks
 * for the body (http_exchange_read_body: whole, up to a limit; or http_exchange_stream_body: piece
 * by piece) and answers later. Every exchange ends in one of two ways: the handler has answered it,
 * or on_gone tells that it is over (the client went away, or its body was refused). After that the
 * handler holds no reference to it.
 *
 * Requests that come before the answer to the one before them (pipelining) wait, and are answered
 * in their order. A client that has ended its own direction (shutdown(2), SHUT_WR) still gets the
 * whole answers to what it asked before. After "Connection: close" our direction is ended behind
 * the answer, and what the client still sends is dropped for a moment, so that the answer is not
 * lost to a reset. */
#pragma once
#include "http/http1.h"
#include "loop/loop.h"

struct http_server;
struct http_exchange; /* one request and its answer; owned by the server */
struct http_server_callbacks {
    void (*on_request)(struct http_exchange *x, void *user);
    /* May be NULL. A connection has come; true: the callee has taken it over, with its descriptor.
     */
    bool (*on_connection)(int fd, bool is_local, void *user);
};
must_check enum err http_server_new(struct loop *loop, const char *listen_address,
                                    const struct http_server_callbacks *callbacks, void *user,
                                    struct http_server **ret_server, struct error *e);
void http_server_free(struct http_server *s);
/* The address actually bound ("127.0.0.1:41234" after asking for port 0). */
const char *http_server_address(const struct http_server *s);
/* A head must be whole within head_ms of its first byte: 408. idle_ms: longest time without a byte
 * from the client, in a body (408) or between requests (closed), or without one that it takes of an
 * answer that is ended (closed). linger_ms: how long a connection waits for the client's end behind
 * its last answer. An answer that is not ended yet has all the time it wants. */
struct http_server_times {
    uint32_t head_ms, idle_ms, linger_ms;
};
/* HTTP_HEAD_TIMEOUT_MS, HTTP_IDLE_TIMEOUT_MS and 2 s, unless changed here. For connections that
 * come after this. */
void http_server_set_times(struct http_server *s, const struct http_server_times *times);

/* Whether the client is on this host, by the loopback interface. */
bool http_exchange_is_local(const struct http_exchange *x);
/* "10.0.0.1:41234", "[::1]:41234". 64 bytes are enough. */
void http_exchange_peer(const struct http_exchange *x, char *ret_text, size_t bytes);
const struct http_request *
http_exchange_request(const struct http_exchange *x); /* valid until answered */
void http_exchange_set_user(struct http_exchange *x, void *user,
                            void (*on_gone)(struct http_exchange *x, void *user));
/* Whole body, NUL-terminated, valid during the call. err other than ERR_OK: it will not come, and
 * on_gone is next; ERR_TOO_LARGE: above bytes_max (the server answers 413), ERR_PROTOCOL: malformed
 * (400), ERR_TIMEOUT: it stopped coming (408), ERR_CLOSED: the client broke off. */
typedef void http_on_body(struct http_exchange *x, void *user, enum err err, char *data,
                          size_t bytes);
void http_exchange_read_body(struct http_exchange *x, size_t bytes_max, http_on_body *on_body,
                             void *user);
/* Piece by piece; the end is bytes == 0 with ERR_OK. err otherwise as above. The handler may answer
 * before the end: the rest is not read, and the connection closes. pause/resume for back-pressure,
 * also from within the callback. */
typedef void http_on_piece(struct http_exchange *x, void *user, enum err err, const char *data,
                           size_t bytes);
void http_exchange_stream_body(struct http_exchange *x, uint64_t bytes_max, http_on_piece *on_piece,
                               void *user);
void http_exchange_pause_body(struct http_exchange *x);
void http_exchange_resume_body(struct http_exchange *x);

/* Whole answer at once. extra_headers: "Name: value\r\n…" or NULL. */
void http_exchange_answer(struct http_exchange *x, unsigned status, const char *content_type,
                          struct str body, const char *extra_headers);
/* For a handler that waits for something else: unless it has answered (or begun to) within `ms`
 * from now, it is told on_gone, and on_late answers. Not before the body has come. 0: for as long
 * as it takes, again. */
void http_exchange_answer_within(struct http_exchange *x, uint64_t ms,
                                 void (*on_late)(struct http_exchange *x));
/* Streamed answer: begin, any number of writes, end. on_drained (may be NULL) tells that the kernel
 * has taken what it had not taken at once; whoever makes much waits for it while
 * http_exchange_pending() > 0. When the request's body breaks after begin, so does the connection;
 * one that speaks 1.0, without chunks, gets a reset, so that a cut answer does not look complete.
 * One that began before the body was asked for ends the connection. */
void http_exchange_begin(struct http_exchange *x, unsigned status, const char *content_type,
                         const char *extra_headers,
                         void (*on_drained)(struct http_exchange *x, void *user));
void http_exchange_write(struct http_exchange *x, struct str data);
size_t http_exchange_pending(const struct http_exchange *x);
void http_exchange_end(struct http_exchange *x);
/* After begin: this answer has no end of its own (it follows something), so a client that ends its
 * direction counts as gone; so does one whose host no longer answers (TCP keep-alive). */
void http_exchange_endless(struct http_exchange *x);
