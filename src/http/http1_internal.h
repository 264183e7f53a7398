/* http1_internal.h - what the files of http1 share: classes of characters. */
#pragma once
#include "http/http1.h"

enum {
    HTTP_CHAR_TOKEN = 1, /* RFC 9110 5.6.2 */
    HTTP_CHAR_VALUE =
        2, /* RFC 9110 5.5: visible, blank, tab, obs-text; no other control character */
    HTTP_CHAR_TARGET = 4, /* see class table */
    HTTP_CHAR_HOST = 8,   /* names and IPv4: letters, digits, '-', '.', '_' */
    HTTP_CHAR_DIGIT = 16,
    HTTP_CHAR_HEX = 32,
};
extern const uint8_t http_char_class[256];

static inline bool http_char_is(char c, uint8_t classes)
{
    return (http_char_class[(unsigned char)c] & classes) != 0;
}
/* Value of a hexadecimal digit; -1 for anything else. */
static inline int http_hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}
