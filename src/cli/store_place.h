/* store_place.h - the store that the flags of `dirigent store …` name, opened as the user of its
 * control plane: what is made there is the control plane's to use. Blocks; main thread, which has
 * that user only during store_place_…() calls. */
#pragma once
#include "control_plane/backup_place.h"

#define STORE_DATA_DIR "/var/lib/dirigent"

struct store_values { /* flags; NULL: not given */
    const char *store, *etcd, *etcd_ca, *etcd_cert, *etcd_key, *data_dir, *user, *from, *to;
    bool i_know, force, no_code;
};

enum store_place_use { STORE_PLACE_READ, STORE_PLACE_WRITE };
struct store_place { /* store_place_done() */
    struct backup_place place;
    char *where, *name;
    char *data_path; /* <data_dir>/control-plane */
    int lock_fd;
    uid_t uid;
    gid_t gid;
};
#define STORE_PLACE_NONE ((struct store_place){.lock_fd = -1, .place.code_fd = -1})
void store_place_done(struct store_place *p);

/* `text`: "etcd", "sqlite", "sqlite:DIR"; NULL: as --store and --data-dir say. ERR_USAGE.
 * ERR_NOT_FOUND: nothing to read there. ERR_BUSY: a control plane is running there. Reading etcd
 * disturbs nobody. */
must_check enum err store_place_open(struct store_place *p, const struct store_values *v,
                                     const char *text, enum store_place_use use, struct error *e);
/* To write, where `other` may have the lock of the same directory. */
must_check enum err store_place_open_beside(struct store_place *p, const struct store_values *v,
                                            const char *text, const struct store_place *other,
                                            struct error *e);
/* Whether `text` names the same store; it may be wrong text too. */
bool store_place_is(const struct store_place *p, const struct store_values *v, const char *text);

bool store_place_shares_code(const struct store_place *a, const struct store_place *b);

/* backup_save() and backup_restore() as that user. */
must_check enum err store_place_save(const struct store_place *p, bool with_code, int fd,
                                     const char *name, struct backup_result *ret, struct error *e);
must_check enum err store_place_restore(const struct store_place *p,
                                        const struct backup_restore *how, struct backup_result *ret,
                                        struct error *e);
/* A file there without a name. */
must_check enum err store_place_temporary(const struct store_place *p, int *ret_fd,
                                          struct error *e);
