/* authority_test.c - roots, what they sign, rotation. */
#include "keys/authority.h"
#include "keys/fixture.h"
#include "keys/key_file.h"
#include "keys/pem.h"
#include "test.h"
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

TEST(a_root_is_for_ten_years_and_has_the_cluster_in_its_subject)
{
    struct authority *a cleanup(authority_free) = make_authority("prod");
    char cluster[CLUSTER_NAME_BYTES_MAX + 1];
    struct certificate_times times;
    REQUIRE(root_check(authority_certificate(a), cluster, NULL) == ERR_OK);
    CHECK_STR(cluster, "prod");
    REQUIRE(certificate_times_of(authority_certificate(a), &times, NULL) == ERR_OK);
    CHECK_EQ(times.not_before_s, NOW_S - 300);
    CHECK_EQ(times.not_after_s, NOW_S + 3650ull * 24 * 3600);
    struct pin pin = authority_pin(a);
    CHECK(pin_check(str_of(pin.text), NULL) == ERR_OK);
    CHECK_EQ(strlen(pin.text), 71);
}

TEST(a_cluster_has_a_name_that_fits_a_certificate)
{
    static const char *const wrong[] = {
        "",    "-a",  "a-", "A",
        "a b", "a/b", "ü",  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct authority *a cleanup(authority_free) = NULL;
        struct error e = {0};
        CHECK_EQ(authority_make(str_of(wrong[i]), NOW_S, &a, &e), ERR_INVALID);
        CHECK_STR(e.field, "cluster");
    }
}

TEST(an_issued_certificate_is_believed_and_names_its_node)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    X509 *x cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w-1.example", NOW_S);
    struct roots roots cleanup(roots_done) = roots_of(&b);
    struct subject subject;
    struct error e = {0};
    REQUIRE(certificate_verify(x, &roots, NOW_S, &subject, &e) == ERR_OK);
    CHECK_STR(subject.cluster, "prod");
    CHECK_EQ(subject.role, NODE_WORKER);
    CHECK_STR(subject.name, "w-1.example");
    struct certificate_times times;
    REQUIRE(certificate_times_of(x, &times, NULL) == ERR_OK);
    CHECK_EQ(times.not_before_s, NOW_S - 300);
    CHECK_EQ(times.not_after_s, NOW_S + 24 * 3600);
    CHECK_EQ(X509_get_version(x), X509_VERSION_3);
    CHECK(X509_get_key_usage(x) == X509v3_KU_DIGITAL_SIGNATURE);
    CHECK(X509_get_extended_key_usage(x) == (XKU_SSL_SERVER | XKU_SSL_CLIENT));
}

TEST(serial_numbers_are_long_and_differ)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    X509 *one cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", NOW_S);
    X509 *two cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", NOW_S);
    const ASN1_INTEGER *a = X509_get0_serialNumber(one), *c = X509_get0_serialNumber(two);
    CHECK(ASN1_INTEGER_cmp(a, c) != 0);
    CHECK(ASN1_STRING_length(a) >= 12); /* 128 random bits: shorter once in 2^32 */
    CHECK(ASN1_STRING_length(a) <= 16);
}

TEST(clocks_an_hour_apart_are_told_in_the_sentence)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    struct roots roots cleanup(roots_done) = roots_of(&b);
    X509 *x cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", NOW_S + 7200);
    struct subject subject;
    struct error e = {0};
    /* the other side's clock is an hour behind the signer's */
    CHECK_EQ(certificate_verify(x, &roots, NOW_S + 3600, &subject, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "valid only from 2023-11-15 00:08:20 UTC") != NULL);
    CHECK(strstr(e.text, "this machine's clock says 2023-11-14 23:13:20 UTC") != NULL);
    /* four minutes behind, an hour ahead, and at the end of its life */
    CHECK_EQ(certificate_verify(x, &roots, NOW_S + 7200 - 240, &subject, &e), ERR_OK);
    CHECK_EQ(certificate_verify(x, &roots, NOW_S + 7200 + 3600, &subject, &e), ERR_OK);
    CHECK_EQ(certificate_verify(x, &roots, NOW_S + 7200 + 24 * 3600 - 1, &subject, &e), ERR_OK);
    CHECK_EQ(certificate_verify(x, &roots, NOW_S + 7200 + 25 * 3600, &subject, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "its certificate ended at 2023-11-16") != NULL);
}

