/* http1.h - HTTP/1.1 messages: bytes in, events out; and canonical heads out. No sockets, no
 * allocation; any thread. RFC 9110, RFC 9112; strictness as listed in docs/protocol.md: what is
 * ambiguous is refused, never repaired (CRLF only, no obs-fold, one Content-Length, Transfer-Encoding exactly
 * `chunked`, no NUL, no bare CR, Host exactly once in 1.1, …).
 *
 * Heads are parsed in place: all spans point into the caller's buffer. */
#pragma once
#include "base/base.h"
#include "base/limits.h"
#include "base/str.h"

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_PUT, HTTP_DELETE, HTTP_CONNECT, HTTP_OPTIONS,
                   HTTP_TRACE, HTTP_PATCH, HTTP_OTHER };
/* RFC 9110 9.2.2 */
bool http_method_is_idempotent(enum http_method m);

/* Header names the proxy looks at; others are HTTP_FIELD_OTHER. */
enum http_field {
    HTTP_FIELD_OTHER, HTTP_FIELD_HOST, HTTP_FIELD_CONTENT_LENGTH, HTTP_FIELD_TRANSFER_ENCODING,
    HTTP_FIELD_CONNECTION, HTTP_FIELD_KEEP_ALIVE, HTTP_FIELD_PROXY_CONNECTION, HTTP_FIELD_TE,
    HTTP_FIELD_TRAILER, HTTP_FIELD_UPGRADE, HTTP_FIELD_EXPECT, HTTP_FIELD_PROXY_AUTHENTICATE,
    HTTP_FIELD_PROXY_AUTHORIZATION, HTTP_FIELD_FORWARDED, HTTP_FIELD_X_FORWARDED_FOR,
    HTTP_FIELD_X_FORWARDED_PROTO, HTTP_FIELD_X_FORWARDED_HOST, HTTP_FIELD_TRACEPARENT,
    HTTP_FIELD_DIRIGENT_RECEIPT, HTTP_FIELD_DATE, HTTP_FIELD_SERVER, HTTP_FIELD_CONTENT_TYPE,
    HTTP_FIELD_AUTHORIZATION, HTTP_FIELD_VIA
};
struct http_header {
    struct str name, value; /* value without surrounding blanks */
    enum http_field field;
};
enum http_body { HTTP_BODY_NONE, HTTP_BODY_LENGTH, HTTP_BODY_CHUNKED, HTTP_BODY_UNTIL_CLOSE };

struct http_request {
    enum http_method method;
    struct str method_text, target; /* target as sent: origin-form, absolute-form, authority-form, "*" */
    struct str path, query;         /* of the target; query without '?', STR_NONE when absent */
    struct str host;                /* Host value, or authority of absolute-form; without port in host_name */
    struct str host_name;
    uint8_t minor_version;          /* 0 or 1 */
    bool keep_alive;                /* RFC 9112 9.3 */
    bool expect_continue;
    bool upgrade_websocket;         /* Connection: upgrade and Upgrade: websocket, GET, 1.1 */
    bool trailers_accepted;         /* TE: trailers */
    enum http_body body;
    uint64_t content_length;
    struct http_header headers[HTTP_HEADER_COUNT_MAX];
    uint32_t header_count;
    size_t head_bytes;              /* body begins here */
};
struct http_response {
    uint16_t status;
    struct str reason;
    uint8_t minor_version;
    bool keep_alive;
    enum http_body body;            /* RFC 9112 6.3, with the request's method taken into account */
    uint64_t content_length;
    bool has_content_length;        /* also when there is no body (HEAD, 304) */
    struct http_header headers[HTTP_HEADER_COUNT_MAX];
    uint32_t header_count;
    size_t head_bytes;
};
/* ERR_MORE: the head is not complete (re-parse from the start with more bytes; *scanned, 0 at first, keeps
 * how far the search for the end got). ERR_TOO_LARGE: head above HTTP_HEAD_BYTES_MAX or too many headers
 * (answer 431). ERR_UNSUPPORTED: version other than 1.0/1.1 (505) or unknown transfer coding (501).
 * ERR_PROTOCOL: anything else wrong (400); the story is in e. */
must_check enum err http_request_parse(const char *data, size_t bytes, size_t *scanned,
                                       struct http_request *ret_request, struct error *e);
must_check enum err http_response_parse(const char *data, size_t bytes, size_t *scanned,
                                        enum http_method request_method,
                                        struct http_response *ret_response, struct error *e);
/* The status code with which a parse failure is answered. */
unsigned http_parse_error_status(enum err err, const struct error *e);
/* True when `token` is in the comma-separated list (case-insensitive). RFC 9110 5.6.1 */
bool http_list_has(struct str list, struct str token);

/* Chunked decoding, RFC 9112 7.1, without copying: each call looks at `data` and returns one piece.
 * ERR_OK: *ret_piece is body content (may be empty at the very end), *ret_used bytes were consumed; check
 * `done`. ERR_MORE: consumed *ret_used bytes, needs others. ERR_PROTOCOL, ERR_TOO_LARGE: broken.
 * Trailer fields are checked and collected (they are dropped unless the caller reads `trailers`). */
struct http_chunked {
    enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_DATA_END, CHUNK_TRAILER, CHUNK_DONE } state;
    uint64_t left;
    uint32_t line_bytes;
    char line[HTTP_CHUNK_LINE_BYTES_MAX];
    bool done;
    struct buf trailers; /* raw checked lines "Name: value\r\n"; http_chunked_done() frees */
};
void http_chunked_init(struct http_chunked *c);
void http_chunked_done(struct http_chunked *c);
must_check enum err http_chunked_next(struct http_chunked *c, const char *data, size_t bytes,
                                      struct str *ret_piece, size_t *ret_used);
/* "<hex>\r\n" into at least 20 bytes; returns its length. The content and "\r\n" follow. */
size_t http_chunk_head(uint64_t bytes, char *ret_text);

const char *http_status_text(unsigned status);
/* Percent-decodes a path segment or query value into ret_text (NUL-terminated). */
must_check enum err http_percent_decode(struct str s, char *ret_text, size_t bytes_max);
/* Value of `name` in a query string, still encoded; STR_NONE when absent. */
struct str http_query_get(struct str query, struct str name);
