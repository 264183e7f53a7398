/* fake_etcd.h - for tests: one member of an etcd in memory, on loopback, that fails as it is told.
 *
 * Speaks the part of the JSON gateway that the store uses, with every revision kept. Faults are
 * exact, where those of a real member would have to be met by luck. A thread of its own; every call
 * here may come from the test's thread. */
#pragma once
#include "base/base.h"

enum fake_fault {
    FAKE_NONE,
    FAKE_LOSE_REQUEST, /* the connection closes, nothing was done */
    FAKE_LOSE_ANSWER,  /* it was done, the connection closes */
    FAKE_DELAY,        /* the connection closes; it is done by fake_etcd_deliver() */
    FAKE_HANG,         /* it was done, no answer comes */
    FAKE_NO_SPACE,
    FAKE_NO_LEADER,
    FAKE_TOO_MANY, /* operations in a transaction */
};

struct fake_etcd; /* opaque */
struct fake_etcd *fake_etcd_new(void);
void fake_etcd_free(struct fake_etcd *f);
/* "me@http://127.0.0.1:PORT", twice: as if of two members. Valid until fake_etcd_free(). */
const char *fake_etcd_where(const struct fake_etcd *f);

void fake_etcd_set_version(struct fake_etcd *f, const char *version, unsigned members);
/* What happens to the next transactions, one after the other; then FAKE_NONE. At most 16. */
void fake_etcd_fail(struct fake_etcd *f, const enum fake_fault *faults, size_t count);
/* Carries out what is delayed, in order; how many that were. */
size_t fake_etcd_deliver(struct fake_etcd *f);
/* The next watches get their first message, and nothing after it. */
void fake_etcd_mute_watches(struct fake_etcd *f, bool mute);
/* The next change to be told by watches is left out, with all of its revision. */
void fake_etcd_skip_change(struct fake_etcd *f);
/* Watches are told changes up to this revision; the rest when it is raised. */
void fake_etcd_hold_watches(struct fake_etcd *f, uint64_t revision);
/* Ends every watch with "canceled", as after a compaction. */
void fake_etcd_cancel_watches(struct fake_etcd *f);
void fake_etcd_fail_ranges(struct fake_etcd *f, bool fail); /* all, as without a leader */
/* As something that is no Dirigent would. NULL: deletes. */
void fake_etcd_put(struct fake_etcd *f, const char *key, const char *value);
void fake_etcd_rewind(struct fake_etcd *f, uint64_t revision); /* as a restored backup */
uint64_t fake_etcd_revision(struct fake_etcd *f);
unsigned fake_etcd_transactions(struct fake_etcd *f); /* asked for so far */
uint64_t fake_etcd_compacted(struct fake_etcd *f);    /* the last revision; 0: none */
/* The newest value; NULL: none. The caller frees it. */
char *fake_etcd_get(struct fake_etcd *f, const char *key);
