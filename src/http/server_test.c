/* server_test.c - the small server against real sockets: connections, requests in their order,
 * answers, refusals. */
#include "http/server_fixture.h"
#include <stdlib.h>

#define WITH_FIXTURE                   \
    struct fixture *f = fixture_new(); \
    struct client c = client_new(f, 0)
#define DONE             \
    do {                 \
        client_done(&c); \
        fixture_free(f); \
    } while (0)
#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"

/* ---- connections ---- */

TEST(a_connection_is_kept_for_the_next_request)
{
    WITH_FIXTURE;
    for (int i = 0; i < 3; i++) {
        client_say(&c, GET("/hello"));
        CHECK_GETS(&c, HELLO);
    }
    CHECK_EQ(f->requests, 3);
    DONE;
}

TEST(who_asks_for_the_end_gets_it)
{
    WITH_FIXTURE;
    client_say(&c, "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" GET("/hello"));
    CHECK_GETS(&c, ANSWER("200 OK", "5", "Connection: close\r\n\r\nhello"));
    CHECK_ENDS(&c);
    CHECK_EQ(f->requests, 1); /* what came behind is not read any more */
    DONE;
}

TEST(version_1_0_ends_unless_it_asked_for_more)
{
    WITH_FIXTURE;
    client_say(&c, "GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    CHECK_GETS(&c, ANSWER("200 OK", "5", "Connection: keep-alive\r\n\r\nhello"));
    client_say(&c, "GET /hello HTTP/1.0\r\n\r\n");
    CHECK_GETS(&c, ANSWER("200 OK", "5", "Connection: close\r\n\r\nhello"));
    CHECK_ENDS(&c);
    DONE;
}

TEST(pipelined_requests_are_answered_in_their_order)
{
    WITH_FIXTURE;
    client_say(&c,
               GET("/later") "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" GET(
                   "/hello"));
    fixture_run_until(f, f->kept != NULL);
    fixture_run(f, 20);
    client_wait(&c, 0);
    CHECK_EQ(f->requests, 1); /* the others wait */
    CHECK_EQ(c.got.bytes, 0);
    struct http_exchange *x = f->kept;
    f->kept = NULL;
    http_exchange_answer(x, 202, "text/plain", STR("at last"), "X-Y: z\r\n");
    CHECK_GETS(&c, ANSWER("202 Accepted", "7", "X-Y: z\r\n\r\nat last"));
    CHECK_GETS(&c, ANSWER("200 OK", "3", "\r\nabc"));
    CHECK_GETS(&c, HELLO);
    DONE;
}

/* More than the server is willing to hold: they wait in the kernel, none is lost. */
TEST(thousands_of_pipelined_requests_wait_and_are_answered)
{
    WITH_FIXTURE;
    cleanup(buf_done) struct buf many = {0};
    buf_append_str(&many, STR(GET("/later")));
    for (int i = 0; i < 8000; i++)
        buf_append_str(&many, STR(GET("/hello")));
    CHECK(client_send(&c, buf_str(&many)));
    fixture_run_until(f, f->kept != NULL);
    fixture_run(f, 20);
    struct http_exchange *x = f->kept;
    f->kept = NULL;
    http_exchange_answer(x, 200, "text/plain", STR("hello"), NULL);
    client_wait(&c, 8001 * (sizeof(HELLO) - 1));
    CHECK_EQ(c.got.bytes, 8001 * (sizeof(HELLO) - 1));
    CHECK_EQ(f->requests, 8001);
    DONE;
}

PROPERTY(however_requests_are_cut_the_answers_are_the_same)
{
    static const char text[] =
        GET("/hello") "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                      "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nT: v\r\n\r\n"
                      "\r\nPOST /pieces HTTP/1.1\r\nHost: a\r\nContent-Length: "
                      "10\r\n\r\n0123456789" GET("/hello");
    WITH_FIXTURE;
    for (size_t at = 0; at < sizeof(text) - 1;) {
        size_t bytes = 1 + rng_below(rng, 60);
        bytes = MIN(bytes, sizeof(text) - 1 - at);
        CHECK(client_send(&c, (struct str){text + at, bytes}));
        at += bytes;
    }
    CHECK_GETS(&c, HELLO);
    CHECK_GETS(&c, ANSWER("200 OK", "7", "\r\nabcdefg"));
    CHECK_GETS(&c, ANSWER("200 OK", "8", "\r\n10 bytes"));
    CHECK_GETS(&c, HELLO);
    DONE;
}

TEST(many_connections_at_once)
{
    struct fixture *f = fixture_new();
    struct client clients[50];
    for (size_t i = 0; i < ARRAY_COUNT(clients); i++)
        clients[i] = client_new(f, 0);
    for (size_t i = 0; i < ARRAY_COUNT(clients); i++)
        client_say(&clients[i], GET("/hello"));
    for (size_t i = 0; i < ARRAY_COUNT(clients); i++)
        CHECK_GETS(&clients[i], HELLO);
    for (size_t i = 0; i < ARRAY_COUNT(clients); i++)
        client_done(&clients[i]);
    fixture_free(f);
}

/* ---- refusals ---- */

TEST(what_is_malformed_is_refused_and_the_connection_ends)
{
    static const struct {
        const char *text, *status;
    } cases[] = {
        {"GET / HTTP/1.1\r\n\r\n", "400 Bad Request"},
        {"GET / HTTP/1.1\nHost: a\n\n", "400 Bad Request"},
        {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
         "400 Bad Request"},
        {"GET / HTTP/1.1\r\nHost: a\"b\\\r\n\r\n", "400 Bad Request"},
        {"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n", "400 Bad Request"},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
         "501 Not Implemented"},
        {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "505 HTTP Version Not Supported"},
        {"\x16\x03\x01\x02\x00\x01\r\n", "400 Bad Request"}, /* somebody speaks TLS */
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        WITH_FIXTURE;
        char start[64];
        CHECK(client_send(&c, str_of(cases[i].text)));
        CHECK(client_send(&c, STR(GET("/hello")))); /* not answered: who knows what it is */
        client_wait_end(&c);
        buf_append(&c.got, "", 1);
        snprintf(start, sizeof(start), "HTTP/1.1 %s\r\nContent-Type: application/json\r\n",
                 cases[i].status);
        const char *body = strstr(c.got.data, "\r\n\r\n");
        REQUIRE(body != NULL);
        CHECK(strncmp(c.got.data, start, strlen(start)) == 0 &&
              strstr(c.got.data, "Connection: close\r\n") != NULL);
        CHECK(strncmp(body + 4, "{\"error\":{\"code\":\"", 18) == 0);
        for (const char *at = body + 4; *at != '\0';
             at++) /* a quote from the client is no quote of the text */
            CHECK((*at >= 0x20 && *at < 0x7f) || *at == '\n');
        CHECK(i != 3 || strstr(body, "a\\\"b\\\\") != NULL);
        CHECK(c.ended && c.error == 0);
        CHECK_EQ(f->requests, 0);
        DONE;
    }
}

