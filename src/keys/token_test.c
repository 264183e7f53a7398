/* token_test.c - join tokens and the limiter of attempts. */
#include "keys/fixture.h"
#include "keys/join_limit.h"
#include "keys/token.h"
#include "test.h"
#include <stdlib.h>

struct made {
    struct token_record record;
    char text[TOKEN_TEXT_BYTES];
    struct token token;
};

static struct made make(enum node_role role, const char *name)
{
    struct made m = {0};
    struct token_order order = {.role = role, .name = str_of(name)};
    REQUIRE(token_make(&order, NOW_S, &m.record, m.text, NULL) == ERR_OK);
    REQUIRE(token_parse(str_of(m.text), &m.token, NULL) == ERR_OK);
    return m;
}

static struct pin some_pin(void)
{
    EVP_PKEY *key cleanup(key_free) = key_make();
    return key_pin(key);
}

TEST(a_token_is_good_once_for_its_role_and_its_time)
{
    struct made m = make(NODE_WORKER, "");
    struct error e = {0};
    CHECK_EQ(strlen(m.text), 63);
    CHECK_EQ(m.text[10], '.');
    CHECK_EQ(m.record.expires_s, NOW_S + 900);
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_WORKER, STR("w"), NOW_S, &e), TOKEN_GOOD);
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_WORKER, STR("w"), NOW_S + 899, &e), TOKEN_GOOD);

    CHECK_EQ(token_verify(&m.token, NULL, NODE_WORKER, STR("w"), NOW_S, &e), TOKEN_UNKNOWN);
    CHECK_EQ(e.code, ERR_NOT_FOUND);
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_DATA_PLANE, STR("w"), NOW_S, &e),
             TOKEN_OTHER_ROLE);
    CHECK_STR(e.text, "the token is for a worker, and this is a data-plane");
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_WORKER, STR("w"), NOW_S + 900, &e),
             TOKEN_EXPIRED);
    CHECK_EQ(e.code, ERR_STALE);
    CHECK(strstr(e.text, "expired at 2023-11-14 22:28:20 UTC") != NULL);

    struct pin pin = some_pin();
    token_burn(&m.record, STR("w-7"), &pin, NOW_S + 60);
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_WORKER, STR("w"), NOW_S + 61, &e), TOKEN_USED);
    CHECK_EQ(e.code, ERR_CONFLICT);
    CHECK(strstr(e.text, "used at 2023-11-14 22:14:20 UTC by worker 'w-7'") != NULL);
}

/* The joiner's clock plays no part; the control plane's, moved by an hour, makes the token expire
 * early or late, and the sentence shows both times. */
TEST(a_clock_moved_by_an_hour_is_seen_in_the_sentence)
{
    struct made m = make(NODE_WORKER, "");
    struct error e = {0};
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_WORKER, STR("w"), NOW_S + 3600, &e),
             TOKEN_EXPIRED);
    CHECK(strstr(e.text, "clock says 2023-11-14 23:13:20 UTC") != NULL);
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_WORKER, STR("w"), NOW_S - 3600, &e),
             TOKEN_GOOD);
}

TEST(who_has_not_the_secret_learns_nothing_of_the_token)
{
    struct made m = make(NODE_WORKER, "w"), other = make(NODE_WORKER, "");
    struct pin pin = some_pin();
    struct error e = {0};
    struct token guess = other.token;
    memcpy(guess.id, m.token.id, sizeof(guess.id));
    token_burn(&m.record, STR("w"), &pin, NOW_S);
    CHECK_EQ(token_verify(&guess, &m.record, NODE_DATA_PLANE, STR("x"), NOW_S + 9999, &e),
             TOKEN_WRONG_SECRET);
    CHECK_EQ(e.code, ERR_PERMISSION);
    CHECK(strstr(e.text, "worker") == NULL && strstr(e.text, "used") == NULL);
    /* a store that answers with another record than the one asked for */
    CHECK_EQ(token_verify(&other.token, &m.record, NODE_WORKER, STR("w"), NOW_S, &e),
             TOKEN_UNKNOWN);
}