TEST(another_clusters_authority_is_not_believed)
{
    struct authority_bundle ours cleanup(authority_bundle_done) = make_bundle("prod");
    struct authority_bundle same_name cleanup(authority_bundle_done) = make_bundle("prod");
    struct authority_bundle other cleanup(authority_bundle_done) = make_bundle("test");
    struct roots roots cleanup(roots_done) = roots_of(&ours);
    X509 *x cleanup(certificate_free) = issue_node(&same_name, NODE_WORKER, "w", NOW_S);
    X509 *y cleanup(certificate_free) = issue_node(&other, NODE_WORKER, "w", NOW_S);
    struct subject subject;
    struct error e = {0};
    CHECK_EQ(certificate_verify(x, &roots, NOW_S, &subject, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "not trusted here") != NULL);
    CHECK_EQ(certificate_verify(y, &roots, NOW_S, &subject, &e), ERR_PERMISSION);
    /* and a root is nobody's certificate of a node, not even with itself as root */
    CHECK(certificate_verify(authority_certificate(ours.items[0]), &roots, NOW_S, &subject, &e) !=
          ERR_OK);
}

TEST(the_names_in_a_request_are_ignored)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf csr cleanup(buf_done) = {0};
    csr_with_names(key, "CN=root", "URI:dirigent://prod/control-plane/boss", &csr);
    struct issue_order order = order_of("prod", NODE_WORKER, "w");
    X509 *x cleanup(certificate_free) = issue(&b, buf_str(&csr), &order, NOW_S);
    struct subject subject;
    REQUIRE(certificate_subject(x, &subject, NULL) == ERR_OK);
    CHECK_EQ(subject.role, NODE_WORKER);
    CHECK_STR(subject.name, "w");
    char *line = X509_NAME_oneline(X509_get_subject_name(x), NULL, 0);
    CHECK_STR(line, "/O=prod/OU=worker/CN=w");
    OPENSSL_free(line);
}

TEST(other_kinds_of_keys_are_refused)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    struct issue_order order = order_of("prod", NODE_WORKER, "w");
    EVP_PKEY *wrong[] = {EVP_EC_gen("secp384r1"), EVP_EC_gen("secp256k1"), EVP_RSA_gen(2048),
                         EVP_PKEY_Q_keygen(NULL, NULL, "ED448"), key_with_explicit_curve()};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct buf csr cleanup(buf_done) = {0}, out cleanup(buf_done) = {0};
        struct error e = {0};
        REQUIRE(wrong[i] != NULL);
        csr_with_names(wrong[i], "CN=w", NULL, &csr);
        CHECK_EQ(authority_issue(b.items[0], buf_str(&csr), &order, NOW_S, &out, &e),
                 ERR_UNSUPPORTED);
        CHECK_STR(e.field, "csr");
        CHECK_EQ(out.bytes, 0);
        key_free(&wrong[i]);
    }
    EVP_PKEY *ed cleanup(key_free) = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    struct buf csr cleanup(buf_done) = {0};
    csr_append_pem(ed, &csr);
    struct roots roots cleanup(roots_done) = roots_of(&b);
    X509 *x cleanup(certificate_free) = issue(&b, buf_str(&csr), &order, NOW_S);
    struct subject subject;
    CHECK_EQ(certificate_verify(x, &roots, NOW_S, &subject, NULL), ERR_OK);
}

TEST(a_request_must_prove_its_key)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    struct issue_order order = order_of("prod", NODE_WORKER, "w");
    struct buf csr cleanup(buf_done) = {0}, out cleanup(buf_done) = {0},
                   der cleanup(buf_done) = {0};
    EVP_PKEY *key cleanup(key_free) = key_make(), *other cleanup(key_free) = key_make();
    csr_signed_by(key, other, &csr);
    struct error e = {0};
    CHECK_EQ(authority_issue(b.items[0], buf_str(&csr), &order, NOW_S, &out, &e), ERR_INVALID);
    CHECK(strstr(e.text, "not by its own key") != NULL);

    csr.bytes = 0;
    csr_append_pem(key, &csr);
    der_of_pem(buf_str(&csr), &der);
    CHECK_EQ(authority_issue(b.items[0], buf_str(&der), &order, NOW_S, &out, &e), ERR_OK);
    out.bytes = 0;
    buf_append(&der, "", 1); /* something behind it */
    CHECK_EQ(authority_issue(b.items[0], buf_str(&der), &order, NOW_S, &out, &e), ERR_INVALID);
    CHECK_EQ(authority_issue(b.items[0], STR_NONE, &order, NOW_S, &out, &e), ERR_INVALID);
    char *large cleanup(free_pointer) = mem_new(CSR_BYTES_MAX + 1);
    CHECK_EQ(authority_issue(b.items[0], (struct str){large, CSR_BYTES_MAX + 1}, &order, NOW_S,
                             &out, &e),
             ERR_TOO_LARGE);
    CHECK_EQ(out.bytes, 0);
}

