/* tls_test.c - who believes whom, and that nothing gets through that was not said. */
#include "base/str.h"
#include "keys/fixture.h"
#include "test.h"
#include "wire/tls.h"
#include <stdlib.h>

#define HOUR_S 3600u

/* One end, with all that it needs. */
struct end {
    struct tls *tls;
    struct tls_session *session;
    struct buf out, plain; /* on its way to the other; heard */
    enum err err;
    struct error e;
};

static struct tls *tls_of(const struct authority_bundle *b, enum node_role role, const char *name,
                          uint64_t issued_s)
{
    struct identity i cleanup(identity_done) = {.key = key_make()};
    struct buf csr cleanup(buf_done) = {0}, pem cleanup(buf_done) = {0},
                   roots cleanup(buf_done) = {0};
    struct issue_order order = order_of(authority_cluster(b->items[0]), role, name);
    struct error e = {0};
    order.lifetime_s = HOUR_S;
    csr_append_pem(i.key, &csr);
    REQUIRE(authority_issue(authority_bundle_signer(b), buf_str(&csr), &order, issued_s, &pem,
                            &e) == ERR_OK);
    REQUIRE(certificate_from_pem(buf_str(&pem), &i.certificate, &e) == ERR_OK);
    authority_bundle_roots(b, &roots);
    REQUIRE(roots_from_pem(buf_str(&roots), &i.roots, &e) == ERR_OK);
    i.subject = order.subject;
    struct tls *tls = tls_new();
    CHECK(!tls_is_ready(tls));
    REQUIRE(tls_set_identity(tls, &i, &e) == ERR_OK);
    CHECK(tls_is_ready(tls));
    return tls;
}

static struct authority_bundle bundle_now(const char *cluster)
{
    struct authority_bundle b;
    struct error e = {0};
    REQUIRE(authority_bundle_make(str_of(cluster), clock_real_s() - 48 * HOUR_S, &b, &e) == ERR_OK);
    return b;
}

static void end_begin(struct end *end, bool is_server)
{
    REQUIRE(tls_session_new(end->tls, is_server, &end->out, &end->session, &end->e) == ERR_OK);
}

static void end_done(struct end *end)
{
    tls_session_free(end->session);
    tls_free(end->tls);
    buf_done(&end->out);
    buf_done(&end->plain);
}

/* Carries what `from` says; in parts of at most `most` bytes. */
static void carry(struct end *from, struct end *to, size_t most)
{
    while (from->out.bytes > 0 && to->err == ERR_OK) {
        size_t bytes = MIN(from->out.bytes, most);
        to->err =
            tls_session_take(to->session, from->out.data, bytes, &to->plain, &to->out, &to->e);
        buf_consume(&from->out, bytes);
    }
}

static void talk(struct end *client, struct end *server, size_t most)
{
    for (int i = 0; i < 10 && (client->out.bytes > 0 || server->out.bytes > 0); i++) {
        carry(client, server, most);
        carry(server, client, most);
    }
}

static void meet(struct end *client, struct end *server)
{
    end_begin(client, false);
    end_begin(server, true);
    talk(client, server, SIZE_MAX);
}

static void say(struct end *end, const char *text)
{
    tls_session_put(end->session, text, strlen(text), &end->out);
}

TEST(both_sides_know_each_other_and_hear_what_is_said)
{
    struct authority_bundle b = bundle_now("c");
    struct end client = {.tls = tls_of(&b, NODE_WORKER, "w1", clock_real_s())};
    struct end server = {.tls = tls_of(&b, NODE_CONTROL_PLANE, "cp", clock_real_s())};
    meet(&client, &server);
    REQUIRE(tls_session_is_established(client.session));
    REQUIRE(tls_session_is_established(server.session));
    const struct subject *worker = tls_session_peer(server.session);
    const struct subject *leader = tls_session_peer(client.session);
    REQUIRE(worker != NULL && leader != NULL);
    CHECK_EQ(worker->role, NODE_WORKER);
    CHECK_STR(worker->name, "w1");
    CHECK_EQ(leader->role, NODE_CONTROL_PLANE);
    tls_free(server.tls); /* sessions go on */
    server.tls = NULL;
    say(&client, "from the worker");
    say(&server, "from the control plane");
    talk(&client, &server, SIZE_MAX);
    CHECK(str_equal(buf_str(&server.plain), STR("from the worker")));
    CHECK(str_equal(buf_str(&client.plain), STR("from the control plane")));
    tls_session_end(client.session, &client.out);
    carry(&client, &server, SIZE_MAX);
    CHECK_EQ(server.err, ERR_END);
    end_done(&client);
    end_done(&server);
    authority_bundle_done(&b);
}

