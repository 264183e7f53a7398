/* certificate.h - what a certificate says, and whether it is to be believed. Any thread; time is a
 * parameter, in seconds since 1970. */
#pragma once
#include "base/limits.h"
#include "keys/crypto.h"
#include "keys/subject.h"

void certificate_free(X509 **certificate); /* for cleanup() */
/* From one block CERTIFICATE; ERR_INVALID. The caller's to free. */
must_check enum err certificate_from_pem(struct str pem, X509 **ret_certificate, struct error *e);
must_check enum err certificate_from_der(const uint8_t *der, size_t bytes, X509 **ret_certificate,
                                         struct error *e);
void certificate_append_pem(const X509 *certificate, struct buf *out);
struct pin certificate_pin(const X509 *certificate); /* of its key */

/* Whose it is: the one URI name dirigent://… in it. ERR_INVALID: none, several, or malformed. What
 * the certificate of a finished TLS handshake says may be believed, of another one not:
 * certificate_verify(). */
must_check enum err certificate_subject(const X509 *certificate, struct subject *ret_subject,
                                        struct error *e);
struct certificate_times {
    uint64_t not_before_s, not_after_s; /* valid from and to, both inclusive */
};
must_check enum err certificate_times_of(const X509 *certificate,
                                         struct certificate_times *ret_times, struct error *e);

/* "2026-11-23 19:06:35 UTC" */
#define TIME_TEXT_BYTES 32u
void time_text(uint64_t s, char ret_text[TIME_TEXT_BYTES]);

/* ---- roots: the authorities that are trusted ---- */

struct roots { /* owns them; roots_done() */
    X509 *items[ROOTS_MAX];
    unsigned count;
};
void roots_done(struct roots *r);
/* From 1 to ROOTS_MAX blocks CERTIFICATE, each that of a cluster's authority, signed by itself, all
 * of one cluster, none twice. Says nothing about time. ERR_INVALID. */
must_check enum err roots_from_pem(struct str pem, struct roots *ret_roots, struct error *e);
void roots_append_pem(const struct roots *r, struct buf *out);
/* Whether the certificate is such an authority's; its cluster. ERR_INVALID. */
must_check enum err root_check(const X509 *certificate,
                               char ret_cluster[CLUSTER_NAME_BYTES_MAX + 1], struct error *e);
/* The root with this pin, borrowed, or NULL. */
X509 *roots_find(const struct roots *r, struct str pin);

/* Believes it or says why not: signed by one of the roots, for its cluster, valid at now_s, made
 * for client and server. ERR_PERMISSION: not to be trusted (also: not yet, not any more);
 * ERR_INVALID: it is not a node's certificate. *ret_subject is written on success only. */
must_check enum err certificate_verify(X509 *certificate, const struct roots *roots, uint64_t now_s,
                                       struct subject *ret_subject, struct error *e);
/* What is asked of the other side: fields of `wanted` that are "" or NODE_NONE may be anything.
 * ERR_PERMISSION with both names in the sentence. */
must_check enum err subject_expect(const struct subject *is, const struct subject *wanted,
                                   struct error *e);
