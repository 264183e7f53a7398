/* hash.c - open addressing with linear probing and backward-shift deletion (Knuth 6.4, algorithm
 * R). */
#include "base/hash.h"
#include <stdlib.h>

static uint64_t mix(uint64_t key)
{
    key ^= key >> 33;
    key *= UINT64_C(0xff51afd7ed558ccd);
    return key ^ key >> 33;
}

static size_t find(const struct map *m, uint64_t key)
{
    size_t i = mix(key) & (m->capacity - 1);
    while (m->entries[i].value != NULL && m->entries[i].key != key)
        i = (i + 1) & (m->capacity - 1);
    return i;
}

void map_done(struct map *m)
{
    free(m->entries);
    *m = (struct map){0};
}

void *map_get(const struct map *m, uint64_t key)
{
    return m->count == 0 ? NULL : m->entries[find(m, key)].value;
}

static void map_grow(struct map *m)
{
    struct map bigger = {.capacity = MAX(m->capacity * 2, (size_t)16)};
    bigger.entries = mem_new_array(bigger.capacity, sizeof(*bigger.entries));
    for (size_t i = 0; i < m->capacity; i++)
        if (m->entries[i].value != NULL)
            bigger.entries[find(&bigger, m->entries[i].key)] = m->entries[i];
    bigger.count = m->count;
    free(m->entries);
    *m = bigger;
}

void map_put(struct map *m, uint64_t key, void *value)
{
    assert(value != NULL);
    if (m->count * 4 >= m->capacity * 3)
        map_grow(m);
    struct map_entry *entry = &m->entries[find(m, key)];
    m->count += entry->value == NULL;
    *entry = (struct map_entry){key, value};
}

void *map_remove(struct map *m, uint64_t key)
{
    if (m->count == 0)
        return NULL;
    size_t hole = find(m, key);
    void *value = m->entries[hole].value;
    if (value == NULL)
        return NULL;
    for (size_t i = (hole + 1) & (m->capacity - 1); m->entries[i].value != NULL;
         i = (i + 1) & (m->capacity - 1)) {
        size_t home = mix(m->entries[i].key) & (m->capacity - 1);
        if (((i - home) & (m->capacity - 1)) >= ((i - hole) & (m->capacity - 1))) {
            m->entries[hole] = m->entries[i];
            hole = i;
        }
    }
    m->entries[hole].value = NULL;
    m->count--;
    return value;
}

void *map_next(const struct map *m, size_t *cursor)
{
    while (*cursor < m->capacity) {
        void *value = m->entries[(*cursor)++].value;
        if (value != NULL)
            return value;
    }
    return NULL;
}

static size_t find_text(const struct strmap *m, struct str key, uint64_t hash)
{
    size_t i = hash & (m->capacity - 1);
    while (m->entries[i].value != NULL &&
           !(m->entries[i].hash == hash &&
             str_equal((struct str){m->entries[i].key, m->entries[i].key_bytes}, key)))
        i = (i + 1) & (m->capacity - 1);
    return i;
}

void strmap_done(struct strmap *m)
{
    for (size_t i = 0; i < m->capacity; i++)
        if (m->entries[i].value != NULL)
            free(m->entries[i].key);
    free(m->entries);
    *m = (struct strmap){0};
}

void *strmap_get(const struct strmap *m, struct str key)
{
    return m->count == 0 ? NULL : m->entries[find_text(m, key, str_hash(key))].value;
}

static void strmap_grow(struct strmap *m)
{
    struct strmap bigger = {.capacity = MAX(m->capacity * 2, (size_t)16), .count = m->count};
    bigger.entries = mem_new_array(bigger.capacity, sizeof(*bigger.entries));
    for (size_t i = 0; i < m->capacity; i++) {
        const struct strmap_entry *old = &m->entries[i];
        if (old->value != NULL)
            bigger.entries[find_text(&bigger, (struct str){old->key, old->key_bytes}, old->hash)] =
                *old;
    }
    free(m->entries);
    *m = bigger;
}

void strmap_put(struct strmap *m, struct str key, void *value)
{
    assert(value != NULL);
    if (m->count * 4 >= m->capacity * 3)
        strmap_grow(m);
    uint64_t hash = str_hash(key);
    struct strmap_entry *entry = &m->entries[find_text(m, key, hash)];
    if (entry->value == NULL) {
        entry->key = mem_strndup(key.bytes > 0 ? key.data : "", key.bytes);
        entry->key_bytes = key.bytes;
        entry->hash = hash;
        m->count++;
    }
    entry->value = value;
}

void *strmap_remove(struct strmap *m, struct str key)
{
    if (m->count == 0)
        return NULL;
    size_t hole = find_text(m, key, str_hash(key));
    void *value = m->entries[hole].value;
    if (value == NULL)
        return NULL;
    free(m->entries[hole].key);
    for (size_t i = (hole + 1) & (m->capacity - 1); m->entries[i].value != NULL;
         i = (i + 1) & (m->capacity - 1)) {
        size_t home = m->entries[i].hash & (m->capacity - 1);
        if (((i - home) & (m->capacity - 1)) >= ((i - hole) & (m->capacity - 1))) {
            m->entries[hole] = m->entries[i];
            hole = i;
        }
    }
    m->entries[hole] = (struct strmap_entry){0};
    m->count--;
    return value;
}

void *strmap_next(const struct strmap *m, size_t *cursor, struct str *ret_key)
{
    while (*cursor < m->capacity) {
        const struct strmap_entry *entry = &m->entries[(*cursor)++];
        if (entry->value == NULL)
            continue;
        if (ret_key != NULL)
            *ret_key = (struct str){entry->key, entry->key_bytes};
        return entry->value;
    }
    return NULL;
}
