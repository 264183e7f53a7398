/* str.h - text from outside: pointer and length, borrowed from its frame or buffer, not
 * NUL-terminated. And a growing byte buffer. No state; any thread. */
#pragma once
#include "base/base.h"
#include <string.h>

struct str {
    const char *data;
    size_t bytes;
};
#define STR(literal) ((struct str){(literal), sizeof(literal) - 1})
#define STR_NONE ((struct str){NULL, 0})
#define STR_ARG(s) (int)(s).bytes, (s).data /* for "%.*s" */

static inline struct str str_of(const char *text)
{
    return (struct str){text, strlen(text)};
}
static inline bool str_equal(struct str a, struct str b)
{
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}
bool str_equal_nocase(struct str a, struct str b); /* ASCII only */
bool str_has_prefix(struct str s, struct str prefix);
struct str str_trim(struct str s); /* spaces and tabs at both ends */
/* Splits at the first `separator`: returns what is before it, *rest becomes what is after, or
 * STR_NONE when there was none. */
struct str str_split(struct str s, char separator, struct str *rest);
/* Decimal digits only, whole string, at most max. ERR_INVALID otherwise. */
must_check enum err str_to_u64(struct str s, uint64_t max, uint64_t *ret_value);
/* FNV-1a with final mix; for hash tables of trusted size, see base/hash.h. */
uint64_t str_hash(struct str s);

/* A growing buffer; zero-initialised is empty. Owner: whoever declares it. */
struct buf {
    char *data;
    size_t bytes;
    size_t capacity;
};
void buf_done(struct buf *b); /* frees, leaves it empty; for cleanup() too */
void buf_append(struct buf *b, const void *data, size_t bytes);
void buf_append_str(struct buf *b, struct str s);
void buf_printf(struct buf *b, const char *format, ...) printf_like(2, 3);
void buf_consume(struct buf *b, size_t bytes);  /* drops from the front */
char *buf_reserve(struct buf *b, size_t bytes); /* room behind data + b->bytes */
static inline struct str buf_str(const struct buf *b)
{
    return (struct str){b->data, b->bytes};
}
/* NUL-terminated text, the caller's to free; the buffer becomes empty. */
char *buf_take_text(struct buf *b) must_check;