TEST(a_head_without_bounds_is_refused)
{
    WITH_FIXTURE;
    cleanup(buf_done) struct buf head = {0};
    buf_append_str(&head, STR("GET / HTTP/1.1\r\nHost: a\r\nX: "));
    while (head.bytes < HTTP_HEAD_BYTES_MAX)
        buf_append(&head, "x", 1);
    CHECK(client_send(&c, buf_str(&head)));
    CHECK_GETS(&c, "HTTP/1.1 431 Request Header Fields Too Large\r\n");
    client_wait_end(&c);
    CHECK(c.ended && c.error == 0);
    DONE;
}

/* ---- answers ---- */

TEST(head_gets_the_head_alone)
{
    WITH_FIXTURE;
    client_say(&c, "HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\nHEAD /stream?100000 HTTP/1.1\r\nHost: "
                   "a\r\n\r\n" GET("/hello"));
    CHECK_GETS(&c, ANSWER("200 OK", "5", "\r\n"));
    CHECK_GETS(&c,
               "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n");
    CHECK_GETS(&c, HELLO);
    DONE;
}

/* The content of a chunked answer of which the head has been taken. */
static size_t take_chunks(struct client *c, size_t expected)
{
    struct http_chunked chunks;
    struct str piece;
    size_t used, content = 0;
    enum err err = ERR_OK;
    http_chunked_init(&chunks);
    while (!chunks.done && (err == ERR_OK || err == ERR_MORE)) {
        if (c->got.bytes == 0)
            client_wait(c, 1);
        if (c->got.bytes == 0)
            break;
        err = http_chunked_next(&chunks, c->got.data, c->got.bytes, &piece, &used);
        CHECK(is_pattern(piece.data, piece.bytes, content));
        content += piece.bytes;
        buf_consume(&c->got, used);
    }
    CHECK(chunks.done);
    CHECK_EQ(content, expected);
    http_chunked_done(&chunks);
    return content;
}
#define CHUNKED "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"

TEST(a_streamed_answer_waits_for_its_reader)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 8192);
    client_say(&c, GET("/stream?8000000"));
    fixture_run(f, 30); /* nobody reads: no more is made than the kernel takes, and one piece */
    CHECK(f->kept != NULL && f->stream_left > 0);
    CHECK_GETS(&c, CHUNKED);
    take_chunks(&c, 8000000);
    CHECK(f->pending_most > 0 && f->pending_most <= 65536 + 32);
    client_say(&c, GET("/hello"));
    CHECK_GETS(&c, HELLO);
    DONE;
}

