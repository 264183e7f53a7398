/* api_key_test.c - keys of the HTTP API and what they allow. */
#include "keys/api_key.h"
#include "keys/fixture.h"
#include "test.h"
#include <stdlib.h>

struct made {
    struct api_key_record record;
    char text[API_KEY_TEXT_BYTES];
    struct api_key key;
};

static struct made make(enum api_role role, uint64_t lifetime_s)
{
    struct made m = {0};
    REQUIRE(api_key_make(STR("build server"), role, NOW_S, lifetime_s, &m.record, m.text, NULL) ==
            ERR_OK);
    REQUIRE(api_key_parse(str_of(m.text), &m.key, NULL) == ERR_OK);
    return m;
}

TEST(a_key_is_good_until_it_expires)
{
    struct made m = make(API_DEPLOY, 3600), for_ever = make(API_READ, 0);
    struct error e = {0};
    CHECK_EQ(strlen(m.text), 66);
    CHECK(strncmp(m.text, "dk_", 3) == 0);
    CHECK_STR(m.record.last4, m.text + 62);
    CHECK_EQ(api_key_verify(&m.key, &m.record, NOW_S + 3599, &e), ERR_OK);
    CHECK_EQ(api_key_verify(&m.key, &m.record, NOW_S - 3600, &e), ERR_OK);
    CHECK_EQ(api_key_verify(&m.key, &m.record, NOW_S + 3600, &e), ERR_PERMISSION);
    CHECK_STR(e.text, "the API key 'build server' expired at 2023-11-14 23:13:20 UTC");
    CHECK_EQ(api_key_verify(&for_ever.key, &for_ever.record, UINT64_MAX, &e), ERR_OK);
}

TEST(unknown_and_wrong_keys_are_one_answer)
{
    struct made m = make(API_ADMIN, 1), other = make(API_ADMIN, 0);
    struct error unknown = {0}, wrong = {0}, mixed = {0};
    struct api_key guess = other.key;
    memcpy(guess.id, m.key.id, sizeof(guess.id));
    CHECK_EQ(api_key_verify(&m.key, NULL, NOW_S, &unknown), ERR_PERMISSION);
    CHECK_EQ(api_key_verify(&guess, &m.record, NOW_S + 5, &wrong),
             ERR_PERMISSION); /* not told that it expired */
    CHECK_STR(wrong.text, unknown.text);
    CHECK_EQ(api_key_verify(&other.key, &m.record, NOW_S, &mixed), ERR_PERMISSION);
    struct api_key zero = {0};
    CHECK_EQ(api_key_verify(&zero, NULL, NOW_S, &mixed), ERR_PERMISSION); /* the digest of nobody */
}

TEST(what_is_no_key_is_told_without_repeating_it)
{
    struct made m = make(API_ADMIN, 0);
    char *cut cleanup(free_pointer) = mem_strndup(m.text, 65);
    char *more cleanup(free_pointer) = mem_printf("%s ", m.text);
    const char *wrong[] = {"", "dk_", "dk__", "secret-password", cut, more, m.text + 1, m.text + 3};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct error e = {0};
        struct api_key key;
        CHECK_EQ(api_key_parse(str_of(wrong[i]), &key, &e), ERR_PERMISSION);
        CHECK(strlen(wrong[i]) < 5 || strstr(e.text, wrong[i]) == NULL);
    }
}

TEST(orders_that_make_no_sense_are_refused)
{
    struct api_key_record r;
    char text[API_KEY_TEXT_BYTES];
    struct error e = {0};
    char long_name[API_KEY_NAME_BYTES_MAX + 2] = "";
    memset(long_name, 'n', API_KEY_NAME_BYTES_MAX + 1);
    const char *names[] = {"", " a", "a ", "a\"b", "a\\b", "a\nb", "\xc3\xa4", long_name};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        CHECK_EQ(api_key_make(str_of(names[i]), API_READ, NOW_S, 0, &r, text, &e), ERR_INVALID);
        CHECK_STR(e.field, "name");
    }
    CHECK_EQ(api_key_make(STR("a"), API_NOBODY, NOW_S, 0, &r, text, &e), ERR_INVALID);
    CHECK_STR(e.field, "role");
    CHECK_EQ(api_key_make(STR("a"), API_READ, NOW_S, UINT64_MAX, &r, text, &e), ERR_INVALID);
    CHECK_STR(e.field, "ttl");
    enum api_role role;
    CHECK_EQ(api_role_of(STR("nobody"), &role, &e), ERR_INVALID);
    CHECK_EQ(api_role_of(STR("root"), &role, &e), ERR_INVALID);
    CHECK_EQ(api_role_of(STR("deploy"), &role, &e), ERR_OK);
    CHECK_EQ(role, API_DEPLOY);
}

PROPERTY(a_record_is_read_as_it_was_written_or_refused)
{
    struct made m = make((enum api_role)(1 + rng_below(rng, 3)), rng_below(rng, 2) * 100);
    char *text cleanup(free_pointer) = api_key_record_write(&m.record);
    CHECK(strstr(text, m.text + 14) == NULL); /* the secret is not in it */
    struct api_key_record back;
    struct error e = {0};
    REQUIRE(api_key_record_read(str_of(text), &back, &e) == ERR_OK);
    CHECK(strcmp(back.id, m.record.id) == 0 && strcmp(back.name, m.record.name) == 0 &&
          back.role == m.record.role && digest_equal(back.secret_digest, m.record.secret_digest) &&
          strcmp(back.last4, m.record.last4) == 0 && back.created_s == m.record.created_s &&
          back.expires_s == m.record.expires_s);
    CHECK_EQ(api_key_verify(&m.key, &back, NOW_S, &e), ERR_OK);
    CHECK_EQ(api_key_record_read((struct str){text, rng_below(rng, strlen(text))}, &back, &e),
             ERR_CORRUPT);
}

