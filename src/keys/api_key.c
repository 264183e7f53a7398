/* api_key.c - keys of the HTTP API, and the one table of who may do what. */
#include "keys/api_key.h"
#include "keys/certificate.h"
#include "keys/json_record.h"
#include <stdio.h>

#define LIFETIME_S_MAX (UINT64_C(100) * 366 * 24 * 3600)

static const char *const role_names[API_ROLE_COUNT] = {
    [API_NOBODY] = "nobody",
    [API_READ] = "read",
    [API_DEPLOY] = "deploy",
    [API_ADMIN] = "admin",
};

const char *api_role_name(enum api_role role)
{
    assert(role < API_ROLE_COUNT);
    return role_names[role];
}

enum err api_role_of(struct str text, enum api_role *ret_role, struct error *e)
{
    for (enum api_role role = API_READ; role < API_ROLE_COUNT; role++) {
        if (str_equal(text, str_of(role_names[role]))) {
            *ret_role = role;
            return ERR_OK;
        }
    }
    return error_field(e, ERR_INVALID, "role", "the role '%.*s' is none of admin, deploy, read",
                       (int)MIN(text.bytes, (size_t)32), text.bytes > 0 ? text.data : "");
}

/* ---- who may do what ---- */

/* The first line that fits decides. '*' stands for one segment, "**" at the end for any number of
 * them, also none; method "*" for every one, "R" for GET and HEAD. */
/* clang-format off */
static const struct {
    const char *method, *path;
    enum api_role role;
} rights[] = {
    /* is it alive? balancers ask without a key */
    {"R",      "/healthz",            API_NOBODY},
    {"R",      "/readyz",             API_NOBODY},
    {"R",      "/health",             API_NOBODY},
    /* who may do what: for who may do all */
    {"*",      "/v1/keys/**",         API_ADMIN},
    {"*",      "/v1/tokens/**",       API_ADMIN},
    {"*",      "/v1/backup",          API_ADMIN}, /* it has the authority's key */
    /* functions, their code, their invocation */
    {"PUT",    "/v1/functions/*",     API_DEPLOY},
    {"PATCH",  "/v1/functions/*",     API_DEPLOY},
    {"DELETE", "/v1/functions/*",     API_DEPLOY},
    {"PUT",    "/v1/functions/*/code", API_DEPLOY},
    {"*",      "/function/**",        API_DEPLOY},
    /* the rest of /v1: looking only */
    {"R",      "/v1/**",              API_READ},
    {"*",      "/v1/**",              API_ADMIN},
    {"R",      "/**",                 API_READ},
    /* the original's registration: POST to any other path */
    {"POST",   "/**",                 API_DEPLOY},
};
/* clang-format on */

static bool method_fits(struct str method, const char *pattern)
{
    if (strcmp(pattern, "*") == 0)
        return true;
    if (strcmp(pattern, "R") == 0)
        return str_equal(method, STR("GET")) || str_equal(method, STR("HEAD"));
    return str_equal(method, str_of(pattern));
}

static bool path_fits(struct str path, struct str pattern)
{
    while (pattern.data != NULL) {
        struct str want = str_split(pattern, '/', &pattern);
        if (str_equal(want, STR("**")))
            return true;
        if (path.data == NULL)
            return false;
        struct str is = str_split(path, '/', &path);
        if (!str_equal(want, STR("*")) && !str_equal(is, want))
            return false;
    }
    return path.data == NULL;
}

/* Plain paths mean one thing to everybody: no escapes, no empty segment, no "." or "..". "/" alone
 * is. */
static bool path_is_plain(struct str path)
{
    if (path.bytes == 0 || path.data[0] != '/')
        return false;
    struct str rest = {path.data + 1, path.bytes - 1};
    if (rest.bytes == 0)
        return true;
    for (size_t i = 0; i < rest.bytes; i++)
        if (rest.data[i] <= ' ' || rest.data[i] >= 0x7f ||
            memchr("%?#\\;", rest.data[i], 5) != NULL)
            return false;
    while (rest.data != NULL) {
        struct str segment = str_split(rest, '/', &rest);
        if (segment.bytes == 0 || str_equal(segment, STR(".")) || str_equal(segment, STR("..")))
            return false;
    }
    return true;
}

enum api_role api_role_needed(struct str method, struct str path)
{
    if (!path_is_plain(path))
        return API_ADMIN;
    for (size_t i = 0; i < ARRAY_COUNT(rights); i++)
        if (method_fits(method, rights[i].method) && path_fits(path, str_of(rights[i].path)))
            return rights[i].role;
    return API_ADMIN;
}

enum err api_key_check(enum api_role role, struct str method, struct str path, struct error *e)
{
    enum api_role needed = api_role_needed(method, path);
    if (role >= needed)
        return ERR_OK;
    if (role == API_NOBODY)
        return error_set(e, ERR_PERMISSION,
                         "this needs an API key of role '%s': send 'Authorization: Bearer dk_…'",
                         api_role_name(needed));
    return error_set(e, ERR_PERMISSION,
                     "this needs an API key of role '%s', and yours is of role '%s'",
                     api_role_name(needed), api_role_name(role));
}

/* ---- keys ---- */

