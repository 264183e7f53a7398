/* hash.h - open-addressing map from a 64-bit key to a pointer. Grows by doubling; no order.
 * Keys that come from outside are hashed with str_hash() by the caller, who compares the names on
 * a hit (map values know their name). Not thread-safe. */
#pragma once
#include "base/base.h"

struct map_entry {
    uint64_t key;
    void *value; /* NULL: free */
};
struct map {
    struct map_entry *entries;
    size_t capacity; /* power of two or 0 */
    size_t count;
};
void map_done(struct map *m);
void *map_get(const struct map *m, uint64_t key);       /* NULL: not there */
void map_put(struct map *m, uint64_t key, void *value); /* replaces; value is not NULL */
void *map_remove(struct map *m, uint64_t key);          /* what was there, or NULL */
/* Iteration: *cursor starts at 0. Returns the next value or NULL at the end. No change of the map
 * between calls. */
void *map_next(const struct map *m, size_t *cursor);

/* Map keyed by text. The key's bytes are copied into the map. */
struct strmap_entry {
    char *key;
    size_t key_bytes;
    uint64_t hash;
    void *value;
};
struct strmap {
    struct strmap_entry *entries;
    size_t capacity, count;
};
#include "base/str.h"
void strmap_done(struct strmap *m);
void *strmap_get(const struct strmap *m, struct str key);
void strmap_put(struct strmap *m, struct str key, void *value);
void *strmap_remove(struct strmap *m, struct str key);
void *strmap_next(const struct strmap *m, size_t *cursor, struct str *ret_key);
