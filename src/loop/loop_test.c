/* loop_test.c - timers against a model, streams over socketpairs, posts from threads, children. */
#include "base/str.h"
#include "loop/loop.h"
#include "test.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static struct loop *new_loop(void)
{
    struct loop *loop = NULL;
    struct error e = {0};
    REQUIRE(loop_new(&loop, &e) == ERR_OK);
    return loop;
}

/* ---- timers ---- */

#define TIMERS 40
struct timed {
    struct loop_timer timer;
    uint64_t due_ns; /* the model: 0 is not running */
    unsigned fired;
    uint64_t *last_due_ns;
};

static void on_timed(struct loop_timer *timer)
{
    struct timed *t = container_of(timer, struct timed, timer);
    CHECK(t->due_ns != 0);
    CHECK(t->due_ns >= *t->last_due_ns); /* in order of their time */
    *t->last_due_ns = t->due_ns;
    t->due_ns = 0;
    t->fired++;
}

PROPERTY(timers_run_in_order_and_never_after_a_stop)
{
    struct loop *loop = new_loop();
    struct timed timed[TIMERS];
    uint64_t last_due_ns = 0, base = loop_update_now(loop);
    for (int i = 0; i < TIMERS; i++) {
        timed[i] = (struct timed){.last_due_ns = &last_due_ns};
        loop_timer_init(&timed[i].timer, on_timed);
    }
    for (int step = 0; step < 200; step++) {
        struct timed *t = &timed[rng_below(rng, TIMERS)];
        if (rng_below(rng, 3) > 0) {
            t->due_ns = base - rng_below(rng, 1000000); /* all are due at once */
            loop_timer_start(loop, &t->timer, t->due_ns);
        } else {
            t->due_ns = 0;
            loop_timer_stop(loop, &t->timer);
        }
        CHECK(loop_timer_is_running(&t->timer) == (t->due_ns != 0));
    }
    unsigned expected = 0, fired = 0;
    for (int i = 0; i < TIMERS; i++)
        expected += timed[i].due_ns != 0;
    loop_run_once(loop, 0);
    for (int i = 0; i < TIMERS; i++)
        fired += timed[i].fired;
    CHECK_EQ(fired, expected);
    loop_free(loop);
}

/* ---- streams ---- */

struct end {
    struct loop_stream stream;
    struct buf got;
    unsigned ended, broken, drained, closed, connected;
    enum err connect_err;
    bool close_in_recv, pause_in_recv;
};

static void end_on_connect(struct loop_stream *s, enum err err)
{
    struct end *x = container_of(s, struct end, stream);
    x->connected++;
    x->connect_err = err;
}
static void end_on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct end *x = container_of(s, struct end, stream);
    CHECK_EQ(x->closed, 0);
    x->ended += err == ERR_END;
    x->broken += err == ERR_CLOSED;
    buf_append(&x->got, data, bytes);
    if (x->pause_in_recv)
        loop_stream_pause(s);
    if (x->close_in_recv)
        loop_stream_close(s);
}
static void end_on_drained(struct loop_stream *s)
{
    container_of(s, struct end, stream)->drained++;
}
static void end_on_closed(struct loop_stream *s)
{
    container_of(s, struct end, stream)->closed++;
}
static const struct loop_stream_callbacks end_callbacks = {.on_connect = end_on_connect,
                                                           .on_recv = end_on_recv,
                                                           .on_drained = end_on_drained,
                                                           .on_closed = end_on_closed};

static void pair_open(struct loop *loop, struct end *a, struct end *b)
{
    int fds[2];
    struct error e = {0};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    REQUIRE(loop_stream_init(loop, &a->stream, &end_callbacks, fds[0], &e) == ERR_OK);
    REQUIRE(loop_stream_init(loop, &b->stream, &end_callbacks, fds[1], &e) == ERR_OK);
}

static void pair_close(struct loop *loop, struct end *a, struct end *b)
{
    loop_stream_close(&a->stream);
    loop_stream_close(&b->stream);
    loop_run_once(loop, 0);
    CHECK_EQ(a->closed, 1);
    CHECK_EQ(b->closed, 1);
    buf_done(&a->got);
    buf_done(&b->got);
    loop_free(loop);
}

/* Bytes arrive whole and in order, whatever the sizes and pauses, and the end of the stream comes
 * last. */
