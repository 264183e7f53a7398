/* copies.h - code that was uploaded to one control plane, on the others too: an upload is answered
 * when a majority has it, so that no function loses its code with a machine. Who lacks the code of
 * a registered function asks the others for it. Loop thread only. Without other control planes
 * there is nothing to do. */
#pragma once
#include "control_plane/members.h"

struct copies;
struct copies *copies_new(struct control_plane *cp);
void copies_free(struct copies *c); /* blobs still there */

/* Calls on_done when a majority of the control planes has the code: ERR_OK. ERR_EMPTY: not within
 * COPIES_SPREAD_MS. It may do so before it returns. Zeroed before; copies_spread_cancel() at any
 * time. */
#define COPIES_SPREAD_MS 10000u
struct copies_spread {
    void (*on_done)(struct copies_spread *spread, enum err err, const struct error *e);
    struct list node; /* the rest is copies.c's */
    struct copies *copies;
    struct loop_timer timer;
    char digest[CODE_DIGEST_BYTES + 1];
    uint32_t kept_mask; /* members that have it */
};
void copies_spread(struct copies *c, const char *digest, struct copies_spread *spread);
void copies_spread_cancel(struct copies_spread *spread);

/* ---- for members ---- */
void copies_beat(struct copies *c, uint32_t member, const Dirigent__MemberBeat *beat);
void copies_chunk(struct copies *c, uint32_t member, const Dirigent__BlobChunk *chunk);
void copies_member_down(struct copies *c, uint32_t member);
