/* pem_test.c - PEM, keys, names, digests. */
#include "keys/fixture.h"
#include "keys/pem.h"
#include "keys/secret.h"
#include "test.h"
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdlib.h>

/* ---- PEM ---- */

PROPERTY(what_is_written_is_read)
{
    uint8_t der[300];
    size_t bytes = 1 + rng_below(rng, sizeof(der));
    for (size_t i = 0; i < bytes; i++)
        der[i] = (uint8_t)rng_next(rng);
    struct buf text cleanup(buf_done) = {0};
    enum pem_kind kind = (enum pem_kind)rng_below(rng, PEM_KIND_COUNT);
    buf_printf(&text, "# a comment\n\n");
    pem_append(&text, kind, der, bytes);
    struct pem_block block cleanup(pem_block_done) = {0};
    REQUIRE(pem_only(buf_str(&text), kind, &block, NULL) == ERR_OK);
    CHECK_EQ(block.bytes, bytes);
    CHECK(memcmp(block.der, der, bytes) == 0);
}

TEST(only_strict_pem_is_taken)
{
    static const char *const wrong[] = {
        "hello",
        "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAA==AAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAA==\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nA===\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAB==\n-----END CERTIFICATE-----\n", /* bits that stand for
                                                                             nothing */
        "-----BEGIN CERTIFICATE-----\nAA A\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE----- \nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nrest\n",
    };
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct pem_block block = {0};
        struct error e = {0};
        if (pem_only(str_of(wrong[i]), PEM_CERTIFICATE, &block, &e) != ERR_INVALID ||
            e.text[0] == '\0')
            test_fail(__FILE__, __LINE__, "taken: %s", wrong[i]);
    }
    struct pem_block block cleanup(pem_block_done) = {0};
    CHECK_EQ(pem_only(STR("-----BEGIN CERTIFICATE-----\r\nAAE=\r\n-----END CERTIFICATE-----"),
                      PEM_CERTIFICATE, &block, NULL),
             ERR_OK);
    CHECK_EQ(block.bytes, 2);
    struct error e = {0};
    CHECK_EQ(pem_only(STR("-----BEGIN EC PRIVATE KEY-----\nAAAA\n"), PEM_PRIVATE_KEY, &block, &e),
             ERR_INVALID);
    CHECK(strstr(e.text, "PKCS#8") != NULL);
}

/* ---- damage: refused, or the same thing still ---- */

static void damage(struct buf *text, struct rng *rng)
{
    size_t at = rng_below(rng, text->bytes);
    switch (rng_below(rng, 4)) {
    case 0:
        text->data[at] = (char)(text->data[at] ^ (1 << rng_below(rng, 8)));
        break;
    case 1:
        text->data[at] = (char)rng_next(rng);
        break;
    case 2:
        text->data[at] = "ABCxyz019+/=\n-#"[rng_below(rng, 15)];
        break;
    default:
        text->bytes = at;
    }
}

/* Both halves: EVP_PKEY_eq() looks at the public one only. */
static bool same_key(const EVP_PKEY *a, const EVP_PKEY *b)
{
    BIGNUM *x = NULL, *y = NULL;
    REQUIRE(EVP_PKEY_get_bn_param(a, OSSL_PKEY_PARAM_PRIV_KEY, &x) == 1);
    REQUIRE(EVP_PKEY_get_bn_param(b, OSSL_PKEY_PARAM_PRIV_KEY, &y) == 1);
    bool same = EVP_PKEY_eq(a, b) == 1 && BN_cmp(x, y) == 0;
    BN_clear_free(x);
    BN_clear_free(y);
    return same;
}

