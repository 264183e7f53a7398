/* http1.h - HTTP/1.1 messages: bytes in, events out. No sockets, no allocation (but for trailers);
 * any thread. RFC 9110, RFC 9112. What is ambiguous is refused, never repaired:
 * - lines end with CRLF; no bare CR or LF, NUL or other control character, folded line, or blank
 * before a colon;
 * - one empty line before a request is passed over (RFC 9112 2.2), a second one is not;
 * - Host exactly once in 1.1 and at most once in 1.0: a name of letters, digits, '-', '.', '_', or
 * an address, and a port up to 65535; never empty, no user part, no percent-encoding;
 * - targets: a path, "http://…" or "https://…", host:port for CONNECT only, "*" for OPTIONS only.
 * No '#', '"', '<',
 *   '>', nothing above 0x7e, and no backslash in a path; percent-encoding is left as it is;
 * - Content-Length at most once (equal ones are refused too), digits only; never beside
 * Transfer-Encoding;
 * - Transfer-Encoding exactly once and exactly `chunked`, never in 1.0; well-formed lists of other
 * codings are "not implemented" (501), everything else is 400;
 * - chunk sizes are 1 to 8 hexadecimal digits, without blanks. Extensions are passed over (RFC
 * 9112 7.1.1), bounded in their line and in proportion to the content;
 * - versions other than 1.0 and 1.1 are 505.
 *
 * Heads are parsed in place: all spans point into the caller's buffer (but for a path that is not
 * in the target:
 * "/" or "*", which is static). Nothing in the results is cleared beforehand: on failure they hold
 * no meaning, and headers beyond header_count never do. */
#pragma once
#include "base/base.h"
#include "base/limits.h"
#include "base/str.h"

enum http_method {
    HTTP_GET,
    HTTP_HEAD,
    HTTP_POST,
    HTTP_PUT,
    HTTP_DELETE,
    HTTP_CONNECT,
    HTTP_OPTIONS,
    HTTP_TRACE,
    HTTP_PATCH,
    HTTP_OTHER
};
/* RFC 9110 9.2.2 */
bool http_method_is_idempotent(enum http_method m);

/* Header names the proxy looks at; others are HTTP_FIELD_OTHER. */
enum http_field {
    HTTP_FIELD_OTHER,
    HTTP_FIELD_HOST,
    HTTP_FIELD_CONTENT_LENGTH,
    HTTP_FIELD_TRANSFER_ENCODING,
    HTTP_FIELD_CONNECTION,
    HTTP_FIELD_KEEP_ALIVE,
    HTTP_FIELD_PROXY_CONNECTION,
    HTTP_FIELD_TE,
    HTTP_FIELD_TRAILER,
    HTTP_FIELD_UPGRADE,
    HTTP_FIELD_EXPECT,
    HTTP_FIELD_PROXY_AUTHENTICATE,
    HTTP_FIELD_PROXY_AUTHORIZATION,
    HTTP_FIELD_FORWARDED,
    HTTP_FIELD_X_FORWARDED_FOR,
    HTTP_FIELD_X_FORWARDED_PROTO,
    HTTP_FIELD_X_FORWARDED_HOST,
    HTTP_FIELD_TRACEPARENT,
    HTTP_FIELD_DIRIGENT_RECEIPT,
    HTTP_FIELD_DATE,
    HTTP_FIELD_SERVER,
    HTTP_FIELD_CONTENT_TYPE,
    HTTP_FIELD_AUTHORIZATION,
    HTTP_FIELD_VIA
};
struct http_header {
    struct str name, value; /* value without surrounding blanks */
    enum http_field field;
};
enum http_body { HTTP_BODY_NONE, HTTP_BODY_LENGTH, HTTP_BODY_CHUNKED, HTTP_BODY_UNTIL_CLOSE };

