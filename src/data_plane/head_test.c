/* head_test.c - what is written reads back as what was meant, whatever was read before. */
#include "data_plane/answer.h"
#include "data_plane/head.h"
#include "test.h"
#include <stdlib.h>

/* ---- random heads, valid but odd ---- */

static void add_random(struct rng *rng, struct buf *out, const char *alphabet, uint64_t count_max)
{
    for (uint64_t i = rng_below(rng, count_max) + 1; i > 0; i--)
        buf_append(out, &alphabet[rng_below(rng, strlen(alphabet))], 1);
}

static const char token_chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789!#$%&'*+-.^_`|~";
static const char value_chars[] = "abcXYZ0123 \t,;:=\"()/\\<>@[]{}?\x80\xff";

static void add_field(struct rng *rng, struct buf *out)
{
    static const char *const known[] = {
        "Connection: keep-alive",
        "Connection: X-A, close",
        "connection: x-b",
        "Keep-Alive: timeout=3",
        "TE: trailers",
        "TE: gzip;q=0.5",
        "Upgrade: h2c",
        "X-A: 1",
        "X-B: 2",
        "x-b: 3",
        "Expect: 100-continue",
        "Forwarded: for=1.1.1.1",
        "X-Forwarded-For: 1.1.1.1",
        "x-forwarded-proto: https",
        "X-Forwarded-Host: evil",
        "X-FORWARDED-PREFIX: /evil",
        "Dirigent-Receipt: 1",
        "dirigent-error: x",
        "Dirigent-: y",
        "Proxy-Connection: close",
        "Proxy-Authorization: a",
        "Cookie: a=b",
        "Cookie: c=d",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "Date: x",
        "Trailer: X-T",
        "Via: 1.0 fred",
        "Server: s",
        "Content-Type: text/plain",
        "Authorization: Basic eDp5",
        "X-Empty:"};
    if (rng_below(rng, 3) > 0) {
        buf_append_str(out, str_of(known[rng_below(rng, ARRAY_COUNT(known))]));
    } else {
        buf_append_str(out, STR("Z"));
        add_random(rng, out, token_chars, 20);
        buf_append_str(out, STR(":"));
        add_random(rng, out, value_chars, 40);
    }
    buf_append_str(out, STR("\r\n"));
}

static void add_fields(struct rng *rng, struct buf *out)
{
    for (uint64_t i = rng_below(rng, 25); i > 0; i--)
        add_field(rng, out);
}

