/* tls.h - TLS 1.3 (RFC 8446) of links, from memory to memory: both sides show a certificate of the
 * cluster's authority (../keys). No sockets, no loop, never blocks; each object belongs to one
 * thread at a time.
 *
 * Who the other side is, its certificate says: role and name in it, not an address. A client
 * believes only a control plane. A server also talks to who shows no certificate, because that is
 * how a machine joins: tls_session_peer() is NULL then, and the caller lets it do nothing else. */
#pragma once
#include "keys/identity.h"

/* ---- who we are, for all connections of a program ---- */

struct tls; /* opaque; tls_free() */
/* Nobody yet: not ready. */
struct tls *tls_new(void);
void tls_free(struct tls *t); /* sessions that are there go on; NULL does nothing */
/* For new connections from now on; those that are there stay what they are. Copies. ERR_INVALID:
 * libssl does not take it. */
must_check enum err tls_set_identity(struct tls *t, const struct identity *identity,
                                     struct error *e);
/* Nobody, and trusts a control plane of the cluster whose authority has this pin (--ca-hash).
 * ERR_INVALID. */
must_check enum err tls_set_joiner(struct tls *t, struct str pin, struct error *e);
bool tls_is_ready(const struct tls *t);

/* ---- one connection ---- */

struct tls_session; /* opaque; tls_session_free() */
/* ERR_BUSY: `t` is not ready. A client's first bytes are appended to `out`. */
must_check enum err tls_session_new(struct tls *t, bool is_server, struct buf *out,
                                    struct tls_session **ret_session, struct error *e);
void tls_session_free(struct tls_session *s); /* NULL does nothing */
/* Takes what came from the socket. Appends what it says to `plain` and what is to be sent to `out`,
 * also on failure: the alert that tells the other side. ERR_END: it ended in order; ERR_PERMISSION:
 * one side does not believe the other; ERR_PROTOCOL. The sentence is for an operator. */
must_check enum err tls_session_take(struct tls_session *s, const void *data, size_t bytes,
                                     struct buf *plain, struct buf *out, struct error *e);
/* Once established: appends to `out` what carries `data`. */
void tls_session_put(struct tls_session *s, const void *data, size_t bytes, struct buf *out);
void tls_session_end(struct tls_session *s, struct buf *out); /* says that no more will come */
bool tls_session_is_established(const struct tls_session *s);
/* Whom the certificate of the other side names; NULL: it showed none, or not yet. */
const struct subject *tls_session_peer(const struct tls_session *s);

/* Whether a connection's first byte is that of a TLS handshake (RFC 8446 5.1). */
#define TLS_FIRST_BYTE 0x16u
