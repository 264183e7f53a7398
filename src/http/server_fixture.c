/* server_fixture.c - the handler and the clients. */
#include "http/server_fixture.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <unistd.h>

#define STREAM_PIECE_BYTES 65536u

bool is_pattern(const char *data, size_t bytes, size_t at)
{
    for (size_t i = 0; i < bytes; i++)
        if (data[i] != pattern_at(at + i))
            return false;
    return true;
}

char *pattern_new(size_t bytes)
{
    char *data = mem_new(bytes);
    for (size_t i = 0; i < bytes; i++)
        data[i] = pattern_at(i);
    return data;
}

/* ---- the handler ---- */

static void on_gone(struct http_exchange *x, void *user)
{
    struct fixture *f = user;
    CHECK(f->kept == x);
    f->kept = NULL;
    f->gone++;
}

static void answer(struct fixture *f, struct http_exchange *x, unsigned status, struct str body)
{
    f->kept = NULL;
    http_exchange_answer(x, status, "text/plain", body, NULL);
}

static void on_whole(struct http_exchange *x, void *user, enum err err, char *data, size_t bytes)
{
    struct fixture *f = user;
    f->body_calls++;
    f->body_err = err;
    if (err == ERR_OK) {
        CHECK(data[bytes] == '\0');
        answer(f, x, 200, (struct str){data, bytes});
    }
}

static void on_piece(struct http_exchange *x, void *user, enum err err, const char *data,
                     size_t bytes)
{
    struct fixture *f = user;
    char text[32];
    f->body_calls++;
    f->body_err = err;
    if (err != ERR_OK)
        return;
    buf_append(&f->body, data, bytes);
    if (f->echo_pieces && bytes > 0)
        http_exchange_write(x, (struct str){data, bytes});
    if (bytes > 0 && (f->pause_each || f->toggle_each))
        http_exchange_pause_body(x);
    if (bytes > 0 && f->toggle_each)
        http_exchange_resume_body(x);
    if (bytes > 0)
        return;
    f->body_ends++;
    if (f->echo_pieces) {
        f->kept = NULL;
        http_exchange_end(x);
        return;
    }
    snprintf(text, sizeof(text), "%zu bytes", f->body.bytes);
    answer(f, x, 200, str_of(text));
}

/* Writes while the kernel takes it. */
static void stream_on(struct http_exchange *x, void *user)
{
    struct fixture *f = user;
    static char piece[STREAM_PIECE_BYTES];
    while (f->stream_left > 0 && http_exchange_pending(x) == 0) {
        size_t bytes = MIN(f->stream_left, sizeof(piece));
        for (size_t i = 0; i < bytes; i++)
            piece[i] = pattern_at(f->stream_at + i);
        http_exchange_write(x, (struct str){piece, bytes});
        f->stream_left -= bytes;
        f->stream_at += bytes;
        f->pending_most = MAX(f->pending_most, http_exchange_pending(x));
    }
    if (f->stream_left > 0)
        return;
    f->kept = NULL;
    http_exchange_end(x);
}

static void on_answering(struct fixture *f, struct http_exchange *x, struct str path,
                         uint64_t number)
{
    if (str_equal(path, STR("/large"))) {
        char *data = pattern_new(number);
        answer(f, x, 200, (struct str){data, number});
        free(data);
    } else if (str_equal(path, STR("/stream"))) {
        f->stream_left = number;
        f->stream_at = 0;
        http_exchange_begin(x, 200, "text/plain", NULL, stream_on);
        stream_on(x, f);
    } else if (str_equal(path, STR("/endless"))) {
        http_exchange_begin(x, 200, "text/plain", NULL, NULL);
        http_exchange_endless(x);
        http_exchange_write(x, STR("line\n"));
    } else if (str_equal(path, STR("/hello")) || str_equal(path, STR("/early"))) {
        answer(f, x, 200, STR("hello"));
    } else if (!str_equal(path, STR("/later"))) {
        answer(f, x, 404, STR("no"));
    }
}

