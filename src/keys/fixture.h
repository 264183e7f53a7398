/* fixture.h - what the tests of this directory share. */
#pragma once
#include "keys/authority.h"

#define NOW_S UINT64_C(1700000000) /* 2023-11-14 22:13:20 UTC */

struct authority *make_authority(const char *cluster);
struct authority_bundle make_bundle(const char *cluster);
struct roots roots_of(const struct authority_bundle *b);
struct issue_order order_of(const char *cluster, enum node_role role, const char *name);
X509 *issue(const struct authority_bundle *b, struct str csr, const struct issue_order *order,
            uint64_t now_s);
X509 *issue_node(const struct authority_bundle *b, enum node_role role, const char *name,
                 uint64_t now_s);

/* Requests as another program would make them. `alternative` is a subjectAltName in OpenSSL's
 * words, or NULL. */
void csr_with_names(EVP_PKEY *key, const char *subject, const char *alternative, struct buf *out);
void csr_signed_by(EVP_PKEY *named, EVP_PKEY *signer, struct buf *out);
void der_of_pem(struct str pem, struct buf *out);
EVP_PKEY *key_with_explicit_curve(void);

/* A new directory in memory (or below $TMPDIR), freed and removed with all in it by scratch_done().
 */
char *scratch_make(void);
void scratch_done(char **directory);
char *
file_text(const char *path); /* the whole, freed by the caller; fails the test if there is none */