PROPERTY(a_damaged_key_is_refused_or_the_same)
{
    EVP_PKEY *key cleanup(key_free) = key_make(), *read cleanup(key_free) = NULL;
    struct buf text cleanup(buf_done) = {0};
    struct error e = {0};
    key_append_pem(key, &text);
    for (int i = 0; i < 20; i++) {
        struct buf copy cleanup(buf_done) = {0};
        buf_append_str(&copy, buf_str(&text));
        damage(&copy, rng);
        key_free(&read);
        if (key_from_pem(buf_str(&copy), &read, &e) != ERR_OK) {
            CHECK(e.text[0] != '\0');
            continue;
        }
        CHECK(same_key(read, key));
    }
}

static bool same_certificate(X509 *a, X509 *b)
{
    return X509_cmp(a, b) == 0;
}

PROPERTY(a_damaged_certificate_is_not_believed_or_the_same)
{
    static struct authority_bundle b; /* made once */
    static struct roots roots;
    static struct buf text;
    static X509 *x;
    if (text.bytes == 0) {
        b = make_bundle("prod");
        roots = roots_of(&b);
        x = issue_node(&b, NODE_WORKER, "w", NOW_S);
        certificate_append_pem(x, &text);
    }
    struct buf copy cleanup(buf_done) = {0};
    buf_append_str(&copy, buf_str(&text));
    damage(&copy, rng);
    X509 *read cleanup(certificate_free) = NULL;
    struct subject subject;
    struct error e = {0};
    enum err err = certificate_from_pem(buf_str(&copy), &read, &e);
    if (err == ERR_OK)
        err = certificate_verify(read, &roots, NOW_S, &subject, &e);
    if (err == ERR_OK)
        CHECK(same_certificate(read, x));
    else
        CHECK(e.text[0] != '\0');
}

PROPERTY(damaged_roots_are_refused_or_the_same)
{
    static struct buf text;
    if (text.bytes == 0) {
        struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
        REQUIRE(authority_bundle_begin(&b, NOW_S, NULL) == ERR_OK);
        authority_bundle_roots(&b, &text);
    }
    struct buf copy cleanup(buf_done) = {0}, again cleanup(buf_done) = {0};
    buf_append_str(&copy, buf_str(&text));
    damage(&copy, rng);
    struct roots roots cleanup(roots_done) = {0};
    struct error e = {0};
    if (roots_from_pem(buf_str(&copy), &roots, &e) != ERR_OK) {
        CHECK(e.text[0] != '\0');
        return;
    }
    roots_append_pem(&roots, &again);
    /* a cut at the border of two blocks leaves one whole root: that is what a file with one looks
     * like */
    CHECK(str_has_prefix(buf_str(&text), buf_str(&again)));
}

PROPERTY(a_damaged_request_is_refused_or_for_the_same_key)
{
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf text cleanup(buf_done) = {0};
    csr_append_pem(key, &text);
    for (int i = 0; i < 10; i++) {
        struct buf copy cleanup(buf_done) = {0};
        EVP_PKEY *read cleanup(key_free) = NULL;
        struct error e = {0};
        buf_append_str(&copy, buf_str(&text));
        damage(&copy, rng);
        if (csr_read(buf_str(&copy), &read, &e) == ERR_OK)
            CHECK_EQ(EVP_PKEY_eq(read, key), 1);
        else
            CHECK_STR(e.field, "csr");
    }
}

/* ---- names ---- */

TEST(a_subject_is_its_uri)
{
    struct subject s, t;
    char uri[SUBJECT_URI_BYTES];
    REQUIRE(subject_make(STR("prod"), NODE_CONTROL_PLANE, STR("cp-1.example_x"), &s, NULL) ==
            ERR_OK);
    subject_uri(&s, uri);
    CHECK_STR(uri, "dirigent://prod/control-plane/cp-1.example_x");
    REQUIRE(subject_from_uri(str_of(uri), &t, NULL) == ERR_OK);
    CHECK(subject_equal(&s, &t));
    static const char *const wrong[] = {"",
                                        "dirigent://",
                                        "dirigent://prod",
                                        "dirigent://prod/worker",
                                        "dirigent://prod/worker/",
                                        "dirigent://prod/none/w",
                                        "dirigent://prod/root/w",
                                        "dirigent://prod/worker/w/x",
                                        "dirigent:///worker/w",
                                        "DIRIGENT://prod/worker/w",
                                        "dirigent://Prod/worker/w",
                                        "dirigent://prod/worker/w?x",
                                        "dirigent://prod/worker/..",
                                        "http://prod/worker/w",
                                        "dirigent://prod/Worker/w",
                                        "dirigent://prod//w",
                                        "dirigent://prod/worker/-w"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++)
        if (subject_from_uri(str_of(wrong[i]), &t, NULL) != ERR_INVALID)
            test_fail(__FILE__, __LINE__, "taken: '%s'", wrong[i]);
    CHECK_EQ(subject_from_uri((struct str){"dirigent://prod/worker/w\0x", 26}, &t, NULL),
             ERR_INVALID);
}

