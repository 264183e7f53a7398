/* store_etcd_internal.h - the etcd store, as its writing half (store_etcd.c, the store's thread)
 * and its following half (store_etcd_follow.c, the following thread) share it. */
#pragma once
#include "base/hash.h"
#include "control_plane/store/etcd_records.h"
#include "control_plane/store/store_backend.h"
#include <pthread.h>

#define STORE_ETCD_COMPACT_KEPT 2u /* periods */

struct etcd_store {
    struct etcd *calls, *watch; /* the writing thread's, the following thread's */
    char *name;                 /* of this control plane, in the epoch key */
    uint64_t compact_next_ms, compact_revisions[STORE_ETCD_COMPACT_KEPT];
    atomic_bool elsewhere; /* the following thread is to go on with another member at once, */
    atomic_bool relist;    /* and to list there first */
    atomic_bool hurry;     /* somebody waits for what the watch tells: to list again can wait */
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t told;   /* on the monotonic clock */
    bool epoch_known, follow_ended, watching; /* watching: a member has said that it tells */
    uint64_t epoch, epoch_revision; /* the newest that is known; revision 0: there is none */
    uint64_t next_id, head_revision;
    uint64_t own_epoch, own_revision,
        own_head;              /* taken by us; own_head: the head at own_revision */
    uint64_t written_revision; /* our last commit */
    /* The follower has told all up to the first, has listed at the second, and was told this head.
     */
    uint64_t told_revision, listed_revision, told_head;
    struct map revisions[STORE_KIND_COUNT]; /* id -> mod_revision, of records that are there */
};

/* Epoch and head; other keys are passed over. Under the mutex. ERR_CORRUPT also when the key was
 * deleted. */
must_check enum err store_etcd_take_meta(struct etcd_store *s, const struct etcd_kv *kv,
                                         struct error *e);
/* There are records, and the key that must be with them is not. */
enum err store_etcd_missing(const char *key, struct error *e);

enum err store_etcd_follow(void *self, const struct store_feed *feed, const atomic_bool *stop,
                           struct error *e);
enum err store_etcd_catch_up(void *self, struct error *e);
