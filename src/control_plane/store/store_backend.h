/* store_backend.h - what a store's back end does. Every call may block; one thread at a time. */
#pragma once
#include "control_plane/store/store.h"
#include <stdatomic.h>

/* What a follower tells, on its thread. */
struct store_feed {
    void *user;
    void (*on_record)(void *user, enum store_kind kind, uint64_t id, const char *value);
    void (*on_epoch)(void *user, uint64_t epoch, const char *leader);
    void (*on_synced)(void *user);
    void (*on_reached)(void *user, bool reached, const char *why);
};

struct store_backend {
    const char *name;
    must_check enum err (*open)(const char *where, void **ret_self, struct error *e);
    must_check enum err (*take_epoch)(void *self, uint64_t *ret_epoch, struct error *e);
    /* The same, and above `above`. */
    must_check enum err (*take_epoch_above)(void *self, uint64_t above, uint64_t *ret_epoch,
                                            struct error *e);
    /* The newest as it is stored (0: there is none), and who took it ("": that is not kept). */
    must_check enum err (*last_epoch)(void *self, uint64_t *ret_epoch, char *ret_leader,
                                      size_t leader_bytes, struct error *e);
    must_check enum err (*load)(void *self, store_on_record *on_record, void *user,
                                uint64_t *ret_next_id, struct error *e);
    /* The first *ret_count (> 0) of the chained writes, all or none, in order, if `epoch` is still
     * the newest (else ERR_STALE). ERR_NO_SPACE: nothing of the chain was written. ERR_TOO_LARGE:
     * the first was not written and never will be; *ret_count is 1. What cannot be known yet is
     * asked for until it is, or until *stop (ERR_TIMEOUT; `stop` NULL: after a while). After any
     * other failure the store is not used any more. */
    must_check enum err (*commit)(void *self, uint64_t epoch, const struct store_write *first,
                                  const atomic_bool *stop, size_t *ret_count, struct error *e);
    void (*tidy)(
        void *self); /* NULL: nothing to do. By the leader, after commits and once a minute */
    /* NULL: one process has the store. Runs on a thread of its own, beside the other calls, until
     * *stop; ends before only when what is there cannot be read (ERR_CORRUPT, ERR_VERSION). */
    must_check enum err (*follow)(void *self, const struct store_feed *feed,
                                  const atomic_bool *stop, struct error *e);
    /* After take_epoch(), while following: waits until all that was written before the epoch was
     * taken has been told. ERR_TIMEOUT, ERR_CLOSED: not all is known to have been told. */
    must_check enum err (*catch_up)(void *self, struct error *e);
    /* While following: as take_epoch(), but ERR_STALE when an epoch newer than `newest` is known.
     */
    must_check enum err (*take_epoch_after)(void *self, uint64_t newest, uint64_t *ret_epoch,
                                            struct error *e);
    uint64_t (*next_id)(void *self); /* as known from following */
    void (*close)(void *self);
};
extern const struct store_backend store_sqlite, store_etcd;
