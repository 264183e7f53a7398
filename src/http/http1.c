/* http1.c - heads of requests and answers. One pass: each byte is looked at once, by the part of
 * the grammar it belongs to, and whatever is not in the grammar is refused there. Only the part of
 * a head that came late is looked at twice: for its end first, and then with the rest. */
#include "http/http1_internal.h"
#include <stdio.h>

struct cursor {
    const char *at, *end; /* never read at `end` */
};

/* ---- runs of characters ---- */

static size_t run_of(const struct cursor *c, uint8_t class)
{
    const char *at = c->at;
    while (at < c->end && http_char_is(*at, class))
        at++;
    return (size_t)(at - c->at);
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
/* Marks the high bit of the first byte that is a control character (0x00-0x1f, 0x7f); what is
 * marked behind the first may be wrong, for the subtractions borrow upwards. */
static uint64_t controls_in(uint64_t word)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), highs = ones << 7;
    uint64_t del = word ^ ones * 0x7f;
    return (((word - ones * 0x20) & ~word) | ((del - ones) & ~del)) & highs;
}
#endif

/* As run_of() of HTTP_CHAR_VALUE, eight bytes at a time: most of a head is values. */
static size_t run_of_value(const struct cursor *c)
{
    const char *at = c->at;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    while (c->end - at >= 8) {
        uint64_t word;
        memcpy(&word, at, sizeof(word));
        uint64_t controls = controls_in(word);
        if (controls == 0) {
            at += 8;
            continue;
        }
        at += __builtin_ctzll(controls) / 8;
        if (*at != '\t')
            return (size_t)(at - c->at);
        at++;
    }
#endif
    while (at < c->end && http_char_is(*at, HTTP_CHAR_VALUE))
        at++;
    return (size_t)(at - c->at);
}

/* CRLF and nothing else, RFC 9112 2.2. */
static enum err line_end(struct cursor *c, const char *what, struct error *e)
{
    if (c->at == c->end || (*c->at == '\r' && c->at + 1 == c->end))
        return ERR_MORE;
    if (*c->at == '\n')
        return error_set(e, ERR_PROTOCOL, "%s ends with LF alone, without CR before it", what);
    if (*c->at != '\r')
        return error_set(e, ERR_PROTOCOL, "%s has a character that is not allowed: 0x%02x", what,
                         (unsigned char)*c->at);
    if (c->at[1] != '\n')
        return error_set(e, ERR_PROTOCOL, "%s has a CR that is not followed by LF", what);
    c->at += 2;
    return ERR_OK;
}

/* ---- names of fields ---- */

/* `lower` is of letters and '-'; in tokens only their upper case becomes them by setting 0x20. */
static bool is_name(const char *name, const char *lower, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if ((name[i] | 0x20) != lower[i])
            return false;
    return true;
}

