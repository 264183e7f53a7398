/* election.h - which of the control planes should lead. Pure: no I/O, no clock, one thread.
 *
 * Safety is none of its business: the store lets one take each epoch and refuses the writes of all
 * before, and workers and data planes refuse the orders of older epochs. This decides when to try,
 * so that a dead leader is replaced at once and one that is only slow is left alone:
 *  - The leader's connection closed: its process is dead. The first live member takes the epoch at
 * once, the next ELECTION_RANK_MS later, and so on, in case the first is in trouble.
 *  - The leader is silent for ELECTION_SILENCE_MS: the others are asked. When a majority of all
 * members, ourselves included, does not hear it, it is replaced. When a majority cannot be asked,
 * after ELECTION_TENURE_MS. Whoever hears it vetoes.
 *  - A replacement on suspicion is followed by no other for ELECTION_TENURE_MS, doubled each time
 * up to ELECTION_BACKOFF_MS_MAX, until a minute was calm.
 *  - A leader steps down when it learns of a newer epoch, or when it has not reached the store for
 * ELECTION_STORE_MS while another member does. When nobody reaches the store it stays: what runs
 * needs no store.
 *
 * A member that was stopped itself (its steps are far apart) has heard nobody, and suspects nobody
 * for that. Members that hear different sets of others (one-way loss) agree by majority; the veto
 * keeps them calm. */
#pragma once
#include "base/base.h"

#define ELECTION_MEMBERS_MAX 9u
#define ELECTION_SILENCE_MS 150u
#define ELECTION_RANK_MS 40u
#define ELECTION_TENURE_MS 2000u
#define ELECTION_BACKOFF_MS_MAX 30000u
#define ELECTION_STORE_MS 500u
#define ELECTION_START_MS \
    300u /* for the others to be heard, before an absent leader is suspected */
#define ELECTION_NOBODY UINT32_MAX

struct election; /* opaque */

enum election_event_kind {
    ELECTION_PEER_UP,       /* member */
    ELECTION_PEER_DOWN,     /* member; dead: its process has ended */
    ELECTION_HEARD,         /* member, epoch that it has seen, leads, reaches_store */
    ELECTION_ASKED,         /* member, epoch: do you hear that epoch's leader? */
    ELECTION_ANSWERED,      /* member, epoch, hears */
    ELECTION_STORE_EPOCH,   /* epoch, member that took it or ELECTION_NOBODY; 0: none yet */
    ELECTION_STORE_REACHED, /* reaches_store */
    ELECTION_TAKEN,         /* epoch: ours */
    ELECTION_TAKE_REFUSED,  /* another was faster */
    ELECTION_TAKE_FAILED,   /* the store was not reached */
    ELECTION_REFUSED,       /* epoch: somebody has orders of it */
    ELECTION_TICK,
};
struct election_event {
    enum election_event_kind kind;
    uint32_t member;
    uint64_t epoch;
    bool dead, leads, hears, reaches_store;
};
enum election_order_kind {
    ELECTION_ASK,       /* member, epoch */
    ELECTION_ANSWER,    /* member, epoch, hears */
    ELECTION_TAKE,      /* try to take the epoch; TAKEN, TAKE_REFUSED or TAKE_FAILED follows */
    ELECTION_LEAD,      /* epoch */
    ELECTION_STEP_DOWN, /* why */
};
struct election_order {
    enum election_order_kind kind;
    uint32_t member;
    uint64_t epoch;
    bool hears;
    const char *why;
};
#define ELECTION_ORDERS_MAX 16u
struct election_orders {
    struct election_order items[ELECTION_ORDERS_MAX];
    size_t count;
};

struct election *election_new(uint32_t self, uint32_t member_count, uint64_t now_ms);
void election_free(struct election *e);
void election_step(struct election *e, const struct election_event *event, uint64_t now_ms,
                   struct election_orders *ret_orders);
uint64_t election_due_ms(const struct election *e); /* when TICK is due at the latest */

bool election_leads(const struct election *e);
uint64_t election_epoch(const struct election *e);  /* the newest seen */
uint32_t election_leader(const struct election *e); /* of that epoch; ELECTION_NOBODY: not known */
bool election_suspects(const struct election *e);
