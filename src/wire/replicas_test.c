/* replicas_test.c - several control planes, played by the test; one of them leads. */
#include "test.h"
#include "wire/replicas.h"
#include <stdlib.h>
#include <unistd.h>

#define SERVERS 3u

struct server {
    struct loop *loop;
    struct loop_listener listener;
    char address[64];
    struct link *link; /* the newest connection */
    unsigned connections, whole, names, messages;
    uint64_t stale_epoch;
    bool leads;
    uint64_t epoch;
};
struct cluster {
    struct loop *loop;
    struct server servers[SERVERS];
    struct replicas *replicas;
    struct link *link; /* of the last on_hello */
    unsigned hellos, messages, lost;
    uint64_t epoch; /* of the last message */
};

/* ---- a control plane ---- */

static void server_send(struct server *s, bool wanted, bool standby)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Standby stands = DIRIGENT__STANDBY__INIT;
    m.epoch = standby ? 0 : s->epoch;
    m.hello_wanted = wanted;
    m.standby = standby ? &stands : NULL;
    stands.heartbeat_ms = 100;
    stands.dead_after_ms = 1000;
    link_send(s->link, &m.base);
}

static void server_on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct server *s = user;
    Dirigent__ToControlPlane *m = dirigent__to_control_plane__unpack(NULL, bytes, data);
    REQUIRE(m != NULL);
    if (m->hello != NULL) {
        s->names += m->hello->standing;
        s->whole += !m->hello->standing;
        CHECK(strcmp(m->hello->name, "w1") == 0);
        if (!s->leads)
            server_send(s, false, true);
        else
            server_send(s, m->hello->standing, false);
    } else {
        s->messages++;
    }
    if (m->stale_epoch != 0)
        s->stale_epoch = m->stale_epoch;
    dirigent__to_control_plane__free_unpacked(m, NULL);
}

static void server_on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct server *s = user;
    if (s->link == link)
        s->link = NULL;
}

static void server_on_accept(struct loop_listener *l, int fd, const struct sockaddr_storage *peer)
{
    static const struct link_callbacks callbacks = {.on_frame = server_on_frame,
                                                    .on_closed = server_on_closed};
    struct server *s = container_of(l, struct server, listener);
    struct error e = {0};
    REQUIRE(link_accept(s->loop, fd, &callbacks, s, &s->link, &e) == ERR_OK);
    s->connections++;
}

static void server_start(struct loop *loop, struct server *s)
{
    struct error e = {0};
    struct sockaddr_storage bound = {0};
    socklen_t bytes = sizeof(bound);
    int fd = -1;
    s->loop = loop;
    s->listener.on_accept = server_on_accept;
    REQUIRE(socket_listen(s->address[0] != '\0' ? s->address : "127.0.0.1:0", false, &fd, &e) ==
            ERR_OK);
    REQUIRE(getsockname(fd, (struct sockaddr *)&bound, &bytes) == 0);
    address_format((struct sockaddr *)&bound, s->address, sizeof(s->address));
    REQUIRE(loop_listener_start(loop, &s->listener, fd, &e) == ERR_OK);
}

static void server_kill(struct server *s)
{
    loop_listener_stop(&s->listener);
    if (s->link != NULL)
        link_close(s->link, ERR_CLOSED, "killed");
    s->leads = false;
}

static void server_lead(struct server *s, uint64_t epoch)
{
    s->leads = true;
    s->epoch = epoch;
    if (s->link != NULL)
        server_send(s, true, false);
}

/* ---- a worker ---- */

static void on_name(void *user, Dirigent__Hello *hello)
{
    hello->name = (char *)"w1";
}

static void on_hello(void *user, struct link *link)
{
    struct cluster *c = user;
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__Hello hello = DIRIGENT__HELLO__INIT;
    c->link = link;
    c->hellos++;
    on_name(c, &hello);
    m.hello = &hello;
    link_send(link, &m.base);
}

static void on_message(void *user, struct link *link, const Dirigent__FromControlPlane *m)
{
    struct cluster *c = user;
    CHECK(link == c->link);
    CHECK(m->epoch >= c->epoch);
    c->messages++;
    c->epoch = m->epoch;
}

static void on_lost(void *user, const char *why)
{
    struct cluster *c = user;
    c->lost++;
    c->link = NULL;
    CHECK(why[0] != '\0');
}

static void on_failed(void *user, const char *address, const char *why)
{
}

static const struct replicas_callbacks callbacks = {.on_hello = on_hello,
                                                    .on_name = on_name,
                                                    .on_message = on_message,
                                                    .on_lost = on_lost,
                                                    .on_failed = on_failed};

#define UNTIL(condition)                                 \
    do {                                                 \
        for (int i_ = 0; i_ < 400 && !(condition); i_++) \
            loop_run_once(c.loop, 10);                   \
        CHECK(condition);                                \
    } while (0)

static struct cluster begin(void)
{
    struct cluster c = {0};
    struct error e = {0};
    REQUIRE(loop_new(&c.loop, &e) == ERR_OK);
    return c;
}

