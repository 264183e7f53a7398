/* link_test.c - frames, links, the dialler. */
#include "base/limits.h"
#include "base/str.h"
#include "dirigent.pb-c.h"
#include "test.h"
#include "wire/link.h"
#include <stdlib.h>
#include <unistd.h>

PROPERTY(frames_are_found_and_every_prefix_is_more)
{
    uint8_t data[600];
    uint32_t length = (uint32_t)rng_below(rng, 500);
    frame_head_encode(length, data);
    const uint8_t *payload = NULL;
    size_t payload_bytes = 0, frame_bytes = 0;
    for (size_t n = 0; n < FRAME_HEAD_BYTES + length; n++)
        CHECK_EQ(frame_decode(data, n, &payload, &payload_bytes, &frame_bytes), ERR_MORE);
    CHECK_EQ(frame_decode(data, sizeof(data), &payload, &payload_bytes, &frame_bytes), ERR_OK);
    CHECK(payload == data + FRAME_HEAD_BYTES);
    CHECK_EQ(payload_bytes, length);
    CHECK_EQ(frame_bytes, length + FRAME_HEAD_BYTES);
}

TEST(a_frame_above_the_limit_is_refused_by_its_head)
{
    uint8_t head[FRAME_HEAD_BYTES];
    const uint8_t *payload;
    size_t payload_bytes, frame_bytes;
    frame_head_encode(FRAME_BYTES_MAX + 1, head);
    CHECK_EQ(frame_decode(head, sizeof(head), &payload, &payload_bytes, &frame_bytes),
             ERR_TOO_LARGE);
    frame_head_encode(FRAME_BYTES_MAX, head);
    CHECK_EQ(frame_decode(head, sizeof(head), &payload, &payload_bytes, &frame_bytes), ERR_MORE);
}

struct side {
    struct link *link;
    unsigned frames, closed;
    size_t bytes;
    enum err err;
    char last_name[64];
};
static void side_on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct side *s = user;
    Dirigent__ToControlPlane *m = dirigent__to_control_plane__unpack(NULL, bytes, data);
    REQUIRE(m != NULL);
    s->frames++;
    s->bytes += bytes;
    if (m->hello != NULL)
        snprintf(s->last_name, sizeof(s->last_name), "%s", m->hello->name);
    dirigent__to_control_plane__free_unpacked(m, NULL);
}
static void side_on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct side *s = user;
    s->closed++;
    s->err = err;
    s->link = NULL;
    CHECK(why[0] != '\0');
}
static const struct link_callbacks side_callbacks = {.on_frame = side_on_frame,
                                                     .on_closed = side_on_closed};

static struct loop *pair(struct side *a, struct side *b)
{
    struct loop *loop;
    struct error e = {0};
    int fds[2];
    REQUIRE(loop_new(&loop, &e) == ERR_OK);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    REQUIRE(link_accept(loop, fds[0], &side_callbacks, a, &a->link, &e) == ERR_OK);
    REQUIRE(link_accept(loop, fds[1], &side_callbacks, b, &b->link, &e) == ERR_OK);
    return loop;
}

static void pair_done(struct loop *loop, struct side *a, struct side *b)
{
    if (a->link != NULL)
        link_close(a->link, ERR_OK, "test ends");
    if (b->link != NULL)
        link_close(b->link, ERR_OK, "test ends");
    loop_run_once(loop, 0);
    CHECK_EQ(a->closed, 1);
    CHECK_EQ(b->closed, 1);
    loop_free(loop);
}

static void hello_send(struct link *link, const char *name, size_t padding_bytes)
{
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    char *padding = mem_new(padding_bytes + 1);
    memset(padding, 'x', padding_bytes);
    hello.name = (char *)name;
    hello.software = padding;
    m.hello = &hello;
    link_send(link, &m.base);
    free(padding);
}

PROPERTY(messages_arrive_whole_whatever_their_size)
{
    struct side a = {0}, b = {0};
    struct loop *loop = pair(&a, &b);
    unsigned count = 1 + (unsigned)rng_below(rng, 20);
    for (unsigned i = 0; i < count; i++)
        hello_send(a.link, "w", rng_below(rng, rng_below(rng, 4) == 0 ? 400000 : 100));
    for (int i = 0; i < 1000 && b.frames < count; i++)
        loop_run_once(loop, 10);
    CHECK_EQ(b.frames, count);
    pair_done(loop, &a, &b);
}

TEST(silence_closes_and_heartbeats_prevent_it)
{
    struct side a = {0}, b = {0};
    struct loop *loop = pair(&a, &b);
    link_set_timers(a.link, 0, 60);
    link_set_timers(b.link, 10, 0);
    uint64_t end = clock_mono_ns() + 200 * NS_PER_MS;
    while (clock_mono_ns() < end)
        loop_run_once(loop, 10);
    CHECK_EQ(a.closed, 0);
    link_set_timers(b.link, 0, 0); /* falls silent */
    end = clock_mono_ns() + 2000 * NS_PER_MS;
    while (clock_mono_ns() < end && a.closed == 0)
        loop_run_once(loop, 10);
    CHECK_EQ(a.closed, 1);
    CHECK_EQ(a.err, ERR_TIMEOUT);
    pair_done(loop, &a, &b);
}