TEST(a_token_can_be_for_one_name)
{
    struct made m = make(NODE_DATA_PLANE, "d-1");
    struct error e = {0};
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_DATA_PLANE, STR("d-2"), NOW_S, &e),
             TOKEN_OTHER_NAME);
    CHECK_STR(e.text, "the token is for the data-plane 'd-1' only");
    CHECK_EQ(token_verify(&m.token, &m.record, NODE_DATA_PLANE, STR("d-1"), NOW_S, &e), TOKEN_GOOD);
}

TEST(verdicts_have_words_and_kinds_of_their_own)
{
    for (enum token_verdict a = 0; a < TOKEN_VERDICT_COUNT; a++) {
        CHECK((token_verdict_err(a) == ERR_OK) == (a == TOKEN_GOOD));
        for (enum token_verdict b = 0; b < a; b++)
            CHECK(strcmp(token_verdict_name(a), token_verdict_name(b)) != 0);
    }
}

TEST(what_is_no_token_is_told)
{
    struct made m = make(NODE_WORKER, "");
    struct token t;
    char *padded cleanup(free_pointer) = mem_printf(" \t%s\r\n", m.text);
    CHECK_EQ(token_parse(str_of(padded), &t, NULL), ERR_OK);
    CHECK(digest_equal(t.secret_digest, m.token.secret_digest));
    char *upper cleanup(free_pointer) = mem_strdup(m.text);
    upper[0] = 'A';
    char *cut cleanup(free_pointer) = mem_strndup(m.text, 62);
    char *more cleanup(free_pointer) = mem_printf("%sa", m.text);
    const char *wrong[] = {"", ".", "a.b", upper, cut, more, m.text + 1};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        struct error e = {0};
        CHECK_EQ(token_parse(str_of(wrong[i]), &t, &e), ERR_INVALID);
        CHECK_STR(e.field, "token");
    }
}

TEST(orders_that_make_no_sense_are_refused)
{
    struct token_record r;
    char text[TOKEN_TEXT_BYTES];
    struct token_order orders[] = {{.role = NODE_NONE},
                                   {.role = NODE_WORKER, .name = STR("a b")},
                                   {.role = NODE_WORKER, .lifetime_s = 8 * 86400}};
    static const char *const fields[] = {"role", "name", "ttl"};
    for (size_t i = 0; i < ARRAY_COUNT(orders); i++) {
        struct error e = {0};
        CHECK_EQ(token_make(&orders[i], NOW_S, &r, text, &e), ERR_INVALID);
        CHECK_STR(e.field, fields[i]);
    }
}

/* One changed character is never good, and always has its sentence. */
PROPERTY(a_changed_token_is_refused)
{
    struct made m = make(NODE_WORKER, "");
    size_t at = rng_below(rng, TOKEN_CHARS);
    char old = m.text[at];
    while (m.text[at] == old)
        m.text[at] = rng_below(rng, 2) == 0
                         ? (char)(1 + rng_below(rng, 255))
                         : "abcdefghijklmnopqrstuvwxyz234567"[rng_below(rng, 32)];
    struct token t;
    struct error e = {0};
    if (token_parse(str_of(m.text), &t, &e) == ERR_OK) {
        enum token_verdict verdict = token_verify(&t, &m.record, NODE_WORKER, STR("w"), NOW_S, &e);
        CHECK_EQ(verdict, at < SECRET_ID_CHARS ? TOKEN_UNKNOWN : TOKEN_WRONG_SECRET);
    }
    CHECK(e.text[0] != '\0');
}