PROPERTY(a_changed_key_is_refused)
{
    struct made m = make(API_ADMIN, 0);
    size_t at = rng_below(rng, strlen(m.text));
    char old = m.text[at];
    while (m.text[at] == old)
        m.text[at] = rng_below(rng, 2) == 0
                         ? (char)(1 + rng_below(rng, 255))
                         : "abcdefghijklmnopqrstuvwxyz234567"[rng_below(rng, 32)];
    struct api_key key;
    if (api_key_parse(str_of(m.text), &key, NULL) == ERR_OK)
        CHECK_EQ(api_key_verify(&key, &m.record, NOW_S, NULL), ERR_PERMISSION);
}

/* ---- who may do what: every route of the API's document ---- */

TEST(each_role_may_do_what_the_document_says)
{
    static const struct {
        const char *method, *path;
        enum api_role role;
    } cases[] = {
        {"GET", "/v1/functions", API_READ},
        {"HEAD", "/v1/functions", API_READ},
        {"GET", "/v1/functions/thumb", API_READ},
        {"PUT", "/v1/functions/thumb", API_DEPLOY},
        {"PATCH", "/v1/functions/thumb", API_DEPLOY},
        {"DELETE", "/v1/functions/thumb", API_DEPLOY},
        {"PUT", "/v1/functions/thumb/code", API_DEPLOY},
        {"GET", "/v1/functions/thumb/logs", API_READ},
        {"DELETE", "/v1/functions/thumb/logs", API_ADMIN},
        {"DELETE", "/v1/functions", API_ADMIN},
        {"POST", "/v1/functions", API_ADMIN},
        {"GET", "/v1/workers", API_READ},
        {"PATCH", "/v1/workers/w-1", API_ADMIN},
        {"DELETE", "/v1/workers/w-1", API_ADMIN},
        {"GET", "/v1/data-planes", API_READ},
        {"GET", "/v1/sandboxes", API_READ},
        {"GET", "/v1/status", API_READ},
        {"GET", "/metrics", API_READ},
        {"GET", "/check", API_READ},
        {"GET", "/", API_READ},
        {"GET", "/healthz", API_NOBODY},
        {"HEAD", "/readyz", API_NOBODY},
        {"GET", "/health", API_NOBODY},
        {"POST", "/healthz", API_DEPLOY}, /* the original's registration */
        {"POST", "/", API_DEPLOY},
        {"POST", "/registration", API_DEPLOY},
        {"PUT", "/registration", API_ADMIN},
        {"GET", "/function/thumb/a/b", API_DEPLOY},
        {"POST", "/function/thumb", API_DEPLOY},
        {"GET", "/v1/keys", API_ADMIN},
        {"HEAD", "/v1/keys/abc", API_ADMIN},
        {"POST", "/v1/keys", API_ADMIN},
        {"GET", "/v1/tokens", API_ADMIN},
        {"GET", "/v1/tokens/a/b", API_ADMIN},
        {"GET", "/v1/keysx", API_READ},
        {"get", "/v1/functions", API_ADMIN},
        {"OPTIONS", "/v1/functions", API_ADMIN},
        {"", "/v1/functions", API_ADMIN},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        enum api_role needed = api_role_needed(str_of(cases[i].method), str_of(cases[i].path));
        if (needed != cases[i].role)
            test_fail(__FILE__, __LINE__, "%s %s needs %s, not %s", cases[i].method, cases[i].path,
                      api_role_name(needed), api_role_name(cases[i].role));
        for (enum api_role role = 0; role < API_ROLE_COUNT; role++)
            CHECK_EQ(api_key_allows(role, str_of(cases[i].method), str_of(cases[i].path)),
                     role >= cases[i].role);
    }
}

TEST(paths_that_are_not_plain_are_for_admins_only)
{
    static const char *const paths[] = {"",
                                        "v1/functions",
                                        "//v1/keys",
                                        "/v1//keys",
                                        "/v1/./keys",
                                        "/v1/x/../keys",
                                        "/v1/%6beys",
                                        "/v1/keys/",
                                        "/v1/functions/",
                                        "/v1/status?x",
                                        "/v1/status#x",
                                        "/v1\\keys",
                                        "/v1/status;x",
                                        "/v1/st atus",
                                        "/v1/\x7f",
                                        "/healthz/",
                                        "/..",
                                        "http://h/v1/status",
                                        "*",
                                        "/v1/\xc3\xa4"};
    for (size_t i = 0; i < ARRAY_COUNT(paths); i++)
        if (api_role_needed(STR("GET"), str_of(paths[i])) != API_ADMIN)
            test_fail(__FILE__, __LINE__, "'%s' needs less than admin", paths[i]);
    CHECK_EQ(api_role_needed(STR("GET"), (struct str){"/healthz\0", 9}), API_ADMIN);
    CHECK_EQ(api_role_needed(STR_NONE, STR_NONE), API_ADMIN);
}

TEST(a_refusal_names_both_roles)
{
    struct error e = {0};
    CHECK_EQ(api_key_check(API_READ, STR("DELETE"), STR("/v1/functions/f"), &e), ERR_PERMISSION);
    CHECK_STR(e.text, "this needs an API key of role 'deploy', and yours is of role 'read'");
    CHECK_EQ(api_key_check(API_NOBODY, STR("GET"), STR("/v1/keys"), &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "an API key of role 'admin': send 'Authorization: Bearer dk_") != NULL);
    CHECK_EQ(api_key_check(API_DEPLOY, STR("PUT"), STR("/v1/functions/f/code"), &e), ERR_OK);
}
