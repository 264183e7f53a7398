/* blobs.h - uploaded code, content-addressed: <directory>/<64 hex> for each archive. Loop thread
 * only.
 *
 * An upload is written to a temporary file and hashed on the way. Then a child process without
 * rights makes it durable and reads it through (worker/unpack.h); only what passed gets its name.
 * Leftovers of earlier runs are swept at start. What no function uses goes `staged_for_ms` after it
 * was last asked for. */
#pragma once
#include "base/base.h"
#include "function/function.h"
#include "loop/loop.h"

struct blobs;  /* opaque */
struct upload; /* opaque; one archive on its way in */

must_check enum err blobs_new(struct loop *loop, const char *directory, uint64_t staged_for_ms,
                              struct blobs **ret_blobs, struct error *e);
void blobs_free(struct blobs *b); /* ends uploads that go on, without telling */
size_t blobs_count(const struct blobs *b);
uint64_t blobs_bytes(const struct blobs *b);
bool blobs_has(const struct blobs *b, const char *digest);
/* Is it here? If so it stays for another staging time. `digest`: "sha256:<hex>". */
bool blobs_touch(struct blobs *b, const char *digest);
must_check enum err blobs_open(struct blobs *b, const char *digest, int *ret_fd,
                               uint64_t *ret_bytes, struct error *e);
/* Removes what `is_used` denies and nobody asked for during the staging time. */
void blobs_collect(struct blobs *b, bool (*is_used)(void *user, const char *digest), void *user);

must_check enum err upload_begin(struct blobs *b, struct upload **ret_upload, struct error *e);
/* ERR_TOO_LARGE above CODE_ARCHIVE_BYTES_MAX, ERR_NO_SPACE. */
must_check enum err upload_write(struct upload *u, const void *data, size_t bytes, struct error *e);
/* All is there: checks it in the background and tells the end once. The upload is freed after it.
 */
typedef void upload_on_done(void *user, enum err err, const char *digest, uint64_t bytes,
                            const struct error *e);
void upload_finish(struct upload *u, upload_on_done *on_done, void *user);
/* Before upload_finish(): drops it. After it: on_done is not told any more. */
void upload_cancel(struct upload *u);