PROPERTY(whatever_is_said_arrives_in_whatever_parts)
{
    struct authority_bundle b = bundle_now("c");
    struct end client = {.tls = tls_of(&b, NODE_DATA_PLANE, "d", clock_real_s())};
    struct end server = {.tls = tls_of(&b, NODE_CONTROL_PLANE, "cp", clock_real_s())};
    struct buf said cleanup(buf_done) = {0};
    end_begin(&client, false);
    end_begin(&server, true);
    talk(&client, &server, 1 + rng_below(rng, 300));
    REQUIRE(tls_session_is_established(server.session));
    for (unsigned i = 0; i < 5; i++) {
        size_t bytes = rng_below(rng, 60000);
        char *text = mem_new(bytes + 1);
        for (size_t k = 0; k < bytes; k++)
            text[k] = (char)rng_below(rng, 256);
        buf_append(&said, text, bytes);
        tls_session_put(client.session, text, bytes, &client.out);
        carry(&client, &server, 1 + rng_below(rng, 20000));
        free(text);
    }
    CHECK_EQ(server.err, ERR_OK);
    CHECK(str_equal(buf_str(&server.plain), buf_str(&said)));
    end_done(&client);
    end_done(&server);
    authority_bundle_done(&b);
}

PROPERTY(a_byte_that_is_changed_on_the_way_is_never_taken)
{
    struct authority_bundle b = bundle_now("c");
    struct end client = {.tls = tls_of(&b, NODE_WORKER, "w", clock_real_s())};
    struct end server = {.tls = tls_of(&b, NODE_CONTROL_PLANE, "cp", clock_real_s())};
    end_begin(&client, false);
    end_begin(&server, true);
    size_t victim = rng_below(rng, 4000); /* of the bytes of both directions, some after the end */
    for (int turn = 0; turn < 12 && client.err == ERR_OK && server.err == ERR_OK; turn++) {
        struct end *from = turn % 2 == 0 ? &client : &server,
                   *to = turn % 2 == 0 ? &server : &client;
        if (from == &client && tls_session_is_established(client.session) && turn < 8)
            say(&client, "order");
        if (victim < from->out.bytes)
            from->out.data[victim] = (char)(from->out.data[victim] ^ (1 << rng_below(rng, 8)));
        victim = victim < from->out.bytes ? SIZE_MAX : victim - MIN(victim, from->out.bytes);
        carry(from, to, SIZE_MAX);
    }
    for (size_t i = 0; i < server.plain.bytes; i++)
        CHECK_EQ(server.plain.data[i], "order"[i % 5]);
    if (victim == SIZE_MAX && server.err == ERR_OK && client.err == ERR_OK)
        CHECK(server.plain.bytes == 0 || !tls_session_is_established(server.session) ||
              server.plain.bytes % 5 == 0);
    end_done(&client);
    end_done(&server);
    authority_bundle_done(&b);
}

TEST(a_client_without_a_certificate_is_nobody)
{
    struct authority_bundle b = bundle_now("c");
    struct pin pin = authority_pin(b.items[0]);
    struct end client = {.tls = tls_new()};
    struct end server = {.tls = tls_of(&b, NODE_CONTROL_PLANE, "cp", clock_real_s())};
    REQUIRE(tls_set_joiner(client.tls, str_of(pin.text), &client.e) == ERR_OK);
    meet(&client, &server);
    CHECK(tls_session_is_established(server.session));
    CHECK(tls_session_peer(server.session) == NULL);
    REQUIRE(tls_session_peer(client.session) != NULL);
    CHECK_EQ(tls_session_peer(client.session)->role, NODE_CONTROL_PLANE);
    end_done(&client);
    end_done(&server);
    authority_bundle_done(&b);
}

