/* server_body_test.c - bodies of requests: whole and in pieces, bounded, broken, slow; and every
 * limit of time. */
#include "http/server_fixture.h"
#include <stdlib.h>

#define GET(path) "GET " path " HTTP/1.1\r\nHost: a\r\n\r\n"
#define POST(path, headers) "POST " path " HTTP/1.1\r\nHost: a\r\n" headers "\r\n"
#define DONE             \
    do {                 \
        client_done(&c); \
        fixture_free(f); \
    } while (0)
#define TOO_LARGE                                                                                \
    "HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\nContent-Length: "       \
    "89\r\nConnection: close\r\n\r\n"                                                            \
    "{\"error\":{\"code\":\"too_large\",\"message\":\"the body is larger than what is accepted " \
    "here\"}}\n"

static struct fixture *fixture_with_times(uint32_t head_ms, uint32_t idle_ms, uint32_t linger_ms)
{
    struct fixture *f = fixture_new();
    http_server_set_times(f->server, &(struct http_server_times){head_ms, idle_ms, linger_ms});
    return f;
}

/* ---- whole and in pieces ---- */

TEST(bodies_of_all_forms)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    client_say(&c, POST("/echo", "Content-Length: 5\r\n") "hello");
    CHECK_GETS(&c, HELLO);
    client_say(&c,
               POST("/echo",
                    "Transfer-Encoding: chunked\r\n") "2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: v\r\n\r\n");
    CHECK_GETS(&c, HELLO);
    client_say(&c, POST("/echo", "Content-Length: 0\r\n") POST("/echo", "")
                       POST("/pieces", "Transfer-Encoding: chunked\r\n") "0\r\n\r\n");
    CHECK_GETS(&c, ANSWER("200 OK", "0", "\r\n") ANSWER("200 OK", "0", "\r\n")
                       ANSWER("200 OK", "7", "\r\n0 bytes"));
    CHECK_EQ(f->body_err, ERR_OK);
    CHECK_EQ(f->gone, 0);
    DONE;
}

TEST(who_expects_100_is_asked_for_the_body)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    client_say(&c, POST("/echo", "Expect: 100-continue\r\nContent-Length: 5\r\n"));
    CHECK_GETS(&c, "HTTP/1.1 100 Continue\r\n\r\n");
    client_say(&c, "hello");
    CHECK_GETS(&c, HELLO);
    /* Not when the body is not wanted: then it need not be sent at all. */
    client_say(&c, POST("/early", "Expect: 100-continue\r\nContent-Length: 5\r\n"));
    CHECK_GETS(&c, ANSWER("200 OK", "5", "Connection: close\r\n\r\nhello"));
    CHECK_ENDS(&c);
    DONE;
}

static void upload(const char *path, size_t bytes)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    cleanup(buf_done) struct buf text = {0};
    char *data = pattern_new(bytes), answer[32], head[128];
    buf_printf(&text, "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %zu\r\n\r\n", path, bytes);
    buf_append(&text, data, bytes);
    CHECK(client_send(&c, buf_str(&text)));
    snprintf(answer, sizeof(answer), "%zu bytes", bytes);
    snprintf(head, sizeof(head), ANSWER("200 OK", "%zu", "\r\n%s"), strlen(answer), answer);
    client_check(&c, __FILE__, __LINE__, str_of(head));
    CHECK_EQ(f->body_ends, 1);
    CHECK(is_pattern(f->body.data, f->body.bytes, 0));
    free(data);
    DONE;
}

TEST(large_bodies_in_pieces)
{
    upload("/pieces", 5000000);
    upload("/toggle", 5000000); /* paused and resumed inside of each callback */
}

