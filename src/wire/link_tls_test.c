/* link_tls_test.c - links and the dialler with TLS, and with one side that does not speak it. */
#include "base/limits.h"
#include "base/str.h"
#include "dirigent.pb-c.h"
#include "keys/fixture.h"
#include "test.h"
#include "wire/link.h"
#include <stdlib.h>
#include <unistd.h>

struct side {
    struct link *link;
    unsigned frames, closed, secured;
    size_t bytes;
    enum err err;
    char why[256], refused[256];
};
static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct side *s = user;
    Dirigent__FromControlPlane *m = dirigent__from_control_plane__unpack(NULL, bytes, data);
    s->frames++;
    s->bytes += bytes;
    if (m != NULL && m->welcome != NULL)
        snprintf(s->refused, sizeof(s->refused), "%s", m->welcome->refused);
    if (m != NULL)
        dirigent__from_control_plane__free_unpacked(m, NULL);
}
static void on_secured(struct link *link, void *user)
{
    struct side *s = user;
    s->secured++;
    CHECK_EQ(s->frames, 0);
}
static void on_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct side *s = user;
    s->closed++;
    s->err = err;
    s->link = NULL;
    snprintf(s->why, sizeof(s->why), "%s", why);
}
static const struct link_callbacks callbacks = {
    .on_secured = on_secured, .on_frame = on_frame, .on_closed = on_closed};

static struct tls *tls_of(const struct authority_bundle *b, enum node_role role, const char *name)
{
    struct identity i cleanup(identity_done) = {.key = key_make()};
    struct buf csr cleanup(buf_done) = {0}, roots cleanup(buf_done) = {0};
    struct issue_order order = order_of("c", role, name);
    struct error e = {0};
    csr_append_pem(i.key, &csr);
    i.certificate = issue(b, buf_str(&csr), &order, clock_real_s());
    authority_bundle_roots(b, &roots);
    REQUIRE(roots_from_pem(buf_str(&roots), &i.roots, &e) == ERR_OK);
    i.subject = order.subject;
    struct tls *tls = tls_new();
    REQUIRE(tls_set_identity(tls, &i, &e) == ERR_OK);
    return tls;
}

struct world {
    struct loop *loop;
    struct authority_bundle bundle;
    struct tls *server_tls, *client_tls;
    struct side client, server;
};
static void begin(struct world *w)
{
    struct error e = {0};
    int fds[2];
    *w = (struct world){0};
    REQUIRE(loop_new(&w->loop, &e) == ERR_OK);
    REQUIRE(authority_bundle_make(STR("c"), clock_real_s(), &w->bundle, &e) == ERR_OK);
    w->server_tls = tls_of(&w->bundle, NODE_CONTROL_PLANE, "cp");
    w->client_tls = tls_of(&w->bundle, NODE_WORKER, "w1");
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    REQUIRE(link_accept(w->loop, fds[0], &callbacks, &w->client, &w->client.link, &e) == ERR_OK);
    REQUIRE(link_accept(w->loop, fds[1], &callbacks, &w->server, &w->server.link, &e) == ERR_OK);
}
static void secure_client(struct world *w)
{
    struct error e = {0};
    CHECK_EQ(link_secure(w->client.link, w->client_tls, false, NULL, &e), ERR_OK);
}
static void secure_server(struct world *w, const ProtobufCMessage *refusal)
{
    struct error e = {0};
    CHECK_EQ(link_secure(w->server.link, w->server_tls, true, refusal, &e), ERR_OK);
}
static void run_until(struct world *w, const unsigned *counter, unsigned wanted)
{
    uint64_t end = clock_mono_ns() + 5 * NS_PER_S;
    while (*counter < wanted && clock_mono_ns() < end)
        loop_run_once(w->loop, 10);
    CHECK(*counter >= wanted);
}
static void finish(struct world *w)
{
    if (w->client.link != NULL)
        link_close(w->client.link, ERR_OK, "test ends");
    if (w->server.link != NULL)
        link_close(w->server.link, ERR_OK, "test ends");
    loop_run_once(w->loop, 0);
    CHECK_EQ(w->client.closed, 1);
    CHECK_EQ(w->server.closed, 1);
    loop_free(w->loop);
    tls_free(w->server_tls);
    tls_free(w->client_tls);
    authority_bundle_done(&w->bundle);
}
static void send_text(struct link *link, size_t bytes)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Welcome welcome = DIRIGENT__WELCOME__INIT;
    char *text = mem_new(bytes + 1);
    memset(text, 'x', bytes);
    welcome.cluster = text;
    m.welcome = &welcome;
    link_send(link, &m.base);
    free(text);
}

