/* backup_place.h - between a store that no control plane uses and a backup. Blocks; any thread.
 *
 * A restore is cut short by whatever ends the process: until it has come to its end the store has a
 * record STORE_RESTORE, with which no control plane starts. It takes an epoch far above that of the
 * backup, since leaders may have come after it, whose orders workers remember; likewise with ids
 * and the numbers of versions. */
#pragma once
#include "control_plane/backup_list.h"
#include "control_plane/store/store_backend.h"

/* Below <data_dir>/control-plane. */
#define BACKUP_STORE_FILE "state.db"
#define BACKUP_CODE_DIR "blobs"

#define BACKUP_EPOCHS_SKIPPED 10000u  /* leaderships that may have come after the backup */
#define BACKUP_VERSIONS_SKIPPED 1000u /* versions of each function likewise */
#define BACKUP_IDS_SKIPPED 1000000u   /* registrations likewise */

struct backup_place {
    const struct store_backend *backend;
    const char *where; /* as store_open() takes it */
    const char *name;  /* for sentences: "the store in '/var/lib/dirigent'" */
    int code_fd;       /* the directory with code; -1: none */
};
struct backup_result {
    struct backup_about about;
    struct backup_list list; /* the caller's; backup_list_done() */
    size_t code_count;       /* archives that were written */
    uint64_t code_bytes;
    uint64_t epoch; /* of a restore: what the store has now */
};

/* All of it to `fd`, whose name is `name`. ERR_NOT_FOUND: code of a function is not there. */
must_check enum err backup_save(const struct backup_place *from, bool with_code, int fd,
                                const char *name, struct backup_result *ret, struct error *e);
/* Reads the file through; nothing else. */
must_check enum err backup_verify(int fd, const char *name, struct backup_result *ret,
                                  struct error *e);

struct backup_restore {
    int fd; /* the backup, from its beginning */
    const char *name;
    bool force;        /* what is there goes */
    bool without_code; /* functions may have code that is neither here nor in the backup */
};
/* Nothing is changed before the backup was read through. ERR_EXISTS: the store is not empty.
 * ERR_BUSY: a control plane leads with it. ERR_STALE: one took it over meanwhile. */
must_check enum err backup_restore(const struct backup_place *to, const struct backup_restore *how,
                                   struct backup_result *ret, struct error *e);
