/* token.c - made, judged, burned. */
#include "keys/token.h"
#include "keys/certificate.h"
#include "keys/json_record.h"
#include <stdio.h>

/* clang-format off */
static const struct {
    const char *name;
    enum err err;
} verdicts[TOKEN_VERDICT_COUNT] = {
    [TOKEN_GOOD]         = {"good",         ERR_OK},
    [TOKEN_MALFORMED]    = {"malformed",    ERR_INVALID},
    [TOKEN_UNKNOWN]      = {"unknown",      ERR_NOT_FOUND},
    [TOKEN_WRONG_SECRET] = {"wrong_secret", ERR_PERMISSION},
    [TOKEN_USED]         = {"used",         ERR_CONFLICT},
    [TOKEN_EXPIRED]      = {"expired",      ERR_STALE},
    [TOKEN_OTHER_ROLE]   = {"other_role",   ERR_PERMISSION},
    [TOKEN_OTHER_NAME]   = {"other_name",   ERR_PERMISSION},
};
/* clang-format on */

const char *token_verdict_name(enum token_verdict verdict)
{
    assert(verdict < TOKEN_VERDICT_COUNT);
    return verdicts[verdict].name;
}

enum err token_verdict_err(enum token_verdict verdict)
{
    assert(verdict < TOKEN_VERDICT_COUNT);
    return verdicts[verdict].err;
}

/* What a copy from a terminal or a file brings along. */
static struct str trim(struct str s)
{
    while (s.bytes > 0 && memchr(" \t\r\n", s.data[0], 4) != NULL)
        s = (struct str){s.data + 1, s.bytes - 1};
    while (s.bytes > 0 && memchr(" \t\r\n", s.data[s.bytes - 1], 4) != NULL)
        s.bytes--;
    return s;
}

enum err token_parse(struct str text, struct token *ret_token, struct error *e)
{
    struct str secret, id = str_split(trim(text), '.', &secret);
    if (!secret_is_id(id) || !secret_is_text(secret))
        return error_field(
            e, ERR_INVALID, "token",
            "the token is not of the form <%u characters>.<%u characters> of a-z and "
            "2-7: it may have been cut off",
            SECRET_ID_CHARS, SECRET_CHARS);
    *ret_token = (struct token){0};
    memcpy(ret_token->id, id.data, id.bytes);
    digest_of(secret.data, secret.bytes, ret_token->secret_digest);
    return ERR_OK;
}

static enum err check_order(const struct token_order *order, struct error *e)
{
    if (order->role <= NODE_NONE || order->role >= NODE_ROLE_COUNT)
        return error_field(e, ERR_INVALID, "role", "a token is for one role");
    if (order->lifetime_s > TOKEN_LIFETIME_S_MAX)
        return error_field(e, ERR_INVALID, "ttl",
                           "a token lives for at most %u seconds, not %" PRIu64,
                           TOKEN_LIFETIME_S_MAX, order->lifetime_s);
    return order->name.bytes > 0 ? node_name_check(order->name, e) : ERR_OK;
}

enum err token_make(const struct token_order *order, uint64_t now_s,
                    struct token_record *ret_record, char ret_text[TOKEN_TEXT_BYTES],
                    struct error *e)
{
    enum err err = check_order(order, e);
    if (err != ERR_OK)
        return err;
    uint64_t lifetime_s = order->lifetime_s != 0 ? order->lifetime_s : TOKEN_LIFETIME_S_DEFAULT;
    struct token_record record = {
        .role = order->role, .created_s = now_s, .expires_s = now_s + lifetime_s};
    char secret[SECRET_CHARS + 1];
    secret_make_id(record.id);
    secret_make(secret);
    digest_of(secret, SECRET_CHARS, record.secret_digest);
    if (order->name.bytes > 0)
        memcpy(record.name, order->name.data, order->name.bytes);
    snprintf(ret_text, TOKEN_TEXT_BYTES, "%s.%s", record.id, secret);
    secret_wipe(secret, sizeof(secret));
    *ret_record = record;
    return ERR_OK;
}

/* ---- judging ---- */

static void say_used(const struct token_record *r, struct error *e)
{
    char when[TIME_TEXT_BYTES];
    time_text(r->used_s, when);
    error_field(e, ERR_CONFLICT, "token",
                "the token was used at %s by %s '%s', and is good for one join: make another with "
                "'dirigent token create --role %s'",
                when, node_role_name(r->role), r->used_by, node_role_name(r->role));
}

static void say_expired(const struct token_record *r, uint64_t now_s, struct error *e)
{
    char end[TIME_TEXT_BYTES], now[TIME_TEXT_BYTES];
    time_text(r->expires_s, end);
    time_text(now_s, now);
    error_field(e, ERR_STALE, "token",
                "the token expired at %s, and the control plane's clock says %s: make another with "
                "'dirigent token create --role %s'",
                end, now, node_role_name(r->role));
}

static enum token_verdict judge(const struct token *token, const struct token_record *r,
                                enum node_role role, struct str name, uint64_t now_s)
{
    if (r == NULL || strcmp(r->id, token->id) != 0)
        return TOKEN_UNKNOWN;
    if (!digest_equal(r->secret_digest, token->secret_digest))
        return TOKEN_WRONG_SECRET;
    if (r->used_s != 0)
        return TOKEN_USED;
    if (now_s >= r->expires_s)
        return TOKEN_EXPIRED;
    if (r->role != role)
        return TOKEN_OTHER_ROLE;
    if (r->name[0] != '\0' && !str_equal(str_of(r->name), name))
        return TOKEN_OTHER_NAME;
    return TOKEN_GOOD;
}

