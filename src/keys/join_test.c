/* join_test.c - a machine joins, is refused, joins again, renews. */
#include "keys/fixture.h"
#include "keys/join.h"
#include "test.h"
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdlib.h>

/* One cluster, one control plane's certificate, one token, one joiner. */
struct stage {
    struct authority_bundle bundle;
    struct pin pin;
    X509 *chain[2]; /* the second is borrowed */
    struct token_record record;
    char token[TOKEN_TEXT_BYTES];
    EVP_PKEY *key;
    struct buf csr;
    struct join_request request;
    struct subject server;
};

static void stage_done(struct stage *s)
{
    authority_bundle_done(&s->bundle);
    certificate_free(&s->chain[0]);
    key_free(&s->key);
    buf_done(&s->csr);
}

static void stage_make(struct stage *s)
{
    *s = (struct stage){.bundle = make_bundle("prod")};
    s->pin = authority_pin(s->bundle.items[0]);
    s->chain[0] = issue_node(&s->bundle, NODE_CONTROL_PLANE, "cp-1", NOW_S);
    s->chain[1] = authority_certificate(s->bundle.items[0]);
    struct token_order order = {.role = NODE_WORKER};
    REQUIRE(token_make(&order, NOW_S, &s->record, s->token, NULL) == ERR_OK);
    s->key = key_make();
    csr_append_pem(s->key, &s->csr);
    s->request = (struct join_request){.token = str_of(s->token),
                                       .role = NODE_WORKER,
                                       .name = STR("w-1"),
                                       .csr = buf_str(&s->csr)};
    REQUIRE(join_check_server(s->chain, 2, str_of(s->pin.text), NOW_S, &s->server, NULL) == ERR_OK);
}

static enum err answer(struct stage *s, uint64_t now_s, struct join_answer *ret, struct error *e)
{
    enum token_verdict verdict;
    return join_answer(&s->bundle, &s->record, false, &s->request, now_s, 0, ret, &verdict, e);
}

static enum err accept(struct stage *s, const struct join_answer *a, uint64_t now_s,
                       struct error *e)
{
    struct subject subject;
    return join_accept(&s->request, str_of(s->pin.text), &s->server, str_of(a->certificate),
                       str_of(a->roots), now_s, &subject, e);
}

TEST(a_machine_joins_once)
{
    struct stage s cleanup(stage_done);
    stage_make(&s);
    CHECK_STR(s.server.cluster, "prod");
    struct join_answer a cleanup(join_answer_done) = {0};
    struct error e = {0};
    REQUIRE(answer(&s, NOW_S + 10, &a, &e) == ERR_OK);
    CHECK(a.has_burned);
    CHECK_EQ(a.burned.used_s, NOW_S + 10);
    CHECK_STR(a.burned.used_by, "w-1");
    CHECK_EQ(s.record.used_s, 0); /* pure: the caller stores it */
    struct subject subject;
    REQUIRE(join_accept(&s.request, str_of(s.pin.text), &s.server, str_of(a.certificate),
                        str_of(a.roots), NOW_S + 10, &subject, &e) == ERR_OK);
    CHECK_STR(subject.name, "w-1");
    CHECK_EQ(subject.role, NODE_WORKER);

    /* another machine with the same token */
    EVP_PKEY *other cleanup(key_free) = key_make();
    struct buf csr cleanup(buf_done) = {0};
    csr_append_pem(other, &csr);
    s.record = a.burned;
    s.request.csr = buf_str(&csr);
    struct join_answer b cleanup(join_answer_done) = {0};
    CHECK_EQ(answer(&s, NOW_S + 11, &b, &e), ERR_CONFLICT);
    CHECK(b.certificate == NULL);
    s.request.csr = buf_str(&s.csr);
    s.request.name = STR("w-2"); /* the same machine under another name */
    CHECK_EQ(answer(&s, NOW_S + 11, &b, &e), ERR_CONFLICT);
}

TEST(a_lost_answer_is_given_again_to_the_same_key)
{
    struct stage s cleanup(stage_done);
    stage_make(&s);
    struct join_answer a cleanup(join_answer_done) = {0}, b cleanup(join_answer_done) = {0},
                         c = {0};
    struct error e = {0};
    enum token_verdict verdict;
    REQUIRE(answer(&s, NOW_S + 10, &a, &e) == ERR_OK);
    s.record = a.burned;
    /* the name is its own by now */
    REQUIRE(join_answer(&s.bundle, &s.record, true, &s.request, NOW_S + 20, 0, &b, &verdict, &e) ==
            ERR_OK);
    CHECK_EQ(verdict, TOKEN_GOOD);
    CHECK(!b.has_burned);
    CHECK_EQ(accept(&s, &b, NOW_S + 20, &e), ERR_OK);
    CHECK_EQ(answer(&s, s.record.expires_s, &c, &e), ERR_CONFLICT);
}

