/* code_store.h - code of versions, unpacked once and shared read-only: DIR/<hex of its sha256>/.
 * Loop thread only; archives are unpacked in restricted child processes. What has its final name is
 * complete and on the disk; everything else is swept at start.
 *
 * Bounded: code that nothing uses stays CODE_UNUSED_MS_MAX, for a version that comes back, and of
 * it no more than CODE_UNUSED_COUNT_MAX trees (limits.h); all of it goes when a function was
 * deleted or the disk is full. Trees are removed by a child process. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include "loop/loop.h"

struct code_store;
struct code_store_callbacks {
    /* Ask the control plane for the archive; its pieces come back by code_store_chunk(). */
    void (*on_want)(void *user, const char *digest);
    /* `dir_fd` (O_PATH, owned by the store) when err is ERR_OK; else the sentence says why. Told
     * once for all who were answered with ERR_MORE since it was last told; never from inside
     * code_store_need(). After a failure the next need fetches anew. */
    void (*on_ready)(void *user, const char *digest, enum err err, int dir_fd, const char *why);
    bool (*is_used)(void *user, const char *digest);
};
must_check enum err code_store_new(struct loop *loop, const char *directory,
                                   const struct code_store_callbacks *callbacks, void *user,
                                   struct code_store **ret_store, struct error *e);
void code_store_free(struct code_store *s);
/* ERR_OK: *ret_dir_fd is the directory. ERR_MORE: being fetched (once, however many ask), on_ready
 * will tell. ERR_INVALID: that is no digest. */
must_check enum err code_store_need(struct code_store *s, const char *digest, int *ret_dir_fd);
/* A piece of an archive, in order. `error` not "": there is none to be had. */
void code_store_chunk(struct code_store *s, const char *digest, uint64_t offset,
                      uint64_t total_bytes, struct str data, const char *error);
/* The connection was lost: what was being fetched is asked for again. */
void code_store_connected(struct code_store *s);
/* Looks at what is used, and removes what has not been for keep_ns (0: all of it) or is above the
 * bound. To be called now and then: use is seen only here. */
void code_store_collect(struct code_store *s, uint64_t now_ns, uint64_t keep_ns);
/* What is unpacked; NUL-terminated digests. *cursor starts at 0; NULL at the end. */
const char *code_store_next(const struct code_store *s, size_t *cursor);