TEST(version_1_0_gets_a_streamed_answer_without_chunks)
{
    WITH_FIXTURE;
    client_say(&c, "GET /stream?3000000 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    CHECK_GETS(&c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n");
    client_wait_end(&c);
    CHECK_EQ(c.got.bytes, 3000000);
    CHECK(is_pattern(c.got.data, c.got.bytes, 0));
    CHECK(c.ended && c.error == 0);
    DONE;
}

TEST(no_content_has_no_length)
{
    WITH_FIXTURE;
    client_say(&c, GET("/later"));
    fixture_run_until(f, f->kept != NULL);
    struct http_exchange *x = f->kept;
    f->kept = NULL;
    http_exchange_answer(x, 204, NULL, STR(""), NULL);
    CHECK_GETS(&c, "HTTP/1.1 204 No Content\r\n\r\n");
    DONE;
}

/* ---- clients that end their direction ---- */

TEST(who_has_ended_its_direction_gets_a_whole_streamed_answer)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 8192);
    client_say(&c, GET("/stream?8000000"));
    client_end(&c);
    fixture_run(f, 20);
    CHECK_EQ(f->gone, 0);
    CHECK_GETS(&c, CHUNKED);
    take_chunks(&c, 8000000);
    CHECK_ENDS(&c); /* no reason to wait for another request */
    CHECK_EQ(f->gone, 0);
    DONE;
}

TEST(who_has_ended_its_direction_gets_a_whole_large_answer)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 8192);
    client_say(&c, GET("/large?8000000"));
    client_end(&c);
    fixture_run(f, 20);
    CHECK_GETS(&c, ANSWER("200 OK", "8000000", "\r\n"));
    client_wait_end(&c);
    CHECK_EQ(c.got.bytes, 8000000);
    CHECK(c.ended && c.error == 0 && is_pattern(c.got.data, c.got.bytes, 0));
    DONE;
}

TEST(who_has_ended_its_direction_gets_all_answers)
{
    WITH_FIXTURE;
    client_say(&c, GET("/hello") GET("/later") GET("/hello") "GET /unfinished");
    client_end(&c);
    fixture_run_until(f, f->kept != NULL);
    fixture_run(f, 20);
    CHECK_EQ(f->gone, 0);
    struct http_exchange *x = f->kept;
    f->kept = NULL;
    http_exchange_answer(x, 200, "text/plain", STR("hello"), NULL);
    CHECK_GETS(&c, HELLO HELLO HELLO);
    CHECK_ENDS(&c);
    CHECK_EQ(f->requests, 3);
    DONE;
}

TEST(who_connects_and_ends_is_let_go)
{
    WITH_FIXTURE;
    client_end(&c);
    CHECK_ENDS(&c);
    DONE;
}

/* ---- clients that leave ---- */

TEST(an_answer_without_end_ends_with_its_reader)
{
    WITH_FIXTURE;
    client_say(&c, GET("/endless"));
    CHECK_GETS(&c, CHUNKED "5\r\nline\n\r\n");
    CHECK_EQ(f->gone, 0);
    client_end(&c);
    fixture_run_until(f, f->gone == 1);
    DONE;
}

TEST(a_client_that_breaks_off_is_told_once)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    static const char *const texts[] = {GET("/later"), GET("/stream?8000000"), GET("/endless")};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct fixture *f = fixture_new();
        struct client c = client_new(f, 8192);
        CHECK(client_send(&c, str_of(texts[i])));
        fixture_run_until(f, f->kept != NULL);
        CHECK_EQ(setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), 0);
        client_done(&c);
        fixture_run_until(f, f->gone == 1);
        fixture_run(f, 5);
        CHECK_EQ(f->gone, 1);
        fixture_free(f);
    }
}

TEST(a_server_that_goes_tells_its_handlers)
{
    WITH_FIXTURE;
    client_say(&c, GET("/later"));
    fixture_run_until(f, f->kept != NULL);
    client_done(&c);
    fixture_free(f); /* checks it */
}

static void answer_hello(struct http_exchange *x)
{
    http_exchange_answer(x, 200, "text/plain", STR("hello"), NULL);
}

TEST(what_is_not_answered_in_time_is_answered_by_another_and_its_handler_is_told)
{
    WITH_FIXTURE;
    client_say(&c, GET("/later") GET("/later"));
    fixture_run_until(f, f->kept != NULL);
    http_exchange_answer_within(f->kept, 20, answer_hello);
    fixture_run_until(f, f->gone == 1);
    CHECK_GETS(&c, HELLO);
    fixture_run_until(f, f->kept != NULL); /* the next one has its own time */
    http_exchange_answer_within(f->kept, 20, answer_hello);
    http_exchange_answer_within(f->kept, 0, NULL);
    fixture_run(f, 60);
    CHECK(f->kept != NULL);
    http_exchange_answer_within(f->kept, 20, answer_hello);
    http_exchange_begin(f->kept, 200, "text/plain", NULL, NULL);
    fixture_run(f, 60);
    CHECK(f->kept != NULL);
    CHECK_EQ(f->gone, 1);
    DONE;
}
