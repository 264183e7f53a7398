/* authority_bundle_test.c - the authority's file, its damage, and rotation. */
#include "keys/fixture.h"
#include "keys/key_file.h"
#include "test.h"
#include <openssl/x509.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static bool same_bundle(const struct authority_bundle *a, const struct authority_bundle *b)
{
    if (a->count != b->count || a->signer != b->signer || a->since_s != b->since_s)
        return false;
    for (unsigned i = 0; i < a->count; i++) {
        struct pin pin = authority_pin(b->items[i]);
        if (!pin_is(&pin, str_of(authority_pin(a->items[i]).text)) ||
            X509_cmp(authority_certificate(a->items[i]), authority_certificate(b->items[i])) != 0)
            return false;
    }
    return true;
}

TEST(what_was_stored_is_loaded_and_still_signs)
{
    char *dir cleanup(scratch_done) = scratch_make();
    char *path cleanup(free_pointer) = mem_printf("%s/ca.pem", dir);
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod"), c = {0};
    struct error e = {0};
    REQUIRE(authority_bundle_begin(&b, NOW_S + 5, &e) == ERR_OK);
    REQUIRE(authority_bundle_store(&b, path, &e) == ERR_OK);
    struct stat st;
    REQUIRE(stat(path, &st) == 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    REQUIRE(authority_bundle_load(path, NOW_S, &c, &e) == ERR_OK);
    CHECK(same_bundle(&b, &c));
    struct roots roots cleanup(roots_done) = roots_of(&b);
    X509 *x cleanup(certificate_free) = issue_node(&c, NODE_DATA_PLANE, "d", NOW_S);
    struct subject subject;
    CHECK_EQ(certificate_verify(x, &roots, NOW_S, &subject, &e), ERR_OK);
    authority_bundle_done(&c);
}

TEST(an_authority_that_others_may_read_is_refused_by_name)
{
    char *dir cleanup(scratch_done) = scratch_make();
    char *path cleanup(free_pointer) = mem_printf("%s/ca.pem", dir);
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod"), c = {0};
    REQUIRE(authority_bundle_store(&b, path, NULL) == ERR_OK);
    static const mode_t modes[] = {0640, 0604, 0620, 0601};
    for (size_t i = 0; i < ARRAY_COUNT(modes); i++) {
        struct error e = {0};
        REQUIRE(chmod(path, modes[i]) == 0);
        CHECK_EQ(authority_bundle_load(path, NOW_S, &c, &e), ERR_PERMISSION);
        CHECK(strstr(e.text, path) != NULL && strstr(e.text, "chmod 600") != NULL);
    }
    REQUIRE(chmod(path, 0400) == 0);
    CHECK_EQ(authority_bundle_load(path, NOW_S, &c, NULL), ERR_OK);
    authority_bundle_done(&c);
}

TEST(files_that_are_none_are_told_by_name)
{
    char *dir cleanup(scratch_done) = scratch_make();
    char *path cleanup(free_pointer) = mem_printf("%s/ca.pem", dir);
    struct authority_bundle b = {0};
    struct error e = {0};
    CHECK_EQ(authority_bundle_load(path, NOW_S, &b, &e), ERR_NOT_FOUND);
    CHECK(strstr(e.text, path) != NULL);
    CHECK_EQ(authority_bundle_load(dir, NOW_S, &b, &e), ERR_INVALID);
    REQUIRE(mkfifo(path, 0600) == 0);
    CHECK_EQ(authority_bundle_load(path, NOW_S, &b, &e), ERR_INVALID);
    CHECK(strstr(e.text, "not a plain file") != NULL);
    REQUIRE(unlink(path) == 0 && key_file_write(path, 0600, STR("hello\n"), NULL) == ERR_OK);
    CHECK_EQ(authority_bundle_load(path, NOW_S, &b, &e), ERR_CORRUPT);
    CHECK(strstr(e.text, path) != NULL);
    char *large cleanup(free_pointer) = mem_new(100000);
    REQUIRE(key_file_write(path, 0600, (struct str){large, 100000}, NULL) == ERR_OK);
    CHECK_EQ(authority_bundle_load(path, NOW_S, &b, &e), ERR_TOO_LARGE);
}

TEST(an_authority_is_loaded_only_while_it_is_valid)
{
    char *dir cleanup(scratch_done) = scratch_make();
    char *path cleanup(free_pointer) = mem_printf("%s/ca.pem", dir);
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod"), c = {0};
    REQUIRE(authority_bundle_store(&b, path, NULL) == ERR_OK);
    struct error e = {0};
    CHECK_EQ(authority_bundle_load(path, NOW_S - 3600, &c, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "ca.pem") != NULL && strstr(e.text, "is it wrong?") != NULL);
    CHECK_EQ(authority_bundle_load(path, NOW_S + AUTHORITY_LIFETIME_S + 3600, &c, &e),
             ERR_PERMISSION);
    CHECK(strstr(e.text, "ended at") != NULL);
}

/* Whatever byte of the file changes, and wherever it is cut: refused. */
PROPERTY(a_damaged_authority_is_refused)
{
    static struct buf text; /* made once: a key costs more than a run */
    if (text.bytes == 0) {
        struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
        REQUIRE(authority_bundle_begin(&b, NOW_S, NULL) == ERR_OK);
        authority_bundle_write(&b, &text);
    }
    struct buf copy cleanup(buf_done) = {0};
    buf_append_str(&copy, buf_str(&text));
    size_t at = rng_below(rng, copy.bytes);
    uint64_t how = rng_below(rng, 4);
    if (how == 0)
        copy.bytes = at;
    else if (how == 1)
        copy.data[at] = (char)(copy.data[at] ^ (1 << rng_below(rng, 8)));
    else if (how == 2)
        copy.data[at] = (char)(copy.data[at] + 1 + (char)rng_below(rng, 255));
    else
        buf_append(&copy, "\n", 1);
    struct authority_bundle c = {0};
    struct error e = {0};
    enum err err = authority_bundle_read(buf_str(&copy), &c, &e);
    CHECK(err == ERR_CORRUPT || err == ERR_VERSION);
    CHECK(e.text[0] != '\0');
}

TEST(a_newer_format_is_told)
{
    struct authority_bundle b = {0};
    struct error e = {0};
    CHECK_EQ(authority_bundle_read(STR("# dirigent authority 2 of the future\n"), &b, &e),
             ERR_VERSION);
    CHECK(strstr(e.text, "newer version") != NULL);
}

static enum err believes(const struct authority_bundle *b, X509 *x, uint64_t now_s)
{
    struct roots roots cleanup(roots_done) = roots_of(b);
    struct subject subject;
    return certificate_verify(x, &roots, now_s, &subject, NULL);
}

TEST(a_rotation_never_leaves_anybody_out)
{
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("prod");
    struct roots only_old cleanup(roots_done) = roots_of(&b), only_new cleanup(roots_done) = {0};
    uint64_t day = 24 * 3600, now = NOW_S;
    X509 *old cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", now);
    struct error e = {0};
    struct subject subject;
    CHECK_EQ(authority_bundle_switch(&b, now, 0, false, &e), ERR_CONFLICT);
    CHECK_EQ(authority_bundle_finish(&b, now, 0, false, &e), ERR_CONFLICT);

    REQUIRE(authority_bundle_begin(&b, now, &e) == ERR_OK);
    CHECK_EQ(authority_bundle_begin(&b, now, &e), ERR_CONFLICT);
    CHECK_EQ(b.count, 2);
    X509 *meanwhile cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", now);
    CHECK_EQ(certificate_verify(meanwhile, &only_old, now, &subject, &e),
             ERR_OK); /* the old one signs */
    CHECK_EQ(authority_bundle_finish(&b, now + day, 0, false, &e), ERR_CONFLICT);
    CHECK_EQ(authority_bundle_switch(&b, now + day - 1, 0, false, &e), ERR_BUSY);
    CHECK(strstr(e.text, "before 2023-11-15 22:13:20 UTC") != NULL);

    now += day;
    REQUIRE(authority_bundle_switch(&b, now, 0, false, &e) == ERR_OK);
    CHECK_EQ(authority_bundle_switch(&b, now + day, 0, false, &e), ERR_CONFLICT);
    X509 *new cleanup(certificate_free) = issue_node(&b, NODE_WORKER, "w", now);
    CHECK_EQ(certificate_verify(new, &only_old, now, &subject, &e),
             ERR_PERMISSION); /* the new one signs */
    CHECK_EQ(believes(&b, new, now), ERR_OK);
    CHECK_EQ(believes(&b, old, now - 10), ERR_OK); /* and the old one is trusted */
    CHECK_EQ(authority_bundle_finish(&b, now + day - 1, 0, false, &e), ERR_BUSY);

    now += day;
    REQUIRE(authority_bundle_finish(&b, now, 0, false, &e) == ERR_OK);
    CHECK_EQ(b.count, 1);
    CHECK_EQ(believes(&b, old, NOW_S), ERR_PERMISSION);
    CHECK_EQ(believes(&b, new, now - day), ERR_OK);
    only_new = roots_of(&b);
    CHECK_EQ(only_new.count, 1);
    /* in a hurry, when a key has been stolen */
    REQUIRE(authority_bundle_begin(&b, now, &e) == ERR_OK);
    REQUIRE(authority_bundle_switch(&b, now, 0, true, &e) == ERR_OK);
    REQUIRE(authority_bundle_finish(&b, now, 0, true, &e) == ERR_OK);
    CHECK_EQ(believes(&b, new, now), ERR_PERMISSION);
}

TEST(roots_are_one_or_two_of_one_cluster)
{
    struct authority_bundle a cleanup(authority_bundle_done) = make_bundle("prod");
    struct authority_bundle b cleanup(authority_bundle_done) = make_bundle("test");
    struct authority_bundle c cleanup(authority_bundle_done) = make_bundle("prod");
    struct buf text cleanup(buf_done) = {0};
    struct roots roots = {0};
    struct error e = {0};
    CHECK_EQ(roots_from_pem(STR_NONE, &roots, &e), ERR_INVALID);
    CHECK(strstr(e.text, "empty") != NULL);
    authority_bundle_roots(&a, &text);
    authority_bundle_roots(&a, &text);
    CHECK_EQ(roots_from_pem(buf_str(&text), &roots, &e), ERR_INVALID);
    CHECK(strstr(e.text, "twice") != NULL);
    text.bytes = 0;
    authority_bundle_roots(&a, &text);
    authority_bundle_roots(&b, &text);
    CHECK_EQ(roots_from_pem(buf_str(&text), &roots, &e), ERR_INVALID);
    CHECK(strstr(e.text, "two clusters") != NULL);
    text.bytes = 0;
    authority_bundle_roots(&a, &text);
    authority_bundle_roots(&c, &text);
    struct roots both cleanup(roots_done) = {0};
    CHECK_EQ(roots_from_pem(buf_str(&text), &both, &e), ERR_OK);
    CHECK(roots_find(&both, str_of(authority_pin(c.items[0]).text)) == both.items[1]);
    CHECK(roots_find(&both, str_of(authority_pin(b.items[0]).text)) == NULL);
    authority_bundle_roots(&a, &text);
    CHECK_EQ(roots_from_pem(buf_str(&text), &roots, &e), ERR_INVALID);
    CHECK(strstr(e.text, "more than 2") != NULL);
    text.bytes = 0;
    X509 *leaf cleanup(certificate_free) = issue_node(&a, NODE_WORKER, "w", NOW_S);
    certificate_append_pem(leaf, &text);
    CHECK_EQ(roots_from_pem(buf_str(&text), &roots, &e), ERR_INVALID);
    CHECK(strstr(e.text, "not an authority's") != NULL);
}
