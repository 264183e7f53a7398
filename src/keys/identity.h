/* identity.h - a program's own key and certificate, in its data directory:
 *
 *   tls/key.pem    0600   its private key
 *   tls/cert.pem          its certificate
 *   tls/roots.pem         the authorities that it trusts
 *   tls.next/             the same, being made: a key that waits for its certificate
 *
 * The directories change place in one step, so that after a crash at any instant all three files
 * are the old ones or the new ones. Blocks (files are made durable): not for a thread that serves.
 * The program holds the lock of its data directory. Time is a parameter, in seconds since 1970. */
#pragma once
#include "keys/certificate.h"

struct identity { /* owns; identity_done() */
    EVP_PKEY *key;
    X509 *certificate;
    struct roots roots;
    struct subject subject;
    struct certificate_times times;
};
void identity_done(struct identity *i);

/* What is in `data_dir`, checked as a whole: key and certificate belong together, signed by one of
 * the roots, valid now, and of whom `expect` says (see subject_expect()). Finishes an installation
 * that a crash cut short. ERR_NOT_FOUND: this machine has never joined. Else ERR_PERMISSION
 * (readable by others, not to be trusted, expired, of somebody else), ERR_INVALID or ERR_CORRUPT
 * (damaged, a file is missing); the sentence names the file. */
must_check enum err identity_load(const char *data_dir, const struct subject *expect,
                                  uint64_t now_s, struct identity *ret_identity, struct error *e);

/* When to ask for the next certificate: before half of its life, spread over a tenth of it, so that
 * nodes that joined together do not come back together. */
uint64_t identity_renew_s(const struct identity *i);

/* Makes a key for the next certificate, durable before anybody hears of it, and appends a request
 * for it to `out` (PEM). A key that waits already is used again: so an answer that was lost can be
 * asked for again, with the same token. */
must_check enum err identity_request(const char *data_dir, struct buf *out, struct error *e);
/* Installs the answer to the last request, when all that identity_load() checks is right;
 * ERR_CONFLICT when no key waits for it. On failure what was there stays in force. */
must_check enum err identity_install(const char *data_dir, struct str certificate_pem,
                                     struct str roots_pem, const struct subject *expect,
                                     uint64_t now_s, struct error *e);
/* Forgets a request that was refused; the next one has a new key. */
must_check enum err identity_forget_request(const char *data_dir, struct error *e);
/* Other roots beside the same key and certificate (a rotation). Refused as ERR_PERMISSION when the
 * own certificate would not be believed by them. */
must_check enum err identity_install_roots(const char *data_dir, struct str roots_pem,
                                           uint64_t now_s, struct error *e);
