/* trust.h - the cluster's authority as the store has it, and this control plane's own certificate,
 * which it issues to itself: TLS of the cluster protocol. Loop thread only.
 *
 * The first leader makes the authority; all others find it in the store. Until it is there nobody
 * can connect. Whoever reads the store can be anybody in the cluster: an etcd is for the control
 * planes alone. */
#pragma once
#include "control_plane/shell.h"
#include "keys/authority.h"
#include "wire/tls.h"

struct trust;

/* By the settings `tls`, `cluster`, `cluster_name`. ERR_USAGE. */
must_check enum err trust_new(struct control_plane *cp, struct trust **ret_trust, struct error *e);
void trust_free(struct trust *t); /* the store has told the end of every write; NULL does nothing */

bool trust_is_on(const struct trust *t);
struct tls *trust_tls(const struct trust *t); /* NULL: it is off. May not be ready yet */
/* NULL: not there yet. */
const struct authority_bundle *trust_bundle(const struct trust *t);
const struct identity *trust_identity(const struct trust *t); /* ours; NULL: not there yet */
uint64_t trust_lifetime_s(const struct trust *t);             /* of certificates that are issued */
/* "10.0.0.1:9090" as the name in a control plane's certificate. */
void trust_member_name(const char *address, char *ret_name, size_t bytes);

/* While the store is loaded, or followed; NULL: it was deleted. ERR_CORRUPT, ERR_VERSION, or
 * ERR_CONFLICT when it is the authority of another cluster. */
must_check enum err trust_load(struct trust *t, uint64_t id, const char *value, struct error *e);
/* We lead from now on: makes the authority when there is none. */
void trust_lead(struct trust *t);

/* Takes the next step of a rotation (keys/authority.h). */
struct trust_change { /* owned by the caller until on_done */
    bool force;       /* without waiting */
    /* ERR_BUSY: too early. May be told before trust_rotate() returns; may be freed here. */
    void (*on_done)(struct trust_change *change, enum err err, const struct error *e);
    struct trust *trust; /* the rest is trust.c's */
    struct store_write write;
    struct authority_bundle next;
};
void trust_rotate(struct trust *t, struct trust_change *change);
