/* server.h - a small HTTP/1.1 server on the loop, for the API and /metrics (the data plane's proxy does not
 * use it: it has no bodies in memory). Loop thread only. Keep-alive, Expect, chunked in and out, HEAD,
 * streaming bodies, bounded in head, body, connections and time.
 *
 * Handler protocol: on_request when the head is there. The handler either answers at once, or asks for the
 * body (http_exchange_read_body: whole, up to a limit; or http_exchange_stream_body: piece by piece) and
 * answers later. Every exchange is answered exactly once; on_gone tells that the client went away before
 * (the handler drops its reference then; the exchange is freed after it returns). */
#pragma once
#include "http/http1.h"
#include "loop/loop.h"

struct http_server;
struct http_exchange; /* one request and its answer; owned by the server */
struct http_server_callbacks {
    void (*on_request)(struct http_exchange *x, void *user);
};
must_check enum err http_server_new(struct loop *loop, const char *listen_address,
                                    const struct http_server_callbacks *callbacks, void *user,
                                    struct http_server **ret_server, struct error *e);
void http_server_free(struct http_server *s);
/* The address actually bound ("127.0.0.1:41234" after asking for port 0). */
const char *http_server_address(const struct http_server *s);

const struct http_request *http_exchange_request(const struct http_exchange *x); /* valid until answered */
void http_exchange_set_user(struct http_exchange *x, void *user, void (*on_gone)(struct http_exchange *x, void *user));
/* Whole body, NUL-terminated, valid during the call. err ERR_TOO_LARGE: above bytes_max (already answered 413). */
typedef void http_on_body(struct http_exchange *x, void *user, enum err err, char *data, size_t bytes);
void http_exchange_read_body(struct http_exchange *x, size_t bytes_max, http_on_body *on_body, void *user);
/* Piece by piece; the end is bytes == 0 with ERR_OK. err otherwise: the client broke off. pause/resume for back-pressure. */
typedef void http_on_piece(struct http_exchange *x, void *user, enum err err, const char *data, size_t bytes);
void http_exchange_stream_body(struct http_exchange *x, uint64_t bytes_max, http_on_piece *on_piece, void *user);
void http_exchange_pause_body(struct http_exchange *x);
void http_exchange_resume_body(struct http_exchange *x);

/* Whole answer at once. extra_headers: "Name: value\r\n…" or NULL. */
void http_exchange_answer(struct http_exchange *x, unsigned status, const char *content_type,
                          struct str body, const char *extra_headers);
/* Streamed answer: begin, any number of writes, end. on_drained (may be NULL) tells that all written has gone. */
void http_exchange_begin(struct http_exchange *x, unsigned status, const char *content_type,
                         const char *extra_headers, void (*on_drained)(struct http_exchange *x, void *user));
void http_exchange_write(struct http_exchange *x, struct str data);
size_t http_exchange_pending(const struct http_exchange *x);
void http_exchange_end(struct http_exchange *x);
