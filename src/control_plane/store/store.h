/* store.h - where registrations are kept: the only durable state of a control plane.
 *
 * A record is {kind, id, value}; the value is a text (JSON, see ../records.h) that the store does
 * not read. The store's own thread carries out writes: what is queued when it comes round becomes
 * one transaction (group commit), so that a thousand writers wait for one fsync. A write is told to
 * its loop only after it is on disk. Every transaction compares the epoch that this leader took: a
 * leader that was succeeded writes nothing (ERR_STALE).
 *
 * Life: store_open() → store_take_epoch() → store_load() → store_start() → store_submit() … →
 * store_stop() → one turn of the loop → store_close(). All but store_submit() block; they are for
 * start and end of the program. Loop thread only. Behind it is a back end (store_backend.h): SQLite
 * for one control plane, etcd for several.
 *
 * Of several control planes each follows: store_open() → store_follow() → (store_take(), when it
 * thinks that it should lead) → store_submit() … → store_stop() … A follower is told all records,
 * and each change of them, so that it holds what a leader holds. */
#pragma once
#include "base/base.h"
#include "loop/loop.h"

enum store_kind {
    STORE_FUNCTION,
    STORE_WORKER,
    STORE_DATA_PLANE,
    STORE_SANDBOX, /* in measurements only: ../persisted.h */
    STORE_API_KEY,
    STORE_AUTHORITY, /* one record: ../trust.h */
    STORE_TOKEN,
    STORE_RESTORE, /* one record while a backup is being restored: ../backup_place.h */
    STORE_KIND_COUNT
};
#define STORE_VALUE_BYTES_MAX (4u * 1024u * 1024u)

struct store; /* opaque */
struct store_backend;

/* One write. Owned by the caller, who keeps it until on_done. */
struct store_write {
    enum store_kind kind;
    uint64_t id;      /* > 0 */
    char *value;      /* put; NULL: delete. Owned by the caller, unchanged until on_done */
    uint64_t next_id; /* ids below are used up, also after a delete: kept with the write */
    /* Told on the loop's thread: ERR_OK is durable. ERR_NO_SPACE, ERR_TOO_LARGE: it was not
     * written, others may be. The rest: nothing can be known; `on_lost` follows. The write may be
     * freed here.
     */
    void (*on_done)(struct store_write *write, enum err err, const struct error *e);
    struct { /* private */
        struct loop_post post;
        struct store_write *next;
        enum err err;
        struct error error;
    } private;
};

/* `where` is the back end's: a file name for SQLite. Refuses what is damaged (ERR_CORRUPT), written
 * by a newer version (ERR_VERSION), in use by another process (ERR_BUSY), or no store; the sentence
 * names it. */
must_check enum err store_open(const struct store_backend *backend, const char *where,
                               struct store **ret_store, struct error *e);
/* Begins a leadership: the epoch, higher than every one before, is on disk when this returns. */
must_check enum err store_take_epoch(struct store *s, uint64_t *ret_epoch, struct error *e);
/* Tells every record, functions first, by id. `value` is valid during the call. on_record's failure
 * ends the load. *ret_next_id is above every id ever used. */
typedef enum err store_on_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                                 struct error *e);
must_check enum err store_load(struct store *s, store_on_record *on_record, void *user,
                               uint64_t *ret_next_id, struct error *e);
/* on_lost: the store cannot be used any more (input or output error, or another leader took over);
 * told once, on the loop's thread. The program should end: what it holds may not be what is stored.
 */
typedef void store_on_lost(void *user, enum err err, const char *why);
/* ---- following (only stores that several control planes share; else ERR_UNSUPPORTED) ---- */
struct store_follower { /* told on the loop's thread, in the order of the store's revisions */
    void *user;
    /* What is equal to what was told before is not told again. What store_submit() wrote may come
     * back here. */
    void (*on_record)(void *user, enum store_kind kind, uint64_t id,
                      const char *value); /* NULL: it was deleted */
    /* The newest epoch; our own too. */
    void (*on_epoch)(void *user, uint64_t epoch, const char *leader);
    void (*on_synced)(void *user); /* once: all that was there has been told */
    void (*on_reached)(void *user, bool reached, const char *why); /* when that changes */
    /* After store_take(). ERR_OK: we lead, and all that was written before has been told.
     * ERR_STALE: another was faster. Else: the store was not reached in time, or not all could be
     * told; then on_epoch may tell of an epoch that is ours and that nobody leads: take the next.
     */
    void (*on_taken)(void *user, enum err err, uint64_t epoch, uint64_t next_id,
                     const struct error *e);
    store_on_lost *on_lost;
};
must_check enum err store_follow(struct store *s, struct loop *loop,
                                 const struct store_follower *follower, struct error *e);
/* Tries once to begin a leadership: the epoch after `newest`, the newest that the caller knows; one
 * that the store has read since and not told yet is not passed over: ERR_STALE. One at a time. */
void store_take(struct store *s, uint64_t newest);

must_check enum err store_start(struct store *s, struct loop *loop, store_on_lost *on_lost,
                                void *user, struct error *e);
/* Reads everything while it is in use: at one revision, between two writes. Owned by the caller
 * until on_done. */
struct store_read {
    store_on_record *on_record; /* on the store's thread, which writes nothing meanwhile */
    void *user;
    /* On the loop's thread. ERR_CLOSED after store_stop(). */
    void (*on_done)(struct store_read *read, enum err err, const struct error *e);
    uint64_t next_id; /* a result */
    struct {          /* private */
        struct loop_post post;
        struct store_read *next;
        enum err err;
        struct error error;
    } private;
};
void store_read(struct store *s, struct store_read *read);
/* Writes are carried out in the order in which they were submitted. After store_stop() they fail
 * (ERR_CLOSED), told in the next turn. */
void store_submit(struct store *s, struct store_write *write);
/* Carries out what is queued and ends the thread. What it had to tell waits in the loop: run one
 * more turn before store_close(). */
void store_stop(struct store *s);
void store_close(struct store *s); /* stopped, or never started; NULL does nothing */

struct store_numbers {
    uint64_t writes, transactions, failures;
    uint64_t commit_us_last, commit_us_max;
};
void store_numbers(struct store *s, struct store_numbers *ret);