TEST(a_garbled_length_closes_the_link)
{
    struct loop *loop;
    struct error e = {0};
    int fds[2];
    struct side a = {0};
    REQUIRE(loop_new(&loop, &e) == ERR_OK);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    REQUIRE(link_accept(loop, fds[0], &side_callbacks, &a, &a.link, &e) == ERR_OK);
    CHECK_EQ(fd_write_all(fds[1], "\xff\xff\xff\xff", 4), ERR_OK);
    for (int i = 0; i < 10 && a.closed == 0; i++)
        loop_run_once(loop, 10);
    CHECK_EQ(a.err, ERR_PROTOCOL);
    close(fds[1]);
    loop_free(loop);
}

/* ---- dialler ---- */

struct dialled {
    struct loop *loop;
    struct loop_listener listener;
    struct side server, client;
    unsigned ups, failures;
};
static void on_up(struct dialler *d, void *user, struct link *link)
{
    struct dialled *t = user;
    t->ups++;
    t->client.link = link;
    hello_send(link, "dialler", 0);
}
static void on_failed(struct dialler *d, void *user, const char *why)
{
    struct dialled *t = user;
    t->failures++;
}
static void client_on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
}
static void client_on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct dialled *t = user;
    t->client.closed++;
}
static void server_on_accept(struct loop_listener *l, int fd, const struct sockaddr_storage *peer)
{
    struct dialled *t = container_of(l, struct dialled, listener);
    struct error e = {0};
    REQUIRE(link_accept(t->loop, fd, &side_callbacks, &t->server, &t->server.link, &e) == ERR_OK);
}
static void run_until(struct dialled *t, unsigned *counter, unsigned wanted)
{
    uint64_t end = clock_mono_ns() + 5 * NS_PER_S;
    while (*counter < wanted && clock_mono_ns() < end)
        loop_run_once(t->loop, 10);
    CHECK(*counter >= wanted);
}

/* Dials an address where nobody listens. */
static struct dialler *dial_in_vain(struct dialled *t, char *ret_address, size_t bytes)
{
    static const struct dialler_callbacks callbacks = {
        .on_up = on_up,
        .on_failed = on_failed,
        .link = {.on_frame = client_on_frame, .on_closed = client_on_closed}};
    struct sockaddr_storage address;
    socklen_t address_bytes = sizeof(address);
    struct dialler *d = NULL;
    struct error e = {0};
    int fd;
    REQUIRE(loop_new(&t->loop, &e) == ERR_OK);
    REQUIRE(socket_listen("127.0.0.1:0", false, &fd, &e) == ERR_OK);
    getsockname(fd, (struct sockaddr *)&address, &address_bytes);
    address_format((struct sockaddr *)&address, ret_address, bytes);
    fd_close(&fd);
    REQUIRE(dialler_new(t->loop, ret_address, NULL, &callbacks, t, &d, &e) == ERR_OK);
    return d;
}

TEST(a_dialler_in_a_hurry_does_not_wait_for_its_next_attempt)
{
    struct dialled t = {.listener.on_accept = server_on_accept};
    struct error e = {0};
    char text[64];
    int fd;
    struct dialler *d = dial_in_vain(&t, text, sizeof(text));
    run_until(&t, &t.failures, 8); /* the next attempt is 320 to 640 ms away */
    REQUIRE(socket_listen(text, false, &fd, &e) == ERR_OK);
    REQUIRE(loop_listener_start(t.loop, &t.listener, fd, &e) == ERR_OK);
    uint64_t began_ns = clock_mono_ns();
    dialler_hurry(d);
    run_until(&t, &t.ups, 1);
    CHECK(clock_mono_ns() - began_ns < 300 * NS_PER_MS);
    dialler_hurry(d); /* there is nothing to hurry for */
    run_until(&t, &t.server.frames, 1);
    CHECK_EQ(t.ups, 1);
    dialler_free(d);
    run_until(&t, &t.server.closed, 1);
    loop_listener_stop(&t.listener);
    loop_run_once(t.loop, 0);
    loop_free(t.loop);
}

TEST(the_dialler_waits_for_a_server_and_comes_back_after_a_loss)
{
    struct dialled t = {.listener.on_accept = server_on_accept};
    struct error e = {0};
    char text[64];
    int fd;
    struct dialler *d = dial_in_vain(&t, text, sizeof(text));
    run_until(&t, &t.failures, 2);
    CHECK_EQ(t.ups, 0);
    REQUIRE(socket_listen(text, false, &fd, &e) == ERR_OK);
    REQUIRE(loop_listener_start(t.loop, &t.listener, fd, &e) == ERR_OK);
    run_until(&t, &t.server.frames, 1);
    CHECK_STR(t.server.last_name, "dialler");
    link_close(t.server.link, ERR_OK, "server restarts");
    run_until(&t, &t.ups, 2);
    run_until(&t, &t.server.frames, 2);
    CHECK_EQ(t.client.closed, 1);
    dialler_free(d);
    run_until(&t, &t.server.closed, 2);
    CHECK_EQ(t.client.closed, 1); /* its own end is not told */
    loop_listener_stop(&t.listener);
    loop_run_once(t.loop, 0);
    loop_free(t.loop);
}