struct http_request {
    enum http_method method;
    struct str method_text,
        target; /* target as sent: origin-form, absolute-form, authority-form, "*" */
    struct str path,
        query;       /* of the target; query without '?', STR_NONE when absent. CONNECT: none */
    struct str host; /* authority of the target if it has one, else Host; STR_NONE: 1.0 without */
    struct str host_name;  /* host without port; IPv6 with its brackets */
    uint8_t minor_version; /* 0 or 1 */
    bool keep_alive;       /* RFC 9112 9.3 */
    bool expect_continue; /* 1.1 and a body follows. Other expectations are ignored, RFC 9110 10.1.1
                           */
    bool upgrade_websocket; /* Connection: upgrade and Upgrade: websocket, GET, 1.1, no body */
    bool trailers_accepted; /* TE: trailers */
    enum http_body body;
    uint64_t content_length;
    struct http_header headers[HTTP_HEADER_COUNT_MAX];
    uint32_t header_count;
    size_t head_bytes; /* body begins here */
};
struct http_response {
    uint16_t status; /* 100 to 999 */
    struct str reason;
    uint8_t minor_version;
    bool keep_alive;     /* false also where body bytes may come that must not: 204 with a length */
    enum http_body body; /* RFC 9112 6.3, with the request's method taken into account */
    uint64_t content_length;
    bool has_content_length; /* also when there is no body (HEAD, 304) */
    struct http_header headers[HTTP_HEADER_COUNT_MAX];
    uint32_t header_count;
    size_t head_bytes;
};
/* ERR_MORE: the head is not complete (call again with more bytes behind the same ones; *scanned, 0
 * before the first call for a head, keeps how far they are known, so that a head in many pieces is
 * not read again each time; what is wrong with it is told when its end has come, at the latest).
 * ERR_TOO_LARGE: head above HTTP_HEAD_BYTES_MAX or too many headers (431). ERR_VERSION: other
 * than 1.0/1.1 (505). ERR_UNSUPPORTED: unknown transfer coding (501). ERR_PROTOCOL: anything else
 * wrong (400); the sentence is in e. It may quote bytes of the message: escape it where that
 * matters. */
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
 * ERR_OK: *ret_piece is body content, or empty with `done` set, at the end; *ret_used bytes were
 * consumed, call again with the rest until done. ERR_MORE: all bytes were consumed and others are
 * needed. ERR_PROTOCOL, ERR_TOO_LARGE: broken. How the bytes are cut makes no difference. Trailer
 * fields are checked like headers and collected; whoever passes them on drops those that may not be
 * trailers (RFC 9110 6.5.1). */
struct http_chunked {
    enum {
        CHUNK_SIZE,
        CHUNK_EXTENSION,
        CHUNK_SIZE_LF,
        CHUNK_DATA,
        CHUNK_DATA_CR,
        CHUNK_DATA_LF,
        CHUNK_TRAILER,
        CHUNK_TRAILER_LF,
        CHUNK_DONE
    } state;
    bool done;
    uint32_t line_bytes;     /* of the line that is being read */
    uint32_t overhead_bytes; /* spent on lines beyond what content has earned */
    uint64_t left;           /* of this chunk */
    struct buf trailers;     /* raw checked lines "Name: value\r\n"; http_chunked_done() frees */
};
void http_chunked_init(struct http_chunked *c);
void http_chunked_done(struct http_chunked *c);
must_check enum err http_chunked_next(struct http_chunked *c, const char *data, size_t bytes,
                                      struct str *ret_piece, size_t *ret_used);
/* "<hex>\r\n" into at least 20 bytes; returns its length. The content and "\r\n" follow. */
size_t http_chunk_head(uint64_t bytes, char *ret_text);

const char *http_status_text(unsigned status);
/* Percent-decodes a path segment or query value into ret_text (NUL-terminated; '+' stays).
 * ERR_INVALID: a broken escape or a NUL. ERR_TOO_LARGE: does not fit bytes_max with its NUL. */
must_check enum err http_percent_decode(struct str s, char *ret_text, size_t bytes_max);
/* Value of the first `name` in a query string, still encoded, "" without '='; STR_NONE when absent.
 */
struct str http_query_get(struct str query, struct str name);
