/* backup_list.h - the records of a backup in memory: what a store had at one revision, or what a
 * file says, checked. One thread at a time. */
#pragma once
#include "control_plane/backup.h"
#include "function/function.h"

struct backup_item {
    enum store_kind kind;
    uint64_t id;
    char *value;
};
struct backup_code { /* that a function uses */
    char digest[CODE_DIGEST_BYTES + 1];
    char function[FUNCTION_NAME_BYTES_MAX + 1]; /* one that does */
};
struct backup_list { /* zero-initialised is empty; owns all of it */
    struct backup_item *items;
    size_t count, capacity;
    struct backup_code *codes;
    size_t code_count, code_capacity;
    size_t counts[STORE_KIND_COUNT];
};
void backup_list_done(struct backup_list *list); /* for cleanup() too */

/* A store_on_record; `list` is a struct backup_list. Passes over kinds that no backup has.
 * ERR_CORRUPT, ERR_VERSION: no control plane could read the record. */
must_check enum err backup_list_add(void *list, enum store_kind kind, uint64_t id,
                                    const char *value, struct error *e);
/* After the last record: codes rise by their digest, each is there once. */
void backup_list_sort_codes(struct backup_list *list);
const struct backup_code *backup_list_find_code(const struct backup_list *list,
                                                const char *digest); /* NULL: nobody uses it */
/* "2 functions, 1 worker, 3 API keys"; the caller's to free. */
char *backup_list_describe(const struct backup_list *list);
