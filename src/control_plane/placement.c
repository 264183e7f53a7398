/* placement.c - buckets by fullness. */
#include "control_plane/placement.h"
#include <stdlib.h>

struct rooms { /* dense; removal swaps the last one in */
    struct room **items;
    uint32_t count, capacity;
};
struct placement {
    struct rooms buckets[PLACEMENT_BUCKETS], all;
    uint64_t filled; /* bit n: bucket n has rooms */
    uint32_t turn;   /* of round-robin */
    /* What did not fit anywhere, and since then nothing was given back: asked again it is answered at once. */
    uint32_t failed_cpu_milli;
    uint64_t failed_memory_bytes;
    bool has_failed;
};

struct placement *placement_new(void)
{
    return mem_new(sizeof(struct placement));
}

void placement_free(struct placement *p)
{
    if (p == NULL)
        return;
    for (unsigned i = 0; i < PLACEMENT_BUCKETS; i++)
        free(p->buckets[i].items);
    free(p->all.items);
    free(p);
}

static uint32_t rooms_push(struct rooms *r, struct room *room)
{
    if (r->count == r->capacity) {
        r->capacity = MAX(r->capacity * 2, 16u);
        r->items = mem_resize(r->items, r->capacity, sizeof(*r->items));
    }
    r->items[r->count] = room;
    return r->count++;
}

static uint64_t permille(uint64_t used, uint64_t whole)
{
    return whole == 0 ? 1000 : used * 1000 / whole;
}

static uint32_t bucket_of(const struct room *r)
{
    uint64_t full = MAX(permille(r->cpu_reserved_milli, r->cpu_milli),
                        MAX(permille(r->memory_reserved_bytes / 1024, r->memory_bytes / 1024), permille(r->slots_used, r->slots)));
    return (uint32_t)MIN(full * PLACEMENT_BUCKETS / 1001, (uint64_t)PLACEMENT_BUCKETS - 1);
}

static void bucket_enter(struct placement *p, struct room *r)
{
    r->bucket = bucket_of(r);
    r->place = rooms_push(&p->buckets[r->bucket], r);
    p->filled |= UINT64_C(1) << r->bucket;
}

static void bucket_leave(struct placement *p, struct room *r)
{
    struct rooms *b = &p->buckets[r->bucket];
    struct room *last = b->items[--b->count];
    b->items[r->place] = last;
    last->place = r->place;
    if (b->count == 0)
        p->filled &= ~(UINT64_C(1) << r->bucket);
}

void placement_add(struct placement *p, struct room *r)
{
    bucket_enter(p, r);
    r->order = rooms_push(&p->all, r);
    p->has_failed = false;
}

void placement_remove(struct placement *p, struct room *r)
{
    if (!placement_has(r))
        return;
    bucket_leave(p, r);
    struct room *last = p->all.items[--p->all.count];
    p->all.items[r->order] = last;
    last->order = r->order;
    r->place = UINT32_MAX;
}

static void changed(struct placement *p, struct room *r)
{
    if (placement_has(r) && bucket_of(r) != r->bucket) {
        bucket_leave(p, r);
        bucket_enter(p, r);
    }
}

void placement_reserve(struct placement *p, struct room *r, uint32_t cpu_milli, uint64_t memory_bytes)
{
    r->cpu_reserved_milli += cpu_milli;
    r->memory_reserved_bytes += memory_bytes;
    r->slots_used++;
    changed(p, r);
}

void placement_release(struct placement *p, struct room *r, uint32_t cpu_milli, uint64_t memory_bytes)
{
    assert(r->slots_used > 0 && r->cpu_reserved_milli >= cpu_milli && r->memory_reserved_bytes >= memory_bytes);
    r->cpu_reserved_milli -= cpu_milli;
    r->memory_reserved_bytes -= memory_bytes;
    r->slots_used--;
    p->has_failed = false;
    changed(p, r);
}

/* ---- scores ---- */

static uint64_t free_percent(uint64_t used, uint64_t whole)
{
    return used > whole || whole == 0 ? 0 : (whole - used) * 100 / whole;
}

uint32_t placement_score_least_allocated(const struct room *r, uint32_t cpu_milli, uint64_t memory_bytes)
{
    return (uint32_t)((free_percent((uint64_t)r->cpu_reserved_milli + cpu_milli, r->cpu_milli) +
                       free_percent(r->memory_reserved_bytes + memory_bytes, r->memory_bytes)) / 2);
}

