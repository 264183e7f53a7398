/* records.h - what is stored of a function and of a peer, as JSON texts. Pure. */
#pragma once
#include "control_plane/core.h"

#define FUNCTION_VERSION_MAX 0xffffffu /* links.c keys a version by id and number */

/* A registered function. `active` is the spec of the version that serves while a newer one is not
 * proven; it is there (has_active) only when active_version is neither 0 nor latest_version. */
struct function_record { /* owns its specs; function_record_done() */
    uint64_t id;
    uint32_t latest_version, active_version;
    /* Numbers up to this are used up, though nothing here has them: it was restored from a backup,
     * and workers may know versions that came after it. 0: up to latest_version. */
    uint32_t versions_used;
    struct function_spec latest, active;
    bool has_active;
    uint64_t created_at_ms, updated_at_ms; /* wall clock */
};
void function_record_done(struct function_record *r);
void function_record_copy(const struct function_record *from, struct function_record *ret_to);
char *function_record_write(const struct function_record *r); /* the caller's to free */
must_check enum err function_record_read(uint64_t id, const char *text,
                                         struct function_record *ret_record, struct error *e);

#define PEER_NAME_BYTES_MAX 253u
struct peer_record {
    uint64_t id;
    char name[PEER_NAME_BYTES_MAX + 1];
    char address[64]; /* a worker's host, a data plane's listen address */
    enum worker_use use;
};
/* "all", "cordoned", "draining". */
const char *worker_use_name(enum worker_use use);
bool worker_use_find(const char *name, enum worker_use *ret_use);
char *peer_record_write(const struct peer_record *r); /* the caller's to free */
must_check enum err peer_record_read(uint64_t id, const char *text, struct peer_record *ret_record,
                                     struct error *e);
