/* registry.h - the registered functions, and the changes of them: checked, stored, then told to the
 * core. Loop thread only.
 *
 * Changes of one name are carried out one after the other, in the order of their coming; changes of
 * different names wait for the disk together. Nothing is visible before it is stored. */
#pragma once
#include "control_plane/records.h"
#include "control_plane/shell.h"

struct last_exit { /* how the newest sandbox that went by itself did so; version 0: none did since
                      we started */
    uint64_t sandbox_id, at_ms; /* wall clock */
    uint32_t version;
    enum gone_reason reason;
    int32_t exit_code, signal;
};
struct failure {      /* why a version failed its trial */
    uint32_t version; /* 0: none did */
    char code[48];
    char *message, *last_output;
    size_t last_output_bytes;
};
struct function { /* owned by the registry */
    struct function_record record;
    struct last_exit last_exit;
    struct failure failure;
    uint32_t proven;        /* the newest that the core said is active; 0: none since we started */
    bool is_active_unsaved; /* the record has it, the store not yet */
};
void function_note_failure(struct function *f, const struct control_order *order);

enum change_kind {
    CHANGE_PUT,    /* `json` is the whole spec */
    CHANGE_CREATE, /* as PUT, but ERR_CONFLICT when another spec is there */
    CHANGE_PATCH,  /* `json` is a partial change */
    CHANGE_CODE,   /* `digest` is the function's new code */
    CHANGE_DELETE,
    CHANGE_ACTIVE, /* `version` serves now */
};
enum change_outcome { CHANGE_CREATED, CHANGE_UPDATED, CHANGE_UNCHANGED, CHANGE_DELETED };

struct change { /* owned by the caller until on_done */
    enum change_kind kind;
    char name[FUNCTION_NAME_BYTES_MAX + 1];
    const json_t *json; /* the caller's, kept until on_done */
    char digest[CODE_DIGEST_BYTES + 1];
    uint32_t version;
    bool prove; /* start the new version once on trial, even when nothing serves yet */
    /* ERR_OK: stored, and the core knows. `change` may be freed here. */
    void (*on_done)(struct change *change, enum err err, const struct error *e);
    /* results, on success */
    enum change_outcome outcome;
    uint64_t function_id;
    uint32_t new_version; /* the newest after the change */
    /* private */
    struct registry *registry;
    struct list node;
    struct store_write write;
    struct function_record next;
};

struct registry *registry_new(struct control_plane *cp);
void registry_free(struct registry *r);
/* While the store is loaded, or followed: the record is taken, new or changed; the function is
 * forgotten. */
void registry_load(struct registry *r, struct function_record *record);
void registry_drop(struct registry *r, uint64_t function_id);
/* After the load: tells the core all of it. */
void registry_tell_core(struct registry *r);

void registry_change(struct registry *r, struct change *change);

bool registry_is_busy(const struct registry *r); /* some change has not ended */
struct function *registry_find(const struct registry *r, struct str name); /* NULL: there is none */
struct function *registry_get(const struct registry *r, uint64_t function_id);
size_t registry_count(const struct registry *r);
/* Iteration: *cursor starts at 0; NULL at the end. */
struct function *registry_next(const struct registry *r, size_t *cursor);
/* The spec of a version that may still be started; NULL: neither the newest nor the one that
 * serves. */
const struct function_spec *registry_version(const struct function *f, uint32_t version);
bool registry_uses_code(const struct registry *r, const char *digest);
