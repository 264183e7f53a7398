/* crypto.h - key pairs: ECDSA on P-256, which we make, and Ed25519, which we also take. Any thread;
 * failures of libcrypto become sentences, and its own queue of errors is left empty. */
#pragma once
#include "base/str.h"
#include "keys/secret.h"
#include <openssl/types.h>

/* What libcrypto says about the failure just met. Static text or from its tables. */
const char *crypto_reason(void);

/* "sha256:" and the digest of a SubjectPublicKeyInfo in hex, as kubeadm writes it. */
#define PIN_CHARS (7 + DIGEST_HEX_CHARS)
struct pin {
    char text[PIN_CHARS + 1];
};
/* ERR_INVALID, field "ca-hash". */
must_check enum err pin_check(struct str text, struct error *e);
/* Compares the digests; `text` may be anything. */
bool pin_is(const struct pin *pin, struct str text);

/* All keys are the caller's, freed by key_free(), which takes NULL; for cleanup(). */
void key_free(EVP_PKEY **key);
EVP_PKEY *key_make(void); /* a new one on P-256 */
struct pin key_pin(const EVP_PKEY *key);
/* ERR_UNSUPPORTED for other kinds than ours. */
must_check enum err key_check_kind(const EVP_PKEY *key, struct error *e);
/* From one block PRIVATE KEY. Private and public half are checked to belong together. */
must_check enum err key_from_pem(struct str pem, EVP_PKEY **ret_key, struct error *e);
must_check enum err key_from_der(const uint8_t *der, size_t bytes, EVP_PKEY **ret_key,
                                 struct error *e);
void key_append_pem(const EVP_PKEY *key, struct buf *out); /* wipe `out` when done */
/* Signs: ECDSA needs a digest, Ed25519 has its own. */
const EVP_MD *key_digest(const EVP_PKEY *key);

/* A request for a certificate (PKCS#10) that proves possession of `key` and names nobody: names are
 * decided by who signs. PEM, appended. */
void csr_append_pem(EVP_PKEY *key, struct buf *out);
/* PEM or DER. The signature is checked and the key's kind; all names in it are ignored.
 * ERR_INVALID, ERR_UNSUPPORTED, ERR_TOO_LARGE, field "csr". */
must_check enum err csr_read(struct str csr, EVP_PKEY **ret_key, struct error *e);
