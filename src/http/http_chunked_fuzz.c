/* http_chunked_fuzz.c - chunked bodies: whole and in pieces give the same content, trailers and
 * verdict; no more comes out than went in. */
#include "http/http1.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(bool condition)
{
    if (!condition)
        abort();
}

struct decoded {
    enum err err; /* ERR_OK: done, ERR_MORE: open */
    struct buf content;
    struct buf trailers;
    size_t used;
};

/* Decodes data[0..bytes); each piece ends where the bytes say, or not at all when `cut` is false.
 */
static void decode(const char *data, size_t bytes, bool cut, struct decoded *d)
{
    struct http_chunked c;
    http_chunked_init(&c);
    size_t end = 0;
    *d = (struct decoded){.err = ERR_MORE};
    while (!c.done && d->used < bytes && (d->err == ERR_MORE || d->err == ERR_OK)) {
        struct str piece;
        size_t used;
        if (d->used == end) {
            end += cut ? (size_t)1 + (unsigned char)data[end] % 11 : bytes;
            end = MIN(end, bytes);
        }
        const char *from = data + d->used;
        d->err = http_chunked_next(&c, from, end - d->used, &piece, &used);
        must(used <= end - d->used);
        must(d->err != ERR_MORE || used == end - d->used);
        must(d->err != ERR_OK || used > 0);
        must(piece.bytes <= used && piece.data >= from && piece.data + piece.bytes <= from + used);
        buf_append(&d->content, piece.data, piece.bytes);
        d->used += used;
    }
    must(c.trailers.bytes <= HTTP_TRAILER_BYTES_MAX);
    buf_append(&d->trailers, c.trailers.data, c.trailers.bytes);
    if (d->err == ERR_OK && !c.done)
        d->err = ERR_MORE; /* ended inside of a chunk */
    must(!c.done || d->err == ERR_OK);
    http_chunked_done(&c);
}

/* What has been decoded, encoded again: decodes to the same. */
static void check_round_trip(const struct decoded *d)
{
    struct buf text = {0};
    struct decoded again;
    char head[24];
    if (d->content.bytes > 0) {
        buf_append(&text, head, http_chunk_head(d->content.bytes, head));
        buf_append(&text, d->content.data, d->content.bytes);
        buf_append(&text, "\r\n", 2);
    }
    buf_append(&text, "0\r\n", 3);
    buf_append(&text, d->trailers.data, d->trailers.bytes);
    buf_append(&text, "\r\n", 2);
    decode(text.data, text.bytes, false, &again);
    must(again.err == ERR_OK && again.used == text.bytes);
    must(str_equal(buf_str(&again.content), buf_str(&d->content)));
    must(str_equal(buf_str(&again.trailers), buf_str(&d->trailers)));
    buf_done(&again.content);
    buf_done(&again.trailers);
    buf_done(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct decoded whole, pieces;
    decode((const char *)data, bytes, false, &whole);
    decode((const char *)data, bytes, true, &pieces);
    must(whole.content.bytes <= bytes && whole.used <= bytes);
    must(whole.err == pieces.err && whole.used == pieces.used);
    must(str_equal(buf_str(&whole.content), buf_str(&pieces.content)));
    must(str_equal(buf_str(&whole.trailers), buf_str(&pieces.trailers)));
    if (whole.err == ERR_OK)
        check_round_trip(&whole);
    buf_done(&whole.content);
    buf_done(&whole.trailers);
    buf_done(&pieces.content);
    buf_done(&pieces.trailers);
    return 0;
}