TEST(each_wrong_token_has_its_own_answer)
{
    struct stage s cleanup(stage_done);
    stage_make(&s);
    struct join_answer a = {0};
    struct error e = {0};
    enum token_verdict verdict;
    struct join_request r = s.request;
    r.token = STR("hello");
    CHECK_EQ(join_answer(&s.bundle, &s.record, false, &r, NOW_S, 0, &a, &verdict, &e), ERR_INVALID);
    CHECK_EQ(verdict, TOKEN_MALFORMED);
    CHECK_EQ(join_answer(&s.bundle, NULL, false, &s.request, NOW_S, 0, &a, &verdict, &e),
             ERR_NOT_FOUND);
    CHECK_EQ(verdict, TOKEN_UNKNOWN);
    char wrong[TOKEN_TEXT_BYTES];
    memcpy(wrong, s.token, sizeof(wrong));
    wrong[20] = wrong[20] == 'a' ? 'b' : 'a';
    r.token = str_of(wrong);
    CHECK_EQ(join_answer(&s.bundle, &s.record, false, &r, NOW_S, 0, &a, &verdict, &e),
             ERR_PERMISSION);
    CHECK_EQ(verdict, TOKEN_WRONG_SECRET);
    CHECK_EQ(
        join_answer(&s.bundle, &s.record, false, &s.request, NOW_S + 3600, 0, &a, &verdict, &e),
        ERR_STALE);
    CHECK_EQ(verdict, TOKEN_EXPIRED);
    r = s.request;
    r.role = NODE_CONTROL_PLANE;
    CHECK_EQ(join_answer(&s.bundle, &s.record, false, &r, NOW_S, 0, &a, &verdict, &e),
             ERR_PERMISSION);
    CHECK_EQ(verdict, TOKEN_OTHER_ROLE);
    CHECK(a.certificate == NULL && a.roots == NULL);
}

TEST(a_node_keeps_its_place_unless_the_token_is_for_it)
{
    struct stage s cleanup(stage_done);
    stage_make(&s);
    struct join_answer a cleanup(join_answer_done) = {0};
    struct error e = {0};
    enum token_verdict verdict;
    CHECK_EQ(join_answer(&s.bundle, &s.record, true, &s.request, NOW_S, 0, &a, &verdict, &e),
             ERR_EXISTS);
    CHECK_STR(e.field, "name");
    CHECK(strstr(e.text, "token create --role worker --name w-1'") != NULL);
    struct token_order order = {.role = NODE_WORKER, .name = STR("w-1")};
    REQUIRE(token_make(&order, NOW_S, &s.record, s.token, NULL) == ERR_OK);
    CHECK_EQ(join_answer(&s.bundle, &s.record, true, &s.request, NOW_S, 0, &a, &verdict, &e),
             ERR_OK);
}

TEST(requests_that_make_no_sense_do_not_burn_the_token)
{
    struct stage s cleanup(stage_done);
    stage_make(&s);
    struct join_answer a = {0};
    struct error e = {0};
    struct str host = STR("10.0.0.1");
    struct join_request good = s.request;
    s.request.csr = STR("-----BEGIN NOTHING-----\n");
    CHECK_EQ(answer(&s, NOW_S, &a, &e), ERR_INVALID);
    CHECK_STR(e.field, "csr");
    s.request = good;
    s.request.name = STR("a/b");
    CHECK_EQ(answer(&s, NOW_S, &a, &e), ERR_INVALID);
    CHECK_STR(e.field, "name");
    s.request = good;
    s.request.hosts = &host, s.request.host_count = 1;
    CHECK_EQ(answer(&s, NOW_S, &a, &e), ERR_INVALID);
    CHECK_STR(e.field, "hosts");
    CHECK(!a.has_burned);
}