/* A client of `client` meets a server of `server`; what each says of it. */
static void check_refused(struct tls *client_tls, struct tls *server_tls, bool by_server,
                          const char *reason)
{
    struct end client = {.tls = client_tls}, server = {.tls = server_tls};
    meet(&client, &server);
    struct end *refuser = by_server ? &server : &client;
    CHECK_EQ(refuser->err, ERR_PERMISSION);
    CHECK(strstr(refuser->e.text, reason) != NULL);
    if (strstr(refuser->e.text, reason) == NULL)
        test_fail(__FILE__, __LINE__, "'%s' does not say '%s'", refuser->e.text, reason);
    CHECK(tls_session_peer(refuser->session) == NULL);
    if (by_server)
        CHECK_EQ(client.err, ERR_PERMISSION); /* it hears of it */
    CHECK_EQ(server.plain.bytes, 0);
    end_done(&client);
    end_done(&server);
}

TEST(strangers_are_refused_and_told)
{
    struct authority_bundle b = bundle_now("c"), other = bundle_now("c"), named = bundle_now("d");
    uint64_t now = clock_real_s();
#define CP tls_of(&b, NODE_CONTROL_PLANE, "cp", now)
    check_refused(tls_of(&other, NODE_WORKER, "w", now), CP, false, "authority");
    check_refused(tls_of(&named, NODE_WORKER, "w", now), CP, false, "cluster");
    check_refused(tls_of(&b, NODE_WORKER, "w", now - 3 * HOUR_S), CP, true, "ended");
    check_refused(tls_of(&b, NODE_WORKER, "w", now + 3 * HOUR_S), CP, true, "valid");
    check_refused(tls_of(&b, NODE_WORKER, "w", now), tls_of(&b, NODE_WORKER, "x", now), false,
                  "control-plane");
    check_refused(tls_of(&b, NODE_WORKER, "w", now),
                  tls_of(&b, NODE_CONTROL_PLANE, "cp", now - 3 * HOUR_S), false, "ended");
    struct tls *joiner = tls_new();
    struct pin pin = authority_pin(other.items[0]);
    struct error e = {0};
    CHECK_EQ(tls_set_joiner(joiner, STR("sha256:12"), &e), ERR_INVALID);
    CHECK(!tls_is_ready(joiner));
    REQUIRE(tls_set_joiner(joiner, str_of(pin.text), &e) == ERR_OK);
    check_refused(joiner, CP, false, "another cluster");
    authority_bundle_done(&b);
    authority_bundle_done(&other);
    authority_bundle_done(&named);
}

TEST(in_a_rotation_old_and_new_certificates_meet)
{
    struct authority_bundle b = bundle_now("c");
    struct error e = {0};
    struct tls *old = tls_of(&b, NODE_WORKER, "w", clock_real_s()); /* knows the first root only */
    REQUIRE(authority_bundle_begin(&b, clock_real_s(), &e) == ERR_OK);
    struct tls *middle = tls_of(&b, NODE_WORKER, "w", clock_real_s());
    struct end client = {.tls = old};
    struct end server = {.tls = tls_of(&b, NODE_CONTROL_PLANE, "cp", clock_real_s())};
    meet(&client, &server);
    CHECK(tls_session_is_established(client.session) && client.err == ERR_OK);
    end_done(&client);
    end_done(&server);
    REQUIRE(authority_bundle_switch(&b, clock_real_s(), 0, true, &e) == ERR_OK);
    struct end second = {.tls = middle}; /* certificate of the first, trusts both */
    struct end after = {.tls = tls_of(&b, NODE_CONTROL_PLANE, "cp", clock_real_s())};
    meet(&second, &after);
    CHECK(tls_session_is_established(second.session) && second.err == ERR_OK &&
          after.err == ERR_OK);
    end_done(&second);
    end_done(&after);
    authority_bundle_done(&b);
}

TEST(nobody_talks_before_there_is_a_certificate)
{
    struct end end = {.tls = tls_new()};
    CHECK_EQ(tls_session_new(end.tls, true, &end.out, &end.session, &end.e), ERR_BUSY);
    end_done(&end);
}
