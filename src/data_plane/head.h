/* head.h - heads as they go on: a parsed head out as a canonical one. Pure; any thread.
 *
 * Nothing is copied as it came: every line is written anew, hop-by-hop fields (RFC 9110 7.6.1) and
 * those that Connection names are left out, framing is said once and by us. What describes the
 * client is ours alone: Forwarded, X-Forwarded-For, -Proto, -Host and -Prefix of the request are
 * replaced, never added to. Names that begin with "Dirigent-" are between client and data plane:
 * they are taken out of requests and of answers. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include "http/http1.h"

/* What the request's own head does not say. */
struct head_origin {
    struct str client_ip; /* "10.0.0.1", "2001:db8::1" */
    struct str path;      /* to send: the request's, or what is left of it without the prefix */
    struct str prefix;    /* "/function/NAME" that was taken off, or STR_NONE */
    struct str host;      /* sent as Host when the request has none (HTTP/1.0) */
    uint64_t trace_id[2], span_id; /* for a new traceparent, when the request has none; not 0 */
};
/* Appends the head for the sandbox. The body's framing is the request's own. */
void head_write_request(struct buf *out, const struct http_request *r,
                        const struct head_origin *origin);

struct head_answer {
    enum http_body body; /* how the client is sent the body: NONE, LENGTH, CHUNKED, UNTIL_CLOSE */
    uint64_t content_length;
    bool has_content_length; /* with NONE: say it nevertheless (HEAD, 304) */
    bool keep_alive;         /* the client's connection stays */
    bool client_is_1_0;      /* which must be told that it stays */
    bool upgrade;            /* a 101 that leads to a tunnel */
    bool trailers;           /* the client takes them: a Trailer field goes on */
    struct str date;         /* "Mon, 23 Nov 2026 13:10:19 GMT", put in when the answer has none */
    struct str extra;        /* whole lines of ours, or empty */
};
/* Appends the head for the client. */
void head_write_answer(struct buf *out, const struct http_response *r, const struct head_answer *a);

/* Appends those of the trailer lines ("Name: value\r\n"…) that may be trailers (RFC 9110 6.5.1):
 * nothing that frames, routes, authenticates or describes the body. */
void head_write_trailers(struct buf *out, struct str lines);

/* "Mon, 23 Nov 2026 13:10:19 GMT" (RFC 9110 5.6.7) into HEAD_DATE_BYTES bytes, no NUL. */
#define HEAD_DATE_BYTES 29u
void head_write_date(uint64_t unix_s, char *ret_text);
