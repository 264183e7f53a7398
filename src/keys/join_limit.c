/* join_limit.c - sets of a few places each: an address looks only in its own set, so a look-up
 * costs the same however many there are. */
#include "keys/join_limit.h"
#include <arpa/inet.h>
#include <stdlib.h>

#define WAYS 8u
#define SETS (JOIN_ADDRESSES_MAX / WAYS)
static_assert(SETS * WAYS == JOIN_ADDRESSES_MAX && (SETS & (SETS - 1)) == 0,
              "SETS is a power of two");

/* Attempts are counted in the milliseconds that one costs: integers all the way. */
struct bucket {
    uint64_t left_ms; /* at `seen_ms` */
    uint64_t seen_ms;
};
struct place {
    uint8_t address[16];
    struct bucket bucket;
    bool is_used;
};
struct join_limit {
    struct place places[SETS][WAYS];
    struct bucket all;
    uint64_t seed;
    bool has_begun;
};

#define ADDRESS_COST_MS (60000u / JOIN_ADDRESS_PER_MINUTE)
#define TOTAL_COST_MS (60000u / JOIN_TOTAL_PER_MINUTE)
static_assert(ADDRESS_COST_MS > 0 && TOTAL_COST_MS > 0, "a bucket refills");

struct join_limit *join_limit_new(uint64_t seed)
{
    struct join_limit *limit = mem_new(sizeof(*limit));
    limit->seed = seed;
    return limit;
}

void join_limit_free(struct join_limit **limit)
{
    free(*limit);
    *limit = NULL;
}

/* IPv4 as ::ffff:a.b.c.d, IPv6 without its lower half. */
static void address_key(struct str text, uint8_t ret_key[16])
{
    char copy[INET6_ADDRSTRLEN] = "";
    uint8_t key[16] = {0};
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (text.bytes > 0 && text.bytes < sizeof(copy))
        memcpy(copy, text.data, text.bytes);
    if (inet_pton(AF_INET, copy, key + 12) == 1) {
        memcpy(key, mapped, sizeof(mapped));
    } else if (inet_pton(AF_INET6, copy, key) != 1) {
        memset(key, 0xff, sizeof(key));
    } else if (memcmp(key, mapped, sizeof(mapped)) != 0) {
        memset(key + 8, 0, 8);
    }
    memcpy(ret_key, key, sizeof(key));
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
    x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 32;
}

static struct place *set_of(struct join_limit *limit, const uint8_t key[16])
{
    uint64_t high, low;
    memcpy(&high, key, 8);
    memcpy(&low, key + 8, 8);
    return limit->places[mix(mix(limit->seed ^ high) ^ low) & (SETS - 1)];
}

static struct bucket bucket_full(uint64_t now_ms, uint64_t cost_ms, uint64_t burst)
{
    return (struct bucket){.left_ms = cost_ms * burst, .seen_ms = now_ms};
}

static void bucket_refill(struct bucket *b, uint64_t now_ms, uint64_t cost_ms, uint64_t burst)
{
    uint64_t passed_ms = now_ms > b->seen_ms ? now_ms - b->seen_ms : 0;
    uint64_t room_ms = cost_ms * burst - b->left_ms;
    b->left_ms += MIN(passed_ms, room_ms);
    b->seen_ms = MAX(now_ms, b->seen_ms);
}

/* The place of this address, or the one that is free or unseen for longest, made its own. */
static struct bucket *bucket_of(struct join_limit *limit, const uint8_t key[16], uint64_t now_ms)
{
    struct place *set = set_of(limit, key), *oldest = set;
    for (unsigned i = 0; i < WAYS; i++) {
        if (set[i].is_used && memcmp(set[i].address, key, 16) == 0)
            return &set[i].bucket;
        if (oldest->is_used && (!set[i].is_used || set[i].bucket.seen_ms < oldest->bucket.seen_ms))
            oldest = &set[i];
    }
    *oldest = (struct place){.is_used = true,
                             .bucket = bucket_full(now_ms, ADDRESS_COST_MS, JOIN_ADDRESS_BURST)};
    memcpy(oldest->address, key, 16);
    return &oldest->bucket;
}

static uint64_t wait_of(const struct bucket *b, uint64_t cost_ms)
{
    return b->left_ms >= cost_ms ? 0 : cost_ms - b->left_ms;
}

enum err join_limit_take(struct join_limit *limit, struct str address, uint64_t now_ms,
                         uint64_t *ret_wait_ms, struct error *e)
{
    uint8_t key[16];
    address_key(address, key);
    struct bucket *own = bucket_of(limit, key, now_ms);
    if (!limit->has_begun)
        limit->all = bucket_full(now_ms, TOTAL_COST_MS, JOIN_TOTAL_BURST);
    limit->has_begun = true;
    bucket_refill(own, now_ms, ADDRESS_COST_MS, JOIN_ADDRESS_BURST);
    bucket_refill(&limit->all, now_ms, TOTAL_COST_MS, JOIN_TOTAL_BURST);
    uint64_t own_ms = wait_of(own, ADDRESS_COST_MS), all_ms = wait_of(&limit->all, TOTAL_COST_MS);
    *ret_wait_ms = MAX(own_ms, all_ms);
    if (*ret_wait_ms > 0)
        return error_set(e, ERR_BUSY, "too many attempts to join %s: try again in %" PRIu64 " s",
                         own_ms > 0 ? "from this address" : "the cluster",
                         (*ret_wait_ms + MS_PER_S - 1) / MS_PER_S);
    own->left_ms -= ADDRESS_COST_MS;
    limit->all.left_ms -= TOTAL_COST_MS;
    return ERR_OK;
}