PROPERTY(bytes_arrive_in_order_with_pauses)
{
    struct loop *loop = new_loop();
    struct end a = {0}, b = {0};
    pair_open(loop, &a, &b);
    struct buf sent = {0};
    for (int step = 0; step < 60; step++) {
        size_t bytes = rng_below(rng, 2) ? rng_below(rng, 200) : rng_below(rng, 300000);
        char *data = malloc(bytes + 1);
        REQUIRE(data != NULL);
        for (size_t i = 0; i < bytes; i++)
            data[i] = (char)rng_next(rng);
        struct iovec parts[2] = {{data, bytes / 3}, {data + bytes / 3, bytes - bytes / 3}};
        loop_stream_sendv(&a.stream, parts, 2);
        buf_append(&sent, data, bytes);
        free(data);
        if (rng_below(rng, 4) == 0)
            loop_stream_pause(&b.stream);
        if (rng_below(rng, 2) == 0)
            loop_stream_resume(&b.stream);
        loop_run_once(loop, 0);
    }
    loop_stream_shutdown(&a.stream);
    loop_stream_resume(&b.stream);
    for (int i = 0; i < 2000 && b.ended == 0; i++)
        loop_run_once(loop, 10);
    CHECK_EQ(b.ended, 1);
    CHECK_EQ(b.got.bytes, sent.bytes);
    CHECK(str_equal(buf_str(&b.got), buf_str(&sent)));
    CHECK_EQ(loop_stream_pending(&a.stream), 0);
    buf_done(&sent);
    pair_close(loop, &a, &b);
}

TEST(a_paused_stream_is_not_read)
{
    struct loop *loop = new_loop();
    struct end a = {0}, b = {.pause_in_recv = true};
    pair_open(loop, &a, &b);
    loop_stream_send(&a.stream, "one", 3);
    loop_run_once(loop, 10);
    loop_stream_send(&a.stream, "two", 3);
    loop_run_once(loop, 10);
    loop_run_once(loop, 0);
    CHECK_EQ(b.got.bytes, 3);
    loop_stream_resume(&b.stream);
    loop_run_once(loop, 10);
    CHECK_EQ(b.got.bytes, 6);
    pair_close(loop, &a, &b);
}

TEST(what_does_not_fit_is_kept_and_drained_is_told_once)
{
    struct loop *loop = new_loop();
    struct end a = {0}, b = {0};
    pair_open(loop, &a, &b);
    loop_stream_pause(&b.stream);
    static char data[4 << 20];
    loop_stream_send(&a.stream, data, sizeof(data));
    CHECK(loop_stream_pending(&a.stream) > 0);
    loop_run_once(loop, 0);
    CHECK_EQ(a.drained, 0);
    loop_stream_resume(&b.stream);
    for (int i = 0; i < 2000 && a.drained == 0; i++)
        loop_run_once(loop, 10);
    CHECK_EQ(a.drained, 1);
    for (int i = 0; i < 100 && b.got.bytes < sizeof(data); i++)
        loop_run_once(loop, 10);
    CHECK_EQ(b.got.bytes, sizeof(data));
    pair_close(loop, &a, &b);
}

TEST(a_stream_may_be_closed_in_its_own_callback)
{
    struct loop *loop = new_loop();
    struct end a = {0}, b = {.close_in_recv = true};
    pair_open(loop, &a, &b);
    loop_stream_send(&a.stream, "x", 1);
    for (int i = 0; i < 10 && a.ended + a.broken == 0; i++)
        loop_run_once(loop, 10);
    CHECK_EQ(b.closed, 1);
    CHECK_EQ(a.ended + a.broken, 1);
    loop_stream_send(&a.stream, "y", 1); /* told later, not here */
    loop_stream_close(&a.stream);
    loop_run_once(loop, 0);
    CHECK_EQ(a.closed, 1);
    buf_done(&a.got);
    buf_done(&b.got);
    loop_free(loop);
}

TEST(a_failed_send_is_told_even_while_paused)
{
    struct loop *loop = new_loop();
    struct end a = {0}, b = {0};
    pair_open(loop, &a, &b);
    loop_stream_pause(&a.stream);
    loop_stream_close(&b.stream);
    loop_run_once(loop, 0);
    loop_stream_send(&a.stream, "x", 1);
    CHECK_EQ(a.broken, 0);
    loop_run_once(loop, 10);
    CHECK_EQ(a.broken, 1);
    CHECK_EQ(a.stream.error_number, EPIPE);
    loop_stream_close(&a.stream);
    loop_run_once(loop, 0);
    buf_done(&a.got);
    buf_done(&b.got);
    loop_free(loop);
}

/* ---- listeners and connects ---- */