TEST(a_paused_body_waits_with_its_sender)
{
    struct fixture *f = fixture_with_times(10000, 40, 2000);
    struct client c = client_new(f, 0);
    size_t bytes = 12000000, sent = 0;
    char *data = pattern_new(bytes);
    client_say(&c, POST("/paused", "Content-Length: 12000000\r\n"));
    fixture_run_until(f, f->kept != NULL);
    for (int turn = 0; turn < 200; turn++) { /* what the kernel holds, and one piece */
        ssize_t n = send(c.fd, data + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        sent += n > 0 ? (size_t)n : 0;
        loop_run_once(f->loop, 1);
    }
    CHECK(sent < bytes);
    CHECK_EQ(f->body_calls, 1); /* and its patience: it is we who are slow */
    CHECK(f->body.bytes <= LOOP_RECV_BYTES_MAX);
    for (int turn = 0; turn < 20000 && f->body_ends == 0; turn++) {
        ssize_t n =
            sent < bytes ? send(c.fd, data + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
        sent += n > 0 ? (size_t)n : 0;
        if (f->kept != NULL)
            http_exchange_resume_body(f->kept);
        loop_run_once(f->loop, 1);
    }
    CHECK_GETS(&c, ANSWER("200 OK", "14", "\r\n12000000 bytes"));
    CHECK(f->body.bytes == bytes && is_pattern(f->body.data, f->body.bytes, 0));
    free(data);
    DONE;
}

/* ---- bounded and broken ---- */

TEST(a_body_that_announces_too_much_is_refused_at_once)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    client_say(&c, POST("/echo", "Expect: 100-continue\r\nContent-Length: 1048577\r\n"));
    CHECK_GETS(&c, TOO_LARGE);
    CHECK_EQ(f->body_err, ERR_TOO_LARGE);
    CHECK_EQ(f->body_calls, 1);
    CHECK_EQ(f->gone, 1);
    CHECK_ENDS(&c);
    DONE;
}

TEST(a_body_of_the_largest_size_passes_and_one_byte_more_does_not)
{
    char *data = pattern_new(BODY_MAX + 1), head[24];
    for (size_t more = 0; more < 2; more++) {
        struct fixture *f = fixture_new();
        struct client c = client_new(f, 0);
        cleanup(buf_done) struct buf text = {0};
        buf_append_str(&text, STR(POST("/echo", "Transfer-Encoding: chunked\r\n")));
        buf_append(&text, head, http_chunk_head(BODY_MAX + more, head));
        buf_append(&text, data, BODY_MAX + more);
        buf_append_str(&text, STR("\r\n0\r\n\r\n"));
        CHECK(client_send(&c, buf_str(&text)));
        if (more == 0)
            CHECK_GETS(&c, ANSWER("200 OK", "1048576", "\r\nabc"));
        else
            CHECK_GETS(&c, TOO_LARGE); /* and no reset, though bytes come after it */
        CHECK_EQ(f->body_err, more == 0 ? ERR_OK : ERR_TOO_LARGE);
        CHECK_EQ(f->gone, more);
        DONE;
    }
    free(data);
}

TEST(an_answer_before_the_body_has_come_arrives)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    char *data = pattern_new(3000000);
    client_say(&c, POST("/early", "Content-Length: 3000000\r\n"));
    (void)client_send(&c, (struct str){data, 3000000}); /* dropped */
    CHECK_GETS(&c, ANSWER("200 OK", "5", "Connection: close\r\n\r\nhello"));
    CHECK_ENDS(&c);
    CHECK_EQ(f->requests, 1);
    free(data);
    DONE;
}

TEST(a_broken_body_is_refused_and_told)
{
    static const char *const paths[] = {"/echo", "/pieces"};
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++) {
        struct fixture *f = fixture_new();
        struct client c = client_new(f, 0);
        cleanup(buf_done) struct buf text = {0};
        buf_printf(&text,
                   "POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX",
                   paths[i]);
        CHECK(client_send(&c, buf_str(&text)));
        CHECK_GETS(&c, "HTTP/1.1 400 Bad Request\r\n");
        CHECK_EQ(f->body_err, ERR_PROTOCOL);
        CHECK_EQ(f->gone, 1);
        client_wait_end(&c);
        CHECK(c.ended && c.error == 0);
        DONE;
    }
}

