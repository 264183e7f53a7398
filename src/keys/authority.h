/* authority.h - the cluster's own certificate authority. Every control plane has it; whoever has
 * its key can be anybody in the cluster. Any thread; only *_load() and *_store() block. Time is a
 * parameter, in seconds since 1970. */
#pragma once
#include "keys/certificate.h"

/* ---- one root: a key pair and the certificate that it signed for itself ---- */

struct authority; /* opaque, immutable; authority_free() */

/* A new one on P-256 for 10 years, with the cluster's name in its subject. ERR_INVALID, field
 * "cluster". */
must_check enum err authority_make(struct str cluster, uint64_t now_s,
                                   struct authority **ret_authority, struct error *e);
void authority_free(struct authority **authority); /* for cleanup() */
const char *authority_cluster(const struct authority *a);
struct pin authority_pin(const struct authority *a);    /* what a joiner is given: --ca-hash */
X509 *authority_certificate(const struct authority *a); /* borrowed */

struct issue_order {
    struct subject subject;  /* its cluster is the authority's */
    const struct str *hosts; /* DNS names and addresses, for a control plane only */
    unsigned host_count;     /* at most CERTIFICATE_HOSTS_MAX */
    uint64_t lifetime_s;     /* 0: CERTIFICATE_LIFETIME_S_DEFAULT. Cut where the authority ends */
};
/* Signs a certificate for the key in `csr` (PEM or DER, see csr_read(): its signature is proof that
 * the other side has the key; its names are ignored). Valid from CERTIFICATE_BACKDATED_S before
 * now, because clocks differ. Appends PEM to `out`. ERR_INVALID with field: csr, cluster, name,
 * hosts, lifetime; ERR_UNSUPPORTED: kind of key; ERR_TOO_LARGE; ERR_PERMISSION: the authority is
 * not valid now. */
must_check enum err authority_issue(const struct authority *a, struct str csr,
                                    const struct issue_order *order, uint64_t now_s,
                                    struct buf *out, struct error *e);

/* ---- what a control plane has: the root that signs, and a second one during a rotation ----
 *
 *   begin:  the second root is made and trusted; the first one signs. Everybody learns of the
 * second with its next certificate (half of a lifetime later) or when it is sent. switch: the
 * second signs; both are trusted. finish: the first is forgotten; nothing that it signed is valid
 * any more by then.
 *
 * Each step changes the bundle in memory; store it, then act on it. */

struct authority_bundle {               /* owns; authority_bundle_done() */
    struct authority *items[ROOTS_MAX]; /* in order of age; both of one cluster */
    unsigned count;                     /* 0 (nothing yet), 1 or 2 */
    unsigned signer;                    /* index of the one that signs */
    uint64_t since_s;                   /* when the last step was */
};
void authority_bundle_done(struct authority_bundle *b);
must_check enum err authority_bundle_make(struct str cluster, uint64_t now_s,
                                          struct authority_bundle *ret_bundle, struct error *e);
static inline const struct authority *authority_bundle_signer(const struct authority_bundle *b)
{
    return b->items[b->signer];
}
/* Certificates of all roots, appended as PEM: what everybody may see and trusts. */
void authority_bundle_roots(const struct authority_bundle *b, struct buf *out);

/* One text with everything, keys too: PEM blocks behind a first line with the state and a digest of
 * all of it, so damage of any byte is found. Wipe it (key_buf_done()). ERR_CORRUPT, ERR_VERSION. */
void authority_bundle_write(const struct authority_bundle *b, struct buf *out);
must_check enum err authority_bundle_read(struct str text, struct authority_bundle *ret_bundle,
                                          struct error *e);
/* The same in a file (0600, replaced as a whole, durable on return). Load refuses a file that
 * others may read (ERR_PERMISSION), and a signer that is not valid at now_s (ERR_PERMISSION);
 * ERR_NOT_FOUND. Every sentence names the file. */
must_check enum err authority_bundle_store(const struct authority_bundle *b, const char *path,
                                           struct error *e);
must_check enum err authority_bundle_load(const char *path, uint64_t now_s,
                                          struct authority_bundle *ret_bundle, struct error *e);

/* The steps of a rotation. ERR_CONFLICT: not the step that is due. ERR_BUSY: too early, some do not
 * trust the new root yet, or have certificates of the old one; the sentence says from when on.
 * `lifetime_s` is that of the certificates that are issued (0: default); `force` goes on without
 * waiting. */
must_check enum err authority_bundle_begin(struct authority_bundle *b, uint64_t now_s,
                                           struct error *e);
must_check enum err authority_bundle_switch(struct authority_bundle *b, uint64_t now_s,
                                            uint64_t lifetime_s, bool force, struct error *e);
must_check enum err authority_bundle_finish(struct authority_bundle *b, uint64_t now_s,
                                            uint64_t lifetime_s, bool force, struct error *e);
