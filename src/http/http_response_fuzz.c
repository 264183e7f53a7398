/* http_response_fuzz.c - whatever comes as an answer's head. The first byte chooses the request's
 * method. */
#include "http/http1_same.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void must(bool condition)
{
    if (!condition)
        abort();
}

static void check_response(const struct http_response *r, enum http_method method, struct str in)
{
    bool never = method == HTTP_HEAD || r->status < 200 || r->status == 204 || r->status == 304 ||
                 (method == HTTP_CONNECT && r->status < 300);
    must(response_is_inside(r, in));
    must(r->status >= 100 && r->status <= 999 && r->minor_version <= 1);
    must(!never || r->body == HTTP_BODY_NONE);
    must(never || r->body != HTTP_BODY_NONE);
    must(r->body != HTTP_BODY_UNTIL_CLOSE || !r->keep_alive);
    must(r->body != HTTP_BODY_CHUNKED || (r->minor_version == 1 && !r->has_content_length));
    must(r->has_content_length || r->content_length == 0);
    uint32_t framing = 0;
    for (uint32_t i = 0; i < r->header_count; i++)
        framing += r->headers[i].field == HTTP_FIELD_CONTENT_LENGTH ||
                   r->headers[i].field == HTTP_FIELD_TRANSFER_ENCODING;
    must(framing <= 1);
}

static enum err parse_in_pieces(const char *data, size_t bytes, enum http_method method,
                                struct http_response *r)
{
    size_t scanned = 0, here = 0;
    struct error e = {0};
    enum err err = ERR_MORE;
    while (err == ERR_MORE && here < bytes) {
        here += 1 + (unsigned char)data[here] % 17;
        here = MIN(here, bytes);
        err = http_response_parse(data, here, &scanned, method, r, &e);
    }
    return err;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct http_response whole, again;
    struct error e = {0};
    size_t scanned = 0;
    if (bytes == 0)
        return 0;
    enum http_method method = (enum http_method)(data[0] % (HTTP_OTHER + 1));
    struct str in = {(const char *)data + 1, bytes - 1};
    enum err err = http_response_parse(in.data, in.bytes, &scanned, method, &whole, &e);
    if (err == ERR_OK)
        check_response(&whole, method, in);
    else if (err != ERR_MORE)
        must(e.text[0] != '\0');

    char *closed = malloc(in.bytes + 4);
    must(closed != NULL);
    memcpy(closed, in.data, in.bytes);
    memcpy(closed + in.bytes, "\r\n\r\n", 4);
    struct str in_closed = {closed, in.bytes + 4};
    scanned = 0;
    enum err err_closed =
        http_response_parse(closed, in_closed.bytes, &scanned, method, &whole, &e);
    must(err == ERR_MORE || err_closed == err);
    must(parse_in_pieces(closed, in_closed.bytes, method, &again) == err_closed);
    must(err_closed != ERR_OK || responses_are_same(&whole, in_closed, &again, in_closed));
    free(closed);
    return 0;
}
