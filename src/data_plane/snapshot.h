/* snapshot.h - what a data plane knows, in a file, for a start while no control plane is reached.
 * Blocks; control thread only.
 *
 * The file is whole or absent (written beside, renamed) and is checked by its digest; it is not
 * synced: it only serves restarts within one boot of the host. A sandbox's address may be given to
 * another sandbox after its end, so a file is good only while it is fresh: whoever writes it
 * touches it every SNAPSHOT_TOUCH_MS, and it is refused when it is older than SNAPSHOT_AGE_MS_MAX
 * or of another boot. */
#pragma once
#include "base/base.h"
#include "base/str.h"

#define SNAPSHOT_TOUCH_MS 1000u
#define SNAPSHOT_AGE_MS_MAX 30000u

/* Slots of a sandbox that were given back after the snapshot was written: kept in a file beside it,
 * so that it cannot promise what others have by now. */
struct snapshot_slots {
    uint64_t sandbox_id;
    uint32_t slots, left; /* so many, 0: of all; left: those that are still held */
};
void snapshot_note(const char *directory, const struct snapshot_slots *items, size_t count);
/* All that were noted since the snapshot was written, and maybe some from just before it: of a
 * sandbox the smallest `left` is safe. NULL: none. The caller frees. */
struct snapshot_slots *snapshot_noted(const char *directory, size_t *ret_count);

/* Replaces `directory`/snapshot, and forgets what was noted. */
must_check enum err snapshot_write(const char *directory, struct str payload, struct error *e);
void snapshot_touch(const char *directory);
void snapshot_remove(const char *directory);
/* ERR_NOT_FOUND: there is none. ERR_STALE: too old, or of another boot. ERR_CORRUPT: cut or
 * changed. The sentence says which. *ret_payload is the caller's (buf_done). now_ms: wall clock, as
 * the file's times. */
must_check enum err snapshot_read(const char *directory, uint64_t now_ms, struct buf *ret_payload,
                                  struct error *e);
