/* placement.c - buckets by fullness, and groups by what is free. */
#include "control_plane/placement.h"
#include <stdlib.h>

#define GROUP 64u

struct rooms { /* dense; removal swaps the last one in */
    struct room **items;
    uint32_t count, capacity;
};
/* The most that one of 64 workers (or of 64 groups) has free: when that is too little, none of
 * them fits. Computed again when asked for after a change, which only marks it. */
struct most_free {
    uint64_t memory_bytes;
    uint32_t cpu_milli;
    bool any_slot, is_stale;
};
struct placement {
    struct rooms buckets[PLACEMENT_BUCKETS], all;
    uint64_t filled;                   /* bit n: bucket n has rooms */
    struct most_free *groups, *supers; /* of `all`, by `order` */
    uint32_t group_capacity, super_capacity;
    uint32_t turn; /* of round-robin */
    /* What did not fit anywhere, and since then nothing was given back: it is refused at once. */
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
    free(p->groups);
    free(p->supers);
    free(p);
}

uint32_t placement_count(const struct placement *p)
{
    return p->all.count;
}

static uint32_t rooms_push(struct rooms *r, struct room *room)
{
    if (r->count == r->capacity) {
        r->capacity = MAX(r->capacity * 2, 16u);
        r->items = mem_resize(r->items, r->capacity, sizeof(struct room *));
    }
    r->items[r->count] = room;
    return r->count++;
}

/* ---- buckets ---- */

static double fraction(uint64_t used, uint64_t whole)
{
    return whole == 0 ? 1 : (double)used / (double)whole;
}

/* The fullest of the three, 0..1. */
static double fullness(const struct room *r)
{
    double cpu = fraction(r->cpu_reserved_milli, r->cpu_milli);
    double memory = fraction(r->memory_reserved_bytes, r->memory_bytes);
    double slots = fraction(r->slots_used, r->slots);
    return MAX(slots, MAX(cpu, memory));
}

static uint32_t bucket_of(const struct room *r)
{
    double step = fullness(r) * PLACEMENT_BUCKETS;
    return step >= PLACEMENT_BUCKETS ? PLACEMENT_BUCKETS - 1 : (uint32_t)step;
}