enum err api_key_parse(struct str text, struct api_key *ret_key, struct error *e)
{
    struct str prefix = STR("dk_"), id = STR_NONE, secret = STR_NONE;
    if (str_has_prefix(text, prefix))
        id = str_split((struct str){text.data + prefix.bytes, text.bytes - prefix.bytes}, '_',
                       &secret);
    if (!secret_is_id(id) || !secret_is_text(secret))
        return error_set(e, ERR_PERMISSION,
                         "this is no API key: one is dk_<%u characters>_<%u characters>, and may "
                         "have been cut off",
                         SECRET_ID_CHARS, SECRET_CHARS);
    *ret_key = (struct api_key){0};
    memcpy(ret_key->id, id.data, id.bytes);
    digest_of(secret.data, secret.bytes, ret_key->secret_digest);
    return ERR_OK;
}

static enum err name_check(struct str name, struct error *e)
{
    bool good = name.bytes > 0 && name.bytes <= API_KEY_NAME_BYTES_MAX && name.data[0] != ' ' &&
                name.data[name.bytes - 1] != ' ';
    for (size_t i = 0; good && i < name.bytes; i++)
        good = name.data[i] >= ' ' && name.data[i] < 0x7f && name.data[i] != '"' &&
               name.data[i] != '\\';
    return good ? ERR_OK
                : error_field(e, ERR_INVALID, "name",
                              "a key's name has 1 to %u printable characters of ASCII without '\"' "
                              "and '\\', and no space at its ends",
                              API_KEY_NAME_BYTES_MAX);
}

enum err api_key_make(struct str name, enum api_role role, uint64_t now_s, uint64_t lifetime_s,
                      struct api_key_record *ret_record, char ret_text[API_KEY_TEXT_BYTES],
                      struct error *e)
{
    if (role <= API_NOBODY || role >= API_ROLE_COUNT)
        return error_field(e, ERR_INVALID, "role", "a key has a role: admin, deploy or read");
    enum err err = name_check(name, e);
    if (err != ERR_OK)
        return err;
    if (lifetime_s > LIFETIME_S_MAX)
        return error_field(e, ERR_INVALID, "ttl",
                           "a key lives for at most 100 years; without a 'ttl' it lives for ever");
    struct api_key_record record = {.role = role, .created_s = now_s};
    if (lifetime_s != 0)
        record.expires_s = now_s + lifetime_s;
    char secret[SECRET_CHARS + 1];
    secret_make_id(record.id);
    secret_make(secret);
    digest_of(secret, SECRET_CHARS, record.secret_digest);
    memcpy(record.name, name.data, name.bytes);
    memcpy(record.last4, secret + SECRET_CHARS - 4, 5);
    snprintf(ret_text, API_KEY_TEXT_BYTES, "dk_%s_%s", record.id, secret);
    secret_wipe(secret, sizeof(secret));
    *ret_record = record;
    return ERR_OK;
}

enum err api_key_verify(const struct api_key *key, const struct api_key_record *record,
                        uint64_t now_s, struct error *e)
{
    static const struct api_key_record nobody = {0}; /* compared all the same: no other time */
    const struct api_key_record *r = record != NULL ? record : &nobody;
    bool good = digest_equal(r->secret_digest, key->secret_digest);
    if (record == NULL || !good || strcmp(record->id, key->id) != 0)
        return error_set(e, ERR_PERMISSION,
                         "this API key is not known: it is mistyped or was removed");
    if (record->expires_s == 0 || now_s < record->expires_s)
        return ERR_OK;
    char end[TIME_TEXT_BYTES];
    time_text(record->expires_s, end);
    return error_set(e, ERR_PERMISSION, "the API key '%s' expired at %s", record->name, end);
}

/* ---- as JSON ---- */

char *api_key_record_write(const struct api_key_record *r)
{
    char hex[DIGEST_HEX_CHARS + 1];
    digest_hex(r->secret_digest, hex);
    return json_record_text_of(json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:s}", "id", r->id, "name",
                                         r->name, "role", api_role_name(r->role), "hash", hex,
                                         "created", (json_int_t)r->created_s, "expires",
                                         (json_int_t)r->expires_s, "last4", r->last4));
}

static enum err record_fill(const json_t *json, struct api_key_record *r, struct error *e)
{
    char role[32];
    enum err err = json_record_text(json, "id", r->id, sizeof(r->id), e);
    if (err == ERR_OK)
        err = json_record_text(json, "name", r->name, sizeof(r->name), e);
    if (err == ERR_OK)
        err = json_record_text(json, "role", role, sizeof(role), e);
    if (err == ERR_OK)
        err = json_record_digest(json, "hash", r->secret_digest, e);
    if (err == ERR_OK)
        err = json_record_time(json, "created", &r->created_s, e);
    if (err == ERR_OK)
        err = json_record_time(json, "expires", &r->expires_s, e);
    if (err == ERR_OK)
        err = json_record_text(json, "last4", r->last4, sizeof(r->last4), e);
    if (err != ERR_OK)
        return err;
    bool good = api_role_of(str_of(role), &r->role, NULL) == ERR_OK &&
                name_check(str_of(r->name), NULL) == ERR_OK && secret_is_id(str_of(r->id)) &&
                strlen(r->last4) == 4;
    return good ? ERR_OK : error_set(e, ERR_CORRUPT, "the record of an API key makes no sense");
}

enum err api_key_record_read(struct str text, struct api_key_record *ret_record, struct error *e)
{
    json_t *json = NULL;
    struct api_key_record record = {0};
    enum err err = json_record_parse(text, "an API key", &json, e);
    if (err != ERR_OK)
        return err;
    err = record_fill(json, &record, e);
    json_decref(json);
    if (err == ERR_OK)
        *ret_record = record;
    return err;
}
