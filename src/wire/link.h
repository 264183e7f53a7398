/* link.h - one connection of the cluster protocol: frames of protobuf messages, batched by turn,
 * heartbeats, silence detection; and the dialler that keeps a connection to one control plane.
 * Loop thread only; never blocks. Implements the framing described in dirigent.proto.
 *
 * A link is symmetric: the control plane uses link_accept(), workers and data planes use a dialler.
 * What is to be sent is handed over as a packed protobuf message (ProtobufCMessage); it is packed
 * straight into the link's out-buffer, and one write per turn sends everything.
 * Back-pressure: link_pending_bytes() tells what the peer has not taken; above
 * LINK_PENDING_BYTES_MAX the link closes with ERR_BUSY (a peer that does not read is as good as
 * dead), so bulk senders (blobs, logs) wait for on_drained when pending exceeds 1 MiB. */
#pragma once
#include "base/base.h"
#include "loop/loop.h"
#include "wire/protocol.h"
#include "wire/tls.h"
#include <protobuf-c/protobuf-c.h>

#define LINK_UNHEARD_MS 2000u /* what was sent must be acknowledged by the other side's kernel */
#define LINK_PENDING_BYTES_MAX (256u * 1024u * 1024u)

struct link; /* opaque, owned by its creator until on_closed */
struct link_callbacks {
    /* The other side is known now (link_peer()), before any frame. Not told where there is no TLS.
     * May be NULL. */
    void (*on_secured)(struct link *link, void *user);
    /* A whole frame, valid during the call. Unpack with the generated code; an unpack failure is
     * answered with link_close(). */
    void (*on_frame)(struct link *link, void *user, const uint8_t *data, size_t bytes);
    void (*on_drained)(struct link *link, void *user); /* may be NULL */
    /* Told once, by our close or theirs; the link is freed after it returns. `why` is a sentence.
     */
    void (*on_closed)(struct link *link, void *user, enum err err, const char *why);
};
/* Takes over a connected socket. */
must_check enum err link_accept(struct loop *loop, int fd, const struct link_callbacks *callbacks,
                                void *user, struct link **ret_link, struct error *e);
/* In the same turn as link_accept(): from the first byte on it speaks TLS. What is sent before the
 * handshake is done waits for it; it has LINK_HANDSHAKE_MS. Who does not speak TLS is sent
 * `refusal` in the clear, if not NULL (servers), and closed with ERR_PROTOCOL. ERR_BUSY: `tls` is
 * not ready; the link is closed then. */
#define LINK_HANDSHAKE_MS 5000u
must_check enum err link_secure(struct link *link, struct tls *tls, bool is_server,
                                const ProtobufCMessage *refusal, struct error *e);
/* Whom the other side's certificate names. NULL: it has none, or there is no TLS. */
const struct subject *link_peer(const struct link *link);
/* A longer frame closes the link with ERR_PROTOCOL. FRAME_BYTES_MAX at first. */
void link_set_frame_max(struct link *link, size_t bytes);
void link_send(struct link *link, const ProtobufCMessage *message);
size_t link_pending_bytes(const struct link *link);
void link_close(struct link *link, enum err err, const char *why);
/* After the handshake: `heartbeat_ms` > 0 sends an empty frame when nothing was sent for so long;
 * `dead_after_ms` > 0 closes with ERR_TIMEOUT after so much silence. */
void link_set_timers(struct link *link, uint32_t heartbeat_ms, uint32_t dead_after_ms);
/* When anything was heard last, heartbeats too (which on_frame does not tell). Monotonic. */
uint64_t link_heard_ns(const struct link *link);
void link_peer_address(const struct link *link, char *ret_text,
                       size_t bytes); /* 64 bytes are enough */

/* Keeps one connection to `address`: dials, tells on_up with a fresh link, and after on_closed
 * dials again, at once when the link has lived for DIALLER_STEADY_MS, was settled, or is the first
 * that is lost, else with exponential delay 10 ms … 1 s with jitter. `tls`: NULL, or how it speaks:
 * then on_up comes after the handshake, and a handshake that fails is a failed attempt. */
#define DIALLER_STEADY_MS 1000u
struct dialler;
struct dialler_callbacks {
    void (*on_up)(struct dialler *d, void *user, struct link *link); /* send Hello here */
    struct link_callbacks link; /* on_closed here is told for each lost link */
    /* Each failed attempt; may be NULL. */
    void (*on_failed)(struct dialler *d, void *user, const char *why);
};
must_check enum err dialler_new(struct loop *loop, const char *address, struct tls *tls,
                                const struct dialler_callbacks *callbacks, void *user,
                                struct dialler **ret_dialler, struct error *e);
/* The other side is known to be there, it has just spoken by another way: one that waits for its
 * next attempt, or for an answer that may have been lost, tries at once. */
void dialler_hurry(struct dialler *d);
/* The other side has taken us in: when this link is lost it is dialled at once, however short it
 * has lived. */
void dialler_settled(struct dialler *d);
void dialler_free(struct dialler *d); /* closes its link without telling */

/* Frame decoder, pure: for the link and for fuzzing. Looks at `data`; on ERR_OK *ret_payload and
 * *ret_payload_bytes say where the first frame's payload is and *ret_frame_bytes its whole length.
 * ERR_MORE: not all there yet. ERR_TOO_LARGE: length above FRAME_BYTES_MAX. */
#define FRAME_HEAD_BYTES 4u
must_check enum err frame_decode(const uint8_t *data, size_t bytes, const uint8_t **ret_payload,
                                 size_t *ret_payload_bytes, size_t *ret_frame_bytes);
void frame_head_encode(uint32_t payload_bytes, uint8_t *ret_head); /* FRAME_HEAD_BYTES bytes */

/* Between dialler and link: closes and tells nobody; the link frees itself. */
void link_abandon(struct link *link);