static void on_request(struct http_exchange *x, void *user)
{
    struct fixture *f = user;
    const struct http_request *r = http_exchange_request(x);
    uint64_t number = 0;
    f->requests++;
    CHECK(f->kept == NULL);
    f->kept = x;
    f->body.bytes = 0;
    f->echo_pieces = str_equal(r->path, STR("/both"));
    f->pause_each = str_equal(r->path, STR("/paused"));
    f->toggle_each = str_equal(r->path, STR("/toggle"));
    http_exchange_set_user(x, f, on_gone);
    (void)!str_to_u64(r->query, UINT32_MAX, &number);
    if (str_equal(r->path, STR("/echo"))) {
        http_exchange_read_body(x, BODY_MAX, on_whole, f);
    } else if (f->echo_pieces || f->pause_each || f->toggle_each ||
               str_equal(r->path, STR("/pieces"))) {
        if (f->echo_pieces)
            http_exchange_begin(x, 200, "text/plain", NULL, NULL);
        http_exchange_stream_body(x, 64 * BODY_MAX, on_piece, f);
    } else {
        on_answering(f, x, r->path, number);
    }
}

struct fixture *fixture_new(void)
{
    static const struct http_server_callbacks callbacks = {.on_request = on_request};
    struct fixture *f = mem_new(sizeof(*f));
    struct error e = {0};
    REQUIRE(loop_new(&f->loop, &e) == ERR_OK);
    REQUIRE(http_server_new(f->loop, "127.0.0.1:0", &callbacks, f, &f->server, &e) == ERR_OK);
    return f;
}

void fixture_free(struct fixture *f)
{
    http_server_free(f->server);
    CHECK(f->kept == NULL); /* it was told */
    for (int i = 0; i < 3; i++)
        loop_run_once(f->loop, 0);
    loop_free(f->loop);
    buf_done(&f->body);
    free(f);
}

void fixture_run(struct fixture *f, unsigned ms)
{
    uint64_t end_ns = loop_update_now(f->loop) + ms * NS_PER_MS;
    while (loop_update_now(f->loop) < end_ns)
        loop_run_once(f->loop, 1);
}

/* ---- clients ---- */

struct client client_new(struct fixture *f, int receive_bytes)
{
    struct client c = {.f = f, .fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    struct sockaddr_storage address;
    socklen_t bytes;
    struct error e = {0};
    int no_delay = 1; /* small pieces go out as they are cut */
    REQUIRE(c.fd >= 0);
    CHECK_EQ(setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, sizeof(no_delay)), 0);
    if (receive_bytes > 0)
        CHECK_EQ(setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes)), 0);
    REQUIRE(address_parse(http_server_address(f->server), &address, &bytes, &e) == ERR_OK);
    REQUIRE(connect(c.fd, (struct sockaddr *)&address, bytes) == 0); /* the kernel accepts */
    return c;
}

void client_done(struct client *c)
{
    fd_close(&c->fd);
    buf_done(&c->got);
}

/* Takes what is there; false when there is nothing now. */
static bool client_receive(struct client *c)
{
    if (c->ended || c->error != 0)
        return false;
    ssize_t n = recv(c->fd, buf_reserve(&c->got, 65536), 65536, MSG_DONTWAIT);
    if (n > 0)
        c->got.bytes += (size_t)n;
    else if (n == 0)
        c->ended = true;
    else if (errno != EAGAIN && errno != EINTR)
        c->error = errno;
    return n > 0;
}

bool client_send(struct client *c, struct str data)
{
    for (int turns = 0; data.bytes > 0 && turns < 5000;) {
        ssize_t n = send(c->fd, data.data, data.bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            return false;
        if (n > 0)
            data = (struct str){data.data + n, data.bytes - (size_t)n};
        turns += n <= 0;
        loop_run_once(c->f->loop, n > 0 ? 0 : 1);
    }
    return data.bytes == 0;
}

void client_end(struct client *c)
{
    CHECK_EQ(shutdown(c->fd, SHUT_WR), 0);
}

void client_wait(struct client *c, size_t bytes)
{
    uint64_t end_ns = loop_update_now(c->f->loop) + 5 * NS_PER_S;
    while (c->got.bytes < bytes && !c->ended && c->error == 0 &&
           loop_update_now(c->f->loop) < end_ns)
        if (!client_receive(c))
            loop_run_once(c->f->loop, 1);
}

void client_wait_end(struct client *c)
{
    client_wait(c, SIZE_MAX);
}

void client_check(struct client *c, const char *file, int line, struct str expected)
{
    client_wait(c, expected.bytes);
    struct str got = {c->got.data, MIN(c->got.bytes, expected.bytes)};
    if (!str_equal(got, expected))
        test_fail(file, line, "got %zu bytes%s: \"%.*s\", not \"%.*s\"", c->got.bytes,
                  c->ended ? " and the end" : "", (int)MIN(c->got.bytes, (size_t)300),
                  c->got.data != NULL ? c->got.data : "", STR_ARG(expected));
    buf_consume(&c->got, got.bytes);
}