/* It may still read, so it is told; whether it has gone altogether cannot be known. */
TEST(a_body_that_ends_early_is_refused_and_told)
{
    static const char *const texts[] = {
        POST("/echo", "Content-Length: 5\r\n") "hell",
        POST("/pieces", "Content-Length: 5\r\n") "hell",
        POST("/pieces", "Transfer-Encoding: chunked\r\n") "5\r\nhello\r\n0\r\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct fixture *f = fixture_new();
        struct client c = client_new(f, 0);
        CHECK(client_send(&c, str_of(texts[i])));
        fixture_run_until(f, f->kept != NULL);
        client_end(&c);
        CHECK_GETS(&c, "HTTP/1.1 400 Bad Request\r\n");
        CHECK_EQ(f->body_err, ERR_CLOSED);
        CHECK_EQ(f->gone, 1);
        CHECK_EQ(f->body_ends, 0);
        client_wait_end(&c);
        CHECK(c.ended);
        DONE;
    }
}

TEST(a_client_that_breaks_off_in_its_body_is_told)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    client_say(&c, POST("/pieces", "Content-Length: 5\r\n") "hel");
    fixture_run_until(f, f->body.bytes == 3);
    CHECK_EQ(setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), 0);
    client_done(&c);
    fixture_run_until(f, f->gone == 1);
    CHECK_EQ(f->body_err, ERR_CLOSED);
    fixture_free(f);
}

/* A second head inside of an answer would be taken for a part of it. */
TEST(a_body_that_breaks_after_the_answer_began_breaks_the_connection)
{
    static const char *const versions[] = {"1.1", "1.0"};
    for (size_t i = 0; i < ARRAY_COUNT(versions); i++) {
        struct fixture *f = fixture_with_times(10000, 30, 2000);
        struct client c = client_new(f, 0);
        cleanup(buf_done) struct buf text = {0};
        buf_printf(&text, "POST /both HTTP/%s\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello",
                   versions[i]);
        CHECK(client_send(&c, buf_str(&text)));
        if (i == 0)
            CHECK_GETS(&c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: "
                           "chunked\r\nConnection: close\r\n\r\n"
                           "5\r\nhello\r\n");
        else
            CHECK_GETS(
                &c,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nhello");
        client_wait_end(&c);
        CHECK_EQ(c.got.bytes, 0);
        CHECK(i == 0 ? c.ended : c.error != 0); /* without chunks an end would look like the end */
        CHECK_EQ(f->body_err, ERR_TIMEOUT);
        CHECK_EQ(f->gone, 1);
        DONE;
    }
}

/* ---- time ---- */

TEST(a_slow_head_is_refused)
{
    struct fixture *f = fixture_with_times(40, 5000, 2000);
    struct client c = client_new(f, 0);
    uint64_t begun_ns = loop_update_now(f->loop);
    client_say(&c, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < 6; i++) { /* bytes that come do not help it */
        (void)client_send(&c, STR("A: b\r\n"));
        fixture_run(f, 10);
    }
    CHECK_GETS(&c, "HTTP/1.1 408 Request Timeout\r\n");
    CHECK(loop_update_now(f->loop) - begun_ns < NS_PER_S);
    client_wait_end(&c);
    CHECK(c.ended && f->requests == 0);
    DONE;
}

TEST(an_idle_connection_is_closed)
{
    struct fixture *f = fixture_with_times(5000, 40, 2000);
    struct client c = client_new(f, 0), silent = client_new(f, 0);
    client_say(&c, GET("/hello"));
    CHECK_GETS(&c, HELLO);
    CHECK_ENDS(&c);
    CHECK_ENDS(&silent);
    client_done(&silent);
    DONE;
}

TEST(a_body_that_stops_coming_is_refused_and_told)
{
    static const char *const texts[] = {POST("/echo", "Content-Length: 5\r\n") "hell",
                                        POST("/pieces", "Content-Length: 5\r\n") "hell"};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct fixture *f = fixture_with_times(5000, 30, 2000);
        struct client c = client_new(f, 0);
        CHECK(client_send(&c, str_of(texts[i])));
        CHECK_GETS(&c, "HTTP/1.1 408 Request Timeout\r\n");
        CHECK_EQ(f->body_err, ERR_TIMEOUT);
        CHECK_EQ(f->gone, 1);
        client_wait_end(&c);
        CHECK(c.ended && c.error == 0);
        DONE;
    }
}

