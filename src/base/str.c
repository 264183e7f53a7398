/* str.c - spans and growing buffers. */
#include "base/str.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c | 0x20) : c;
}

bool str_equal_nocase(struct str a, struct str b)
{
    if (a.bytes != b.bytes)
        return false;
    for (size_t i = 0; i < a.bytes; i++)
        if (lower(a.data[i]) != lower(b.data[i]))
            return false;
    return true;
}

bool str_has_prefix(struct str s, struct str prefix)
{
    return s.bytes >= prefix.bytes && str_equal((struct str){s.data, prefix.bytes}, prefix);
}

struct str str_trim(struct str s)
{
    while (s.bytes > 0 && (s.data[0] == ' ' || s.data[0] == '\t')) {
        s.data++;
        s.bytes--;
    }
    while (s.bytes > 0 && (s.data[s.bytes - 1] == ' ' || s.data[s.bytes - 1] == '\t'))
        s.bytes--;
    return s;
}

struct str str_split(struct str s, char separator, struct str *rest)
{
    const char *at = s.bytes > 0 ? memchr(s.data, separator, s.bytes) : NULL;
    if (at == NULL) {
        *rest = STR_NONE;
        return s;
    }
    size_t before = (size_t)(at - s.data);
    *rest = (struct str){at + 1, s.bytes - before - 1};
    return (struct str){s.data, before};
}

enum err str_to_u64(struct str s, uint64_t max, uint64_t *ret_value)
{
    if (s.bytes == 0)
        return ERR_INVALID;
    uint64_t value = 0;
    for (size_t i = 0; i < s.bytes; i++) {
        if (s.data[i] < '0' || s.data[i] > '9')
            return ERR_INVALID;
        uint64_t digit = (uint64_t)(s.data[i] - '0');
        if (value > (max - MIN(digit, max)) / 10 || digit > max)
            return ERR_INVALID;
        value = value * 10 + digit;
        if (value > max)
            return ERR_INVALID;
    }
    *ret_value = value;
    return ERR_OK;
}

uint64_t str_hash(struct str s)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < s.bytes; i++)
        hash = (hash ^ (unsigned char)s.data[i]) * UINT64_C(0x100000001b3);
    hash ^= hash >> 32; /* FNV's low bits alone are weak */
    hash *= UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 29;
}

void buf_done(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

char *buf_reserve(struct buf *b, size_t bytes)
{
    if (b->capacity - b->bytes < bytes) {
        size_t wanted = MAX(b->capacity * 2, (size_t)64);
        while (wanted - b->bytes < bytes)
            wanted *= 2;
        b->data = mem_resize(b->data, wanted, 1);
        b->capacity = wanted;
    }
    return b->data + b->bytes;
}

void buf_append(struct buf *b, const void *data, size_t bytes)
{
    if (bytes == 0)
        return;
    memcpy(buf_reserve(b, bytes), data, bytes);
    b->bytes += bytes;
}

void buf_append_str(struct buf *b, struct str s)
{
    buf_append(b, s.data, s.bytes);
}

void buf_printf(struct buf *b, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int bytes = vsnprintf(NULL, 0, format, args);
    va_end(args);
    assert(bytes >= 0);
    (void)vsnprintf(buf_reserve(b, (size_t)bytes + 1), (size_t)bytes + 1, format, again);
    va_end(again);
    b->bytes += (size_t)bytes;
}

void buf_consume(struct buf *b, size_t bytes)
{
    assert(bytes <= b->bytes);
    b->bytes -= bytes;
    if (b->bytes > 0)
        memmove(b->data, b->data + bytes, b->bytes);
}

char *buf_take_text(struct buf *b)
{
    *buf_reserve(b, 1) = '\0';
    char *text = b->data;
    *b = (struct buf){0};
    return text;
}
