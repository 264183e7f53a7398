/* outbox.h - what is to be told to one peer in this turn: collected, then sent as one message.
 * Texts are copied, since the core's orders live until its next step only. Loop thread only. */
#pragma once
#include "base/base.h"
#include "wire/dirigent.pb-c.h"
#include "wire/link.h"

struct vector { /* pointers to messages, in an arena */
    void **items;
    size_t count, capacity;
};
struct number_vector {
    uint64_t *items;
    size_t count, capacity;
};
struct arena { /* freed as a whole; the first block stays for the next turn */
    struct arena_block *blocks;
};
void *arena_take(struct arena *a, size_t bytes); /* zeroed, aligned */
char *arena_text(struct arena *a, const char *text);
void *arena_copy(struct arena *a, const void *data, size_t bytes);
void arena_reset(struct arena *a);
void arena_done(struct arena *a);

struct outbox {
    struct arena arena;
    struct vector prepare_versions, starts, stops, drop_versions, log_gets;
    struct vector routes, endpoints, slots_wanted, fail_waiting;
    struct number_vector removed_functions, drain_sandboxes, remove_sandboxes, want_demand;
    Dirigent__Welcome *welcome;
    bool snapshot, snapshot_more;
    uint64_t sync; /* 0: none */
};
/* A new message in a list, initialised:
 * OUTBOX_ADD(o, starts, Dirigent__StartSandbox, DIRIGENT__START_SANDBOX__INIT) */
#define OUTBOX_ADD(o, list, type, INIT)                           \
    ({                                                            \
        type *added_ = outbox_add((o), &(o)->list, sizeof(type)); \
        *added_ = (type)INIT;                                     \
        added_;                                                   \
    })
void *outbox_add(struct outbox *o, struct vector *v, size_t bytes);
void outbox_add_number(struct number_vector *v, uint64_t number);
bool outbox_is_empty(const struct outbox *o);
size_t outbox_count(const struct outbox *o);
/* Sends all of it with `epoch` and leaves it empty. */
void outbox_send(struct outbox *o, struct link *link, uint64_t epoch, uint64_t sequence);
void outbox_done(struct outbox *o);
