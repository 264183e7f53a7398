/* leadership.h - one of several control planes: follows the store, knows the others (members.h),
 * stands by, and leads when the election (election.h) says so. Loop thread only.
 *
 * Life: leadership_start() → told all records → standing by → leads → (steps down: the program
 * starts anew, to stand by). A control plane that has the embedded store has none of this: it leads
 * from its start. */
#pragma once
#include "control_plane/shell.h"

struct leadership; /* opaque */

/* The store is open; begins to follow it. `on_lead` is told once, when cp->epoch and cp->next_id
 * are set and all records are known; the control plane leads when it returns. */
must_check enum err leadership_start(struct control_plane *cp,
                                     void (*on_lead)(struct control_plane *cp),
                                     struct leadership **ret_leadership, struct error *e);
void leadership_free(
    struct leadership *l); /* after store_stop() and a turn of the loop; NULL does nothing */
void leadership_close(struct leadership *l); /* before: no more members; NULL does nothing */

/* Somebody has orders of a newer epoch. */
void leadership_refused(struct leadership *l, uint64_t epoch);

/* ---- for people and for clients that came to the wrong one ---- */
uint64_t leadership_epoch(const struct leadership *l); /* the newest seen */
/* Where the API of the one that leads is reached; "" when nobody is known to lead. */
const char *leadership_api_address(const struct leadership *l);
#define MEMBER_SUSPECT_MS 150u /* of silence; as the election has it, who also asks the others */
struct member_view {
    const char *name, *api_address;
    bool is_self, up, leads;
    uint64_t epoch, functions; /* that it has seen, and has */
    uint64_t heard_ms_ago;     /* UINT64_MAX: it is not connected */
    bool reaches_store;
    const char *software;
};
bool leadership_member_next(const struct leadership *l, size_t *cursor,
                            struct member_view *ret);  /* *cursor starts at 0 */
bool leadership_is_synced(const struct leadership *l); /* the copy of the store is whole */
bool leadership_suspects(const struct leadership *l);
bool leadership_store_reached(const struct leadership *l);
/* For how long it has not been reached; 0: it is. */
uint64_t leadership_store_lost_ms(const struct leadership *l);
