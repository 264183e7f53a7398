/* http1.c - HTTP/1.1 heads and chunks. One pass over a head; every deviation from the grammar is refused. */
#include "http/http1.h"
#include <string.h>

/* ---- characters: one table, one bit a class ---- */

enum { C_TOKEN = 1, C_VALUE = 2, C_TARGET = 4, C_HOST = 8 };

#define T (C_TOKEN | C_VALUE | C_TARGET)
#define V (C_VALUE | C_TARGET)
#define H (C_TOKEN | C_VALUE | C_TARGET | C_HOST)
static const uint8_t class_of[256] = {
    ['\t'] = C_VALUE, [' '] = C_VALUE,
    ['!'] = T, ['"'] = C_VALUE, ['#'] = T & ~C_TARGET, ['$'] = T, ['%'] = T, ['&'] = T, ['\''] = T,
    ['('] = V, [')'] = V, ['*'] = T, ['+'] = T, [','] = V, ['-'] = H, ['.'] = H, ['/'] = V,
    ['0' ... '9'] = H, [':'] = V | C_HOST, [';'] = V, ['<'] = C_VALUE, ['='] = V, ['>'] = C_VALUE, ['?'] = V,
    ['@'] = V, ['A' ... 'Z'] = H, ['['] = V | C_HOST, ['\\'] = C_VALUE, [']'] = V | C_HOST, ['^'] = T & ~C_TARGET,
    ['_'] = H, ['`'] = T & ~C_TARGET, ['a' ... 'z'] = H, ['{'] = C_VALUE, ['|'] = T, ['}'] = C_VALUE, ['~'] = T,
    [0x80 ... 0xff] = C_VALUE, /* obs-text, RFC 9110 5.5 */
};
#undef T
#undef V
#undef H

