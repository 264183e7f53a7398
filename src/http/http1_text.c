/* http1_text.c - the small texts of HTTP: characters, methods, statuses, lists, percent-encoding.
 */
#include "http/http1_internal.h"

/* Targets: RFC 3986 has no '"<>\^`{|}', and none of them is ambiguous in a request line. Browsers
 * send '\^`{|}' as they are typed (URL Standard, query percent-encode set), so these pass; '"',
 * '<', '>', '#' and bytes above 0x7e, which they encode, do not. A '\' in a path is refused where
 * targets are read: some servers take it for a '/'. */
/* clang-format off */
#define H HTTP_CHAR_HOST
#define X (HTTP_CHAR_TOKEN | HTTP_CHAR_VALUE | HTTP_CHAR_TARGET)
#define V (HTTP_CHAR_VALUE | HTTP_CHAR_TARGET)
const uint8_t http_char_class[256] = {
    ['\t'] = HTTP_CHAR_VALUE, [' '] = HTTP_CHAR_VALUE,
    ['!'] = X, ['"'] = HTTP_CHAR_VALUE, ['#'] = HTTP_CHAR_TOKEN | HTTP_CHAR_VALUE, ['$' ... '\''] = X,
    ['('] = V, [')'] = V, ['*'] = X, ['+'] = X, [','] = V, ['-'] = X | H, ['.'] = X | H, ['/'] = V,
    ['0' ... '9'] = X | H | HTTP_CHAR_DIGIT | HTTP_CHAR_HEX, [':'] = V, [';'] = V,
    ['<'] = HTTP_CHAR_VALUE, ['='] = V, ['>'] = HTTP_CHAR_VALUE, ['?'] = V, ['@'] = V,
    ['A' ... 'F'] = X | H | HTTP_CHAR_HEX, ['G' ... 'Z'] = X | H, ['['] = V, ['\\'] = V, [']'] = V,
    ['^'] = X, ['_'] = X | H, ['`'] = X,
    ['a' ... 'f'] = X | H | HTTP_CHAR_HEX, ['g' ... 'z'] = X | H, ['{'] = V, ['|'] = X, ['}'] = V, ['~'] = X,
    [0x80 ... 0xff] = HTTP_CHAR_VALUE,
};
#undef H
#undef X
#undef V
/* clang-format on */

bool http_method_is_idempotent(enum http_method m)
{
    switch (m) {
    case HTTP_GET:
    case HTTP_HEAD:
    case HTTP_PUT:
    case HTTP_DELETE:
    case HTTP_OPTIONS:
    case HTTP_TRACE:
        return true;
    case HTTP_POST:
    case HTTP_CONNECT:
    case HTTP_PATCH:
    case HTTP_OTHER:
        return false;
    }
    return false;
}

const char *http_status_text(unsigned status)
{
    static const struct {
        unsigned status;
        const char *text;
    } texts[] = {
        {100, "Continue"},
        {101, "Switching Protocols"},
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {203, "Non-Authoritative Information"},
        {204, "No Content"},
        {205, "Reset Content"},
        {206, "Partial Content"},
        {300, "Multiple Choices"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {303, "See Other"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {402, "Payment Required"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {406, "Not Acceptable"},
        {407, "Proxy Authentication Required"},
        {408, "Request Timeout"},
        {409, "Conflict"},
        {410, "Gone"},
        {411, "Length Required"},
        {412, "Precondition Failed"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {416, "Range Not Satisfiable"},
        {417, "Expectation Failed"},
        {421, "Misdirected Request"},
        {422, "Unprocessable Content"},
        {426, "Upgrade Required"},
        {428, "Precondition Required"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {507, "Insufficient Storage"},
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

enum err http_percent_decode(struct str s, char *ret_text, size_t bytes_max)
{
    size_t out = 0;
    for (size_t i = 0; i < s.bytes; i++) {
        char c = s.data[i];
        if (c == '%') {
            int high = i + 2 < s.bytes ? http_hex_value(s.data[i + 1]) : -1;
            int low = i + 2 < s.bytes ? http_hex_value(s.data[i + 2]) : -1;
            if (high < 0 || low < 0)
                return ERR_INVALID;
            c = (char)(high << 4 | low);
            i += 2;
        }
        if (c == '\0')
            return ERR_INVALID; /* the text would end here for C, and not for others */
        if (out + 1 >= bytes_max)
            return ERR_TOO_LARGE;
        ret_text[out++] = c;
    }
    if (bytes_max == 0)
        return ERR_TOO_LARGE;
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
