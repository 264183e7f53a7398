/* body.c - bodies on their way. What the kernel takes at once is not copied; what it does not take
 * is copied once, into the pending buffer of the stream, and then the source is paused until it has
 * gone. */
#include "data_plane/proxy.h"

#define PIECES_MAX 20 /* chunks in one write: each is a head, content, an end */

/* ---- of the request ---- */

void body_begin(struct client *c, const struct http_request *r)
{
    c->body = r->body;
    c->body_left = r->body == HTTP_BODY_LENGTH ? r->content_length : 0;
    c->body_bytes = 0;
    c->request_done =
        r->body == HTTP_BODY_NONE || (r->body == HTTP_BODY_LENGTH && r->content_length == 0);
    if (r->body == HTTP_BODY_CHUNKED) {
        http_chunked_done(&c->chunked);
        http_chunked_init(&c->chunked);
    }
}

static bool is_over_limit(struct client *c)
{
    return c->body_bytes >
           atomic_load_explicit(&c->route->route->request_body_bytes_max, memory_order_relaxed);
}

static void write_chunk_end(struct buf *out, const struct http_chunked *chunked)
{
    buf_append_str(out, STR("0\r\n"));
    head_write_trailers(out, buf_str(&chunked->trailers));
    buf_append_str(out, STR("\r\n"));
}

/* The content of chunks at `data` into `out`, in chunks again. */
static enum err copy_chunks(struct client *c, struct buf *out, const char *data, size_t bytes,
                            size_t *ret_used)
{
    enum err err = ERR_OK;
    size_t used = 0;
    while (err == ERR_OK && !c->chunked.done) {
        struct str piece;
        size_t n;
        char size_line[24];
        err = http_chunked_next(&c->chunked, data + used, bytes - used, &piece, &n);
        used += n;
        if (err != ERR_OK || piece.bytes == 0)
            continue;
        c->body_bytes += piece.bytes;
        buf_append(out, size_line, http_chunk_head(piece.bytes, size_line));
        buf_append_str(out, piece);
        buf_append_str(out, STR("\r\n"));
    }
    if (c->chunked.done) {
        write_chunk_end(out, &c->chunked);
        c->request_done = true;
    }
    *ret_used = used;
    return err == ERR_MORE ? ERR_OK : err;
}

enum err body_take_small(struct client *c, const char *data, size_t bytes, size_t *ret_used)
{
    *ret_used = 0;
    if (c->request_done || bytes == 0)
        return ERR_OK;
    if (c->body == HTTP_BODY_CHUNKED)
        return bytes > BODY_SMALL_BYTES_MAX ? ERR_OK
                                            : copy_chunks(c, &c->head, data, bytes, ret_used);
    size_t used = (size_t)MIN((uint64_t)bytes, c->body_left);
    if (used > BODY_SMALL_BYTES_MAX)
        return ERR_OK;
    buf_append(&c->head, data, used);
    c->body_left -= used;
    c->body_bytes += used;
    c->request_done = c->body_left == 0;
    *ret_used = used;
    return ERR_OK;
}

static size_t send_length(struct client *c, const char *data, size_t bytes)
{
    size_t used = (size_t)MIN((uint64_t)bytes, c->body_left);
    struct iovec part = {.iov_base = (void *)data, .iov_len = used};
    upstream_send(c->upstream, &part, 1);
    c->body_left -= used;
    c->body_bytes += used;
    c->request_done = c->body_left == 0;
    return used;
}

/* The writer of chunks: pieces point into the source, so nothing is copied but the lines around
 * them. */
struct chunk_writer {
    struct iovec parts[PIECES_MAX * 3];
    char lines[PIECES_MAX][24];
    int count, pieces;
};

static void chunk_add(struct chunk_writer *w, struct str piece)
{
    char *line = w->lines[w->pieces++];
    w->parts[w->count++] = (struct iovec){line, http_chunk_head(piece.bytes, line)};
    w->parts[w->count++] = (struct iovec){(void *)piece.data, piece.bytes};
    w->parts[w->count++] = (struct iovec){(void *)"\r\n", 2};
}

static enum err send_chunks(struct client *c, const char *data, size_t bytes, size_t *ret_used)
{
    struct chunk_writer w;
    enum err err = ERR_OK;
    size_t used = 0;
    w.count = w.pieces = 0;
    while (err == ERR_OK && !c->chunked.done) {
        struct str piece;
        size_t n;
        err = http_chunked_next(&c->chunked, data + used, bytes - used, &piece, &n);
        used += n;
        if (err == ERR_OK && piece.bytes > 0) {
            c->body_bytes += piece.bytes;
            chunk_add(&w, piece);
        }
        if (w.pieces == PIECES_MAX) {
            upstream_send(c->upstream, w.parts, w.count);
            w.count = w.pieces = 0;
        }
    }
    *ret_used = used;
    if (err != ERR_OK && err != ERR_MORE)
        return err;
    struct buf *end = &c->thread->extra;
    end->bytes = 0;
    if (c->chunked.done) {
        write_chunk_end(end, &c->chunked);
        w.parts[w.count++] = (struct iovec){end->data, end->bytes};
        c->request_done = true;
    }
    if (w.count > 0)
        upstream_send(c->upstream, w.parts, w.count);
    return ERR_OK;
}

