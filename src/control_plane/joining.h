/* joining.h - join tokens that are registered, and how a machine becomes a node by one: the
 * leader's side of ../keys/join.h. Loop thread only. */
#pragma once
#include "control_plane/shell.h"
#include "dirigent.pb-c.h"
#include "keys/token.h"

struct joining;
struct joining *joining_new(struct control_plane *cp);
void joining_free(struct joining *j); /* the store has told the end of every write; NULL too */
/* While the store is loaded, or followed. ERR_CORRUPT. */
must_check enum err joining_load(struct joining *j, uint64_t id, const char *value,
                                 struct error *e);
void joining_drop(struct joining *j, uint64_t id);
void joining_tidy(struct joining *j); /* forgets tokens that are over. Leader, now and then */

/* ---- tokens ---- */
struct token_change { /* owned by the caller until on_done */
    bool remove;
    char id[SECRET_ID_CHARS + 1]; /* of the one to remove */
    struct token_order order;     /* of a new one; its name points to: */
    char name[NODE_NAME_BYTES_MAX + 1];
    /* ERR_NOT_FOUND, ERR_INVALID, ERR_CONFLICT (there is no TLS, or the token is being used), or
     * the store's. May be told before joining_change() returns; may be freed here. */
    void (*on_done)(struct token_change *change, enum err err, const struct error *e);
    struct token_record record;
    char text[TOKEN_TEXT_BYTES]; /* of a new one; wipe it */
    struct joining *joining;     /* the rest is joining.c's */
    struct store_write write;
};
void joining_change(struct joining *j, struct token_change *change);
/* Iteration: *cursor starts at 0; NULL at the end. */
const struct token_record *joining_next(const struct joining *j, size_t *cursor);

/* ---- joining ---- */
typedef void joining_answer(void *user, const Dirigent__Certificate *answer);
struct join_attempt; /* one that waits for the store */
/* Judges, and answers when the store has the burned token; perhaps at once: then NULL is returned.
 * `ip`: whence it comes. `name_is_taken`: a node of that role and name is registered. */
struct join_attempt *joining_ask(struct joining *j, const char *ip,
                                 const Dirigent__JoinRequest *request, bool name_is_taken,
                                 joining_answer *answer, void *user);
/* Nobody waits for the answer any more. NULL does nothing. */
void joining_cancel(struct join_attempt *a);
/* The next certificate of `peer`, whom its connection has shown; answers at once. */
void joining_renew(struct joining *j, const struct subject *peer,
                   const Dirigent__RenewRequest *request, joining_answer *answer, void *user);
