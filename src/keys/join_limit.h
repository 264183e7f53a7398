/* join_limit.h - how often somebody may try to join: a bucket of attempts for each address and one
 * for all. Bounded memory: of more than JOIN_ADDRESSES_MAX addresses those unseen for longest are
 * forgotten, and the bucket of all still holds. IPv6 counts by /64, as whoever has one has all of
 * it. Pure; one thread; time is monotonic, in milliseconds. */
#pragma once
#include "base/limits.h"
#include "base/str.h"

struct join_limit; /* opaque, about 40 KiB; join_limit_free() */
/* `seed` is random and secret, so that nobody can choose addresses that push a certain one out. */
struct join_limit *join_limit_new(uint64_t seed);
void join_limit_free(struct join_limit **limit);

/* Takes one attempt. `address` is text without a port ("10.0.0.1", "fd00::1", "::ffff:10.0.0.1");
 * what is none counts as one address. ERR_BUSY: too many, with the sentence that says for how long;
 * *ret_wait_ms is then the time until the next may be made, else 0. A refused attempt costs
 * nothing. */
must_check enum err join_limit_take(struct join_limit *limit, struct str address, uint64_t now_ms,
                                    uint64_t *ret_wait_ms, struct error *e);