static bool same_record(const struct token_record *a, const struct token_record *b)
{
    return strcmp(a->id, b->id) == 0 && digest_equal(a->secret_digest, b->secret_digest) &&
           a->role == b->role && strcmp(a->name, b->name) == 0 && a->created_s == b->created_s &&
           a->expires_s == b->expires_s && a->used_s == b->used_s &&
           strcmp(a->used_by, b->used_by) == 0 && strcmp(a->used_key.text, b->used_key.text) == 0;
}

PROPERTY(a_record_is_read_as_it_was_written_or_refused)
{
    static const char *const names[] = {"", "w-1", "host.example"};
    struct made m = make((enum node_role)(1 + rng_below(rng, 3)), names[rng_below(rng, 3)]);
    if (rng_below(rng, 2) == 0) {
        struct pin pin = some_pin();
        token_burn(&m.record, STR("w-1"), &pin, NOW_S + 5);
    }
    char *text cleanup(free_pointer) = token_record_write(&m.record);
    CHECK(strstr(text, m.text + SECRET_ID_CHARS + 1) == NULL); /* the secret is not in it */
    struct token_record back;
    REQUIRE(token_record_read(str_of(text), &back, NULL) == ERR_OK);
    CHECK(same_record(&m.record, &back));
    CHECK_EQ(token_verify(&m.token, &back, back.role, STR("w-1"), NOW_S, NULL),
             back.used_s != 0                                        ? TOKEN_USED
             : back.name[0] == '\0' || strcmp(back.name, "w-1") == 0 ? TOKEN_GOOD
                                                                     : TOKEN_OTHER_NAME);
    struct error e = {0};
    CHECK_EQ(token_record_read((struct str){text, rng_below(rng, strlen(text))}, &back, &e),
             ERR_CORRUPT);
    CHECK(e.text[0] != '\0');
}

TEST(records_that_make_no_sense_are_damage)
{
    struct made m = make(NODE_WORKER, "");
    char *text cleanup(free_pointer) = token_record_write(&m.record);
    static const struct {
        const char *from, *to;
    } changes[] = {{"\"worker\"", "\"boss\""},          {"\"used\":0", "\"used\":5"},
                   {"\"used\":0", "\"used\":-1"},       {"\"used\":0", "\"used\":1.5"},
                   {"\"name\":\"\"", "\"name\":\"/\""}, {"\"id\":\"", "\"id\":\"A"},
                   {"\"hash\":\"", "\"hash\":\"Z"},     {"\"created\":1", "\"created\":9"},
                   {"\"created\":", "\"cre\":"}};
    for (size_t i = 0; i < ARRAY_COUNT(changes); i++) {
        const char *at = strstr(text, changes[i].from);
        REQUIRE(at != NULL);
        char *wrong cleanup(free_pointer) = mem_printf("%.*s%s%s", (int)(at - text), text,
                                                       changes[i].to, at + strlen(changes[i].from));
        struct token_record back;
        struct error e = {0};
        if (token_record_read(str_of(wrong), &back, &e) != ERR_CORRUPT || e.text[0] == '\0')
            test_fail(__FILE__, __LINE__, "taken: %s", wrong);
    }
    struct token_record back;
    CHECK_EQ(token_record_read(STR("[]"), &back, NULL), ERR_CORRUPT);
}

/* ---- the limiter ---- */

static unsigned take_all(struct join_limit *l, const char *address, uint64_t now_ms, unsigned tries)
{
    unsigned taken = 0;
    uint64_t wait_ms;
    for (unsigned i = 0; i < tries; i++)
        taken += join_limit_take(l, str_of(address), now_ms, &wait_ms, NULL) == ERR_OK;
    return taken;
}