static void start(struct cluster *c)
{
    struct error e = {0};
    char addresses[256] = "";
    for (unsigned i = 0; i < SERVERS; i++) {
        server_start(c->loop, &c->servers[i]);
        (void)snprintf(addresses + strlen(addresses), sizeof(addresses) - strlen(addresses), "%s%s",
                       i > 0 ? "," : "", c->servers[i].address);
    }
    REQUIRE(replicas_new(c->loop, addresses, NULL, &callbacks, c, &c->replicas, &e) == ERR_OK);
}

static void end(struct cluster *c)
{
    replicas_free(c->replicas);
    for (unsigned i = 0; i < SERVERS; i++)
        if (c->servers[i].listener.poll.active)
            server_kill(&c->servers[i]);
    for (int i = 0; i < 10; i++)
        loop_run_once(c->loop, 1);
    loop_free(c->loop);
}

static unsigned connected(const struct cluster *c)
{
    unsigned count = 0;
    for (unsigned i = 0; i < SERVERS; i++)
        count += c->servers[i].link != NULL && c->servers[i].names + c->servers[i].whole > 0;
    return count;
}

TEST(the_leader_is_found_wherever_it_stands_in_the_list)
{
    for (unsigned leader = 0; leader < SERVERS; leader++) {
        struct cluster c = begin();
        c.servers[leader].leads = true;
        c.servers[leader].epoch = 7;
        start(&c);
        UNTIL(c.messages > 0 && connected(&c) == SERVERS);
        CHECK(replicas_link(c.replicas) == c.link);
        CHECK_EQ(replicas_epoch(c.replicas), 7);
        CHECK_EQ(c.servers[leader].whole, 1);
        end(&c);
    }
}

TEST(nobody_leads_and_then_one_does)
{
    struct cluster c = begin();
    start(&c);
    UNTIL(connected(&c) == SERVERS && c.lost == c.hellos && c.hellos > 0);
    CHECK(replicas_link(c.replicas) == NULL);
    unsigned before = c.servers[1].connections;
    server_lead(&c.servers[1], 3);
    UNTIL(c.link != NULL && c.servers[1].whole > 0 && c.messages > 0);
    CHECK_EQ(c.servers[1].connections, before); /* over the connection that was there */
    end(&c);
}

TEST(when_the_leader_dies_the_next_is_followed_and_the_dead_dialled_again)
{
    struct cluster c = begin();
    c.servers[0].leads = true;
    c.servers[0].epoch = 1;
    start(&c);
    UNTIL(c.messages > 0 && connected(&c) == SERVERS);
    server_kill(&c.servers[0]);
    UNTIL(c.link == NULL);
    server_lead(&c.servers[2], 2);
    UNTIL(c.epoch == 2);
    server_start(c.loop, &c.servers[0]);
    UNTIL(c.servers[0].link != NULL && c.servers[0].names > 0);
    CHECK(c.link != NULL);
    CHECK_EQ(c.servers[0].whole, 1);
    end(&c);
}

TEST(a_leader_that_was_succeeded_is_refused_and_told_so)
{
    struct cluster c = begin();
    c.servers[0].leads = true;
    c.servers[0].epoch = 4;
    start(&c);
    UNTIL(c.messages > 0 && connected(&c) == SERVERS);
    server_lead(&c.servers[1], 5);
    UNTIL(c.epoch == 5);
    unsigned messages = c.messages, connections = c.servers[0].connections;
    server_send(&c.servers[0], false, false); /* an order of epoch 4 */
    UNTIL(c.servers[0].stale_epoch == 5);
    CHECK_EQ(c.messages, messages);
    UNTIL(c.servers[0].connections > connections); /* it is dialled again, to stand by */
    CHECK(replicas_link(c.replicas) != NULL);
    end(&c);
}

TEST(orders_of_one_who_never_asked_are_refused)
{
    struct cluster c = begin();
    c.servers[0].leads = true;
    c.servers[0].epoch = 4;
    start(&c);
    UNTIL(c.messages > 0 && connected(&c) == SERVERS);
    unsigned messages = c.messages, connections = c.servers[2].connections;
    c.servers[2].epoch = 6;
    server_send(&c.servers[2], false, false);
    UNTIL(c.servers[2].connections > connections);
    CHECK_EQ(c.messages, messages);
    end(&c);
}

static void check_refused(const char *addresses, const char *word)
{
    struct cluster c = begin();
    struct error e = {0};
    CHECK(replicas_new(c.loop, addresses, NULL, &callbacks, &c, &c.replicas, &e) != ERR_OK);
    if (strstr(e.text, word) == NULL)
        test_fail(__FILE__, __LINE__, "'%s': %s", addresses, e.text);
    loop_run_once(c.loop, 0);
    loop_free(c.loop);
}

TEST(lists_that_make_no_sense_are_refused)
{
    check_refused("127.0.0.1:1,127.0.0.1:1", "twice");
    check_refused("127.0.0.1:1,", "no address");
    check_refused("127.0.0.1:1,nowhere", "nowhere");
    check_refused("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3,127.0.0.1:4,127.0.0.1:5,127.0.0.1:6,"
                  "127.0.0.1:7,127.0.0.1:8,127.0.0.1:9,127.0.0.1:10",
                  "more than 9");
}