static void make_request(struct rng *rng, struct buf *out)
{
    static const char *const methods[] = {"GET",    "HEAD",    "POST",  "PUT",
                                          "DELETE", "OPTIONS", "PATCH", "PURGE"};
    buf_append_str(out, str_of(methods[rng_below(rng, ARRAY_COUNT(methods))]));
    buf_append_str(out, STR(" /"));
    if (rng_below(rng, 2) == 0)
        add_random(rng, out, "abc/%41.-_~!$&'()*+,;=:@", 30);
    if (rng_below(rng, 2) == 0) {
        buf_append_str(out, STR("?"));
        if (rng_below(rng, 4) > 0)
            add_random(rng, out, "abc/?=&%20", 30);
    }
    uint64_t framing = rng_below(rng, 4);
    bool is_1_0 = framing != 1 && rng_below(rng, 4) == 0; /* 1.0 has no chunks */
    buf_append_str(out, is_1_0 ? STR(" HTTP/1.0\r\n") : STR(" HTTP/1.1\r\n"));
    add_fields(rng, out);
    buf_append_str(out, STR("hOST: Hello.Example:80\r\n"));
    add_fields(rng, out);
    switch (framing) {
    case 0:
        buf_printf(out, "content-length: %" PRIu64 "\r\n",
                   rng_next(rng) >> (1 + rng_below(rng, 62)));
        break;
    case 1:
        buf_append_str(out, STR("Transfer-Encoding: Chunked\r\n"));
        break;
    case 2:
        buf_append_str(out, STR("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
        break;
    default:
        break;
    }
    buf_append_str(out, STR("\r\n"));
}

static bool parse_request(const struct buf *text, struct http_request *r)
{
    size_t scanned = 0;
    struct error e = {0};
    return http_request_parse(text->data, text->bytes, &scanned, r, &e) == ERR_OK &&
           r->head_bytes == text->bytes;
}

/* ---- what must hold ---- */

static bool is_named(const struct http_header *headers, uint32_t count, struct str name)
{
    for (uint32_t i = 0; i < count; i++)
        if (headers[i].field == HTTP_FIELD_CONNECTION && http_list_has(headers[i].value, name))
            return true;
    return false;
}

static unsigned count_of(const struct http_header *headers, uint32_t count, struct str name)
{
    unsigned n = 0;
    for (uint32_t i = 0; i < count; i++)
        n += str_equal_nocase(headers[i].name, name);
    return n;
}

static struct str value_of(const struct http_request *r, struct str name)
{
    for (uint32_t i = 0; i < r->header_count; i++)
        if (str_equal_nocase(r->headers[i].name, name))
            return r->headers[i].value;
    return STR_NONE;
}

static bool begins_with(struct str name, const char *prefix)
{
    return name.bytes >= strlen(prefix) &&
           str_equal_nocase((struct str){name.data, strlen(prefix)}, str_of(prefix));
}

/* The names that go on whatever they hold, unless Connection names them. */
static bool goes_on(struct str name)
{
    static const char *const end_to_end[] = {"cookie", "traceparent",  "date",          "via",
                                             "server", "content-type", "authorization", "x-a",
                                             "x-b",    "x-empty"};
    for (size_t i = 0; i < ARRAY_COUNT(end_to_end); i++)
        if (str_equal_nocase(name, str_of(end_to_end[i])))
            return true;
    return begins_with(name, "z");
}

/* Those of `in` that go on are those of `out`, in the same order, with the same values. */
static void check_order(const struct http_header *in, uint32_t in_count,
                        const struct http_header *out, uint32_t out_count)
{
    uint32_t at = 0;
    for (uint32_t i = 0; i < in_count; i++) {
        if (!goes_on(in[i].name) || is_named(in, in_count, in[i].name))
            continue;
        while (at < out_count && !str_equal(out[at].name, in[i].name))
            at++;
        REQUIRE(at < out_count);
        CHECK(str_equal(out[at].value, in[i].value));
        at++;
    }
}

static void check_forwarded(const struct http_request *out, const struct head_origin *o)
{
    static const char *const once[] = {
        "host",      "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
        "forwarded", "traceparent"};
    for (size_t i = 0; i < ARRAY_COUNT(once); i++)
        CHECK(count_of(out->headers, out->header_count, str_of(once[i])) >= 1);
    for (size_t i = 0; i + 1 < ARRAY_COUNT(once); i++)
        CHECK_EQ(count_of(out->headers, out->header_count, str_of(once[i])), 1);
    CHECK(str_equal(value_of(out, STR("x-forwarded-for")), o->client_ip));
    CHECK(str_equal(value_of(out, STR("x-forwarded-host")), STR("Hello.Example:80")));
    CHECK_EQ(count_of(out->headers, out->header_count, STR("x-forwarded-prefix")),
             o->prefix.bytes > 0);
}

static void check_request(const struct http_request *in, const struct http_request *out,
                          const struct head_origin *o)
{
    CHECK(str_equal(out->method_text, in->method_text));
    CHECK(str_equal(out->path, o->path));
    CHECK((out->query.data == NULL) == (in->query.data == NULL));
    CHECK(str_equal(out->query, in->query));
    CHECK_EQ(out->minor_version, 1);
    CHECK(str_equal(out->host, STR("Hello.Example:80")));
    CHECK_EQ(out->body, in->body);
    CHECK_EQ(out->content_length, in->content_length);
    CHECK_EQ(out->upgrade_websocket, in->upgrade_websocket);
    CHECK(out->keep_alive);
    CHECK(!out->expect_continue);
    for (uint32_t i = 0; i < out->header_count; i++) {
        struct str name = out->headers[i].name;
        CHECK(!begins_with(name, "dirigent-"));
        CHECK(!begins_with(name, "proxy-"));
        CHECK(!str_equal_nocase(name, STR("keep-alive")));
        CHECK(!goes_on(name) || str_equal_nocase(name, STR("traceparent")) ||
              !is_named(in->headers, in->header_count, name));
    }
    check_order(in->headers, in->header_count, out->headers, out->header_count);
    check_forwarded(out, o);
}

/* What is sent to a sandbox parses as the same request, with our word for who asks and nothing of
 * the other hop. */
PROPERTY(a_request_written_anew_reads_back_as_the_same)
{
    static struct http_request in, out;
    for (int i = 0; i < 20; i++) {
        cleanup(buf_done) struct buf text = {0}, written = {0};
        make_request(rng, &text);
        REQUIRE(parse_request(&text, &in));
        bool by_path = rng_below(rng, 2) == 0;
        struct head_origin origin = {.client_ip = rng_below(rng, 2) == 0 ? STR("10.1.2.3")
                                                                         : STR("2001:db8::1"),
                                     .path = by_path ? STR("/rest") : in.path,
                                     .prefix = by_path ? STR("/function/hello") : STR_NONE,
                                     .host = STR("hello"),
                                     .trace_id = {rng_next(rng), 1},
                                     .span_id = 1};
        buf_append_str(&written, STR("before"));
        head_write_request(&written, &in, &origin);
        buf_consume(&written, 6);
        CHECK(written.bytes <= text.bytes + 700);
        if (in.header_count + 8 > HTTP_HEADER_COUNT_MAX)
            continue;
        REQUIRE(parse_request(&written, &out));
        check_request(&in, &out, &origin);
    }
}

static void make_answer(struct rng *rng, struct buf *out)
{
    static const char *const statuses[] = {"200 OK",           "404 ",       "204 No Content",
                                           "304 Not Modified", "500 x\x80y", "299 Odd thing"};
    buf_printf(out, "HTTP/1.%d %s\r\n", (int)rng_below(rng, 2),
               statuses[rng_below(rng, ARRAY_COUNT(statuses))]);
    add_fields(rng, out);
    if (rng_below(rng, 2) == 0)
        buf_printf(out, "Content-Length: %u\r\n", (unsigned)rng_below(rng, 100000));
    buf_append_str(out, STR("\r\n"));
}

PROPERTY(an_answer_written_anew_reads_back_as_meant)
{
    static struct http_response in, out;
    for (int i = 0; i < 20; i++) {
        cleanup(buf_done) struct buf text = {0}, written = {0};
        size_t scanned = 0, scanned_again = 0;
        struct error e = {0};
        make_answer(rng, &text);
        REQUIRE(http_response_parse(text.data, text.bytes, &scanned, HTTP_GET, &in, &e) == ERR_OK);
        struct head_answer a = {.body =
                                    in.body == HTTP_BODY_UNTIL_CLOSE ? HTTP_BODY_CHUNKED : in.body,
                                .content_length = in.content_length,
                                .has_content_length = in.has_content_length && in.status != 204,
                                .keep_alive = rng_below(rng, 2) == 0,
                                .date = STR("Mon, 23 Nov 2026 13:10:19 GMT"),
                                .extra = STR("Dirigent-Cold: 1\r\n")};
        head_write_answer(&written, &in, &a);
        REQUIRE(http_response_parse(written.data, written.bytes, &scanned_again, HTTP_GET, &out,
                                    &e) == ERR_OK);
        CHECK_EQ(out.head_bytes, written.bytes);
        CHECK_EQ(out.status, in.status);
        CHECK(str_equal(out.reason, in.reason));
        CHECK_EQ(out.body, a.body);
        CHECK_EQ(out.keep_alive, a.keep_alive);
        CHECK_EQ(out.has_content_length, a.body == HTTP_BODY_LENGTH || a.has_content_length);
        CHECK(count_of(out.headers, out.header_count, STR("date")) >= 1);
        CHECK_EQ(count_of(out.headers, out.header_count, STR("dirigent-cold")), 1);
        CHECK_EQ(count_of(out.headers, out.header_count, STR("dirigent-error")), 0);
        CHECK_EQ(count_of(out.headers, out.header_count, STR("upgrade")), 0);
        CHECK_EQ(count_of(out.headers, out.header_count, STR("trailer")), 0);
        check_order(in.headers, in.header_count, out.headers, out.header_count);
    }
}

TEST(an_ipv6_client_is_quoted_in_forwarded)
{
    static struct http_request in;
    cleanup(buf_done) struct buf text = {0}, written = {0};
    buf_append_str(&text, STR("GET / HTTP/1.0\r\n\r\n"));
    REQUIRE(parse_request(&text, &in));
    struct head_origin origin = {.client_ip = STR("::1"),
                                 .path = STR("/"),
                                 .host = STR("hello"),
                                 .trace_id = {0x1234, 0xabcd},
                                 .span_id = 7};
    head_write_request(&written, &in, &origin);
    buf_append(&written, "", 1);
    CHECK_STR(written.data,
              "GET / HTTP/1.1\r\nHost: hello\r\nX-Forwarded-For: ::1\r\nX-Forwarded-Proto: http\r\n"
              "X-Forwarded-Host: hello\r\nForwarded: for=\"[::1]\";host=\"hello\";proto=http\r\n"
              "traceparent: 00-0000000000001234000000000000abcd-0000000000000007-00\r\n\r\n");
}

TEST(only_what_may_be_a_trailer_goes_on)
{
    cleanup(buf_done) struct buf out = {0};
    head_write_trailers(
        &out, STR("X-Sum: 1\r\nContent-Length: 5\r\nHost: x\r\nTransfer-Encoding: "
                  "chunked\r\ngrpc-status:0\r\n"
                  "Set-Cookie: a\r\nDirigent-Cold: 1\r\nX-Forwarded-For: 1\r\nif-match: x\r\n"));
    buf_append(&out, "", 1);
    CHECK_STR(out.data, "X-Sum: 1\r\ngrpc-status: 0\r\n");
    cleanup(buf_done) struct buf none = {0};
    head_write_trailers(&none, STR(""));
    CHECK_EQ(none.bytes, 0);
}

TEST(dates_are_as_the_rfc_wants_them)
{
    char text[HEAD_DATE_BYTES + 1] = "";
    head_write_date(784111777, text); /* the example of RFC 9110 5.6.7 */
    CHECK_STR(text, "Sun, 06 Nov 1994 08:49:37 GMT");
    head_write_date(1709164799, text);
    CHECK_STR(text, "Wed, 28 Feb 2024 23:59:59 GMT");
    head_write_date(1709164800, text);
    CHECK_STR(text, "Thu, 29 Feb 2024 00:00:00 GMT");
}

TEST(text_of_any_bytes_is_valid_json)
{
    cleanup(buf_done) struct buf out = {0};
    answer_write_json_text(
        &out, STR("a\"b\\c\n\t\x01\x7f\xc3\xa4\xff\xc0\x80\xed\xa0\x80\xf4\x90\x80\x80\xe2\x82"));
    buf_append(&out, "", 1);
    CHECK_STR(out.data, "\"a\\\"b\\\\c\\n\\t\\u0001\\u007f\xc3\xa4\\ufffd\\ufffd\\ufffd\\ufffd\\uff"
                        "fd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd"
                        "\\ufffd\"");
}

TEST(an_error_names_its_reason_in_head_and_body)
{
    cleanup(buf_done) struct buf out = {0};
    struct answer_error error = {.status = 503,
                                 .retry_after_s = 4,
                                 .code = STR("Queue\r\nfull"),
                                 .message = STR("no room"),
                                 .function = STR("f")};
    struct answer_frame frame = {.keep_alive = true, .date = STR("D"), .extra = STR("X: y\r\n")};
    answer_write_error(&out, &error, &frame);
    buf_append(&out, "", 1);
    CHECK_STR(
        out.data,
        "HTTP/1.1 503 Service Unavailable\r\nDate: D\r\nContent-Type: "
        "application/json\r\nContent-Length: 68\r\nX: y\r\n"
        "Dirigent-Error: _ueue__full\r\nRetry-After: 4\r\n\r\n"
        "{\"error\":{\"code\":\"_ueue__full\",\"message\":\"no room\",\"function\":\"f\"}}\n");
}