PROPERTY(messages_arrive_whole_and_both_sides_are_known)
{
    struct world w;
    begin(&w);
    unsigned count = 1 + (unsigned)rng_below(rng, 10);
    secure_server(&w, NULL);
    secure_client(&w);
    for (unsigned i = 0; i < count; i++) /* before the handshake is done: they wait */
        send_text(w.client.link, rng_below(rng, rng_below(rng, 4) == 0 ? 300000 : 100));
    run_until(&w, &w.server.frames, count);
    send_text(w.server.link, 5);
    run_until(&w, &w.client.frames, 1);
    CHECK_EQ(w.server.secured, 1);
    CHECK_EQ(w.client.secured, 1);
    REQUIRE(link_peer(w.server.link) != NULL && link_peer(w.client.link) != NULL);
    CHECK_STR(link_peer(w.server.link)->name, "w1");
    CHECK_STR(link_peer(w.client.link)->name, "cp");
    finish(&w);
}

TEST(who_speaks_no_tls_is_told_in_the_clear)
{
    struct world w;
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    Dirigent__Welcome welcome = DIRIGENT__WELCOME__INIT;
    welcome.refused = (char *)"join first";
    m.welcome = &welcome;
    begin(&w);
    secure_server(&w, &m.base);
    send_text(w.client.link, 10);
    run_until(&w, &w.client.closed, 1);
    CHECK_STR(w.client.refused, "join first");
    CHECK_EQ(w.server.frames, 0);
    CHECK_EQ(w.server.err, ERR_PROTOCOL);
    CHECK(strstr(w.server.why, "does not speak TLS") != NULL);
    finish(&w);
}

TEST(a_server_without_tls_says_so)
{
    struct world w;
    begin(&w);
    secure_client(&w);
    run_until(&w, &w.server.closed, 1);
    CHECK(strstr(w.server.why, "speaks TLS") != NULL);
    CHECK_EQ(w.server.frames, 0);
    finish(&w);
    begin(&w);
    secure_client(&w);
    send_text(w.server.link, 10); /* a refusal, or whatever */
    run_until(&w, &w.client.closed, 1);
    CHECK(strstr(w.client.why, "does not speak TLS") != NULL);
    CHECK_EQ(w.client.frames, 0);
    finish(&w);
}

TEST(who_has_shown_nothing_says_little)
{
    struct world w;
    struct error e = {0};
    begin(&w);
    struct pin pin = authority_pin(w.bundle.items[0]);
    tls_free(w.client_tls);
    w.client_tls = tls_new();
    REQUIRE(tls_set_joiner(w.client_tls, str_of(pin.text), &e) == ERR_OK);
    secure_server(&w, NULL);
    secure_client(&w);
    send_text(w.client.link, 1000);
    run_until(&w, &w.server.frames, 1);
    CHECK(link_peer(w.server.link) == NULL);
    send_text(w.client.link, 100000);
    run_until(&w, &w.server.closed, 1);
    CHECK_EQ(w.server.err, ERR_PROTOCOL);
    finish(&w);
}

TEST(a_frame_above_what_was_set_closes_the_link)
{
    struct world w;
    begin(&w);
    link_set_frame_max(w.server.link, 1000);
    send_text(w.client.link, 900);
    run_until(&w, &w.server.frames, 1);
    send_text(w.client.link, 1100);
    run_until(&w, &w.server.closed, 1);
    CHECK_EQ(w.server.frames, 1);
    CHECK_EQ(w.server.err, ERR_PROTOCOL);
    finish(&w);
}

TEST(a_link_without_a_certificate_of_our_own_is_not_begun)
{
    struct world w;
    struct error e = {0};
    begin(&w);
    struct tls *nobody = tls_new();
    CHECK_EQ(link_secure(w.client.link, nobody, false, NULL, &e), ERR_BUSY);
    run_until(&w, &w.client.closed, 1);
    tls_free(nobody);
    finish(&w);
}