struct server {
    struct loop_listener listener;
    struct end end;
    struct loop *loop;
    unsigned accepted;
};
static void server_on_accept(struct loop_listener *l, int fd, const struct sockaddr_storage *peer)
{
    struct server *s = container_of(l, struct server, listener);
    struct error e = {0};
    s->accepted++;
    CHECK_EQ(loop_stream_init(s->loop, &s->end.stream, &end_callbacks, fd, &e), ERR_OK);
}

static socklen_t bound_address(int fd, struct sockaddr_storage *ret)
{
    socklen_t bytes = sizeof(*ret);
    REQUIRE(getsockname(fd, (struct sockaddr *)ret, &bytes) == 0);
    return bytes;
}

TEST(connect_send_answer_over_tcp)
{
    struct server s = {.loop = new_loop(), .listener = {.on_accept = server_on_accept}};
    struct error e = {0};
    int fd;
    REQUIRE(socket_listen("127.0.0.1:0", true, &fd, &e) == ERR_OK);
    struct sockaddr_storage address;
    socklen_t bytes = bound_address(fd, &address);
    char text[64];
    address_format((struct sockaddr *)&address, text, sizeof(text));
    int second;
    CHECK_EQ(socket_listen(text, false, &second, &e), ERR_BUSY);
    CHECK(strstr(e.text, text) != NULL && strstr(e.text, "another program") != NULL);
    REQUIRE(loop_listener_start(s.loop, &s.listener, fd, &e) == ERR_OK);
    struct end client = {0};
    REQUIRE(loop_stream_connect(s.loop, &client.stream, &end_callbacks, (struct sockaddr *)&address,
                                bytes, NULL, &e) == ERR_OK);
    loop_stream_send(&client.stream, "early", 5); /* before it is connected: kept */
    for (int i = 0; i < 100 && s.end.got.bytes < 5; i++)
        loop_run_once(s.loop, 10);
    CHECK_EQ(client.connected, 1);
    CHECK_EQ(client.connect_err, ERR_OK);
    CHECK_EQ(s.end.got.bytes, 5);
    loop_listener_stop(&s.listener);
    pair_close(s.loop, &client, &s.end);
}

TEST(a_refused_connect_is_told_with_its_errno)
{
    struct loop *loop = new_loop();
    struct error e = {0};
    int fd;
    REQUIRE(socket_listen("127.0.0.1:0", false, &fd, &e) == ERR_OK);
    struct sockaddr_storage address;
    socklen_t bytes = bound_address(fd, &address);
    fd_close(&fd);
    struct end client = {0};
    REQUIRE(loop_stream_connect(loop, &client.stream, &end_callbacks, (struct sockaddr *)&address,
                                bytes, NULL, &e) == ERR_OK);
    CHECK_EQ(client.connected, 0); /* never inside the call */
    for (int i = 0; i < 100 && client.connected == 0; i++)
        loop_run_once(loop, 10);
    CHECK_EQ(client.connect_err, ERR_UNREACHABLE);
    CHECK_EQ(client.stream.error_number, ECONNREFUSED);
    loop_stream_close(&client.stream);
    loop_run_once(loop, 0);
    CHECK_EQ(client.closed, 1);
    loop_free(loop);
}

TEST(without_descriptors_the_listener_refuses_and_recovers)
{
    struct server s = {.loop = new_loop(), .listener = {.on_accept = server_on_accept}};
    struct error e = {0};
    int fd;
    REQUIRE(socket_listen("127.0.0.1:0", false, &fd, &e) == ERR_OK);
    struct sockaddr_storage address;
    socklen_t bytes = bound_address(fd, &address);
    REQUIRE(loop_listener_start(s.loop, &s.listener, fd, &e) == ERR_OK);
    int first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_INET, SOCK_STREAM, 0);
    struct rlimit old, none;
    getrlimit(RLIMIT_NOFILE, &old);
    none = (struct rlimit){(rlim_t)second + 1, old.rlim_max};
    REQUIRE(connect(first, (struct sockaddr *)&address, bytes) == 0);
    setrlimit(RLIMIT_NOFILE, &none);
    loop_run_once(s.loop, 100);
    CHECK_EQ(s.accepted, 0);
    char byte;
    CHECK(recv(first, &byte, 1, 0) <= 0); /* refused, not left hanging */
    setrlimit(RLIMIT_NOFILE, &old);
    REQUIRE(connect(second, (struct sockaddr *)&address, bytes) == 0);
    for (int i = 0; i < 100 && s.accepted == 0; i++)
        loop_run_once(s.loop, 50);
    CHECK_EQ(s.accepted, 1);
    close(first);
    close(second);
    loop_listener_stop(&s.listener);
    loop_stream_close(&s.end.stream);
    loop_run_once(s.loop, 0);
    buf_done(&s.end.got);
    loop_free(s.loop);
}

