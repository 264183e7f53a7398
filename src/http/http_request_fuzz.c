/* http_request_fuzz.c - whatever comes as a request's head: what is taken lies in it, says what its
 * lines say, and does not depend on the cuts between its pieces. */
#include "http/http1_same.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(bool condition)
{
    if (!condition)
        abort();
}

static struct str value_of(const struct http_request *r, enum http_field field, uint32_t *ret_count)
{
    struct str value = STR_NONE;
    *ret_count = 0;
    for (uint32_t i = 0; i < r->header_count; i++)
        if (r->headers[i].field == field) {
            value = r->headers[i].value;
            (*ret_count)++;
        }
    return value;
}

/* The framing again, from the lines that were taken. */
static void check_framing(const struct http_request *r)
{
    uint32_t lengths, codings, hosts;
    struct str length = value_of(r, HTTP_FIELD_CONTENT_LENGTH, &lengths);
    struct str coding = value_of(r, HTTP_FIELD_TRANSFER_ENCODING, &codings);
    (void)value_of(r, HTTP_FIELD_HOST, &hosts);
    must(lengths + codings <= 1 && hosts <= 1 && (hosts == 1 || r->minor_version == 0));
    must((codings == 1) == (r->body == HTTP_BODY_CHUNKED) &&
         (lengths == 1) == (r->body == HTTP_BODY_LENGTH));
    must(codings == 0 || (r->minor_version == 1 && str_equal_nocase(coding, STR("chunked"))));
    uint64_t number = 0;
    must(lengths == 0 || str_to_u64(length, INT64_MAX, &number) == ERR_OK);
    must(number == r->content_length);
}

/* No byte of the head but its line ends is a control character, and each line ends with CRLF. */
static void check_bytes(const char *head, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)head[i];
        if (c == '\r')
            must(i + 1 < bytes && head[i + 1] == '\n');
        else if (c == '\n')
            must(i > 0 && head[i - 1] == '\r');
        else
            must((c >= 0x20 && c != 0x7f) || c == '\t');
    }
    must(bytes >= 4 && memcmp(head + bytes - 4, "\r\n\r\n", 4) == 0);
}

static void check_request(const struct http_request *r, struct str in)
{
    must(request_is_inside(r, in));
    check_bytes(in.data, r->head_bytes);
    check_framing(r);
    must(r->method_text.bytes > 0 && r->target.bytes > 0 && r->minor_version <= 1);
    must(r->method == HTTP_CONNECT ? r->path.data == NULL : r->path.bytes > 0);
    must(r->path.data == NULL || r->path.data[0] == '/' || str_equal(r->path, STR("*")));
    must(r->host.data == NULL ? r->minor_version == 0
                              : r->host_name.bytes > 0 && r->host_name.bytes <= r->host.bytes);
    must(!r->expect_continue || r->body != HTTP_BODY_NONE);
}

/* The same head in pieces: how long they are is taken from the head itself. */
static enum err parse_in_pieces(const char *data, size_t bytes, struct http_request *r,
                                struct error *e)
{
    size_t scanned = 0, here = 0;
    enum err err = ERR_MORE;
    while (err == ERR_MORE && here < bytes) {
        here += 1 + (unsigned char)data[here] % 17;
        here = MIN(here, bytes);
        err = http_request_parse(data, here, &scanned, r, e);
    }
    return err;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct http_request whole, again;
    struct error e = {0}, e_again = {0};
    size_t scanned = 0;
    struct str in = {(const char *)data, bytes};
    enum err err = http_request_parse(in.data, in.bytes, &scanned, &whole, &e);
    if (err == ERR_OK)
        check_request(&whole, in);
    else if (err != ERR_MORE)
        must(e.text[0] != '\0' && http_parse_error_status(err, &e) >= 400);

    /* With an end behind it nothing is left open: a refused head stays refused with the same error,
     * however it comes. */
    char *closed = malloc(bytes + 4);
    must(closed != NULL);
    if (bytes > 0)
        memcpy(closed, data, bytes);
    memcpy(closed + bytes, "\r\n\r\n", 4);
    struct str in_closed = {closed, bytes + 4};
    scanned = 0;
    e = (struct error){0};
    enum err err_closed = http_request_parse(closed, bytes + 4, &scanned, &whole, &e);
    must(err == ERR_MORE || err_closed == err);
    enum err err_pieces = parse_in_pieces(closed, bytes + 4, &again, &e_again);
    must(err_pieces == err_closed);
    if (err_closed == ERR_OK)
        must(requests_are_same(&whole, in_closed, &again, in_closed));
    else if (err_closed != ERR_MORE)
        must(strcmp(e.text, e_again.text) == 0);
    free(closed);
    return 0;
}
