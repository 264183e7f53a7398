/* http1_chunked.c - chunks, RFC 9112 7.1: a state for each place between two bytes, so that any cut
 * is harmless. */
#include "http/http1_internal.h"

/* What the lines around content may cost beyond it: without a bound, one byte of content could come
 * with a line of extensions, again and again. Content earns room for the lines of its own chunks.
 */
#define OVERHEAD_BYTES_MAX (16u * 1024u)
#define OVERHEAD_FREE_BYTES 16u
#define SIZE_DIGITS_MAX 8u

void http_chunked_init(struct http_chunked *c)
{
    *c = (struct http_chunked){.state = CHUNK_SIZE};
}

void http_chunked_done(struct http_chunked *c)
{
    buf_done(&c->trailers);
}

/* 1 to 8 hexadecimal digits: no sign, no prefix, no blank. `left` grows to the size. */
static enum err size_byte(struct http_chunked *c, char byte)
{
    int digit = http_hex_value(byte);
    if (digit >= 0) {
        if (c->line_bytes == SIZE_DIGITS_MAX)
            return ERR_PROTOCOL;
        c->left = c->left << 4 | (uint64_t)digit;
        c->line_bytes++;
        return ERR_OK;
    }
    if (c->line_bytes == 0)
        return ERR_PROTOCOL;
    if (byte == '\r')
        c->state = CHUNK_SIZE_LF;
    else if (byte == ';')
        c->state = CHUNK_EXTENSION;
    else
        return ERR_PROTOCOL;
    c->line_bytes++;
    return ERR_OK;
}

/* Extensions are passed over, RFC 9112 7.1.1; they end with the line, quoted or not. */
static enum err extension_byte(struct http_chunked *c, char byte)
{
    if (byte == '\r')
        c->state = CHUNK_SIZE_LF;
    else if (!http_char_is(byte, HTTP_CHAR_VALUE))
        return ERR_PROTOCOL;
    c->line_bytes++;
    return c->line_bytes > HTTP_CHUNK_LINE_BYTES_MAX ? ERR_TOO_LARGE : ERR_OK;
}

static enum err size_end(struct http_chunked *c, char byte)
{
    if (byte != '\n')
        return ERR_PROTOCOL;
    uint64_t cost = c->overhead_bytes + c->line_bytes, earned = OVERHEAD_FREE_BYTES + 2 * c->left;
    if (cost > earned + OVERHEAD_BYTES_MAX)
        return ERR_TOO_LARGE;
    c->overhead_bytes = cost > earned ? (uint32_t)(cost - earned) : 0;
    c->line_bytes = 0;
    c->state = c->left == 0 ? CHUNK_TRAILER : CHUNK_DATA;
    return ERR_OK;
}

/* A line of the trailer has been collected behind the ones before. */
static enum err trailer_check(struct http_chunked *c)
{
    const char *line = c->trailers.data + c->trailers.bytes - c->line_bytes;
    uint32_t name = 0;
    while (name < c->line_bytes && http_char_is(line[name], HTTP_CHAR_TOKEN))
        name++;
    return name > 0 && name < c->line_bytes && line[name] == ':' ? ERR_OK : ERR_PROTOCOL;
}

static enum err trailer_byte(struct http_chunked *c, char byte)
{
    if (byte == '\r') {
        c->state = CHUNK_TRAILER_LF;
        return ERR_OK;
    }
    if (!http_char_is(byte, HTTP_CHAR_VALUE))
        return ERR_PROTOCOL;
    if (c->trailers.bytes + 2 >= HTTP_TRAILER_BYTES_MAX)
        return ERR_TOO_LARGE;
    buf_append(&c->trailers, &byte, 1);
    c->line_bytes++;
    return ERR_OK;
}

static enum err trailer_end(struct http_chunked *c, char byte)
{
    if (byte != '\n')
        return ERR_PROTOCOL;
    if (c->line_bytes == 0) {
        c->state = CHUNK_DONE;
        c->done = true;
        return ERR_OK;
    }
    enum err err = trailer_check(c);
    if (err != ERR_OK)
        return err;
    buf_append(&c->trailers, "\r\n", 2);
    c->line_bytes = 0;
    c->state = CHUNK_TRAILER;
    return ERR_OK;
}

static enum err step(struct http_chunked *c, char byte)
{
    switch (c->state) {
    case CHUNK_SIZE:
        return size_byte(c, byte);
    case CHUNK_EXTENSION:
        return extension_byte(c, byte);
    case CHUNK_SIZE_LF:
        return size_end(c, byte);
    case CHUNK_DATA_CR:
        c->state = CHUNK_DATA_LF;
        return byte == '\r' ? ERR_OK : ERR_PROTOCOL;
    case CHUNK_DATA_LF:
        c->state = CHUNK_SIZE;
        return byte == '\n' ? ERR_OK : ERR_PROTOCOL;
    case CHUNK_TRAILER:
        return trailer_byte(c, byte);
    case CHUNK_TRAILER_LF:
        return trailer_end(c, byte);
    case CHUNK_DATA:
    case CHUNK_DONE:
        break;
    }
    return ERR_PROTOCOL;
}

enum err http_chunked_next(struct http_chunked *c, const char *data, size_t bytes,
                           struct str *ret_piece, size_t *ret_used)
{
    size_t used = 0;
    enum err err = ERR_OK;
    *ret_piece = (struct str){data, 0};
    while (err == ERR_OK && used < bytes && c->state != CHUNK_DATA && !c->done)
        err = step(c, data[used++]);
    if (err == ERR_OK && !c->done && used == bytes)
        err = ERR_MORE;
    if (err == ERR_OK && c->state == CHUNK_DATA) {
        size_t piece = (size_t)MIN((uint64_t)(bytes - used), c->left);
        *ret_piece = (struct str){data + used, piece};
        used += piece;
        c->left -= piece;
        if (c->left == 0)
            c->state = CHUNK_DATA_CR;
    }
    *ret_used = used;
    return err;
}

size_t http_chunk_head(uint64_t bytes, char *ret_text)
{
    static const char digits[] = "0123456789abcdef";
    unsigned shift = 0;
    size_t count = 0;
    while (shift < 60 && bytes >> (shift + 4) != 0)
        shift += 4;
    for (;; shift -= 4) {
        ret_text[count++] = digits[bytes >> shift & 15];
        if (shift == 0)
            break;
    }
    ret_text[count] = '\r';
    ret_text[count + 1] = '\n';
    return count + 2;
}