size_t body_send(struct client *c, const char *data, size_t bytes)
{
    size_t used = 0;
    c->replayable = false;
    if (c->body == HTTP_BODY_LENGTH) {
        used = send_length(c, data, bytes);
    } else if (send_chunks(c, data, bytes, &used) != ERR_OK) {
        exchange_fail(c, ANSWER_bad_request, STR("the chunks of the body are not valid"));
        return bytes;
    }
    if (is_over_limit(c)) {
        exchange_fail(c, ANSWER_body_too_large, STR_NONE);
        return bytes;
    }
    if (loop_stream_pending(&c->upstream->stream) > 0)
        loop_stream_pause(&c->stream);
    return used;
}

/* ---- of the answer ---- */

/* The head, when there is one, leaves together with the first of the body; then it is none any
 * more. */
static void send_with_head(struct client *c, struct str *head, struct iovec *parts, int count)
{
    struct iovec all[PIECES_MAX * 3 + 2];
    int n = 0;
    size_t bytes = 0;
    if (head->bytes > 0)
        all[n++] = (struct iovec){(void *)head->data, head->bytes};
    for (int i = 0; i < count; i++)
        if (parts[i].iov_len > 0)
            all[n++] = parts[i];
    for (int i = 0; i < n; i++)
        bytes += all[i].iov_len;
    if (n > 0)
        loop_stream_sendv(&c->stream, all, n);
    stat_add(&c->thread->counters.bytes_out, bytes);
    *head = STR_NONE;
}

static void answer_plain(struct client *c, struct str *head, struct str piece)
{
    struct iovec part = {.iov_base = (void *)piece.data, .iov_len = piece.bytes};
    if (head->bytes > 0 &&
        piece.bytes <= 1024) {             /* one copy of a little is cheaper than a vector */
        struct buf *out = &c->thread->out; /* where the head lies */
        assert(out->data == head->data && out->bytes == head->bytes);
        buf_append_str(out, piece);
        *head = buf_str(out);
        part.iov_len = 0;
    }
    send_with_head(c, head, &part, 1);
}

static void answer_as_chunk(struct client *c, struct str *head, struct str piece)
{
    struct chunk_writer w;
    w.count = w.pieces = 0;
    if (piece.bytes > 0)
        chunk_add(&w, piece);
    send_with_head(c, head, w.parts, w.count);
}

static enum err answer_from_chunks(struct client *c, struct str *head, const char *data,
                                   size_t bytes, size_t *ret_used)
{
    struct http_chunked *chunked = &c->upstream->chunked;
    struct chunk_writer w;
    enum err err = ERR_OK;
    size_t used = 0;
    w.count = w.pieces = 0;
    while (err == ERR_OK && !chunked->done) {
        struct str piece;
        size_t n;
        err = http_chunked_next(chunked, data + used, bytes - used, &piece, &n);
        used += n;
        if (err == ERR_OK && piece.bytes > 0) {
            if (c->answer_chunked)
                chunk_add(&w, piece);
            else
                w.parts[w.count++] = (struct iovec){(void *)piece.data, piece.bytes};
        }
        if (w.pieces == PIECES_MAX || w.count == PIECES_MAX * 3) {
            send_with_head(c, head, w.parts, w.count);
            w.count = w.pieces = 0;
        }
    }
    struct buf *end = &c->thread->extra;
    end->bytes = 0;
    if (chunked->done && c->answer_chunked) {
        buf_append_str(end, STR("0\r\n"));
        if (c->trailers_accepted)
            head_write_trailers(end, buf_str(&chunked->trailers));
        buf_append_str(end, STR("\r\n"));
        w.parts[w.count++] = (struct iovec){end->data, end->bytes};
    }
    send_with_head(c, head, w.parts, w.count);
    *ret_used = used;
    return err == ERR_MORE ? ERR_OK : err;
}

enum err body_answer(struct client *c, struct str head, const char *data, size_t bytes,
                     size_t *ret_used, bool *ret_done)
{
    enum err err = ERR_OK;
    *ret_used = bytes;
    *ret_done = false;
    switch (c->answer_body) {
    case HTTP_BODY_NONE:
        *ret_used = 0;
        *ret_done = true;
        send_with_head(c, &head, NULL, 0);
        break;
    case HTTP_BODY_LENGTH:
        *ret_used = (size_t)MIN((uint64_t)bytes, c->answer_left);
        c->answer_left -= *ret_used;
        *ret_done = c->answer_left == 0;
        answer_plain(c, &head, (struct str){data, *ret_used});
        break;
    case HTTP_BODY_CHUNKED:
        err = answer_from_chunks(c, &head, data, bytes, ret_used);
        *ret_done = c->upstream->chunked.done;
        break;
    case HTTP_BODY_UNTIL_CLOSE:
        if (c->answer_chunked)
            answer_as_chunk(c, &head, (struct str){data, bytes});
        else
            answer_plain(c, &head, (struct str){data, bytes});
        break;
    }
    if (loop_stream_pending(&c->stream) > 0)
        loop_stream_pause(&c->upstream->stream);
    return err;
}