uint32_t placement_score_balanced(const struct room *r, uint32_t cpu_milli, uint64_t memory_bytes)
{
    double cpu = r->cpu_milli == 0 ? 1 : ((double)r->cpu_reserved_milli + cpu_milli) / r->cpu_milli;
    double memory = r->memory_bytes == 0 ? 1 : ((double)r->memory_reserved_bytes + (double)memory_bytes) / (double)r->memory_bytes;
    cpu = MIN(cpu, 1.0);
    memory = MIN(memory, 1.0);
    double difference = cpu > memory ? cpu - memory : memory - cpu;
    return (uint32_t)((1 - difference / 2) * 100); /* the standard deviation of two values is half their difference */
}

/* Higher is better. */
static uint64_t score(const struct room *r, enum placement_policy policy, uint32_t cpu_milli, uint64_t memory_bytes)
{
    switch (policy) {
    case PLACEMENT_BALANCED:
    case PLACEMENT_LOCALITY:
        return placement_score_least_allocated(r, cpu_milli, memory_bytes) + placement_score_balanced(r, cpu_milli, memory_bytes);
    case PLACEMENT_LEAST_LOADED:
        return 1000 - permille(r->slots_used, r->slots);
    case PLACEMENT_PACK:
        return MAX(permille(r->cpu_reserved_milli, r->cpu_milli), permille(r->memory_reserved_bytes / 1024, r->memory_bytes / 1024));
    case PLACEMENT_RANDOM:
    case PLACEMENT_ROUND_ROBIN:
    case PLACEMENT_COUNT:
        break;
    }
    return 0;
}

/* ---- choice ---- */

struct search {
    enum placement_policy policy;
    uint32_t cpu_milli;
    uint64_t memory_bytes, best_score;
    struct room *best;
};

static void consider(struct search *s, struct room *r)
{
    if (!room_fits(r, s->cpu_milli, s->memory_bytes))
        return;
    uint64_t points = score(r, s->policy, s->cpu_milli, s->memory_bytes);
    if (s->best == NULL || points > s->best_score) {
        s->best = r;
        s->best_score = points;
    }
}

static void consider_some(struct search *s, const struct rooms *rooms, struct rng *rng)
{
    if (rooms->count <= PLACEMENT_CANDIDATES) {
        for (uint32_t i = 0; i < rooms->count; i++)
            consider(s, rooms->items[i]);
        return;
    }
    for (uint32_t i = 0; i < PLACEMENT_CANDIDATES; i++)
        consider(s, rooms->items[rng_below(rng, rooms->count)]);
}

/* The first bucket, from the empty (or for `pack` the full) end, in which one of the candidates fits. */
static void search_buckets(const struct placement *p, struct search *s, struct rng *rng)
{
    uint64_t left = p->filled;
    while (left != 0 && s->best == NULL) {
        unsigned bucket = s->policy == PLACEMENT_PACK ? 63 - (unsigned)__builtin_clzll(left) : (unsigned)__builtin_ctzll(left);
        consider_some(s, &p->buckets[bucket], rng);
        left &= ~(UINT64_C(1) << bucket);
    }
}

static void search_some(struct placement *p, struct search *s, struct rng *rng)
{
    for (uint32_t i = 0; i < PLACEMENT_CANDIDATES && s->best == NULL && p->all.count > 0; i++)
        consider(s, p->all.items[s->policy == PLACEMENT_RANDOM ? rng_below(rng, p->all.count) : p->turn++ % p->all.count]);
}

struct room *placement_choose(struct placement *p, enum placement_policy policy, uint32_t cpu_milli, uint64_t memory_bytes,
                              struct room *const *preferred, size_t preferred_count, struct rng *rng)
{
    struct search s = {.policy = policy, .cpu_milli = cpu_milli, .memory_bytes = memory_bytes};
    if (p->has_failed && cpu_milli >= p->failed_cpu_milli && memory_bytes >= p->failed_memory_bytes)
        return NULL;
    if (policy == PLACEMENT_LOCALITY && preferred_count > 0)
        for (uint32_t i = 0; i < PLACEMENT_CANDIDATES; i++) {
            struct room *r = preferred[preferred_count <= PLACEMENT_CANDIDATES ? i % preferred_count : rng_below(rng, preferred_count)];
            if (placement_has(r))
                consider(&s, r);
        }
    if (s.best == NULL && (policy == PLACEMENT_RANDOM || policy == PLACEMENT_ROUND_ROBIN))
        search_some(p, &s, rng);
    else if (s.best == NULL)
        search_buckets(p, &s, rng);
    /* Nearly full: a worker with room must be found when there is one. Once none is, that is remembered. */
    for (uint32_t i = 0; i < p->all.count && s.best == NULL; i++)
        consider(&s, p->all.items[i]);
    if (s.best == NULL) {
        p->has_failed = true;
        p->failed_cpu_milli = cpu_milli;
        p->failed_memory_bytes = memory_bytes;
    }
    return s.best;
}