TEST(orders_that_make_no_sense_are_refused_by_field)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf csr cleanup(buf_done) = {0}, out cleanup(buf_done) = {0};
    csr_append_pem(key, &csr);
    struct str host = STR("10.0.0.1"), wild = STR("*.example"), under = STR("a_b"), empty = STR("");
    struct {
        struct issue_order order;
        const char *field;
    } cases[] = {
        {order_of("test", NODE_WORKER, "w"), "cluster"},
        {order_of("prod", NODE_NONE, "w"), "role"},
        {order_of("prod", NODE_WORKER, ""), "name"},
        {order_of("prod", NODE_WORKER, "../w"), "name"},
        {order_of("prod", NODE_WORKER, "w"), "hosts"},
        {order_of("prod", NODE_CONTROL_PLANE, "c"), "hosts"},
        {order_of("prod", NODE_CONTROL_PLANE, "c"), "hosts"},
        {order_of("prod", NODE_CONTROL_PLANE, "c"), "hosts"},
        {order_of("prod", NODE_WORKER, "w"), "lifetime"},
        {order_of("prod", NODE_WORKER, "w"), "lifetime"},
    };
    cases[4].order.hosts = &host, cases[4].order.host_count = 1;
    cases[5].order.hosts = &wild, cases[5].order.host_count = 1;
    cases[6].order.hosts = &under, cases[6].order.host_count = 1;
    cases[7].order.hosts = &empty, cases[7].order.host_count = 1;
    cases[8].order.lifetime_s = 59;
    cases[9].order.lifetime_s = UINT64_MAX;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct error e = {0};
        CHECK_EQ(authority_issue(b.items[0], buf_str(&csr), &cases[i].order, NOW_S, &out, &e),
                 ERR_INVALID);
        CHECK_STR(e.field, cases[i].field);
        CHECK_EQ(out.bytes, 0);
    }
}

TEST(a_control_planes_certificate_names_its_hosts)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf csr cleanup(buf_done) = {0};
    csr_append_pem(key, &csr);
    struct str hosts[] = {STR("10.0.0.1"), STR("fd00::1"), STR("cp-1.example")};
    struct issue_order order = order_of("prod", NODE_CONTROL_PLANE, "cp-1");
    order.hosts = hosts, order.host_count = 3;
    X509 *x cleanup(certificate_free) = issue(&b, buf_str(&csr), &order, NOW_S);
    CHECK_EQ(X509_check_ip_asc(x, "10.0.0.1", 0), 1);
    CHECK_EQ(X509_check_ip_asc(x, "fd00::1", 0), 1);
    CHECK_EQ(X509_check_ip_asc(x, "10.0.0.2", 0), 0);
    CHECK_EQ(X509_check_host(x, "cp-1.example", 0, 0, NULL), 1);
    CHECK_EQ(X509_check_host(x, "cp-2.example", 0, 0, NULL), 0);
}

TEST(nothing_outlives_its_authority_or_is_signed_after_its_end)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    uint64_t end_s = NOW_S + AUTHORITY_LIFETIME_S;
    X509 *x cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", end_s - 3600);
    struct certificate_times times;
    REQUIRE(certificate_times_of(x, &times, NULL) == ERR_OK);
    CHECK_EQ(times.not_after_s, end_s);
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf csr cleanup(buf_done) = {0}, out cleanup(buf_done) = {0};
    csr_append_pem(key, &csr);
    struct issue_order order = order_of("prod", NODE_WORKER, "w");
    struct error e = {0};
    CHECK_EQ(authority_issue(b.items[0], buf_str(&csr), &order, end_s + 1, &out, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "authority ended at") != NULL);
    /* an authority made an hour ago by this machine's clock of the future */
    CHECK_EQ(authority_issue(b.items[0], buf_str(&csr), &order, NOW_S - 3600, &out, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "is it wrong?") != NULL);
}
