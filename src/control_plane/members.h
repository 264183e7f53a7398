/* members.h - the replicas of the control plane among themselves: who is there, what it says, and
 * what we say to all of them every MEMBER_BEAT_MS. Loop thread only; never blocks.
 *
 * A member is named by its address for the cluster protocol, as the others dial it. Each dials
 * every other one and speaks on the connection that it dialled; what it hears comes by the one it
 * accepted (links.h hands that over). Knows nothing of who should lead: that is election.h's. */
#pragma once
#include "control_plane/shell.h"
#include "dirigent.pb-c.h"
#include "wire/link.h"

#define MEMBERS_MAX 9u
#define MEMBER_BEAT_MS 25u

struct members;           /* opaque */
struct member_callbacks { /* `member` is an index below members_count(), never our own */
    void (*on_up)(void *user, uint32_t member);
    /* `dead`: its process has ended; else it may live and not be reached. */
    void (*on_down)(void *user, uint32_t member, bool dead);
    /* It is connected to another process of our name, and refuses us. */
    void (*on_rival)(void *user, uint32_t member);
    void (*on_beat)(void *user, uint32_t member, const Dirigent__MemberBeat *beat);
    void (*on_chunk)(void *user, uint32_t member,
                     const Dirigent__BlobChunk *chunk); /* of code that was asked for */
};
/* `own` and the comma-separated `others` are addresses. Indices are those of the sorted list of
 * all, so that every member counts alike. Refuses `own` among the others, doubles, and more than
 * MEMBERS_MAX. Dials at once. */
must_check enum err members_new(struct control_plane *cp, const char *own, const char *others,
                                const struct member_callbacks *callbacks, void *user,
                                struct members **ret_members, struct error *e);
void members_close(struct members *m); /* says nothing more */
void members_free(struct members *m);  /* closed, or never started; NULL does nothing */

uint32_t members_count(const struct members *m); /* with ourselves */
uint32_t members_self(const struct members *m);
const char *members_name(const struct members *m, uint32_t member);
bool members_is_up(const struct members *m, uint32_t member); /* heard, or ourselves */
/* Whether a member that is up comes from there: "10.0.0.1:41234", its port does not matter. */
bool members_come_from(const struct members *m, const char *address);
const char *members_api_address(const struct members *m, uint32_t member); /* "" when not known */

/* What every beat says from now on; told at once too. */
void members_say(struct members *m, uint64_t epoch, bool leads, bool reaches_store);
/* On top of the beats; lost when the member is not connected. */
void members_ask(struct members *m, uint32_t member, uint64_t epoch);
void members_answer(struct members *m, uint32_t member, uint64_t epoch, bool hears);

/* A beat that says more, and asks for the code of that digest (NULL: for none). */
void members_send(struct members *m, uint32_t member, Dirigent__MemberBeat *beat,
                  const char *digest);

/* ---- for links.h: a connection that said Hello as a control plane ---- */
extern const char members_identity_taken[];
/* NULL: taken. Else why not (members_identity_taken, or another sentence): it is none of ours, or
 * there are two with its name. A newer connection replaces the older. */
const char *members_accept(struct members *m, const Dirigent__Hello *hello, struct link *link);
void members_message(struct members *m, struct link *link, const Dirigent__ToControlPlane *message);
void members_closed(struct members *m, struct link *link, enum err err);
