/* backup.h - a backup: all registrations and the code they use, as one stream of bytes. Blocks on
 * its file or callback; any thread.
 *
 *   dirigent backup 1
 *   about 0 <bytes>            epoch, next id, when and by which version, as JSON
 *   <text>
 *   <digest>
 *   function 7 <bytes>         as the store has it; likewise worker, data-plane, api-key, authority
 *   …
 *   code <64 hex> <bytes>      an archive as it was uploaded
 *   …
 *   end <records>
 *   <digest>
 *
 * Each record is a line, what it says, and the SHA-256 (64 hex digits and a newline) of both; the
 * last digest is over all that comes before it. So damage is found and named by its record, and a
 * record that is missing, doubled or moved is found too. Kinds come in this order, and their ids
 * rise. Nothing is encrypted: whoever reads it can be anybody in the cluster. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include "control_plane/store/store.h"

struct backup_about {
    uint64_t epoch, next_id; /* ids below are used up */
    uint64_t created_ms;     /* wall clock */
    char version[64];        /* of the program that wrote it */
};

/* ---- writing ---- */

struct backup_writer; /* opaque; the caller's to free */
/* Takes all of it or fails; then so does the call that led to it. */
typedef enum err backup_on_bytes(void *user, const void *data, size_t bytes, struct error *e);
struct backup_writer *backup_writer_new(backup_on_bytes *on_bytes, void *user);
void backup_writer_free(struct backup_writer *w); /* at any time; NULL does nothing */
must_check enum err backup_write_about(struct backup_writer *w, const struct backup_about *about,
                                       struct error *e);
/* Whether records of this kind are in a backup: not those that end by themselves (join tokens,
 * which would be good a second time) or that nobody reads (sandboxes). */
bool backup_has_kind(enum store_kind kind);
const char *backup_kind_name(enum store_kind kind); /* "api-key" */
must_check enum err backup_write_record(struct backup_writer *w, enum store_kind kind, uint64_t id,
                                        const char *value, struct error *e);
/* Of `bytes` bytes, which backup_write_code_data() gives piece by piece. `digest`: "sha256:<hex>".
 */
must_check enum err backup_write_code(struct backup_writer *w, const char *digest, uint64_t bytes,
                                      struct error *e);
/* ERR_CORRUPT with the last piece: this is not the code of that digest. */
must_check enum err backup_write_code_data(struct backup_writer *w, const void *data, size_t bytes,
                                           struct error *e);
must_check enum err backup_write_end(struct backup_writer *w, struct error *e);

/* ---- reading ---- */

/* Each may be NULL; a failure ends the reading. A record is told when its own digest is known to
 * fit, code before: what comes of it counts only when on_code_end is told. */
struct backup_sink {
    void *user;
    enum err (*on_about)(void *user, const struct backup_about *about, struct error *e);
    store_on_record *on_record;
    enum err (*on_code)(void *user, const char *digest, uint64_t bytes, struct error *e);
    backup_on_bytes *on_code_data;
    enum err (*on_code_end)(void *user, const char *digest, struct error *e);
};
/* Reads the file from its beginning to its end. `name` is for sentences. ERR_CORRUPT: no backup,
 * damaged or cut; ERR_VERSION: of a newer format; ERR_IO. They name the file, the record and the
 * byte at which it begins. */
must_check enum err backup_read(int fd, const char *name, const struct backup_sink *sink,
                                struct error *e);
