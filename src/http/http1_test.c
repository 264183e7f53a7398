/* http1_test.c - what is accepted, what is refused and why; and that it makes no difference how the
 * bytes are cut. */
#include "http/http1.h"
#include "test.h"
#include <stdlib.h>

static enum err parse(struct str text, struct http_request *r, struct error *e)
{
    size_t scanned = 0;
    *e = (struct error){0};
    return http_request_parse(text.data, text.bytes, &scanned, r, e);
}

/* ---- requests ---- */

struct refusal {
    const char *text;
    enum err err;
    unsigned status;
};
#define GET "GET / HTTP/1.1\r\n"
#define HOST "Host: a\r\n"

static const struct refusal refused[] = {
    /* lines */
    {"GET / HTTP/1.1\nHost: a\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a\r\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A: b\rc\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A: b\x01\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A: b\x7f\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A: b\r\n c\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A: b\r\n\tc\r\n\r\n", ERR_PROTOCOL, 400},
    {GET " Host: a\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host : a\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST ": b\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A(b: c\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "A\x80: c\r\n\r\n", ERR_PROTOCOL, 400},
    {"\r\n\r\n" GET HOST "\r\n", ERR_PROTOCOL, 400},
    /* the request line */
    {"GET  / HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET /  HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {" GET / HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET / HTTP/1.1 \r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"G@T / HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET /\r\n\r\n", ERR_PROTOCOL, 400},
    {"GET / HTTP/1.2\r\n" HOST "\r\n", ERR_VERSION, 505},
    {"GET / HTTP/2.0\r\n" HOST "\r\n", ERR_VERSION, 505},
    {"GET / HTTP/0.9\r\n" HOST "\r\n", ERR_VERSION, 505},
    {"GET / http/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET / HTTP/11\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET a HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET /a#b HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET /a\"b HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET /a\\b HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET /\x80 HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET * HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET ftp://a/ HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    {"CONNECT / HTTP/1.1\r\n" HOST "\r\n", ERR_PROTOCOL, 400},
    /* Host */
    {GET "\r\n", ERR_PROTOCOL, 400},
    {GET HOST HOST "\r\n", ERR_PROTOCOL, 400},
    {"GET / HTTP/1.0\r\n" HOST HOST "\r\n", ERR_PROTOCOL, 400},
    {GET "Host:\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a b\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a/b\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: u@a\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a%41\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a:99999\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: a, b\r\n\r\n", ERR_PROTOCOL, 400},
    {GET "Host: [::1\r\n\r\n", ERR_PROTOCOL, 400},
    /* lengths: RFC 9112 6.3 and what smuggling lives on */
    {GET HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: 1\r\nContent-Length: 2\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: 1, 1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: +1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: -1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: 0x1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: 1 1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length:\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: 18446744073709551616\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", ERR_PROTOCOL,
     400},
    {GET HOST "Transfer-Encoding: chunked, chunked\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Transfer-Encoding: xchunked\r\n\r\n", ERR_UNSUPPORTED, 501},
    {GET HOST "Transfer-Encoding: gzip, chunked\r\n\r\n", ERR_UNSUPPORTED, 501},
    {GET HOST "Transfer-Encoding: gzip\r\n\r\n", ERR_UNSUPPORTED, 501},
    {GET HOST "Transfer-Encoding: chunked;a\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Transfer-Encoding:\r\n\r\n", ERR_PROTOCOL, 400},
    {GET HOST "Transfer-Encoding : chunked\r\n\r\n", ERR_PROTOCOL, 400},
    {"POST / HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n", ERR_PROTOCOL, 400},
};

TEST(what_is_ambiguous_is_refused)
{
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        struct http_request r;
        struct error e;
        enum err err = parse(str_of(refused[i].text), &r, &e);
        unsigned status = err == ERR_OK || err == ERR_MORE ? 0 : http_parse_error_status(err, &e);
        if (err != refused[i].err || status != refused[i].status || e.text[0] == '\0')
            test_fail(__FILE__, __LINE__, "request %zu: %s, %u: %s\n%s", i, err_name(err), status,
                      e.text, refused[i].text);
    }
}

TEST(a_nul_anywhere_is_refused)
{
    static const char text[] = "GET /a HTTP/1.1\r\nHost: abc\r\nA: bcd\r\n\r\n";
    for (size_t i = 0; i < sizeof(text) - 5; i++) {
        char copy[sizeof(text)];
        struct http_request r;
        struct error e;
        memcpy(copy, text, sizeof(text));
        copy[i] = '\0';
        enum err err = parse((struct str){copy, sizeof(text) - 1}, &r, &e);
        if (err == ERR_OK || err == ERR_MORE)
            test_fail(__FILE__, __LINE__, "NUL at %zu: %s", i, err_name(err));
    }
}

TEST(a_request_is_read)
{
    struct http_request r;
    struct error e;
    struct str text = STR("\r\nPOST /a/b?c=d&e HTTP/1.1\r\nhOST: Fn.Example:80\r\nContent-length:  "
                          "12 \r\nExpect: 100-Continue\r\n"
                          "TE: trailers, deflate\r\nX: \t y z \t\r\nEmpty:\r\n\r\nbody");
    REQUIRE(parse(text, &r, &e) == ERR_OK);
    CHECK_EQ(r.method, HTTP_POST);
    CHECK(str_equal(r.path, STR("/a/b")) && str_equal(r.query, STR("c=d&e")) &&
          str_equal(r.target, STR("/a/b?c=d&e")));
    CHECK(str_equal(r.host, STR("Fn.Example:80")) && str_equal(r.host_name, STR("Fn.Example")));
    CHECK(r.keep_alive && r.expect_continue && r.trailers_accepted && !r.upgrade_websocket);
    CHECK_EQ(r.body, HTTP_BODY_LENGTH);
    CHECK_EQ(r.content_length, 12);
    CHECK_EQ(r.header_count, 6);
    CHECK(str_equal(r.headers[4].value, STR("y z")));
    CHECK_EQ(r.headers[5].value.bytes, 0);
    CHECK_EQ(r.head_bytes, text.bytes - 4);
}

TEST(forms_of_targets)
{
    struct http_request r;
    struct error e;
    REQUIRE(parse(STR("GET http://a.b:8080/c?d HTTP/1.1\r\nHost: other\r\n\r\n"), &r, &e) ==
            ERR_OK);
    CHECK(str_equal(r.host, STR("a.b:8080")) && str_equal(r.path, STR("/c")) &&
          str_equal(r.query, STR("d")));
    REQUIRE(parse(STR("GET http://a.b HTTP/1.1\r\nHost: other\r\n\r\n"), &r, &e) == ERR_OK);
    CHECK(str_equal(r.path, STR("/")));
    REQUIRE(parse(STR("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), &r, &e) == ERR_OK);
    CHECK(str_equal(r.path, STR("*")));
    REQUIRE(parse(STR("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), &r, &e) == ERR_OK);
    CHECK(str_equal(r.host_name, STR("[::1]")));
    REQUIRE(parse(STR("GET / HTTP/1.0\r\n\r\n"), &r, &e) == ERR_OK);
    CHECK(r.host.data == NULL && !r.keep_alive);
}

static bool keeps(const char *version, const char *connection)
{
    char text[256];
    struct http_request r;
    struct error e;
    snprintf(text, sizeof(text), "GET / HTTP/%s\r\nHost: a\r\n%s\r\n", version, connection);
    return parse(str_of(text), &r, &e) == ERR_OK && r.keep_alive;
}

TEST(connections_persist_as_rfc_9112_says)
{
    CHECK(keeps("1.1", ""));
    CHECK(!keeps("1.1", "Connection: close\r\n"));
    CHECK(!keeps("1.1", "Connection: a\r\nconnection: b , CLOSE\r\n"));
    CHECK(!keeps("1.1", "Connection: keep-alive, close\r\n"));
    CHECK(!keeps("1.0", ""));
    CHECK(keeps("1.0", "Connection: Keep-Alive\r\n"));
}

TEST(upgrades_to_websocket)
{
    struct http_request r;
    struct error e;
    REQUIRE(parse(STR(GET HOST "Connection: x, Upgrade\r\nUpgrade: WebSocket\r\n\r\n"), &r, &e) ==
            ERR_OK);
    CHECK(r.upgrade_websocket);
    REQUIRE(parse(STR(GET HOST "Upgrade: websocket\r\n\r\n"), &r, &e) == ERR_OK);
    CHECK(!r.upgrade_websocket);
    REQUIRE(parse(STR("POST / HTTP/1.1\r\n" HOST
                      "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n"),
                  &r, &e) == ERR_OK);
    CHECK(!r.upgrade_websocket);
}

TEST(heads_are_bounded)
{
    struct http_request r;
    struct error e;
    cleanup(buf_done) struct buf many = {0}, large = {0};
    buf_append_str(&many, STR(GET HOST));
    for (unsigned i = 0; i < HTTP_HEADER_COUNT_MAX; i++)
        buf_append_str(&many, STR("A: b\r\n"));
    buf_append_str(&many, STR("\r\n"));
    CHECK_EQ(parse(buf_str(&many), &r, &e), ERR_TOO_LARGE);
    CHECK_EQ(http_parse_error_status(ERR_TOO_LARGE, &e), 431);
    buf_append_str(&large, STR(GET HOST "A: "));
    while (large.bytes <= HTTP_HEAD_BYTES_MAX)
        buf_append_str(&large, STR("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
    CHECK_EQ(parse(buf_str(&large), &r, &e), ERR_TOO_LARGE); /* without an end in sight */
}

static void add_random(struct rng *rng, struct buf *out)
{
    static const char *const pieces[] = {"GET ",
                                         "POST ",
                                         "/",
                                         "/a?b",
                                         " HTTP/1.1",
                                         "HTTP/1.0",
                                         "\r\n",
                                         "\r",
                                         "\n",
                                         "Host: a",
                                         ": ",
                                         "Content-Length: 5",
                                         "Transfer-Encoding: chunked",
                                         "\r\n\r\n",
                                         " ",
                                         "x",
                                         "\t",
                                         "A: b\r\n",
                                         "Connection: close\r\n"};
    for (uint64_t i = rng_below(rng, 14) + 1; i > 0; i--)
        buf_append_str(out, str_of(pieces[rng_below(rng, ARRAY_COUNT(pieces))]));
}

PROPERTY(pieces_give_what_the_whole_gives)
{
    cleanup(buf_done) struct buf text = {0};
    struct http_request whole, piecewise;
    struct error e, f = {0};
    if (rng_below(rng, 2) == 0)
        buf_append_str(&text,
                       STR("GET /a?b HTTP/1.1\r\nHost: a\r\nA: b\r\nContent-Length: 3\r\n\r\nabc"));
    add_random(rng, &text);
    enum err expected = parse(buf_str(&text), &whole, &e), got = ERR_MORE;
    size_t scanned = 0, have = 0;
    while (got == ERR_MORE && have < text.bytes) {
        size_t more = 1 + rng_below(rng, 9);
        have = MIN(text.bytes, have + more);
        f = (struct error){0};
        got = http_request_parse(text.data, have, &scanned, &piecewise, &f);
    }
    if (got != ERR_MORE ||
        expected == ERR_OK) /* a head in pieces may be refused only when its end has come */
        CHECK_EQ(got, expected);
    if (got == ERR_OK && expected == ERR_OK) {
        CHECK_EQ(piecewise.head_bytes, whole.head_bytes);
        CHECK_EQ(piecewise.header_count, whole.header_count);
        CHECK(str_equal(piecewise.path, whole.path));
    }
}

/* ---- answers ---- */

static enum err parse_answer(const char *text, enum http_method method, struct http_response *r)
{
    size_t scanned = 0;
    struct error e = {0};
    return http_response_parse(text, strlen(text), &scanned, method, r, &e);
}

TEST(bodies_of_answers)
{
    static const struct {
        const char *text;
        enum http_method method;
        enum http_body body;
        uint64_t length;
    } cases[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", HTTP_GET, HTTP_BODY_LENGTH, 5},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", HTTP_HEAD, HTTP_BODY_NONE, 5},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", HTTP_GET, HTTP_BODY_CHUNKED, 0},
        {"HTTP/1.1 200 OK\r\n\r\n", HTTP_GET, HTTP_BODY_UNTIL_CLOSE, 0},
        {"HTTP/1.0 200 OK\r\n\r\n", HTTP_GET, HTTP_BODY_UNTIL_CLOSE, 0},
        {"HTTP/1.1 204 No Content\r\n\r\n", HTTP_GET, HTTP_BODY_NONE, 0},
        {"HTTP/1.1 304 \r\nContent-Length: 7\r\n\r\n", HTTP_GET, HTTP_BODY_NONE, 7},
        {"HTTP/1.1 101 \r\n\r\n", HTTP_GET, HTTP_BODY_NONE, 0},
        {"HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n", HTTP_GET, HTTP_BODY_NONE, 0},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct http_response r;
        enum err err = parse_answer(cases[i].text, cases[i].method, &r);
        bool right =
            err == ERR_OK &&
            (r.body == cases[i].body ||
             (cases[i].length == 0 && r.body == HTTP_BODY_LENGTH && r.content_length == 0)) &&
            (cases[i].length == 0 || r.content_length == cases[i].length);
        if (!right)
            test_fail(__FILE__, __LINE__, "answer %zu: %s, body %d\n%s", i, err_name(err),
                      err == ERR_OK ? (int)r.body : -1, cases[i].text);
    }
}

TEST(garbled_answers_are_refused)
{
    static const char *const texts[] = {
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\r\n\r\n",
        "HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
        "HTTP/1.1 200 O\x01K\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct http_response r;
        enum err err = parse_answer(texts[i], HTTP_GET, &r);
        if (err == ERR_OK || err == ERR_MORE)
            test_fail(__FILE__, __LINE__, "answer %zu is taken: %s", i, texts[i]);
    }
}