TEST(a_server_that_is_not_pinned_is_not_trusted)
{
    struct stage s cleanup(stage_done), other cleanup(stage_done);
    stage_make(&s);
    stage_make(&other); /* another cluster of the same name */
    struct subject server;
    struct error e = {0};
    CHECK_EQ(join_check_server(other.chain, 2, str_of(s.pin.text), NOW_S, &server, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, other.pin.text) != NULL && strstr(e.text, s.pin.text) != NULL);
    /* somebody shows the right authority beside a certificate that it never signed */
    X509 *mixed[2] = {other.chain[0], s.chain[1]};
    CHECK_EQ(join_check_server(mixed, 2, str_of(s.pin.text), NOW_S, &server, &e), ERR_PERMISSION);
    CHECK_EQ(join_check_server(s.chain, 1, str_of(s.pin.text), NOW_S, &server, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "shows no cluster's authority") != NULL);
    CHECK_EQ(join_check_server(NULL, 0, str_of(s.pin.text), NOW_S, &server, &e), ERR_PERMISSION);
    CHECK_EQ(join_check_server(s.chain, 2, STR("sha256:12"), NOW_S, &server, &e), ERR_INVALID);
    CHECK_STR(e.field, "ca-hash");
    /* a worker of the right cluster that plays control plane */
    X509 *worker cleanup(certificate_free) = issue_node(&s.bundle, NODE_WORKER, "w", NOW_S);
    X509 *as_worker[2] = {worker, s.chain[1]};
    CHECK_EQ(join_check_server(as_worker, 2, str_of(s.pin.text), NOW_S, &server, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "that of worker 'w'") != NULL);
    /* the root itself as server */
    X509 *roots[2] = {s.chain[1], s.chain[1]};
    CHECK(join_check_server(roots, 2, str_of(s.pin.text), NOW_S, &server, &e) != ERR_OK);
    /* clocks */
    CHECK_EQ(join_check_server(s.chain, 2, str_of(s.pin.text), NOW_S - 3600, &server, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "clock") != NULL);
    CHECK_EQ(join_check_server(s.chain, 2, str_of(s.pin.text), NOW_S + 3600, &server, &e), ERR_OK);
}

TEST(an_answer_to_something_else_is_not_taken)
{
    struct stage s cleanup(stage_done), other cleanup(stage_done);
    stage_make(&s);
    stage_make(&other);
    struct join_answer a cleanup(join_answer_done) = {0}, b cleanup(join_answer_done) = {0};
    struct error e = {0};
    REQUIRE(answer(&s, NOW_S, &a, &e) == ERR_OK && answer(&other, NOW_S, &b, &e) == ERR_OK);
    CHECK_EQ(accept(&s, &b, NOW_S, &e), ERR_PERMISSION); /* of another authority */
    CHECK(strstr(e.text, "not among its roots") != NULL);
    struct join_answer mixed = {.certificate = b.certificate, .roots = a.roots};
    CHECK_EQ(accept(&s, &mixed, NOW_S, &e), ERR_PERMISSION);
    CHECK_EQ(accept(&s, &a, NOW_S - 3600, &e),
             ERR_PERMISSION); /* the joiner's clock is an hour behind */
    CHECK(strstr(e.text, "is one of the clocks wrong?") != NULL);
    CHECK_EQ(accept(&s, &a, NOW_S + 3600, &e), ERR_OK);

    X509 *foreign cleanup(certificate_free) = issue_node(&s.bundle, NODE_WORKER, "w-1", NOW_S);
    X509 *renamed cleanup(certificate_free) = issue_node(&s.bundle, NODE_WORKER, "w-9", NOW_S);
    struct buf text cleanup(buf_done) = {0};
    certificate_append_pem(foreign, &text);
    struct subject subject;
    CHECK_EQ(join_accept(&s.request, str_of(s.pin.text), &s.server, buf_str(&text), str_of(a.roots),
                         NOW_S, &subject, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "another key") != NULL);
    text.bytes = 0;
    certificate_append_pem(renamed, &text);
    CHECK_EQ(join_accept(&s.request, str_of(s.pin.text), &s.server, buf_str(&text), str_of(a.roots),
                         NOW_S, &subject, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "worker 'w-9'") != NULL);
}

TEST(a_renewal_keeps_the_name_and_brings_new_roots)
{
    struct stage s cleanup(stage_done);
    stage_make(&s);
    struct join_answer a cleanup(join_answer_done) = {0};
    struct error e = {0};
    struct subject peer;
    REQUIRE(subject_make(STR("prod"), NODE_WORKER, STR("w-1"), &peer, NULL) == ERR_OK);
    REQUIRE(authority_bundle_begin(&s.bundle, NOW_S, &e) == ERR_OK);
    REQUIRE(renew_answer(&s.bundle, &peer, buf_str(&s.csr), NULL, 0, NOW_S + 100, 3600, &a, &e) ==
            ERR_OK);
    CHECK(!a.has_burned);
    struct roots roots cleanup(roots_done) = {0};
    REQUIRE(roots_from_pem(str_of(a.roots), &roots, &e) == ERR_OK);
    CHECK_EQ(roots.count, 2);
    CHECK_EQ(accept(&s, &a, NOW_S + 3600, &e), ERR_OK);
    CHECK_EQ(accept(&s, &a, NOW_S + 3800, &e), ERR_PERMISSION);
    /* a peer of another cluster cannot have come this far, and gets nothing */
    struct join_answer b = {0};
    strcpy(peer.cluster, "test");
    CHECK_EQ(renew_answer(&s.bundle, &peer, buf_str(&s.csr), NULL, 0, NOW_S, 0, &b, &e),
             ERR_INVALID);
}