/* `deploy` waits for minutes behind its body. */
TEST(a_handler_has_all_the_time_it_wants)
{
    static const char *const texts[] = {
        GET("/later"), POST("/later", "Content-Length: 5\r\n") "hello", GET("/endless")};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        struct fixture *f = fixture_with_times(20, 20, 20);
        struct client c = client_new(f, 0);
        CHECK(client_send(&c, str_of(texts[i])));
        fixture_run_until(f, f->kept != NULL);
        fixture_run(f, 80);
        CHECK(f->kept != NULL && f->gone == 0);
        DONE;
    }
}

static void kept_body(struct http_exchange *x, void *user, enum err err, char *data, size_t bytes)
{
    struct fixture *f = user;
    f->body_err = err;
    f->body_calls++;
}

TEST(a_handler_has_all_the_time_it_wants_behind_a_body_too)
{
    struct fixture *f = fixture_with_times(20, 20, 20);
    struct client c = client_new(f, 0);
    client_say(&c, POST("/later", "Content-Length: 5\r\n") "hello");
    fixture_run_until(f, f->kept != NULL);
    http_exchange_read_body(f->kept, 100, kept_body, f); /* asked for later: it is here already */
    fixture_run_until(f, f->body_calls == 1);
    fixture_run(f, 80);
    REQUIRE(f->kept != NULL);
    struct http_exchange *x = f->kept;
    f->kept = NULL;
    http_exchange_answer(x, 200, "text/plain", STR("hello"), NULL);
    CHECK_GETS(&c, HELLO);
    CHECK_ENDS(&c); /* idle */
    DONE;
}

TEST(a_large_body_that_nobody_asked_for_yet_waits_in_the_kernel)
{
    struct fixture *f = fixture_new();
    struct client c = client_new(f, 0);
    char *data = pattern_new(500000);
    client_say(&c, POST("/later", "Content-Length: 500000\r\n"));
    CHECK(client_send(&c, (struct str){data, 500000}));
    fixture_run_until(f, f->kept != NULL);
    fixture_run(f, 10);
    http_exchange_read_body(f->kept, 500000, kept_body, f);
    fixture_run_until(f, f->body_calls == 1);
    CHECK_EQ(f->body_err, ERR_OK);
    free(data);
    DONE;
}

TEST(who_takes_its_answer_slowly_gets_it_all_and_who_does_not_is_cut)
{
    for (int takes = 0; takes < 2; takes++) {
        struct fixture *f = fixture_with_times(5000, 60, 60);
        struct client c = client_new(f, 8192);
        client_say(&c, "GET /large?12000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        for (int i = 0; i < 10; i++) {
            fixture_run(f, 15);
            client_wait(&c, takes ? c.got.bytes + 200000 : 0);
        }
        client_wait_end(&c);
        if (takes)
            CHECK(c.ended && c.got.bytes > 12000000);
        else
            CHECK(c.got.bytes < 12000000);
        DONE;
    }
}

TEST(who_does_not_end_behind_the_last_answer_is_closed)
{
    struct fixture *f = fixture_with_times(5000, 5000, 30);
    struct client c = client_new(f, 0);
    client_say(&c, "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    CHECK_GETS(&c, ANSWER("200 OK", "5", "Connection: close\r\n\r\nhello"));
    CHECK_ENDS(&c);
    fixture_run(f, 60);
    CHECK(!client_send(&c, STR("x")) ||
          !client_send(&c, STR("x"))); /* nobody is there: the first is answered with a reset */
    DONE;
}