TEST(an_address_has_a_burst_and_then_a_rate)
{
    struct join_limit *l cleanup(join_limit_free) = join_limit_new(1);
    CHECK_EQ(take_all(l, "10.0.0.1", 1000, 50), JOIN_ADDRESS_BURST);
    CHECK_EQ(take_all(l, "::ffff:10.0.0.1", 1000, 50), 0); /* the same, otherwise written */
    CHECK_EQ(take_all(l, "10.0.0.2", 1000, 1), 1);
    uint64_t wait_ms = 0;
    struct error e = {0};
    CHECK_EQ(join_limit_take(l, STR("10.0.0.1"), 1000, &wait_ms, &e), ERR_BUSY);
    CHECK_EQ(wait_ms, 60000 / JOIN_ADDRESS_PER_MINUTE);
    CHECK_STR(e.text, "too many attempts to join from this address: try again in 5 s");
    CHECK_EQ(take_all(l, "10.0.0.1", 1000 + wait_ms - 1, 50), 0);
    CHECK_EQ(take_all(l, "10.0.0.1", 1000 + wait_ms, 50), 1);
    CHECK_EQ(take_all(l, "10.0.0.1", 1000 + 60000 * 60, 50),
             JOIN_ADDRESS_BURST);                /* no more than a burst is saved up */
    CHECK_EQ(take_all(l, "10.0.0.1", 0, 50), 0); /* a clock that goes back gives nothing */
}

TEST(a_network_of_ipv6_is_one_address)
{
    struct join_limit *l cleanup(join_limit_free) = join_limit_new(1);
    CHECK_EQ(take_all(l, "2001:db8:0:1::1", 0, 5) + take_all(l, "2001:db8:0:1:ffff::2", 0, 50),
             JOIN_ADDRESS_BURST);
    CHECK_EQ(take_all(l, "2001:db8:0:2::1", 0, 1), 1);
    CHECK_EQ(take_all(l, "nonsense", 0, 5) + take_all(l, "", 0, 50), JOIN_ADDRESS_BURST);
}

/* Whoever comes, from however many addresses: all together never get more than their bucket. */
PROPERTY(all_together_keep_to_the_total)
{
    struct join_limit *l cleanup(join_limit_free) = join_limit_new(rng_next(rng));
    uint64_t now_ms = rng_below(rng, 1000000), begin_ms = now_ms, taken = 0, wait_ms;
    for (int i = 0; i < 2000; i++) {
        char address[32];
        snprintf(address, sizeof(address), "10.%u.%u.%u", (unsigned)rng_below(rng, 256),
                 (unsigned)rng_below(rng, 256), (unsigned)rng_below(rng, 256));
        taken += join_limit_take(l, str_of(address), now_ms, &wait_ms, NULL) == ERR_OK;
        now_ms += rng_below(rng, 20);
    }
    CHECK(taken <= JOIN_TOTAL_BURST + (now_ms - begin_ms) * JOIN_TOTAL_PER_MINUTE / 60000 + 1);
    CHECK(taken >= JOIN_TOTAL_BURST);
}

/* Each address against a plain model of its own, while there are few enough to be remembered all.
 */
PROPERTY(the_limiter_agrees_with_a_plain_model)
{
    struct join_limit *l cleanup(join_limit_free) = join_limit_new(rng_next(rng));
    double left[4] = {JOIN_ADDRESS_BURST, JOIN_ADDRESS_BURST, JOIN_ADDRESS_BURST,
                      JOIN_ADDRESS_BURST};
    uint64_t now_ms = 0;
    for (int i = 0; i < 200; i++) {
        uint64_t passed_ms = 200 + rng_below(rng, 4000); /* slow enough for the bucket of all */
        now_ms += passed_ms;
        for (int k = 0; k < 4; k++) {
            left[k] += (double)passed_ms * JOIN_ADDRESS_PER_MINUTE / 60000;
            left[k] = left[k] > JOIN_ADDRESS_BURST ? JOIN_ADDRESS_BURST : left[k];
        }
        int who = rng_below(rng, 3) > 0 ? 0 : (int)rng_below(rng, 4);
        bool expected = left[who] >= 1 - 1e-9;
        char address[16];
        snprintf(address, sizeof(address), "10.0.0.%d", who);
        CHECK_EQ(take_all(l, address, now_ms, 1), expected);
        if (expected)
            left[who] -= 1;
    }
}
