/* http1_chunked_test.c - chunked bodies: any cut, every limit, and what is broken. */
#include "http/http1.h"
#include "test.h"

/* ---- chunks ---- */

/* Decodes in pieces of at most `step` bytes (0: as a whole). ERR_OK, ERR_MORE when it is not at its
 * end, or the refusal. */
static enum err decode(struct str text, size_t step, struct buf *ret_content,
                       struct buf *ret_trailers, size_t *ret_used)
{
    struct http_chunked c;
    enum err err = ERR_MORE;
    size_t used = 0, have = step == 0 ? text.bytes : MIN(step, text.bytes);
    http_chunked_init(&c);
    for (;;) {
        struct str piece = STR_NONE;
        size_t n = 0;
        err = http_chunked_next(&c, text.data + used, have - used, &piece, &n);
        used += n;
        if (err == ERR_OK) {
            buf_append_str(ret_content, piece);
            if (c.done)
                break;
        } else if (err != ERR_MORE || have == text.bytes) {
            break;
        } else {
            CHECK_EQ(used, have);
            have = MIN(text.bytes, have + step);
        }
    }
    if (err == ERR_OK)
        buf_append_str(ret_trailers, buf_str(&c.trailers));
    *ret_used = used;
    http_chunked_done(&c);
    return err;
}

TEST(chunks_are_decoded_however_they_are_cut)
{
    static const char text[] =
        "5\r\nhello\r\n1;a=b\r\n,\r\n000006;x=\"y;z\"\r\n world\r\n0\r\nX-T: v\r\n\r\nnext";
    for (size_t step = 0; step < sizeof(text); step++) {
        cleanup(buf_done) struct buf content = {0}, trailers = {0};
        size_t used;
        CHECK_EQ(decode(str_of(text), step, &content, &trailers, &used), ERR_OK);
        CHECK(str_equal(buf_str(&content), STR("hello, world")));
        CHECK(str_equal(buf_str(&trailers), STR("X-T: v\r\n")));
        CHECK_EQ(used, sizeof(text) - 1 - 4);
    }
}

TEST(broken_chunks_are_refused)
{
    static const char *const texts[] = {
        "\r\n",
        "x\r\n",
        " 5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5\nhello\r\n",
        "5\r\nhelloX\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "-1\r\n",
        "0x5\r\nhello\r\n",
        "100000000\r\n",
        "fffffffff\r\n",
        "5\r\rhello",
        "0\r\nA\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "5;\x01\r\nhello\r\n",
        ";a\r\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        for (size_t step = 0; step < 3; step++) {
            cleanup(buf_done) struct buf content = {0}, trailers = {0};
            size_t used;
            enum err err = decode(str_of(texts[i]), step, &content, &trailers, &used);
            if (err == ERR_OK || err == ERR_MORE)
                test_fail(__FILE__, __LINE__, "chunks %zu, step %zu: %s: %s", i, step,
                          err_name(err), texts[i]);
        }
}

TEST(lines_of_chunks_and_trailers_are_bounded)
{
    cleanup(buf_done) struct buf extension = {0}, trailers = {0}, tiny = {0}, content = {0},
                                 out = {0};
    size_t used;
    buf_append_str(&extension, STR("5;"));
    for (unsigned i = 0; i < HTTP_CHUNK_LINE_BYTES_MAX; i++)
        buf_append_str(&extension, STR("a"));
    CHECK_EQ(decode(buf_str(&extension), 0, &content, &out, &used), ERR_TOO_LARGE);
    buf_append_str(&trailers, STR("0\r\n"));
    for (unsigned i = 0; i < HTTP_TRAILER_BYTES_MAX / 8 + 2; i++)
        buf_append_str(&trailers, STR("A: bcd\r\n"));
    CHECK_EQ(decode(buf_str(&trailers), 0, &content, &out, &used), ERR_TOO_LARGE);
    for (unsigned i = 0; i < 200000;
         i++) /* one byte of content for each 50 of extension: it pays for nothing */
        buf_append_str(&tiny, STR("1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n"));
    enum err err = decode(buf_str(&tiny), 0, &content, &out, &used);
    CHECK(err == ERR_TOO_LARGE || err == ERR_PROTOCOL);
}

PROPERTY(what_is_encoded_is_decoded)
{
    cleanup(buf_done) struct buf plain = {0}, coded = {0}, content = {0}, trailers = {0};
    for (uint64_t n = rng_below(rng, 6); n > 0; n--) {
        char head[32], data[300];
        size_t bytes = 1 + rng_below(rng, sizeof(data));
        for (size_t i = 0; i < bytes; i++)
            data[i] = (char)rng_next(rng);
        buf_append(&coded, head, http_chunk_head(bytes, head));
        buf_append(&coded, data, bytes);
        buf_append_str(&coded, STR("\r\n"));
        buf_append(&plain, data, bytes);
    }
    buf_append_str(&coded, STR("0\r\n\r\n"));
    size_t used;
    CHECK_EQ(decode(buf_str(&coded), rng_below(rng, 40), &content, &trailers, &used), ERR_OK);
    CHECK(str_equal(buf_str(&content), buf_str(&plain)));
    CHECK_EQ(used, coded.bytes);
}
