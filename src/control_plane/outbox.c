/* outbox.c - one message per peer and turn. */
#include "control_plane/outbox.h"
#include "base/crash_point.h"
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)8192)

struct arena_block {
    struct arena_block *next;
    size_t used, capacity;
    _Alignas(max_align_t) char data[];
};

static struct arena_block *block_new(size_t bytes)
{
    size_t capacity = MAX(bytes, BLOCK_BYTES);
    struct arena_block *block = mem_new(sizeof(*block) + capacity);
    block->capacity = capacity;
    return block;
}

void *arena_take(struct arena *a, size_t bytes)
{
    bytes = (bytes + _Alignof(max_align_t) - 1) & ~(_Alignof(max_align_t) - 1);
    if (a->blocks == NULL || a->blocks->capacity - a->blocks->used < bytes) {
        struct arena_block *block = block_new(bytes);
        block->next = a->blocks;
        a->blocks = block;
    }
    void *taken = a->blocks->data + a->blocks->used;
    a->blocks->used += bytes;
    return memset(taken, 0, bytes);
}

void *arena_copy(struct arena *a, const void *data, size_t bytes)
{
    void *copy = arena_take(a, bytes);
    if (bytes > 0)
        memcpy(copy, data, bytes);
    return copy;
}

char *arena_text(struct arena *a, const char *text)
{
    return arena_copy(a, text, strlen(text) + 1);
}

void arena_done(struct arena *a)
{
    while (a->blocks != NULL) {
        struct arena_block *next = a->blocks->next;
        free(a->blocks);
        a->blocks = next;
    }
}

void arena_reset(struct arena *a)
{
    struct arena_block *keep = a->blocks;
    if (keep == NULL)
        return;
    a->blocks = keep->next;
    arena_done(a);
    if (keep->capacity > BLOCK_BYTES) {
        free(keep);
        return;
    }
    keep->next = NULL;
    keep->used = 0;
    a->blocks = keep;
}

void *outbox_add(struct outbox *o, struct vector *v, size_t bytes)
{
    void *message = arena_take(&o->arena, bytes);
    if (v->count == v->capacity) {
        v->capacity = MAX(16, 2 * v->capacity);
        v->items = mem_resize(v->items, v->capacity, sizeof(*v->items));
    }
    v->items[v->count++] = message;
    return message;
}

void outbox_add_number(struct number_vector *v, uint64_t number)
{
    if (v->count == v->capacity) {
        v->capacity = MAX(16, 2 * v->capacity);
        v->items = mem_resize(v->items, v->capacity, sizeof(*v->items));
    }
    v->items[v->count++] = number;
}

size_t outbox_count(const struct outbox *o)
{
    return o->prepare_versions.count + o->starts.count + o->stops.count + o->drop_versions.count +
           o->log_gets.count + o->routes.count + o->endpoints.count + o->slots_wanted.count + o->fail_waiting.count +
           o->removed_functions.count + o->drain_sandboxes.count + o->remove_sandboxes.count +
           o->want_demand.count;
}

bool outbox_is_empty(const struct outbox *o)
{
    return outbox_count(o) == 0 && o->welcome == NULL && !o->snapshot && o->sync == 0;
}

static void outbox_clear(struct outbox *o)
{
    struct vector *vectors[] = {&o->prepare_versions, &o->starts, &o->stops,     &o->drop_versions,
                                &o->log_gets,         &o->routes, &o->endpoints, &o->slots_wanted, &o->fail_waiting};
    struct number_vector *numbers[] = {&o->removed_functions, &o->drain_sandboxes,
                                       &o->remove_sandboxes, &o->want_demand};
    for (size_t i = 0; i < ARRAY_COUNT(vectors); i++)
        vectors[i]->count = 0;
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++)
        numbers[i]->count = 0;
    o->welcome = NULL;
    o->snapshot = o->snapshot_more = false;
    o->sync = 0;
    arena_reset(&o->arena);
}

void outbox_send(struct outbox *o, struct link *link, uint64_t epoch, uint64_t sequence)
{
    Dirigent__FromControlPlane m = DIRIGENT__FROM_CONTROL_PLANE__INIT;
    m.epoch = epoch;
    m.sequence = sequence;
    m.welcome = o->welcome;
    m.snapshot = o->snapshot;
    m.snapshot_more = o->snapshot_more;
    m.sync = o->sync;
#define GIVE(field)               \
    m.n_##field = o->field.count; \
    m.field = (void *)o->field.items
    GIVE(prepare_versions);
    GIVE(starts);
    GIVE(stops);
    GIVE(drop_versions);
    GIVE(log_gets);
    GIVE(routes);
    GIVE(endpoints);
    GIVE(slots_wanted);
    GIVE(fail_waiting);
    GIVE(removed_functions);
    GIVE(drain_sandboxes);
    GIVE(remove_sandboxes);
    GIVE(want_demand);
#undef GIVE
    if (m.n_endpoints > 0)
        CRASH_POINT("control_plane.endpoint");
    link_send(link, &m.base);
    if (m.n_starts > 0)
        CRASH_POINT("control_plane.create_sent");
    if (m.n_endpoints > 0)
        CRASH_POINT("control_plane.endpoint_sent");
    outbox_clear(o);
}

void outbox_done(struct outbox *o)
{
    struct vector *vectors[] = {&o->prepare_versions, &o->starts, &o->stops,     &o->drop_versions,
                                &o->log_gets,         &o->routes, &o->endpoints, &o->slots_wanted, &o->fail_waiting};
    struct number_vector *numbers[] = {&o->removed_functions, &o->drain_sandboxes,
                                       &o->remove_sandboxes, &o->want_demand};
    for (size_t i = 0; i < ARRAY_COUNT(vectors); i++)
        free(vectors[i]->items);
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++)
        free(numbers[i]->items);
    arena_done(&o->arena);
    *o = (struct outbox){0};
}
