/* placement.h - which worker gets the next sandbox. Pure; one thread.
 *
 * Workers lie in buckets by how full they are: the fullest of cpu, memory and slots, in 64 steps. A
 * policy looks at a few random candidates of the right bucket, so its cost does not grow with the
 * number of workers. When none of them fits, groups of 64 workers, and groups of 64 groups, say by
 * their largest free amounts where one can: found whenever there is one, again without looking at
 * all. Reservations are never above capacity.
 *
 * `balanced` is Kubernetes' LeastAllocated + BalancedAllocation. Of two resources their sum is 200
 * - 100 * (the fuller fraction), so the emptiest bucket holds the best workers to within a bucket's
 * width (1.6 points) and the request's own shape: docs/decisions/0005-placement.md. */
#pragma once
#include "base/base.h"
#include "base/rng.h"
#include "function/function.h"

#define PLACEMENT_CANDIDATES 8u
#define PLACEMENT_BUCKETS 64u

struct room { /* one worker as placement sees it; embedded in the owner's worker */
    uint64_t memory_bytes, memory_reserved_bytes;
    uint32_t cpu_milli, cpu_reserved_milli;
    uint32_t slots, slots_used;
    uint32_t bucket, place; /* where it lies; place UINT32_MAX: not schedulable now */
    uint32_t order;         /* index in the dense list of all schedulable */
};
struct placement; /* opaque */
struct placement *placement_new(void);
void placement_free(struct placement *p);
/* Schedulable from now. `room->place` is UINT32_MAX before. */
void placement_add(struct placement *p, struct room *room);
void placement_remove(struct placement *p, struct room *room); /* no-op when it is not */
uint32_t placement_count(const struct placement *p);           /* schedulable workers */
static inline bool placement_has(const struct room *room)
{
    return room->place != UINT32_MAX;
}
static inline bool room_fits(const struct room *r, uint32_t cpu_milli, uint64_t memory_bytes)
{
    return r->slots_used < r->slots &&
           (uint64_t)r->cpu_reserved_milli + cpu_milli <= r->cpu_milli &&
           r->memory_reserved_bytes + memory_bytes <= r->memory_bytes;
}
/* A worker with room, or NULL when no schedulable one has. `preferred`: workers that have the code,
 * for `locality` (may be NULL). Reserves nothing. */
struct room *placement_choose(struct placement *p, enum placement_policy policy, uint32_t cpu_milli,
                              uint64_t memory_bytes, struct room *const *preferred,
                              size_t preferred_count, struct rng *rng);
/* Of any worker, schedulable or not. */
void placement_reserve(struct placement *p, struct room *room, uint32_t cpu_milli,
                       uint64_t memory_bytes);
void placement_release(struct placement *p, struct room *room, uint32_t cpu_milli,
                       uint64_t memory_bytes);
/* The scores, 0..100 each, of a worker as it would be with the request. */
uint32_t placement_score_least_allocated(const struct room *r, uint32_t cpu_milli,
                                         uint64_t memory_bytes);
uint32_t placement_score_balanced(const struct room *r, uint32_t cpu_milli, uint64_t memory_bytes);