TEST(the_longest_names_fit)
{
    char cluster[CLUSTER_NAME_BYTES_MAX + 1] = "", name[NODE_NAME_BYTES_MAX + 1] = "",
                                          uri[SUBJECT_URI_BYTES];
    memset(cluster, 'c', CLUSTER_NAME_BYTES_MAX);
    memset(name, 'n', NODE_NAME_BYTES_MAX);
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle(cluster);
    struct roots roots cleanup(roots_done) = roots_of(&b);
    X509 *x cleanup(certificate_free) = issue_node(&b, NODE_CONTROL_PLANE, name, NOW_S);
    struct subject s;
    REQUIRE(certificate_verify(x, &roots, NOW_S, &s, NULL) == ERR_OK);
    subject_uri(&s, uri);
    CHECK_EQ(strlen(uri), SUBJECT_URI_BYTES - 1);
    CHECK_STR(s.name, name);
}

TEST(a_certificate_of_another_role_is_told_with_both)
{
    struct subject is, wanted = {.role = NODE_CONTROL_PLANE};
    struct error e = {0};
    REQUIRE(subject_make(STR("prod"), NODE_WORKER, STR("w-1"), &is, NULL) == ERR_OK);
    CHECK_EQ(subject_expect(&is, &wanted, &e), ERR_PERMISSION);
    CHECK_STR(
        e.text,
        "its certificate is that of worker 'w-1' of cluster 'prod', and not of control-plane");
    wanted = (struct subject){.role = NODE_WORKER, .name = "w-2", .cluster = "prod"};
    CHECK_EQ(subject_expect(&is, &wanted, &e), ERR_PERMISSION);
    CHECK_STR(e.text, "its certificate is that of worker 'w-1' of cluster 'prod', and not of "
                      "worker 'w-2' of cluster 'prod'");
    wanted = (struct subject){.cluster = "prod"};
    CHECK_EQ(subject_expect(&is, &wanted, &e), ERR_OK);
}

/* ---- secrets ---- */

PROPERTY(secrets_are_of_their_form_and_never_the_same)
{
    char a[SECRET_CHARS + 1], b[SECRET_CHARS + 1], id[SECRET_ID_CHARS + 1];
    secret_make(a);
    secret_make(b);
    secret_make_id(id);
    CHECK(secret_is_text(str_of(a)) && secret_is_text(str_of(b)) && secret_is_id(str_of(id)));
    CHECK(strcmp(a, b) != 0);
}

TEST(digests_are_those_of_fips_180)
{
    uint8_t digest[DIGEST_BYTES], back[DIGEST_BYTES];
    char hex[DIGEST_HEX_CHARS + 1];
    digest_of("abc", 3, digest);
    digest_hex(digest, hex);
    CHECK_STR(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_EQ(digest_from_hex(str_of(hex), back), ERR_OK);
    CHECK(digest_equal(digest, back));
    back[31] ^= 1;
    CHECK(!digest_equal(digest, back));
    hex[5] = 'A';
    CHECK_EQ(digest_from_hex(str_of(hex), back), ERR_INVALID);
    CHECK_EQ(digest_from_hex(STR("ba78"), back), ERR_INVALID);
}