static void bucket_enter(struct placement *p, struct room *r, uint32_t bucket)
{
    r->bucket = bucket;
    r->place = rooms_push(&p->buckets[bucket], r);
    p->filled |= UINT64_C(1) << bucket;
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

/* ---- groups ---- */

static void groups_grow(struct placement *p)
{
    uint32_t groups = p->all.count / GROUP + 1, supers = groups / GROUP + 1;
    if (groups > p->group_capacity) {
        p->group_capacity = MAX(p->group_capacity * 2, groups);
        p->groups = mem_resize(p->groups, p->group_capacity, sizeof(*p->groups));
    }
    if (supers > p->super_capacity) {
        p->super_capacity = MAX(p->super_capacity * 2, supers);
        p->supers = mem_resize(p->supers, p->super_capacity, sizeof(*p->supers));
    }
}

static void groups_stale(struct placement *p, uint32_t order)
{
    p->groups[order / GROUP].is_stale = true;
    p->supers[order / GROUP / GROUP].is_stale = true;
}

static void most_free_take(struct most_free *m, uint32_t cpu_milli, uint64_t memory_bytes)
{
    m->cpu_milli = MAX(m->cpu_milli, cpu_milli);
    m->memory_bytes = MAX(m->memory_bytes, memory_bytes);
    m->any_slot = true;
}

static void group_refresh(struct placement *p, uint32_t group)
{
    struct most_free *m = &p->groups[group];
    if (!m->is_stale)
        return;
    *m = (struct most_free){0};
    uint32_t end = MIN(p->all.count, (group + 1) * GROUP);
    for (uint32_t i = group * GROUP; i < end; i++) {
        const struct room *r = p->all.items[i];
        if (room_fits(r, 0, 0))
            most_free_take(m, r->cpu_milli - r->cpu_reserved_milli,
                           r->memory_bytes - r->memory_reserved_bytes);
    }
}

static uint32_t group_count(const struct placement *p)
{
    return (p->all.count + GROUP - 1) / GROUP;
}

static void super_refresh(struct placement *p, uint32_t super)
{
    struct most_free *m = &p->supers[super];
    if (!m->is_stale)
        return;
    *m = (struct most_free){0};
    uint32_t end = MIN(group_count(p), (super + 1) * GROUP);
    for (uint32_t i = super * GROUP; i < end; i++) {
        group_refresh(p, i);
        if (p->groups[i].any_slot)
            most_free_take(m, p->groups[i].cpu_milli, p->groups[i].memory_bytes);
    }
}

static bool may_fit(const struct most_free *m, uint32_t cpu_milli, uint64_t memory_bytes)
{
    return m->any_slot && m->cpu_milli >= cpu_milli && m->memory_bytes >= memory_bytes;
}

static struct room *group_find(const struct placement *p, uint32_t group, uint32_t cpu_milli,
                               uint64_t memory_bytes)
{
    uint32_t end = MIN(p->all.count, (group + 1) * GROUP);
    for (uint32_t i = group * GROUP; i < end; i++)
        if (room_fits(p->all.items[i], cpu_milli, memory_bytes))
            return p->all.items[i];
    return NULL;
}

/* One that fits, when there is one. */
static struct room *groups_find(struct placement *p, uint32_t cpu_milli, uint64_t memory_bytes)
{
    uint32_t groups = group_count(p);
    for (uint32_t super = 0; super * GROUP < groups; super++) {
        super_refresh(p, super);
        if (!may_fit(&p->supers[super], cpu_milli, memory_bytes))
            continue;
        uint32_t end = MIN(groups, (super + 1) * GROUP);
        for (uint32_t group = super * GROUP; group < end; group++) {
            struct room *found = NULL;
            if (may_fit(&p->groups[group], cpu_milli, memory_bytes))
                found = group_find(p, group, cpu_milli, memory_bytes);
            if (found != NULL)
                return found;
        }
    }
    return NULL;
}

/* ---- workers come and go, and change ---- */

void placement_add(struct placement *p, struct room *r)
{
    assert(!placement_has(r));
    bucket_enter(p, r, bucket_of(r));
    groups_grow(p);
    r->order = rooms_push(&p->all, r);
    groups_stale(p, r->order);
    p->has_failed = false;
}

void placement_remove(struct placement *p, struct room *r)
{
    if (!placement_has(r))
        return;
    bucket_leave(p, r);
    struct room *last = p->all.items[--p->all.count];
    groups_stale(p, last->order);
    p->all.items[r->order] = last;
    last->order = r->order;
    groups_stale(p, r->order);
    r->place = UINT32_MAX;
}

static void changed(struct placement *p, struct room *r)
{
    if (!placement_has(r))
        return;
    groups_stale(p, r->order);
    uint32_t bucket = bucket_of(r);
    if (bucket == r->bucket)
        return;
    bucket_leave(p, r);
    bucket_enter(p, r, bucket);
}

void placement_reserve(struct placement *p, struct room *r, uint32_t cpu_milli,
                       uint64_t memory_bytes)
{
    r->cpu_reserved_milli += cpu_milli;
    r->memory_reserved_bytes += memory_bytes;
    r->slots_used++;
    changed(p, r);
}

void placement_release(struct placement *p, struct room *r, uint32_t cpu_milli,
                       uint64_t memory_bytes)
{
    assert(r->slots_used > 0 && r->cpu_reserved_milli >= cpu_milli &&
           r->memory_reserved_bytes >= memory_bytes);
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

uint32_t placement_score_least_allocated(const struct room *r, uint32_t cpu_milli,
                                         uint64_t memory_bytes)
{
    uint64_t cpu = free_percent((uint64_t)r->cpu_reserved_milli + cpu_milli, r->cpu_milli);
    uint64_t memory = free_percent(r->memory_reserved_bytes + memory_bytes, r->memory_bytes);
    return (uint32_t)((cpu + memory) / 2);
}

uint32_t placement_score_balanced(const struct room *r, uint32_t cpu_milli, uint64_t memory_bytes)
{
    double cpu = fraction((uint64_t)r->cpu_reserved_milli + cpu_milli, r->cpu_milli);
    double memory = fraction(r->memory_reserved_bytes + memory_bytes, r->memory_bytes);
    cpu = MIN(cpu, 1.0);
    memory = MIN(memory, 1.0);
    double difference = cpu > memory ? cpu - memory : memory - cpu;
    /* the standard deviation of two values is half their difference */
    return (uint32_t)((1 - difference / 2) * 100);
}

/* Higher is better. */
static double score(const struct room *r, enum placement_policy policy, uint32_t cpu_milli,
                    uint64_t memory_bytes)
{
    switch (policy) {
    case PLACEMENT_BALANCED:
    case PLACEMENT_LOCALITY: {
        /* LeastAllocated + BalancedAllocation without their rounding: 200 - 100 * the fuller. */
        double cpu = fraction((uint64_t)r->cpu_reserved_milli + cpu_milli, r->cpu_milli);
        double memory = fraction(r->memory_reserved_bytes + memory_bytes, r->memory_bytes);
        return 200 - 100 * MAX(cpu, memory);
    }
    case PLACEMENT_LEAST_LOADED:
        return -fullness(r);
    case PLACEMENT_PACK:
        return fullness(r);
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
    uint64_t memory_bytes;
    double best_score;
    struct room *best;
};

static void consider(struct search *s, struct room *r)
{
    if (!room_fits(r, s->cpu_milli, s->memory_bytes))
        return;
    double points = score(r, s->policy, s->cpu_milli, s->memory_bytes);
    if (s->best == NULL || points > s->best_score) {
        s->best = r;
        s->best_score = points;
    }
}

static void consider_some(struct search *s, struct room *const *rooms, size_t count,
                          struct rng *rng)
{
    if (count <= PLACEMENT_CANDIDATES) {
        for (size_t i = 0; i < count; i++)
            consider(s, rooms[i]);
        return;
    }
    /* A run of neighbours from a random place: their order is as good as random, and one number
     * drawn is cheaper than eight. */
    size_t at = rng_below(rng, count);
    for (size_t i = 0; i < PLACEMENT_CANDIDATES; i++) {
        consider(s, rooms[at]);
        at = at + 1 == count ? 0 : at + 1;
    }
}

/* From the empty (for `pack` the full) end, the first bucket in which a candidate fits; and one
 * more, since a worker in the next bucket can suit the shape of the request better. */
static void search_buckets(const struct placement *p, struct search *s, struct rng *rng)
{
    uint64_t left = p->filled;
    for (int more = s->policy == PLACEMENT_BALANCED ? 1 : 0; left != 0 && more >= 0;) {
        unsigned bucket = s->policy == PLACEMENT_PACK ? 63 - (unsigned)__builtin_clzll(left)
                                                      : (unsigned)__builtin_ctzll(left);
        consider_some(s, p->buckets[bucket].items, p->buckets[bucket].count, rng);
        left &= ~(UINT64_C(1) << bucket);
        more -= s->best != NULL;
    }
}

static void search_some(struct placement *p, struct search *s, struct rng *rng)
{
    uint32_t count = p->all.count;
    for (uint32_t i = 0; i < PLACEMENT_CANDIDATES && s->best == NULL && count > 0; i++)
        consider(s, p->all.items[s->policy == PLACEMENT_RANDOM ? rng_below(rng, count)
                                                               : p->turn++ % count]);
}

static bool failed_before(const struct placement *p, uint32_t cpu_milli, uint64_t memory_bytes)
{
    return p->has_failed && cpu_milli >= p->failed_cpu_milli &&
           memory_bytes >= p->failed_memory_bytes;
}

struct room *placement_choose(struct placement *p, enum placement_policy policy, uint32_t cpu_milli,
                              uint64_t memory_bytes, struct room *const *preferred,
                              size_t preferred_count, struct rng *rng)
{
    struct search s = {.policy = policy, .cpu_milli = cpu_milli, .memory_bytes = memory_bytes};
    if (failed_before(p, cpu_milli, memory_bytes))
        return NULL;
    if (policy == PLACEMENT_LOCALITY)
        consider_some(&s, preferred, preferred_count, rng);
    if (s.best == NULL && (policy == PLACEMENT_RANDOM || policy == PLACEMENT_ROUND_ROBIN))
        search_some(p, &s, rng);
    else if (s.best == NULL)
        search_buckets(p, &s, rng);
    if (s.best == NULL) /* nearly full */
        s.best = groups_find(p, cpu_milli, memory_bytes);
    if (s.best == NULL) {
        p->has_failed = true;
        p->failed_cpu_milli = cpu_milli;
        p->failed_memory_bytes = memory_bytes;
    }
    return s.best;
}