static bool is_class(char c, uint8_t class)
{
    return (class_of[(unsigned char)c] & class) != 0;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

/* ---- methods, statuses, lists ---- */

bool http_method_is_idempotent(enum http_method m)
{
    return m == HTTP_GET || m == HTTP_HEAD || m == HTTP_PUT || m == HTTP_DELETE || m == HTTP_OPTIONS ||
           m == HTTP_TRACE;
}

static enum http_method method_of(struct str s)
{
    static const struct {
        struct str text;
        enum http_method method;
    } methods[] = {
        {{"GET", 3}, HTTP_GET},         {{"POST", 4}, HTTP_POST},       {{"HEAD", 4}, HTTP_HEAD},
        {{"PUT", 3}, HTTP_PUT},         {{"DELETE", 6}, HTTP_DELETE},   {{"PATCH", 5}, HTTP_PATCH},
        {{"OPTIONS", 7}, HTTP_OPTIONS}, {{"CONNECT", 7}, HTTP_CONNECT}, {{"TRACE", 5}, HTTP_TRACE},
    };
    for (size_t i = 0; i < ARRAY_COUNT(methods); i++)
        if (str_equal(s, methods[i].text)) /* case-sensitive, RFC 9110 9.1 */
            return methods[i].method;
    return HTTP_OTHER;
}

const char *http_status_text(unsigned status)
{
    static const struct {
        unsigned status;
        const char *text;
    } texts[] = {
        {100, "Continue"}, {101, "Switching Protocols"}, {200, "OK"}, {201, "Created"}, {202, "Accepted"},
        {204, "No Content"}, {206, "Partial Content"}, {301, "Moved Permanently"}, {302, "Found"},
        {304, "Not Modified"}, {307, "Temporary Redirect"}, {308, "Permanent Redirect"}, {400, "Bad Request"},
        {401, "Unauthorized"}, {403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"},
        {406, "Not Acceptable"}, {408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
        {411, "Length Required"}, {412, "Precondition Failed"}, {413, "Content Too Large"},
        {414, "URI Too Long"}, {415, "Unsupported Media Type"}, {417, "Expectation Failed"},
        {422, "Unprocessable Content"}, {426, "Upgrade Required"}, {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"}, {500, "Internal Server Error"}, {501, "Not Implemented"},
        {502, "Bad Gateway"}, {503, "Service Unavailable"}, {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"}, {507, "Insufficient Storage"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        if (texts[i].status == status)
            return texts[i].text;
    return "Unknown";
}

bool http_list_has(struct str list, struct str token)
{
    while (list.data != NULL) {
        struct str item = str_split(list, ',', &list);
        if (str_equal_nocase(str_trim(item), token))
            return true;
    }
    return false;
}

/* ---- header names ---- */

#define NAMED(text, f) {{text, sizeof(text) - 1}, HTTP_FIELD_##f}
static const struct named_field {
    struct str name;
    enum http_field field;
} fields_by_length[] = { /* sorted by length: a name is compared with those of its length only */
    NAMED("te", TE), NAMED("via", VIA), NAMED("host", HOST), NAMED("date", DATE), NAMED("expect", EXPECT),
    NAMED("server", SERVER), NAMED("trailer", TRAILER), NAMED("upgrade", UPGRADE), NAMED("forwarded", FORWARDED),
    NAMED("connection", CONNECTION), NAMED("keep-alive", KEEP_ALIVE), NAMED("traceparent", TRACEPARENT),
    NAMED("content-type", CONTENT_TYPE), NAMED("authorization", AUTHORIZATION), NAMED("content-length", CONTENT_LENGTH),
    NAMED("x-forwarded-for", X_FORWARDED_FOR), NAMED("proxy-connection", PROXY_CONNECTION),
    NAMED("dirigent-receipt", DIRIGENT_RECEIPT), NAMED("x-forwarded-host", X_FORWARDED_HOST),
    NAMED("transfer-encoding", TRANSFER_ENCODING), NAMED("x-forwarded-proto", X_FORWARDED_PROTO),
    NAMED("proxy-authenticate", PROXY_AUTHENTICATE), NAMED("proxy-authorization", PROXY_AUTHORIZATION),
};
/* First index for each length; lengths without names begin where the next does. */
static const uint8_t first_of_length[21] = {0, 0, 0, 1, 2, 4, 4, 6, 8, 8, 9, 11, 12, 13, 14, 15, 16, 19, 21, 22, 23};

static enum http_field field_of(struct str name)
{
    if (name.bytes >= 20)
        return HTTP_FIELD_OTHER;
    for (size_t i = first_of_length[name.bytes]; i < first_of_length[name.bytes + 1]; i++) {
        const struct named_field *f = &fields_by_length[i];
        if (lower(name.data[0]) == f->name.data[0] && str_equal_nocase(name, f->name))
            return f->field;
    }
    return HTTP_FIELD_OTHER;
}

/* ---- heads ---- */

/* Where the head ends (behind its empty line), or 0. */
static size_t head_end(const char *data, size_t bytes, size_t *scanned)
{
    size_t from = *scanned > 3 ? *scanned - 3 : 0;
    while (from < bytes) {
        const char *lf = memchr(data + from, '\n', bytes - from);
        if (lf == NULL)
            break;
        size_t at = (size_t)(lf - data);
        if (at >= 3 && lf[-1] == '\r' && lf[-2] == '\n' && lf[-3] == '\r')
            return at + 1;
        from = at + 1;
    }
    *scanned = bytes;
    return 0;
}

struct head {
    struct http_header *headers;
    uint32_t count;
    struct str content_length, transfer_encoding, host, connection, upgrade, expect, te;
    uint32_t host_count, length_count, encoding_count;
    bool connection_close, connection_keep_alive, connection_upgrade;
};

/* Fields that come more than once: Connection and TE lists are looked at each by itself. */
static void field_note(struct head *h, const struct http_header *header)
{
    switch (header->field) {
    case HTTP_FIELD_HOST:
        h->host = header->value;
        h->host_count++;
        break;
    case HTTP_FIELD_CONTENT_LENGTH:
        h->content_length = header->value;
        h->length_count++;
        break;
    case HTTP_FIELD_TRANSFER_ENCODING:
        h->transfer_encoding = header->value;
        h->encoding_count++;
        break;
    case HTTP_FIELD_CONNECTION:
        h->connection_close |= http_list_has(header->value, STR("close"));
        h->connection_keep_alive |= http_list_has(header->value, STR("keep-alive"));
        h->connection_upgrade |= http_list_has(header->value, STR("upgrade"));
        break;
    case HTTP_FIELD_UPGRADE:
        h->upgrade = header->value;
        break;
    case HTTP_FIELD_EXPECT:
        h->expect = header->value;
        break;
    case HTTP_FIELD_TE:
        h->te = header->value;
        break;
    case HTTP_FIELD_OTHER:
    case HTTP_FIELD_KEEP_ALIVE:
    case HTTP_FIELD_PROXY_CONNECTION:
    case HTTP_FIELD_TRAILER:
    case HTTP_FIELD_PROXY_AUTHENTICATE:
    case HTTP_FIELD_PROXY_AUTHORIZATION:
    case HTTP_FIELD_FORWARDED:
    case HTTP_FIELD_X_FORWARDED_FOR:
    case HTTP_FIELD_X_FORWARDED_PROTO:
    case HTTP_FIELD_X_FORWARDED_HOST:
    case HTTP_FIELD_TRACEPARENT:
    case HTTP_FIELD_DIRIGENT_RECEIPT:
    case HTTP_FIELD_DATE:
    case HTTP_FIELD_SERVER:
    case HTTP_FIELD_CONTENT_TYPE:
    case HTTP_FIELD_AUTHORIZATION:
    case HTTP_FIELD_VIA:
        break;
    }
}

/* One field line, RFC 9112 5. `*at` is behind its CRLF afterwards. */
static enum err field_parse(const char *data, size_t end, size_t *at, struct http_header *ret,
                            struct error *e)
{
    size_t i = *at, name_start = i;
    while (i < end && is_class(data[i], C_TOKEN))
        i++;
    if (i == name_start || i == end || data[i] != ':') {
        /* RFC 9112 5.1: blanks before the colon; 5.2: a line that begins with a blank (obs-fold) */
        if (i == name_start && (data[i] == ' ' || data[i] == '\t'))
            return error_set(e, ERR_PROTOCOL, "a header line begins with a blank");
        return error_set(e, ERR_PROTOCOL, "a header name has a character that is not allowed");
    }
    ret->name = (struct str){data + name_start, i - name_start};
    i++;
    while (i < end && (data[i] == ' ' || data[i] == '\t'))
        i++;
    size_t value_start = i;
    while (i < end && is_class(data[i], C_VALUE))
        i++;
    if (i + 1 >= end || data[i] != '\r' || data[i + 1] != '\n')
        return error_set(e, ERR_PROTOCOL, "the value of header '%.*s' has a character that is not allowed",
                         (int)MIN(ret->name.bytes, (size_t)64), ret->name.data);
    size_t value_end = i;
    while (value_end > value_start && (data[value_end - 1] == ' ' || data[value_end - 1] == '\t'))
        value_end--;
    ret->value = (struct str){data + value_start, value_end - value_start};
    ret->field = field_of(ret->name);
    *at = i + 2;
    return ERR_OK;
}

static enum err fields_parse(const char *data, size_t at, size_t end, struct head *h, struct error *e)
{
    while (at < end - 2) {
        if (h->count == HTTP_HEADER_COUNT_MAX)
            return error_set(e, ERR_TOO_LARGE, "more than %u headers", HTTP_HEADER_COUNT_MAX);
        struct http_header *header = &h->headers[h->count];
        enum err err = field_parse(data, end, &at, header, e);
        if (err != ERR_OK)
            return err;
        h->count++;
        if (header->field != HTTP_FIELD_OTHER)
            field_note(h, header);
    }
    return ERR_OK;
}

/* RFC 9112 6: the two ways to say how long a body is, never both. */
static enum err framing_parse(const struct head *h, uint8_t minor_version, enum http_body *ret_body,
                              uint64_t *ret_length, struct error *e)
{
    *ret_body = HTTP_BODY_NONE;
    *ret_length = 0;
    if (h->encoding_count > 0 && h->length_count > 0)
        return error_set(e, ERR_PROTOCOL, "both Content-Length and Transfer-Encoding"); /* RFC 9112 6.1 */
    if (h->encoding_count > 1)
        return error_set(e, ERR_PROTOCOL, "Transfer-Encoding more than once");
    if (h->encoding_count == 1) {
        if (minor_version == 0)
            return error_set(e, ERR_PROTOCOL, "Transfer-Encoding in an HTTP/1.0 message"); /* RFC 9112 6.1 */
        if (!str_equal_nocase(h->transfer_encoding, STR("chunked"))) {
            bool other = h->transfer_encoding.bytes > 0 && !http_list_has(h->transfer_encoding, STR("chunked"));
            return error_set(e, other ? ERR_UNSUPPORTED : ERR_PROTOCOL, "Transfer-Encoding is not exactly 'chunked'");
        }
        *ret_body = HTTP_BODY_CHUNKED;
        return ERR_OK;
    }
    if (h->length_count > 1)
        return error_set(e, ERR_PROTOCOL, "Content-Length more than once"); /* RFC 9112 6.3 */
    if (h->length_count == 1) {
        if (str_to_u64(h->content_length, INT64_MAX, ret_length) != ERR_OK)
            return error_set(e, ERR_PROTOCOL, "Content-Length is no number");
        *ret_body = HTTP_BODY_LENGTH;
    }
    return ERR_OK;
}

static bool keep_alive_of(const struct head *h, uint8_t minor_version)
{
    if (h->connection_close)
        return false;
    return minor_version >= 1 || h->connection_keep_alive; /* RFC 9112 9.3 */
}

/* "HTTP/1.x" at `at`. */
static enum err version_parse(const char *data, size_t at, size_t end, uint8_t *ret_minor, struct error *e)
{
    if (end - at < 8 || memcmp(data + at, "HTTP/", 5) != 0 || data[at + 6] != '.' || data[at + 5] < '0' ||
        data[at + 5] > '9' || data[at + 7] < '0' || data[at + 7] > '9')
        return error_set(e, ERR_PROTOCOL, "no HTTP version");
    if (data[at + 5] != '1' || data[at + 7] > '1')
        return error_set(e, ERR_VERSION, "HTTP version %c.%c is not spoken here", data[at + 5], data[at + 7]);
    *ret_minor = (uint8_t)(data[at + 7] - '0');
    return ERR_OK;
}

/* host[:port], RFC 9110 7.2; splits off the port. */
static enum err host_check(struct str host, struct str *ret_name, struct error *e)
{
    size_t colon = SIZE_MAX;
    bool bracket = false;
    for (size_t i = 0; i < host.bytes; i++) {
        if (!is_class(host.data[i], C_HOST))
            return error_set(e, ERR_PROTOCOL, "Host has a character that is not allowed");
        if (host.data[i] == '[')
            bracket = true;
        else if (host.data[i] == ']')
            bracket = false;
        else if (host.data[i] == ':' && !bracket && colon == SIZE_MAX)
            colon = i;
        else if (colon != SIZE_MAX && (host.data[i] < '0' || host.data[i] > '9'))
            return error_set(e, ERR_PROTOCOL, "the port in Host is no number");
    }
    if (bracket)
        return error_set(e, ERR_PROTOCOL, "Host has an open bracket");
    *ret_name = colon == SIZE_MAX ? host : (struct str){host.data, colon};
    return ERR_OK;
}

/* The four forms of RFC 9112 3.2. */
static enum err target_parse(struct http_request *r, struct error *e)
{
    struct str t = r->target;
    r->path = r->query = r->host = STR_NONE;
    if (r->method == HTTP_CONNECT) {
        r->host = t;
        return ERR_OK;
    }
    if (str_equal(t, STR("*"))) {
        if (r->method != HTTP_OPTIONS)
            return error_set(e, ERR_PROTOCOL, "the target '*' is for OPTIONS only");
        r->path = t;
        return ERR_OK;
    }
    if (t.data[0] != '/') {
        struct str scheme = STR("http://"), head = {t.data, MIN(t.bytes, scheme.bytes)};
        if (!str_equal_nocase(head, scheme))
            return error_set(e, ERR_PROTOCOL, "the target is neither a path nor an http:// address");
        t = (struct str){t.data + scheme.bytes, t.bytes - scheme.bytes};
        size_t authority = 0;
        while (authority < t.bytes && t.data[authority] != '/' && t.data[authority] != '?')
            authority++;
        if (authority == 0)
            return error_set(e, ERR_PROTOCOL, "the target has no host");
        r->host = (struct str){t.data, authority};
        t = (struct str){t.data + authority, t.bytes - authority};
    }
    r->path = str_split(t, '?', &r->query);
    if (r->path.bytes == 0)
        r->path = STR("/");
    return ERR_OK;
}

static enum err request_line_parse(const char *data, size_t *at, size_t end, struct http_request *r, struct error *e)
{
    size_t i = *at, start = i;
    while (i < end && is_class(data[i], C_TOKEN))
        i++;
    if (i == start || data[i] != ' ')
        return error_set(e, ERR_PROTOCOL, "the request line begins with no method");
    r->method_text = (struct str){data + start, i - start};
    r->method = method_of(r->method_text);
    start = ++i;
    while (i < end && is_class(data[i], C_TARGET))
        i++;
    if (i == start || data[i] != ' ')
        return error_set(e, ERR_PROTOCOL, "the request line has no target, or one with a character that is not allowed");
    r->target = (struct str){data + start, i - start};
    enum err err = version_parse(data, i + 1, end, &r->minor_version, e);
    if (err != ERR_OK)
        return err;
    i += 9;
    if (data[i] != '\r' || data[i + 1] != '\n')
        return error_set(e, ERR_PROTOCOL, "the request line goes on after the version");
    *at = i + 2;
    return target_parse(r, e);
}

static enum err head_find(const char *data, size_t bytes, size_t *scanned, size_t *ret_end, struct error *e)
{
    *ret_end = head_end(data, bytes, scanned);
    if (*ret_end > HTTP_HEAD_BYTES_MAX || (*ret_end == 0 && bytes >= HTTP_HEAD_BYTES_MAX))
        return error_set(e, ERR_TOO_LARGE, "the head is larger than %u bytes", HTTP_HEAD_BYTES_MAX);
    return *ret_end == 0 ? ERR_MORE : ERR_OK;
}

/* What can be known to be wrong before the head is complete, so that a client that speaks something else is told
 * at once: a first line that is no request. */
static enum err early_check(const char *data, size_t bytes, struct error *e)
{
    size_t i = 0;
    while (i < bytes && is_class(data[i], C_TOKEN))
        i++;
    if (i < bytes && (i == 0 || data[i] != ' '))
        return error_set(e, ERR_PROTOCOL, "the request line begins with no method");
    for (; i < bytes; i++) {
        if (data[i] == '\n' && data[i - 1] != '\r')
            return error_set(e, ERR_PROTOCOL, "a line ends without CR");
        if (data[i] == '\0')
            return error_set(e, ERR_PROTOCOL, "a NUL in the head");
    }
    return ERR_MORE;
}

enum err http_request_parse(const char *data, size_t bytes, size_t *scanned, struct http_request *r,
                            struct error *e)
{
    /* RFC 9112 2.2: one empty line before the request line is passed over. */
    size_t at = bytes >= 2 && data[0] == '\r' && data[1] == '\n' ? 2 : 0, end;
    if (bytes == 0 || (bytes == 1 && data[0] == '\r'))
        return ERR_MORE;
    if (at == 2 && *scanned < 2)
        *scanned = 2;
    size_t scanned_here = *scanned - at;
    enum err err = head_find(data + at, bytes - at, &scanned_here, &end, e);
    *scanned = scanned_here + at;
    if (err == ERR_MORE)
        return early_check(data + at, bytes - at, e);
    if (err != ERR_OK)
        return err;
    end += at;
    struct head h = {.headers = r->headers};
    err = request_line_parse(data, &at, end, r, e);
    if (err == ERR_OK)
        err = fields_parse(data, at, end, &h, e);
    if (err == ERR_OK)
        err = framing_parse(&h, r->minor_version, &r->body, &r->content_length, e);
    if (err != ERR_OK)
        return err;
    /* RFC 9112 3.2: exactly one Host in 1.1; an absolute target's authority comes first. */
    if (h.host_count > 1)
        return error_set(e, ERR_PROTOCOL, "Host more than once");
    if (r->minor_version >= 1 && (h.host_count == 0 || h.host.bytes == 0))
        return error_set(e, ERR_PROTOCOL, "Host is missing or empty");
    if (r->host.data == NULL)
        r->host = h.host;
    else if (h.host_count == 1 && (err = host_check(h.host, &r->host_name, e)) != ERR_OK)
        return err;
    err = host_check(r->host, &r->host_name, e);
    if (err != ERR_OK)
        return err;
    r->header_count = h.count;
    r->head_bytes = end;
    r->keep_alive = keep_alive_of(&h, r->minor_version);
    r->expect_continue = r->minor_version >= 1 && str_equal_nocase(h.expect, STR("100-continue"));
    r->upgrade_websocket = r->method == HTTP_GET && r->minor_version >= 1 && h.connection_upgrade &&
                           http_list_has(h.upgrade, STR("websocket"));
    r->trailers_accepted = h.te.data != NULL && http_list_has(h.te, STR("trailers"));
    return ERR_OK;
}

enum err http_response_parse(const char *data, size_t bytes, size_t *scanned, enum http_method request_method,
                             struct http_response *r, struct error *e)
{
    size_t end, at = 12;
    enum err err = head_find(data, bytes, scanned, &end, e);
    if (err == ERR_MORE && bytes >= 5 && memcmp(data, "HTTP/", 5) != 0)
        return error_set(e, ERR_PROTOCOL, "the answer does not begin with HTTP/");
    if (err != ERR_OK)
        return err;
    err = version_parse(data, 0, end, &r->minor_version, e);
    if (err != ERR_OK)
        return err;
    if (end < 15 || data[8] != ' ' || data[9] < '1' || data[9] > '9' || data[10] < '0' || data[10] > '9' ||
        data[11] < '0' || data[11] > '9')
        return error_set(e, ERR_PROTOCOL, "the status is not three digits");
    r->status = (uint16_t)((data[9] - '0') * 100 + (data[10] - '0') * 10 + (data[11] - '0'));
    size_t reason = at;
    if (data[at] == ' ')
        reason = ++at;
    else if (data[at] != '\r') /* the blank may be missing when there is no reason */
        return error_set(e, ERR_PROTOCOL, "the status is not three digits");
    while (at < end && is_class(data[at], C_VALUE))
        at++;
    if (data[at] != '\r' || data[at + 1] != '\n')
        return error_set(e, ERR_PROTOCOL, "the status line has a character that is not allowed");
    r->reason = (struct str){data + reason, at - reason};
    struct head h = {.headers = r->headers};
    err = fields_parse(data, at + 2, end, &h, e);
    if (err == ERR_OK)
        err = framing_parse(&h, r->minor_version, &r->body, &r->content_length, e);
    if (err != ERR_OK)
        return err;
    r->header_count = h.count;
    r->head_bytes = end;
    r->has_content_length = h.length_count > 0;
    r->keep_alive = keep_alive_of(&h, r->minor_version);
    /* RFC 9112 6.3 */
    if (request_method == HTTP_HEAD || r->status < 200 || r->status == 204 || r->status == 304 ||
        (request_method == HTTP_CONNECT && r->status < 300))
        r->body = HTTP_BODY_NONE;
    else if (r->body == HTTP_BODY_NONE) {
        r->body = HTTP_BODY_UNTIL_CLOSE;
        r->keep_alive = false;
    }
    return ERR_OK;
}

unsigned http_parse_error_status(enum err err, const struct error *e)
{
    if (err == ERR_TOO_LARGE)
        return 431;
    if (err == ERR_UNSUPPORTED)
        return 501;
    return err == ERR_VERSION ? 505 : 400;
}

/* ---- chunks, RFC 9112 7.1 ---- */

void http_chunked_init(struct http_chunked *c)
{
    c->state = CHUNK_SIZE;
    c->left = 0;
    c->line_bytes = 0;
    c->done = false;
    c->trailers = (struct buf){0};
}

void http_chunked_done(struct http_chunked *c)
{
    buf_done(&c->trailers);
}

/* Collects a line into c->line; ERR_OK when it is whole (without its CRLF). */
static enum err line_collect(struct http_chunked *c, const char *data, size_t bytes, size_t *used)
{
    while (*used < bytes) {
        char byte = data[(*used)++];
        if (c->line_bytes > 0 && c->line[c->line_bytes - 1] == '\r') {
            if (byte != '\n')
                return ERR_PROTOCOL;
            c->line_bytes--;
            return ERR_OK;
        }
        if (byte == '\n' || (byte != '\r' && !is_class(byte, C_VALUE)))
            return ERR_PROTOCOL;
        if (c->line_bytes == sizeof(c->line))
            return ERR_TOO_LARGE;
        c->line[c->line_bytes++] = byte;
    }
    return ERR_MORE;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* 1 to 8 hex digits, then the end or an extension, which is passed over. */
static enum err size_parse(struct http_chunked *c)
{
    uint64_t size = 0;
    uint32_t i = 0;
    for (; i < c->line_bytes && hex_value(c->line[i]) >= 0; i++)
        size = size << 4 | (uint64_t)hex_value(c->line[i]);
    if (i == 0 || i > 8 || (i < c->line_bytes && c->line[i] != ';'))
        return ERR_PROTOCOL;
    c->left = size;
    c->line_bytes = 0;
    c->state = size == 0 ? CHUNK_TRAILER : CHUNK_DATA;
    return ERR_OK;
}

static enum err trailer_line(struct http_chunked *c)
{
    if (c->line_bytes == 0) {
        c->state = CHUNK_DONE;
        c->done = true;
        return ERR_OK;
    }
    uint32_t name = 0;
    while (name < c->line_bytes && is_class(c->line[name], C_TOKEN))
        name++;
    if (name == 0 || name == c->line_bytes || c->line[name] != ':')
        return ERR_PROTOCOL;
    if (c->trailers.bytes + c->line_bytes + 2 > HTTP_TRAILER_BYTES_MAX)
        return ERR_TOO_LARGE;
    buf_append(&c->trailers, c->line, c->line_bytes);
    buf_append(&c->trailers, "\r\n", 2);
    c->line_bytes = 0;
    return ERR_OK;
}

enum err http_chunked_next(struct http_chunked *c, const char *data, size_t bytes, struct str *ret_piece,
                           size_t *ret_used)
{
    size_t used = 0;
    enum err err = ERR_OK;
    *ret_piece = (struct str){data, 0};
    while (err == ERR_OK && !c->done) {
        switch (c->state) {
        case CHUNK_SIZE:
            err = line_collect(c, data, bytes, &used);
            if (err == ERR_OK)
                err = size_parse(c);
            break;
        case CHUNK_DATA: {
            size_t n = (size_t)MIN((uint64_t)(bytes - used), c->left);
            if (n == 0) {
                err = ERR_MORE;
                break;
            }
            *ret_piece = (struct str){data + used, n};
            c->left -= n;
            if (c->left == 0)
                c->state = CHUNK_DATA_END;
            *ret_used = used + n;
            return ERR_OK;
        }
        case CHUNK_DATA_END:
            err = line_collect(c, data, bytes, &used);
            if (err == ERR_OK && c->line_bytes > 0)
                err = ERR_PROTOCOL; /* content after the chunk's end */
            if (c->line_bytes > 1 || (c->line_bytes == 1 && c->line[0] != '\r'))
                err = ERR_PROTOCOL;
            if (err == ERR_OK)
                c->state = CHUNK_SIZE;
            break;
        case CHUNK_TRAILER:
            err = line_collect(c, data, bytes, &used);
            if (err == ERR_OK)
                err = trailer_line(c);
            break;
        case CHUNK_DONE:
            break;
        }
    }
    *ret_used = used;
    return err;
}

size_t http_chunk_head(uint64_t bytes, char *ret_text)
{
    static const char digits[] = "0123456789abcdef";
    char reversed[16];
    size_t count = 0;
    do {
        reversed[count++] = digits[bytes & 15];
        bytes >>= 4;
    } while (bytes > 0);
    for (size_t i = 0; i < count; i++)
        ret_text[i] = reversed[count - 1 - i];
    ret_text[count] = '\r';
    ret_text[count + 1] = '\n';
    return count + 2;
}

/* ---- addresses ---- */

enum err http_percent_decode(struct str s, char *ret_text, size_t bytes_max)
{
    size_t out = 0;
    for (size_t i = 0; i < s.bytes; i++) {
        int c = (unsigned char)s.data[i];
        if (c == '%') {
            if (s.bytes - i < 3 || hex_value(s.data[i + 1]) < 0 || hex_value(s.data[i + 2]) < 0)
                return ERR_INVALID;
            c = hex_value(s.data[i + 1]) << 4 | hex_value(s.data[i + 2]);
            i += 2;
        }
        if (c == 0)
            return ERR_INVALID;
        if (out + 1 >= bytes_max)
            return ERR_TOO_LARGE;
        ret_text[out++] = (char)c;
    }
    ret_text[out] = '\0';
    return ERR_OK;
}

struct str http_query_get(struct str query, struct str name)
{
    while (query.data != NULL) {
        struct str value, item = str_split(query, '&', &query);
        if (str_equal(str_split(item, '=', &value), name))
            return value.data != NULL ? value : STR("");
    }
    return STR_NONE;
}
