/* api_keys.h - the keys of the HTTP API that are registered, and whether a request may be served.
 * Loop thread only. What a key is and what each role may do: ../keys/api_key.h.
 *
 * Without any key the API serves clients on this host only. With the first one, every request needs
 * one, but for health. The first key is an administrator's, and the last administrator's is not
 * removed while there are others. */
#pragma once
#include "control_plane/shell.h"
#include "http/server.h"
#include "keys/api_key.h"

struct api_keys;
struct api_keys *api_keys_new(struct control_plane *cp);
void api_keys_free(struct api_keys *k); /* the store has told the end of every write */
/* While the store is loaded, or followed. ERR_CORRUPT. */
must_check enum err api_keys_load(struct api_keys *k, uint64_t id, const char *value,
                                  struct error *e);
void api_keys_drop(struct api_keys *k, uint64_t id);

/* ERR_PERMISSION: no; *ret_status is 401 (no key, or one that is not valid) or 403 (its role may
 * not). */
must_check enum err api_keys_check(const struct api_keys *k, struct http_exchange *x,
                                   unsigned *ret_status, struct error *e);

struct api_key_change { /* owned by the caller until on_done */
    bool remove;
    char name[API_KEY_NAME_BYTES_MAX + 1];
    enum api_role role;  /* of a new one */
    uint64_t lifetime_s; /* 0: for ever */
    /* ERR_OK: stored. ERR_EXISTS, ERR_NOT_FOUND, ERR_CONFLICT, ERR_INVALID, or the store's. May be
     * told before api_keys_change() returns; may be freed here. */
    void (*on_done)(struct api_key_change *change, enum err err, const struct error *e);
    struct api_key_record record;  /* as stored */
    char text[API_KEY_TEXT_BYTES]; /* of a new one; wipe it */
    struct api_keys *keys;         /* the rest is api_keys.c's */
    struct store_write write;
};
void api_keys_change(struct api_keys *k, struct api_key_change *change);
/* Iteration: *cursor starts at 0; NULL at the end. */
const struct api_key_record *api_keys_next(const struct api_keys *k, size_t *cursor);
