/* api_key.h - keys of the HTTP API: who may do what. Text: dk_<id>_<secret>, sent as
 * `Authorization: Bearer …`. Only the secret's digest is stored. Pure but for random numbers; any
 * thread; time is a parameter, in seconds since 1970. */
#pragma once
#include "base/limits.h"
#include "keys/secret.h"

enum api_role {             /* each may do all that those before it may */
                API_NOBODY, /* no key */
                API_READ,
                API_DEPLOY,
                API_ADMIN,
                API_ROLE_COUNT,
};
const char *api_role_name(enum api_role role); /* "read"; API_NOBODY is "nobody" */
/* ERR_INVALID with the words there are, field "role". */
must_check enum err api_role_of(struct str text, enum api_role *ret_role, struct error *e);

#define API_KEY_TEXT_BYTES (3 + SECRET_ID_CHARS + 1 + SECRET_CHARS + 1)

struct api_key { /* as somebody presents it */
    char id[SECRET_ID_CHARS + 1];
    uint8_t secret_digest[DIGEST_BYTES];
};
/* ERR_PERMISSION: not of this form. The sentence never repeats the key. */
must_check enum err api_key_parse(struct str text, struct api_key *ret_key, struct error *e);

struct api_key_record { /* what the store keeps, under the id */
    char id[SECRET_ID_CHARS + 1];
    char name[API_KEY_NAME_BYTES_MAX + 1]; /* for people: whose it is */
    enum api_role role;
    uint8_t secret_digest[DIGEST_BYTES];
    char last4[5];                 /* end of the text, so that its owner recognises it */
    uint64_t created_s, expires_s; /* 0: never */
};
/* A new key: the record for the store, and the text, seen this once; wipe it. `lifetime_s` 0: for
 * ever. ERR_INVALID, fields name and role. */
must_check enum err api_key_make(struct str name, enum api_role role, uint64_t now_s,
                                 uint64_t lifetime_s, struct api_key_record *ret_record,
                                 char ret_text[API_KEY_TEXT_BYTES], struct error *e);
/* `record` is the one of the key's id, or NULL. ERR_PERMISSION with the sentence: unknown and wrong
 * are one answer (in one time), expired is told to who has the secret. */
must_check enum err api_key_verify(const struct api_key *key, const struct api_key_record *record,
                                   uint64_t now_s, struct error *e);

/* As JSON. The text is the caller's to free. ERR_CORRUPT. */
char *api_key_record_write(const struct api_key_record *record);
must_check enum err api_key_record_read(struct str text, struct api_key_record *ret_record,
                                        struct error *e);

/* The least role that a request needs. `method` and `path` as in the request line, path without the
 * query. One table; what it does not name, and a path that is not plain (escapes, empty or dot
 * segments), needs API_ADMIN. */
enum api_role api_role_needed(struct str method, struct str path);
static inline bool api_key_allows(enum api_role role, struct str method, struct str path)
{
    return role >= api_role_needed(method, path);
}
/* ERR_PERMISSION, naming the role that is there and the one that is needed. */
must_check enum err api_key_check(enum api_role role, struct str method, struct str path,
                                  struct error *e);
