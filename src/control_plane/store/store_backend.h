/* store_backend.h - what a store's back end does. Every call may block; one thread at a time. */
#pragma once
#include "control_plane/store/store.h"

struct store_backend {
    const char *name;
    must_check enum err (*open)(const char *where, void **ret_self, struct error *e);
    must_check enum err (*take_epoch)(void *self, uint64_t *ret_epoch, struct error *e);
    must_check enum err (*load)(void *self, store_on_record *on_record, void *user,
                                uint64_t *ret_next_id, struct error *e);
    /* All of the chained writes or none, in order, if `epoch` is still the newest (else ERR_STALE).
     * ERR_NO_SPACE leaves the store usable, any other failure does not. */
    must_check enum err (*commit)(void *self, uint64_t epoch, const struct store_write *first,
                                  struct error *e);
    void (*close)(void *self);
};
extern const struct store_backend store_sqlite;
