/* leases.h - which data plane may use how many slots of which sandbox. Part of the core: pure.
 *
 * A sandbox of a function of concurrency c has c slots. The ledger of each data plane says how many
 * it may be using at most; over all data planes these are never more than c, but for data planes
 * that were declared dead and live, and for requests that run while c is lowered. The ledger of one
 * changes
 *   upwards    when we grant (ORDER_ENDPOINT), before it can know
 *   downwards  when it says that it gave slots back (EVENT_SLOTS_RETURNED), or has nothing there
 * any more (EVENT_DRAINED), or is declared dead anew       when it says hello: what it then holds
 * An entry can be `retired`: the data plane takes no new requests there and will say drained.
 *
 * All slots of a ready sandbox are granted at once (leases_settle). Who waits elsewhere gets slots
 * back from those who have them: ORDER_SLOTS_WANTED. Without a limit (c is 0), and for data planes
 * that know nothing of leases, each has all slots and nothing is counted.
 *
 * Why it is so: docs/decisions/0011-slots-are-leased.md. */
#pragma once
#include "control_plane/core.h"

#define LEASE_HOLD_MS 20u /* a slot that was granted stays so long, where all are needed */
#define LEASE_ASK_MS 5u   /* so long is waited for what data planes say when they are asked */
#define LEASE_FRESH_MS 2u /* what was said within it needs not be asked */

struct control;
struct core_function;
struct core_sandbox;
struct data_plane;

/* It has become ready: what is said of it before (by a hello) counts from now on. */
void leases_sandbox_ready(struct control *c, struct core_sandbox *s);
/* It is ready and serves: its slots are to be granted when its function is settled. Also when more
 * of them may have become free, or fewer are there. */
void leases_offer(struct core_sandbox *s);
/* All that serve: the function's concurrency has changed. */
void leases_offer_serving(struct core_function *f);
/* Grants what is offered now, without waiting for the end of the step. */
void leases_grant(struct control *c, struct core_function *f);
/* At the end of a step: grants what is offered, and asks for slots back where others wait. */
void leases_settle(struct control *c, struct core_function *f);
/* When leases_settle() is to be called again; UINT64_MAX: when something happens. */
uint64_t leases_due_ms(const struct control *c, const struct core_function *f);
void leases_function_done(struct core_function *f);

/* It serves no more (it drains or is gone): before its state changes. */
void leases_sandbox_leaves(struct control *c, struct core_sandbox *s);
/* It is gone, and data planes were told. One that is away has not heard of that, and keeps its
 * entry. May it come back, with a worker that was only given up, all others are to drain it (of a
 * worker that is silent they were told nothing else) and must say first that they have nothing
 * there. */
void leases_sandbox_gone(struct control *c, const struct core_sandbox *s, bool may_come_back);
/* Data planes, alive or only just away, that may have requests there: a mask. */
uint64_t leases_holders(const struct control *c, uint64_t sandbox_id);
/* It takes no new request there, and will say drained. */
bool leases_is_retired(const struct data_plane *p, uint64_t sandbox_id);
/* Those alive that know it. */
uint64_t leases_knowers(const struct control *c, uint64_t sandbox_id);

/* A data plane has said what it holds; everything else is not held. */
void leases_hello(struct control *c, struct data_plane *p, const struct control_event *e);
/* In a snapshot: that a sandbox serves, to one that may hold some of it. */
void leases_restate(struct control *c, struct core_sandbox *s, struct data_plane *p);
/* After a snapshot: it ends what that did not name. */
void leases_retire_unnamed(struct control *c, struct data_plane *p);
void leases_returned(struct control *c, struct data_plane *p, const struct control_event *e);
void leases_drained(struct control *c, struct data_plane *p, uint64_t sandbox_id);
void leases_plane_end(struct control *c, struct data_plane *p);

/* ---- for the scale ---- */

/* A data plane has just told its demand. */
void leases_told(struct control *c, struct core_function *f, unsigned data_plane);
/* Requests of which the last word is old, and slots that cannot be had because who holds them is
 * away. */
uint64_t leases_stale_requests(const struct control *c, const struct core_function *f);
uint64_t leases_locked_slots(struct control *c, struct core_function *f);
/* Asks those whose last word is old. False when they have been asked and have had their time. */
bool leases_ask(struct control *c, struct core_function *f);