TEST(addresses_are_read_and_refused)
{
    struct sockaddr_storage a;
    socklen_t bytes;
    struct error e = {0};
    char text[64];
    static const char *const good[][2] = {{"127.0.0.1:80", "127.0.0.1:80"},
                                          {":8080", "0.0.0.0:8080"},
                                          {"localhost:1", "127.0.0.1:1"},
                                          {"[::1]:9", "[::1]:9"}};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        CHECK_EQ(address_parse(good[i][0], &a, &bytes, &e), ERR_OK);
        address_format((struct sockaddr *)&a, text, sizeof(text));
        CHECK_STR(text, good[i][1]);
    }
    static const char *const bad[] = {
        "",         "1.2.3.4", "1.2.3.4:", "1.2.3.4:x",  "1.2.3.4:65536", "host.example:80",
        "1.2.3:80", "::1:80",  "[::1:80",  "1.2.3.4:-1", "1.2.3.4: 1"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        CHECK_EQ(address_parse(bad[i], &a, &bytes, &e), ERR_INVALID);
}

/* ---- posts, children, signals, deferred ---- */

#define POSTERS 4
#define POSTS_EACH 5000
struct posted {
    struct loop_post post;
    struct poster *poster;
    unsigned number;
};
struct poster {
    pthread_t thread;
    struct loop *loop;
    struct posted *posts;
    unsigned seen, *total;
};
static void on_posted(struct loop_post *post)
{
    struct posted *p = container_of(post, struct posted, post);
    CHECK_EQ(p->number, p->poster->seen); /* FIFO per poster */
    p->poster->seen++;
    if (++*p->poster->total == POSTERS * POSTS_EACH)
        loop_stop(p->poster->loop);
}
static void *poster_run(void *argument)
{
    struct poster *p = argument;
    for (unsigned i = 0; i < POSTS_EACH; i++) {
        p->posts[i] = (struct posted){.post.on_post = on_posted, .poster = p, .number = i};
        loop_post(p->loop, &p->posts[i].post);
    }
    return NULL;
}

TEST(posts_of_several_threads_all_arrive_in_their_order)
{
    struct loop *loop = new_loop();
    struct poster posters[POSTERS];
    unsigned total = 0;
    for (int i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){.loop = loop, .total = &total};
        posters[i].posts = mem_new_array(POSTS_EACH, sizeof(struct posted));
        REQUIRE(pthread_create(&posters[i].thread, NULL, poster_run, &posters[i]) == 0);
    }
    loop_run(loop);
    for (int i = 0; i < POSTERS; i++) {
        pthread_join(posters[i].thread, NULL);
        CHECK_EQ(posters[i].seen, POSTS_EACH);
        free(posters[i].posts);
    }
    loop_free(loop);
}

struct watched {
    struct loop_child child;
    struct loop *loop;
    int status;
};
static void on_watched_exit(struct loop_child *child, int wait_status)
{
    struct watched *w = container_of(child, struct watched, child);
    w->status = wait_status;
    loop_stop(w->loop);
}

TEST(a_child_s_exit_is_told_with_its_status)
{
    for (int killed = 0; killed < 2; killed++) {
        struct watched w = {.loop = new_loop(), .child.on_exit = on_watched_exit, .status = -1};
        struct error e = {0};
        pid_t pid = fork();
        if (pid == 0) {
            if (killed)
                pause();
            _exit(3);
        }
        REQUIRE(loop_child_start(w.loop, &w.child, pid, &e) == ERR_OK);
        if (killed)
            kill(pid, SIGKILL);
        loop_run(w.loop);
        if (killed)
            CHECK(WIFSIGNALED(w.status) && WTERMSIG(w.status) == SIGKILL);
        else
            CHECK(WIFEXITED(w.status) && WEXITSTATUS(w.status) == 3);
        loop_free(w.loop);
    }
}

struct counted {
    struct loop_deferred deferred;
    unsigned runs;
};
static void on_counted(struct loop_deferred *d)
{
    container_of(d, struct counted, deferred)->runs++;
}

TEST(deferred_work_runs_once_a_turn)
{
    struct loop *loop = new_loop();
    struct counted c = {.deferred.on_turn_end = on_counted};
    for (int i = 0; i < 5; i++)
        loop_defer(loop, &c.deferred);
    loop_run_once(loop, -1); /* does not sleep while work waits */
    CHECK_EQ(c.runs, 1);
    loop_defer(loop, &c.deferred);
    loop_defer_cancel(&c.deferred);
    loop_run_once(loop, 0);
    CHECK_EQ(c.runs, 1);
    loop_free(loop);
}
