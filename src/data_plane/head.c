/* head.c - one pass over the parsed headers. Room for the largest possible result is made once, so
 * that lines are written with plain copies. */
#include "data_plane/head.h"
#include <time.h>

static char *put(char *at, struct str s)
{
    if (s.bytes > 0)
        memcpy(at, s.data, s.bytes);
    return at + s.bytes;
}
#define PUT(at, literal) put((at), STR(literal))

static char *put_line(char *at, struct str name, struct str value)
{
    at = put(at, name);
    at = PUT(at, ": ");
    at = put(at, value);
    return PUT(at, "\r\n");
}

static char *put_number(char *at, uint64_t value)
{
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

static char *put_hex(char *at, uint64_t value)
{
    static const char digits[] = "0123456789abcdef";
    for (int shift = 60; shift >= 0; shift -= 4)
        *at++ = digits[value >> shift & 15];
    return at;
}

/* ---- which lines go on ---- */

/* The Connection fields, and whether they name others than the usual, which is rare. */
struct connection {
    const struct http_header *headers;
    uint32_t count;
    bool names_others;
};

static bool is_usual_option(struct str option)
{
    return option.bytes == 0 || str_equal_nocase(option, STR("keep-alive")) ||
           str_equal_nocase(option, STR("close")) || str_equal_nocase(option, STR("upgrade")) ||
           str_equal_nocase(option, STR("te"));
}

static struct connection connection_of(const struct http_header *headers, uint32_t count)
{
    struct connection c = {.headers = headers, .count = count};
    for (uint32_t i = 0; i < count; i++) {
        if (headers[i].field != HTTP_FIELD_CONNECTION)
            continue;
        struct str list = headers[i].value;
        while (list.data != NULL)
            c.names_others |= !is_usual_option(str_trim(str_split(list, ',', &list)));
    }
    return c;
}

static bool connection_names(const struct connection *c, struct str name)
{
    if (!c->names_others)
        return false;
    for (uint32_t i = 0; i < c->count; i++)
        if (c->headers[i].field == HTTP_FIELD_CONNECTION &&
            http_list_has(c->headers[i].value, name))
            return true;
    return false;
}

static bool begins_with(struct str name, struct str prefix)
{
    return name.bytes >= prefix.bytes &&
           str_equal_nocase((struct str){name.data, prefix.bytes}, prefix);
}

static bool is_ours(struct str name)
{
    char first = name.data[0];
    if (first == 'd' || first == 'D')
        return begins_with(name, STR("dirigent-"));
    return (first == 'x' || first == 'X') && str_equal_nocase(name, STR("x-forwarded-prefix"));
}

/* Of a request: what only this hop is about, what we say ourselves, and what we replace. */
static bool request_line_goes_on(const struct http_header *h, const struct connection *c)
{
    switch (h->field) {
    case HTTP_FIELD_HOST:
    case HTTP_FIELD_CONTENT_LENGTH:
    case HTTP_FIELD_TRANSFER_ENCODING:
    case HTTP_FIELD_CONNECTION:
    case HTTP_FIELD_KEEP_ALIVE:
    case HTTP_FIELD_PROXY_CONNECTION:
    case HTTP_FIELD_PROXY_AUTHENTICATE:
    case HTTP_FIELD_PROXY_AUTHORIZATION:
    case HTTP_FIELD_TE:
    case HTTP_FIELD_UPGRADE:
    case HTTP_FIELD_EXPECT:
    case HTTP_FIELD_FORWARDED:
    case HTTP_FIELD_X_FORWARDED_FOR:
    case HTTP_FIELD_X_FORWARDED_PROTO:
    case HTTP_FIELD_X_FORWARDED_HOST:
    case HTTP_FIELD_DIRIGENT_RECEIPT:
        return false;
    case HTTP_FIELD_TRAILER:
    case HTTP_FIELD_TRACEPARENT:
    case HTTP_FIELD_DATE:
    case HTTP_FIELD_SERVER:
    case HTTP_FIELD_CONTENT_TYPE:
    case HTTP_FIELD_AUTHORIZATION:
    case HTTP_FIELD_VIA:
        return !connection_names(c, h->name);
    case HTTP_FIELD_OTHER:
        return !is_ours(h->name) && !connection_names(c, h->name);
    }
    return false;
}

static bool answer_line_goes_on(const struct http_header *h, const struct connection *c,
                                const struct head_answer *a)
{
    switch (h->field) {
    case HTTP_FIELD_CONTENT_LENGTH:
    case HTTP_FIELD_TRANSFER_ENCODING:
    case HTTP_FIELD_CONNECTION:
    case HTTP_FIELD_KEEP_ALIVE:
    case HTTP_FIELD_PROXY_CONNECTION:
    case HTTP_FIELD_PROXY_AUTHENTICATE:
    case HTTP_FIELD_PROXY_AUTHORIZATION:
    case HTTP_FIELD_TE:
    case HTTP_FIELD_UPGRADE:
    case HTTP_FIELD_DIRIGENT_RECEIPT:
        return false;
    case HTTP_FIELD_TRAILER:
        return a->trailers;
    case HTTP_FIELD_HOST:
    case HTTP_FIELD_EXPECT:
    case HTTP_FIELD_FORWARDED:
    case HTTP_FIELD_X_FORWARDED_FOR:
    case HTTP_FIELD_X_FORWARDED_PROTO:
    case HTTP_FIELD_X_FORWARDED_HOST:
    case HTTP_FIELD_TRACEPARENT:
    case HTTP_FIELD_DATE:
    case HTTP_FIELD_SERVER:
    case HTTP_FIELD_CONTENT_TYPE:
    case HTTP_FIELD_AUTHORIZATION:
    case HTTP_FIELD_VIA:
        return !connection_names(c, h->name);
    case HTTP_FIELD_OTHER:
        return !is_ours(h->name) && !connection_names(c, h->name);
    }
    return false;
}

/* ---- requests ---- */

static char *put_forwarded(char *at, struct str host, const struct head_origin *o)
{
    bool is_v6 = memchr(o->client_ip.data, ':', o->client_ip.bytes) != NULL;
    at = put_line(at, STR("X-Forwarded-For"), o->client_ip);
    at = PUT(at, "X-Forwarded-Proto: http\r\n");
    at = put_line(at, STR("X-Forwarded-Host"), host);
    if (o->prefix.bytes > 0)
        at = put_line(at, STR("X-Forwarded-Prefix"), o->prefix);
    at = PUT(at, "Forwarded: for="); /* RFC 7239 4: an IPv6 address is in brackets and quotes */
    at = is_v6 ? PUT(at, "\"[") : at;
    at = put(at, o->client_ip);
    at = is_v6 ? PUT(at, "]\"") : at;
    at = PUT(at, ";host=\""); /* a checked Host has no quotes or backslashes */
    at = put(at, host);
    return PUT(at, "\";proto=http\r\n");
}

/* W3C Trace Context: version 00, flags 00 (the decision to record is not ours). */
static char *put_traceparent(char *at, const struct head_origin *o)
{
    at = PUT(at, "traceparent: 00-");
    at = put_hex(at, o->trace_id[0]);
    at = put_hex(at, o->trace_id[1]);
    *at++ = '-';
    at = put_hex(at, o->span_id);
    return PUT(at, "-00\r\n");
}

static char *put_framing(char *at, enum http_body body, uint64_t content_length)
{
    if (body == HTTP_BODY_CHUNKED)
        return PUT(at, "Transfer-Encoding: chunked\r\n");
    if (body != HTTP_BODY_LENGTH)
        return at;
    at = PUT(at, "Content-Length: ");
    at = put_number(at, content_length);
    return PUT(at, "\r\n");
}

void head_write_request(struct buf *out, const struct http_request *r, const struct head_origin *o)
{
    struct connection connection = connection_of(r->headers, r->header_count);
    struct str host = r->host.bytes > 0 ? r->host : o->host;
    bool has_trace = false;
    /* Each line that goes on is at most 2 bytes longer than it was ("a:b" becomes "a: b" and its
     * line end). */
    char *begin =
        buf_reserve(out, r->head_bytes + 4 * (size_t)r->header_count + o->path.bytes +
                             o->prefix.bytes + 3 * host.bytes + 2 * o->client_ip.bytes + 512);
    char *at = put(begin, r->method_text);
    *at++ = ' ';
    at = put(at, o->path);
    if (r->query.data != NULL) {
        *at++ = '?';
        at = put(at, r->query);
    }
    at = PUT(at, " HTTP/1.1\r\n");
    at = put_line(at, STR("Host"), host);
    for (uint32_t i = 0; i < r->header_count; i++) {
        const struct http_header *h = &r->headers[i];
        if (!request_line_goes_on(h, &connection))
            continue;
        has_trace |= h->field == HTTP_FIELD_TRACEPARENT;
        at = put_line(at, h->name, h->value);
    }
    at = put_forwarded(at, host, o);
    if (!has_trace)
        at = put_traceparent(at, o);
    at = put_framing(at, r->body, r->content_length);
    if (r->upgrade_websocket)
        at = PUT(at, "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    else if (r->trailers_accepted)
        at = PUT(at, "Connection: TE\r\nTE: trailers\r\n"); /* RFC 9110 10.1.4 */
    at = PUT(at, "\r\n");
    out->bytes += (size_t)(at - begin);
}

/* ---- answers ---- */

static char *put_connection(char *at, const struct head_answer *a)
{
    if (a->upgrade)
        return PUT(at, "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    if (!a->keep_alive)
        return PUT(at, "Connection: close\r\n");
    return a->client_is_1_0 ? PUT(at, "Connection: keep-alive\r\n") : at;
}

void head_write_answer(struct buf *out, const struct http_response *r, const struct head_answer *a)
{
    struct connection connection = connection_of(r->headers, r->header_count);
    bool has_date = r->status < 200;
    char *begin = buf_reserve(out, r->head_bytes + 4 * (size_t)r->header_count + a->date.bytes +
                                       a->extra.bytes + 256);
    char *at = PUT(begin, "HTTP/1.1 ");
    at = put_number(at, r->status);
    *at++ = ' ';
    at = put(at, r->reason);
    at = PUT(at, "\r\n");
    for (uint32_t i = 0; i < r->header_count; i++) {
        const struct http_header *h = &r->headers[i];
        if (!answer_line_goes_on(h, &connection, a))
            continue;
        has_date |= h->field == HTTP_FIELD_DATE;
        at = put_line(at, h->name, h->value);
    }
    if (!has_date) /* RFC 9110 6.6.1 */
        at = put_line(at, STR("Date"), a->date);
    if (r->status >= 200 || a->upgrade) {
        bool says_length =
            a->body == HTTP_BODY_LENGTH || (a->body == HTTP_BODY_NONE && a->has_content_length);
        at = put_framing(at, says_length ? HTTP_BODY_LENGTH : a->body, a->content_length);
        at = put_connection(at, a);
    }
    at = put(at, a->extra);
    at = PUT(at, "\r\n");
    out->bytes += (size_t)(at - begin);
}

/* ---- trailers ---- */

static bool may_be_trailer(struct str name)
{
    static const char *const never[] = {"age",
                                        "authorization",
                                        "cache-control",
                                        "connection",
                                        "content-encoding",
                                        "content-length",
                                        "content-location",
                                        "content-range",
                                        "content-type",
                                        "cookie",
                                        "date",
                                        "expect",
                                        "expires",
                                        "forwarded",
                                        "host",
                                        "keep-alive",
                                        "location",
                                        "max-forwards",
                                        "pragma",
                                        "proxy-authenticate",
                                        "proxy-authorization",
                                        "proxy-connection",
                                        "range",
                                        "retry-after",
                                        "set-cookie",
                                        "te",
                                        "trailer",
                                        "transfer-encoding",
                                        "upgrade",
                                        "vary",
                                        "via",
                                        "warning",
                                        "www-authenticate"};
    for (size_t i = 0; i < ARRAY_COUNT(never); i++)
        if (str_equal_nocase(name, str_of(never[i])))
            return false;
    return !begins_with(name, STR("dirigent-")) && !begins_with(name, STR("x-forwarded-")) &&
           !begins_with(name, STR("if-"));
}

void head_write_trailers(struct buf *out, struct str lines)
{
    while (lines.bytes > 0) {
        struct str rest, line = str_split(lines, '\n', &rest), value;
        lines = rest.data != NULL ? rest : (struct str){NULL, 0};
        if (line.bytes > 0 && line.data[line.bytes - 1] == '\r')
            line.bytes--;
        struct str name = str_split(line, ':', &value);
        if (value.data == NULL || name.bytes == 0 || !may_be_trailer(name))
            continue;
        value = str_trim(value);
        char *begin = buf_reserve(out, name.bytes + value.bytes + 4);
        out->bytes += (size_t)(put_line(begin, name, value) - begin);
    }
}

/* ---- dates ---- */

void head_write_date(uint64_t unix_s, char *ret_text)
{
    static const char days[] = "SunMonTueWedThuFriSat",
                      months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t seconds = (time_t)unix_s;
    struct tm tm;
    (void)gmtime_r(&seconds, &tm);
    int year = (tm.tm_year + 1900) % 10000;
    const int pairs[] = {tm.tm_mday, year / 100, year % 100, tm.tm_hour, tm.tm_min, tm.tm_sec};
    static const uint8_t places[] = {5, 12, 14, 17, 20, 23};
    memcpy(ret_text, "xxx, 00 xxx 0000 00:00:00 GMT", HEAD_DATE_BYTES);
    memcpy(ret_text, days + 3 * tm.tm_wday, 3);
    memcpy(ret_text + 8, months + 3 * tm.tm_mon, 3);
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        ret_text[places[i]] = (char)('0' + pairs[i] / 10);
        ret_text[places[i] + 1] = (char)('0' + pairs[i] % 10);
    }
}
