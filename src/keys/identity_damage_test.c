/* identity_damage_test.c - every byte of each file of an identity, changed at random, one at a
 * time: refused with a sentence that names the directory, or the same key, certificate and roots
 * still. */
#include "keys/authority.h"
#include "keys/fixture.h"
#include "keys/identity.h"
#include "keys/key_file.h"
#include "test.h"
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdlib.h>

static void install(const char *dir, struct identity *ret_identity)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    struct buf csr cleanup(buf_done) = {0}, certificate cleanup(buf_done) = {0},
                   roots cleanup(buf_done) = {0};
    struct issue_order order = order_of("prod", NODE_WORKER, "w-1");
    REQUIRE(identity_request(dir, &csr, NULL) == ERR_OK);
    REQUIRE(authority_issue(b.items[0], buf_str(&csr), &order, NOW_S, &certificate, NULL) ==
            ERR_OK);
    authority_bundle_roots(&b, &roots);
    REQUIRE(identity_install(dir, buf_str(&certificate), buf_str(&roots), &order.subject, NOW_S,
                             NULL) == ERR_OK);
    REQUIRE(identity_load(dir, &order.subject, NOW_S, ret_identity, NULL) == ERR_OK);
}

static bool same_identity(const struct identity *a, const struct identity *b)
{
    return EVP_PKEY_eq(a->key, b->key) == 1 && X509_cmp(a->certificate, b->certificate) == 0 &&
           a->roots.count == 1 && b->roots.count == 1 &&
           X509_cmp(a->roots.items[0], b->roots.items[0]) == 0 &&
           subject_equal(&a->subject, &b->subject);
}

static void damage_each_byte(const char *dir, const char *name, const struct identity *whole,
                             struct rng *rng)
{
    char *path cleanup(free_pointer) = mem_printf("%s/%s", dir, name),
               *text cleanup(free_pointer) = file_text(path);
    size_t bytes = strlen(text), refused = 0;
    for (size_t at = 0; at < bytes; at++) {
        struct identity i cleanup(identity_done) = {0};
        struct subject anyone = {0};
        struct error e = {0};
        char kept = text[at];
        text[at] = (char)(kept + 1 + (char)rng_below(rng, 255));
        REQUIRE(key_file_write(path, 0600, (struct str){text, bytes}, NULL) == ERR_OK);
        text[at] = kept;
        if (identity_load(dir, &anyone, NOW_S, &i, &e) != ERR_OK) {
            refused++;
            CHECK(strstr(e.text, dir) != NULL);
        } else if (!same_identity(&i, whole)) {
            test_fail(__FILE__, __LINE__, "%s: byte %zu changed, and something else was loaded",
                      name, at);
        }
    }
    CHECK(refused + 8 >
          bytes); /* all but what means the same still, as a point's form or a last line's end */
    REQUIRE(key_file_write(path, 0600, (struct str){text, bytes}, NULL) == ERR_OK);
}

TEST(no_changed_byte_of_any_file_is_taken_for_something_else)
{
    char *dir cleanup(scratch_done) = scratch_make();
    struct identity i cleanup(identity_done) = {0};
    struct rng rng;
    rng_init(&rng, 7);
    install(dir, &i);
    damage_each_byte(dir, "tls/key.pem", &i, &rng);
    damage_each_byte(dir, "tls/cert.pem", &i, &rng);
    damage_each_byte(dir, "tls/roots.pem", &i, &rng);
}