static void say(enum token_verdict verdict, const struct token_record *r, enum node_role role,
                uint64_t now_s, struct error *e)
{
    switch (verdict) {
    case TOKEN_UNKNOWN:
        error_field(e, ERR_NOT_FOUND, "token",
                    "no token of this id is known: it was never made here, or was removed");
        return;
    case TOKEN_WRONG_SECRET:
        error_field(e, ERR_PERMISSION, "token",
                    "the token's second part is wrong: it may have been mistyped");
        return;
    case TOKEN_USED:
        say_used(r, e);
        return;
    case TOKEN_EXPIRED:
        say_expired(r, now_s, e);
        return;
    case TOKEN_OTHER_ROLE:
        error_field(e, ERR_PERMISSION, "role", "the token is for a %s, and this is a %s",
                    node_role_name(r->role), node_role_name(role));
        return;
    case TOKEN_OTHER_NAME:
        error_field(e, ERR_PERMISSION, "name", "the token is for the %s '%s' only",
                    node_role_name(r->role), r->name);
        return;
    case TOKEN_GOOD:
    case TOKEN_MALFORMED:
    case TOKEN_VERDICT_COUNT:
        return;
    }
}

enum token_verdict token_verify(const struct token *token, const struct token_record *record,
                                enum node_role role, struct str name, uint64_t now_s,
                                struct error *e)
{
    enum token_verdict verdict = judge(token, record, role, name, now_s);
    say(verdict, record, role, now_s, e);
    return verdict;
}

void token_burn(struct token_record *record, struct str name, const struct pin *key, uint64_t now_s)
{
    assert(record->used_s == 0 && name.bytes > 0 && name.bytes <= NODE_NAME_BYTES_MAX);
    record->used_s = MAX(now_s, UINT64_C(1));
    memcpy(record->used_by, name.data, name.bytes);
    record->used_by[name.bytes] = '\0';
    record->used_key = *key;
}

bool token_is_over(const struct token_record *record, uint64_t now_s)
{
    return now_s >= record->expires_s + CERTIFICATE_LIFETIME_S_DEFAULT;
}

/* ---- as JSON ---- */

char *token_record_write(const struct token_record *r)
{
    char hex[DIGEST_HEX_CHARS + 1];
    digest_hex(r->secret_digest, hex);
    return json_record_text_of(
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s, s:s}", "id", r->id, "hash", hex, "role",
                  node_role_name(r->role), "name", r->name, "created", (json_int_t)r->created_s,
                  "expires", (json_int_t)r->expires_s, "used", (json_int_t)r->used_s, "used_by",
                  r->used_by, "used_key", r->used_key.text));
}

static enum err record_check(const struct token_record *r, struct error *e)
{
    bool used = r->used_s != 0;
    bool good = secret_is_id(str_of(r->id)) && r->created_s <= r->expires_s &&
                (r->name[0] == '\0' || node_name_check(str_of(r->name), NULL) == ERR_OK) &&
                (used ? node_name_check(str_of(r->used_by), NULL) == ERR_OK &&
                            pin_check(str_of(r->used_key.text), NULL) == ERR_OK
                      : r->used_by[0] == '\0' && r->used_key.text[0] == '\0');
    return good ? ERR_OK : error_set(e, ERR_CORRUPT, "the record of a token makes no sense");
}

static enum err record_fill(const json_t *json, struct token_record *r, struct error *e)
{
    char role[32];
    enum err err = json_record_text(json, "id", r->id, sizeof(r->id), e);
    if (err == ERR_OK)
        err = json_record_digest(json, "hash", r->secret_digest, e);
    if (err == ERR_OK)
        err = json_record_text(json, "role", role, sizeof(role), e);
    if (err == ERR_OK && node_role_of(str_of(role), &r->role, e) != ERR_OK)
        err = error_set(e, ERR_CORRUPT, "the record's 'role' is not known");
    if (err == ERR_OK)
        err = json_record_text(json, "name", r->name, sizeof(r->name), e);
    if (err == ERR_OK)
        err = json_record_time(json, "created", &r->created_s, e);
    if (err == ERR_OK)
        err = json_record_time(json, "expires", &r->expires_s, e);
    if (err == ERR_OK)
        err = json_record_time(json, "used", &r->used_s, e);
    if (err == ERR_OK)
        err = json_record_text(json, "used_by", r->used_by, sizeof(r->used_by), e);
    if (err == ERR_OK)
        err = json_record_text(json, "used_key", r->used_key.text, sizeof(r->used_key.text), e);
    return err == ERR_OK ? record_check(r, e) : err;
}

enum err token_record_read(struct str text, struct token_record *ret_record, struct error *e)
{
    json_t *json = NULL;
    struct token_record record = {0};
    enum err err = json_record_parse(text, "a token", &json, e);
    if (err != ERR_OK)
        return err;
    err = record_fill(json, &record, e);
    json_decref(json);
    if (err == ERR_OK)
        *ret_record = record;
    return err;
}