/* Length and first character leave one candidate in nearly all cases. */
static enum http_field field_of(struct str name)
{
#define CANDIDATE(first, rest, field)                                              \
    case sizeof(rest) << 8 | (first):                                              \
        return is_name(name.data + 1, rest, sizeof(rest) - 1) ? HTTP_FIELD_##field \
                                                              : HTTP_FIELD_OTHER
    switch (name.bytes << 8 | (unsigned char)(name.data[0] | 0x20)) {
        CANDIDATE('t', "e", TE);
        CANDIDATE('v', "ia", VIA);
        CANDIDATE('d', "ate", DATE);
        CANDIDATE('h', "ost", HOST);
        CANDIDATE('e', "xpect", EXPECT);
        CANDIDATE('s', "erver", SERVER);
        CANDIDATE('t', "railer", TRAILER);
        CANDIDATE('u', "pgrade", UPGRADE);
        CANDIDATE('f', "orwarded", FORWARDED);
        CANDIDATE('c', "onnection", CONNECTION);
        CANDIDATE('k', "eep-alive", KEEP_ALIVE);
        CANDIDATE('t', "raceparent", TRACEPARENT);
        CANDIDATE('c', "ontent-type", CONTENT_TYPE);
        CANDIDATE('a', "uthorization", AUTHORIZATION);
        CANDIDATE('c', "ontent-length", CONTENT_LENGTH);
        CANDIDATE('x', "-forwarded-for", X_FORWARDED_FOR);
        CANDIDATE('x', "-forwarded-host", X_FORWARDED_HOST);
        CANDIDATE('d', "irigent-receipt", DIRIGENT_RECEIPT);
        CANDIDATE('p', "roxy-connection", PROXY_CONNECTION);
        CANDIDATE('t', "ransfer-encoding", TRANSFER_ENCODING);
        CANDIDATE('x', "-forwarded-proto", X_FORWARDED_PROTO);
        CANDIDATE('p', "roxy-authenticate", PROXY_AUTHENTICATE);
        CANDIDATE('p', "roxy-authorization", PROXY_AUTHORIZATION);
    }
#undef CANDIDATE
    return HTTP_FIELD_OTHER;
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

/* ---- fields ---- */

/* What the lines of a head say about its message. */
struct head {
    struct http_header *headers;
    uint32_t count;
    uint32_t host_count, length_count, encoding_count;
    struct str content_length, transfer_encoding, host;
    bool connection_close, connection_keep_alive, connection_upgrade;
    bool upgrade_websocket, expect_continue, trailers;
};

/* Host, Content-Length and Transfer-Encoding may come once; the others are lists, which may go on
 * in a further line (RFC 9110 5.3). */
static void field_note(struct head *h, const struct http_header *header)
{
    struct str value = header->value;
    switch (header->field) {
    case HTTP_FIELD_HOST:
        h->host = value;
        h->host_count++;
        break;
    case HTTP_FIELD_CONTENT_LENGTH:
        h->content_length = value;
        h->length_count++;
        break;
    case HTTP_FIELD_TRANSFER_ENCODING:
        h->transfer_encoding = value;
        h->encoding_count++;
        break;
    case HTTP_FIELD_CONNECTION:
        h->connection_close |= http_list_has(value, STR("close"));
        h->connection_keep_alive |= http_list_has(value, STR("keep-alive"));
        h->connection_upgrade |= http_list_has(value, STR("upgrade"));
        break;
    case HTTP_FIELD_UPGRADE:
        h->upgrade_websocket |= http_list_has(value, STR("websocket"));
        break;
    case HTTP_FIELD_EXPECT:
        h->expect_continue |= http_list_has(value, STR("100-continue"));
        break;
    case HTTP_FIELD_TE:
        h->trailers |= http_list_has(value, STR("trailers"));
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

static enum err name_refuse(const struct cursor *c, size_t name_bytes, struct error *e)
{
    char bad = c->at[name_bytes];
    bool blank = bad == ' ' || bad == '\t';
    if (blank &&
        name_bytes == 0) /* RFC 9112 5.2: a folded line, or blanks before the first one (2.2) */
        return error_set(e, ERR_PROTOCOL, "a header line begins with a blank");
    if (blank) /* RFC 9112 5.1 */
        return error_set(e, ERR_PROTOCOL,
                         "a blank stands between the name of a header and its colon");
    if (bad == ':')
        return error_set(e, ERR_PROTOCOL, "a header has no name");
    if (bad == '\r' || bad == '\n')
        return error_set(e, ERR_PROTOCOL, "a header line has no colon, or does not end with CR LF");
    return error_set(e, ERR_PROTOCOL,
                     "the name of a header has a character that is not allowed: 0x%02x",
                     (unsigned char)bad);
}

/* One field line, RFC 9112 5. */
static enum err field_parse(struct cursor *c, struct http_header *ret, struct error *e)
{
    size_t name_bytes = run_of(c, HTTP_CHAR_TOKEN);
    if (c->at + name_bytes == c->end)
        return ERR_MORE;
    if (name_bytes == 0 || c->at[name_bytes] != ':')
        return name_refuse(c, name_bytes, e);
    ret->name = (struct str){c->at, name_bytes};
    ret->field = field_of(ret->name);
    c->at += name_bytes + 1;
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t'))
        c->at++;
    size_t value_bytes = run_of_value(c);
    ret->value = (struct str){c->at, value_bytes};
    c->at += value_bytes;
    while (ret->value.bytes > 0 && (ret->value.data[ret->value.bytes - 1] == ' ' ||
                                    ret->value.data[ret->value.bytes - 1] == '\t'))
        ret->value.bytes--;
    if (c->end - c->at >= 2 && c->at[0] == '\r' && c->at[1] == '\n') {
        c->at += 2;
        return ERR_OK;
    }
    char what[96];
    snprintf(what, sizeof(what), "the value of header '%.*s'", (int)MIN(name_bytes, (size_t)64),
             ret->name.data);
    return line_end(c, what, e);
}

/* All field lines and the empty line behind them. */
static enum err fields_parse(struct cursor *c, struct head *h, struct error *e)
{
    for (;;) {
        if (c->at == c->end)
            return ERR_MORE;
        if (*c->at == '\r')
            return line_end(c, "the line that ends the head", e);
        if (h->count == HTTP_HEADER_COUNT_MAX)
            return error_set(e, ERR_TOO_LARGE, "the head has more than %u headers",
                             HTTP_HEADER_COUNT_MAX);
        struct http_header *header = &h->headers[h->count];
        enum err err = field_parse(c, header, e);
        if (err != ERR_OK)
            return err;
        h->count++;
        if (header->field != HTTP_FIELD_OTHER)
            field_note(h, header);
    }
}

/* ---- framing, RFC 9112 6 ---- */

/* A list of codings that is not exactly `chunked`. Well-formed with an unknown coding: not
 * implemented (6.1). Anything else cannot be framed (6.3). */
static enum err codings_refuse(struct str list, struct error *e)
{
    struct str value = list;
    bool is_list = true, has_other = false;
    uint32_t chunked_count = 0, behind_chunked = 0;
    do {
        struct str coding = str_trim(str_split(list, ',', &list));
        struct cursor c = {coding.data, coding.data + coding.bytes};
        bool is_chunked = str_equal_nocase(coding, STR("chunked"));
        is_list &= coding.bytes > 0 && run_of(&c, HTTP_CHAR_TOKEN) == coding.bytes;
        behind_chunked += chunked_count > 0;
        chunked_count += is_chunked;
        has_other |= !is_chunked;
    } while (list.data != NULL);
    enum err err = is_list && has_other && behind_chunked == 0 ? ERR_UNSUPPORTED : ERR_PROTOCOL;
    return error_set(e, err, "Transfer-Encoding is '%.*s' and not exactly 'chunked'",
                     (int)MIN(value.bytes, (size_t)64), value.data);
}

/* The two ways to say how long a body is: one of them, once. */
static enum err framing_parse(const struct head *h, uint8_t minor_version, enum http_body *ret_body,
                              uint64_t *ret_length, struct error *e)
{
    *ret_body = HTTP_BODY_NONE;
    *ret_length = 0;
    if ((h->encoding_count | h->length_count) == 0)
        return ERR_OK;
    if (h->encoding_count > 0 && h->length_count > 0) /* 6.1: may be an attempt at smuggling */
        return error_set(e, ERR_PROTOCOL, "both Content-Length and Transfer-Encoding are given");
    if (h->encoding_count > 1)
        return error_set(e, ERR_PROTOCOL, "Transfer-Encoding is given more than once");
    if (h->length_count > 1) /* 6.3: also when they are equal */
        return error_set(e, ERR_PROTOCOL, "Content-Length is given more than once");
    if (h->encoding_count == 1) {
        if (minor_version == 0) /* 6.1 */
            return error_set(e, ERR_PROTOCOL, "Transfer-Encoding is given in an HTTP/1.0 message");
        if (!str_equal_nocase(h->transfer_encoding, STR("chunked")))
            return codings_refuse(h->transfer_encoding, e);
        *ret_body = HTTP_BODY_CHUNKED;
        return ERR_OK;
    }
    if (str_to_u64(h->content_length, INT64_MAX, ret_length) !=
        ERR_OK) /* RFC 9110 8.6: digits only */
        return error_set(e, ERR_PROTOCOL, "Content-Length is '%.*s': not a number of bytes",
                         (int)MIN(h->content_length.bytes, (size_t)64), h->content_length.data);
    *ret_body = HTTP_BODY_LENGTH;
    return ERR_OK;
}

/* RFC 9112 9.3 */
static bool keep_alive_of(const struct head *h, uint8_t minor_version)
{
    return !h->connection_close && (minor_version >= 1 || h->connection_keep_alive);
}

/* "HTTP/1.0" or "HTTP/1.1", RFC 9112 2.3. */
static enum err version_parse(struct cursor *c, uint8_t *ret_minor, struct error *e)
{
    static const char prefix[] = "HTTP/";
    size_t there = MIN((size_t)(c->end - c->at), sizeof("HTTP/1.1") - 1);
    if (memcmp(c->at, prefix, MIN(there, sizeof(prefix) - 1)) != 0)
        return error_set(e, ERR_PROTOCOL, "there is no HTTP version where it should be");
    for (size_t i = sizeof(prefix) - 1; i < there; i++)
        if (i == 6 ? c->at[i] != '.' : !http_char_is(c->at[i], HTTP_CHAR_DIGIT))
            return error_set(e, ERR_PROTOCOL, "the HTTP version is not of the form HTTP/1.1");
    if (there < sizeof("HTTP/1.1") - 1)
        return ERR_MORE;
    if (c->at[5] != '1' || c->at[7] > '1')
        return error_set(e, ERR_VERSION, "HTTP version %c.%c is not spoken here, only 1.0 and 1.1",
                         c->at[5], c->at[7]);
    *ret_minor = (uint8_t)(c->at[7] - '0');
    c->at += sizeof("HTTP/1.1") - 1;
    return ERR_OK;
}

/* ---- host and target ---- */

/* Empty, or ':' and a number up to 65535, RFC 3986 3.2.3. */
static bool is_port(struct str s)
{
    uint64_t port;
    if (s.bytes == 0)
        return true;
    struct str digits = {s.data + 1, s.bytes - 1};
    return s.data[0] == ':' &&
           (digits.bytes == 0 || str_to_u64(digits, UINT16_MAX, &port) == ERR_OK);
}

/* "[" IPv6 "]": hexadecimal digits, colons and dots; no zones, no future versions. 0 when it is not
 * one. */
static size_t ipv6_bytes(struct str host)
{
    size_t i = 1, colons = 0;
    for (; i < host.bytes && host.data[i] != ']'; i++) {
        if (!http_char_is(host.data[i], HTTP_CHAR_HEX) && host.data[i] != ':' &&
            host.data[i] != '.')
            return 0;
        colons += host.data[i] == ':';
    }
    return i < host.bytes && colons >= 2 &&
                   i <= sizeof("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255") - 1
               ? i + 1
               : 0;
}

/* host[:port], RFC 9110 7.2. Of the names that RFC 3986 knows only those of letters, digits, '-',
 * '.' and '_' pass: no user part, no percent-encoding, no empty name. */
static enum err host_parse(struct str host, struct str *ret_name, struct error *e)
{
    struct cursor c = {host.data, host.data + host.bytes};
    size_t name = host.bytes == 0       ? 0
                  : host.data[0] == '[' ? ipv6_bytes(host)
                                        : run_of(&c, HTTP_CHAR_HOST);
    if (name == 0 || !is_port((struct str){host.data + name, host.bytes - name}))
        return error_set(e, ERR_PROTOCOL,
                         "the host '%.*s' is not a name or address with an optional port",
                         (int)MIN(host.bytes, (size_t)64), host.data);
    *ret_name = (struct str){host.data, name};
    return ERR_OK;
}

/* http://authority/path?query, RFC 9112 3.2.2. *rest begins behind the authority. */
static enum err authority_take(struct http_request *r, struct str *rest, struct error *e)
{
    struct str t = *rest, http = STR("http://"), https = STR("https://");
    size_t scheme =
        str_equal_nocase((struct str){t.data, MIN(t.bytes, http.bytes)}, http)     ? http.bytes
        : str_equal_nocase((struct str){t.data, MIN(t.bytes, https.bytes)}, https) ? https.bytes
                                                                                   : 0;
    if (scheme == 0)
        return error_set(e, ERR_PROTOCOL, "the target is neither a path nor an http:// address");
    size_t end = scheme;
    while (end < t.bytes && t.data[end] != '/' && t.data[end] != '?')
        end++;
    r->host = (struct str){t.data + scheme, end - scheme};
    *rest = (struct str){t.data + end, t.bytes - end};
    return ERR_OK;
}

/* The four forms of RFC 9112 3.2. Leaves r->host when it is in the target. */
static enum err target_parse(struct http_request *r, struct error *e)
{
    struct str rest = r->target;
    r->path = r->query = r->host = STR_NONE;
    if (r->method == HTTP_CONNECT) { /* authority-form, always with a port */
        r->host = r->target;
        if (memchr(rest.data, ':', rest.bytes) == NULL ||
            !http_char_is(rest.data[rest.bytes - 1], HTTP_CHAR_DIGIT))
            return error_set(e, ERR_PROTOCOL, "the target of CONNECT is not host:port");
        return ERR_OK;
    }
    if (str_equal(rest, STR("*"))) {
        r->path = rest;
        return r->method == HTTP_OPTIONS
                   ? ERR_OK
                   : error_set(e, ERR_PROTOCOL, "the target '*' is for OPTIONS only");
    }
    if (rest.data[0] != '/') {
        enum err err = authority_take(r, &rest, e);
        if (err != ERR_OK)
            return err;
    }
    r->path = str_split(rest, '?', &r->query);
    if (r->path.bytes == 0) /* RFC 9112 3.2.4 and 3.2.1 */
        r->path = r->method == HTTP_OPTIONS && r->query.data == NULL ? STR("*") : STR("/");
    if (memchr(r->path.data, '\\', r->path.bytes) != NULL)
        return error_set(e, ERR_PROTOCOL, "the path has a backslash");
    return ERR_OK;
}

/* RFC 9112 3. One blank between the parts, none around them. */
static enum err request_line_parse(struct cursor *c, struct http_request *r, struct error *e)
{
    size_t method = run_of(c, HTTP_CHAR_TOKEN);
    if (c->at + method == c->end)
        return ERR_MORE;
    if (method == 0 || c->at[method] != ' ')
        return error_set(e, ERR_PROTOCOL,
                         "the request line does not begin with a method and a blank");
    r->method_text = (struct str){c->at, method};
    r->method = method_of(r->method_text);
    c->at += method + 1;
    size_t target = run_of(c, HTTP_CHAR_TARGET);
    if (c->at + target == c->end)
        return ERR_MORE;
    if (target == 0 || c->at[target] != ' ')
        return error_set(e, ERR_PROTOCOL,
                         "the request line has no target, one with a character that is not allowed "
                         "(0x%02x), or no version behind it",
                         (unsigned char)c->at[target]);
    r->target = (struct str){c->at, target};
    c->at += target + 1;
    enum err err = version_parse(c, &r->minor_version, e);
    if (err == ERR_OK)
        err = line_end(c, "the request line", e);
    return err == ERR_OK ? target_parse(r, e) : err;
}

/* RFC 9112 3.2: Host exactly once in 1.1, at most once in 1.0; valid also where an absolute target
 * comes first. */
static enum err host_take(const struct head *h, struct http_request *r, struct error *e)
{
    r->host_name = STR_NONE;
    if (h->host_count > 1)
        return error_set(e, ERR_PROTOCOL, "Host is given more than once");
    if (h->host_count == 0 && r->minor_version >= 1)
        return error_set(e, ERR_PROTOCOL, "Host is missing");
    if (h->host_count == 1 && h->host.bytes == 0)
        return error_set(e, ERR_PROTOCOL, "Host is empty");
    if (h->host_count == 1) {
        enum err err = host_parse(h->host, &r->host_name, e);
        if (err != ERR_OK)
            return err;
    }
    if (r->host.data != NULL)
        return host_parse(r->host, &r->host_name, e);
    r->host = h->host;
    return ERR_OK;
}

static enum err request_parse(struct cursor *c, struct http_request *r, struct error *e)
{
    struct head h = {.headers = r->headers};
    /* RFC 9112 2.2: one empty line before the request line is passed over, not more. */
    if (c->at < c->end && *c->at == '\r') {
        enum err empty = line_end(c, "the line before the request", e);
        if (empty != ERR_OK)
            return empty;
    }
    enum err err = request_line_parse(c, r, e);
    if (err == ERR_OK)
        err = fields_parse(c, &h, e);
    if (err == ERR_OK)
        err = host_take(&h, r, e);
    if (err == ERR_OK)
        err = framing_parse(&h, r->minor_version, &r->body, &r->content_length, e);
    if (err != ERR_OK)
        return err;
    r->header_count = h.count;
    r->keep_alive = keep_alive_of(&h, r->minor_version);
    r->trailers_accepted = h.trailers;
    /* RFC 9110 10.1.1: not in 1.0. What has no body has nothing to wait for. */
    r->expect_continue =
        h.expect_continue && r->minor_version >= 1 &&
        (r->body == HTTP_BODY_CHUNKED || (r->body == HTTP_BODY_LENGTH && r->content_length > 0));
    /* RFC 6455 4.1; with a body it would not be clear where the new protocol begins. */
    r->upgrade_websocket = h.upgrade_websocket && h.connection_upgrade && r->method == HTTP_GET &&
                           r->minor_version >= 1 && r->body != HTTP_BODY_CHUNKED &&
                           r->content_length == 0;
    return ERR_OK;
}

/* ---- answers ---- */

/* RFC 9112 4. The blank behind the status may be missing when there is no reason, as many servers
 * send it. */
static enum err status_line_parse(struct cursor *c, struct http_response *r, struct error *e)
{
    enum err err = version_parse(c, &r->minor_version, e);
    if (err != ERR_OK)
        return err;
    for (int i = 0; i < 4 && c->at + i < c->end; i++)
        if (i == 0 ? c->at[i] != ' ' : !http_char_is(c->at[i], HTTP_CHAR_DIGIT))
            return error_set(e, ERR_PROTOCOL, "the status is not three digits behind one blank");
    if (c->end - c->at < 5)
        return ERR_MORE;
    r->status = (uint16_t)((c->at[1] - '0') * 100 + (c->at[2] - '0') * 10 + (c->at[3] - '0'));
    if (r->status < 100 || (c->at[4] != ' ' && c->at[4] != '\r'))
        return error_set(e, ERR_PROTOCOL, "the status is not three digits from 100 on");
    c->at += c->at[4] == ' ' ? 5 : 4;
    r->reason = (struct str){c->at, run_of_value(c)};
    c->at += r->reason.bytes;
    return line_end(c, "the status line", e);
}

/* RFC 9112 6.3, rules 1, 2 and 8. */
static void answer_framing(struct http_response *r, enum http_method method)
{
    bool never = r->status < 200 || r->status == 204 || (method == HTTP_CONNECT && r->status < 300);
    if (never && (r->body == HTTP_BODY_CHUNKED || r->content_length > 0))
        r->keep_alive =
            false; /* RFC 9112 6.1, RFC 9110 8.6: it must not announce a body. Perhaps one comes */
    if (never || method == HTTP_HEAD || r->status == 304) {
        r->body = HTTP_BODY_NONE;
    } else if (r->body == HTTP_BODY_NONE) {
        r->body = HTTP_BODY_UNTIL_CLOSE;
        r->keep_alive = false;
    }
}

static enum err response_parse(struct cursor *c, enum http_method method, struct http_response *r,
                               struct error *e)
{
    struct head h = {.headers = r->headers};
    enum err err = status_line_parse(c, r, e);
    if (err == ERR_OK)
        err = fields_parse(c, &h, e);
    if (err == ERR_OK)
        err = framing_parse(&h, r->minor_version, &r->body, &r->content_length, e);
    if (err != ERR_OK)
        return err;
    r->header_count = h.count;
    r->has_content_length = h.length_count > 0;
    r->keep_alive = keep_alive_of(&h, r->minor_version);
    answer_framing(r, method);
    return ERR_OK;
}

/* ---- from bytes ---- */

/* Is there reason to look at the head (again)? On the first call, when its end has come since, and
 * when a line has ended in another way than it must: so a head that comes byte by byte costs no
 * more than one that comes at once. */
static bool is_due(const char *data, size_t bytes, size_t scanned)
{
    if (scanned == 0 || bytes >= HTTP_HEAD_BYTES_MAX)
        return true;
    while (scanned < bytes) {
        const char *lf = memchr(data + scanned, '\n', bytes - scanned);
        if (lf == NULL)
            return false;
        size_t at = (size_t)(lf - data);
        if (at == 0 || lf[-1] != '\r' || (at >= 3 && lf[-2] == '\n' && lf[-3] == '\r'))
            return true;
        scanned = at + 1;
    }
    return false;
}

/* The parser ran out of bytes. */
static enum err more(size_t bytes, size_t *scanned, struct error *e)
{
    *scanned = bytes;
    if (bytes < HTTP_HEAD_BYTES_MAX)
        return ERR_MORE;
    return error_set(e, ERR_TOO_LARGE, "the head is larger than %u bytes", HTTP_HEAD_BYTES_MAX);
}

enum err http_request_parse(const char *data, size_t bytes, size_t *scanned, struct http_request *r,
                            struct error *e)
{
    struct cursor c = {data, data + MIN(bytes, (size_t)HTTP_HEAD_BYTES_MAX)};
    enum err err = is_due(data, bytes, *scanned) ? request_parse(&c, r, e) : ERR_MORE;
    if (err == ERR_MORE)
        return more(bytes, scanned, e);
    r->head_bytes = (size_t)(c.at - data);
    return err;
}

enum err http_response_parse(const char *data, size_t bytes, size_t *scanned,
                             enum http_method request_method, struct http_response *r,
                             struct error *e)
{
    struct cursor c = {data, data + MIN(bytes, (size_t)HTTP_HEAD_BYTES_MAX)};
    enum err err =
        is_due(data, bytes, *scanned) ? response_parse(&c, request_method, r, e) : ERR_MORE;
    if (err == ERR_MORE)
        return more(bytes, scanned, e);
    r->head_bytes = (size_t)(c.at - data);
    return err;
}

unsigned http_parse_error_status(enum err err, const struct error *e)
{
    if (err == ERR_TOO_LARGE)
        return 431;
    if (err == ERR_UNSUPPORTED)
        return 501;
    return err == ERR_VERSION ? 505 : 400;
}
