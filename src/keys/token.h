/* token.h - join tokens: what an operator gives to a machine so that it may become a node, once.
 * Text: <id>.<secret>. Only the secret's digest is stored. Pure but for random numbers; any thread;
 * time is a parameter, in seconds since 1970, of the control plane's clock alone. */
#pragma once
#include "keys/crypto.h"
#include "keys/subject.h"

#define TOKEN_CHARS (SECRET_ID_CHARS + 1 + SECRET_CHARS)
#define TOKEN_TEXT_BYTES (TOKEN_CHARS + 1)

struct token {                    /* as somebody presents it */
    char id[SECRET_ID_CHARS + 1]; /* under which the record is looked up */
    uint8_t secret_digest[DIGEST_BYTES];
};
/* ERR_INVALID, field "token": not of this form. Spaces and line ends around it are forgiven. */
must_check enum err token_parse(struct str text, struct token *ret_token, struct error *e);

struct token_record { /* what the store keeps, under the id */
    char id[SECRET_ID_CHARS + 1];
    uint8_t secret_digest[DIGEST_BYTES];
    enum node_role role;
    char name[NODE_NAME_BYTES_MAX + 1]; /* the only one who may use it; "": anyone */
    uint64_t created_s, expires_s;
    /* Once it is used: by whom, when, and the pin of the key it was used for. 0 and "" before. */
    uint64_t used_s;
    char used_by[NODE_NAME_BYTES_MAX + 1];
    struct pin used_key;
};
struct token_order {
    enum node_role role;
    struct str name;     /* empty: any */
    uint64_t lifetime_s; /* 0: TOKEN_LIFETIME_S_DEFAULT; at most TOKEN_LIFETIME_S_MAX */
};
/* A new token: the record for the store, the text for the operator, who sees it this once; wipe it.
 * ERR_INVALID, fields role, name, ttl. */
must_check enum err token_make(const struct token_order *order, uint64_t now_s,
                               struct token_record *ret_record, char ret_text[TOKEN_TEXT_BYTES],
                               struct error *e);

enum token_verdict {
    TOKEN_GOOD,
    TOKEN_MALFORMED, /* by token_parse(); here for the table of words */
    TOKEN_UNKNOWN,   /* no record: never made, or removed */
    TOKEN_WRONG_SECRET,
    TOKEN_USED,
    TOKEN_EXPIRED,
    TOKEN_OTHER_ROLE,
    TOKEN_OTHER_NAME,
    TOKEN_VERDICT_COUNT,
};
const char *
token_verdict_name(enum token_verdict verdict); /* "wrong_secret", for logs and metrics */
enum err token_verdict_err(enum token_verdict verdict);
/* Whether `token` may be used now by a node of this role and name. `record` is the one of its id,
 * or NULL. Who does not know the secret learns nothing but that. The sentence goes to `e`. Changes
 * nothing. */
enum token_verdict token_verify(const struct token *token, const struct token_record *record,
                                enum node_role role, struct str name, uint64_t now_s,
                                struct error *e);
/* Marks it as used; the caller stores that before anybody gains by it. `name` is checked already.
 */
void token_burn(struct token_record *record, struct str name, const struct pin *key,
                uint64_t now_s);
/* Whether the record may go: past its end, and past the time in which a lost answer is asked for
 * again. */
bool token_is_over(const struct token_record *record, uint64_t now_s);

/* As JSON. The text is the caller's to free. ERR_CORRUPT: not what token_record_write() wrote. */
char *token_record_write(const struct token_record *record);
must_check enum err token_record_read(struct str text, struct token_record *ret_record,
                                      struct error *e);
