/* pem.h - PEM texts (RFC 7468), strictly: blocks, empty lines and lines that begin with '#',
 * nothing else, so that a damaged block is refused and not skipped. Pure; any thread. */
#pragma once
#include "base/str.h"

enum pem_kind {
    PEM_PRIVATE_KEY, /* PKCS#8 */
    PEM_CERTIFICATE,
    PEM_CSR, /* PKCS#10 */
    PEM_KIND_COUNT,
};
const char *pem_kind_label(enum pem_kind kind); /* "PRIVATE KEY" */

struct pem_block { /* owns its bytes; pem_block_done() wipes and frees */
    enum pem_kind kind;
    uint8_t *der;
    size_t bytes;
};
void pem_block_done(struct pem_block *b);

/* Cuts the next block from the front of *text. ERR_END: there is none any more. ERR_INVALID with
 * the sentence: *text stays. */
must_check enum err pem_next(struct str *text, struct pem_block *ret_block, struct error *e);
/* The one block of this kind that the text must be. */
must_check enum err pem_only(struct str text, enum pem_kind kind, struct pem_block *ret_block,
                             struct error *e);
void pem_append(struct buf *out, enum pem_kind kind, const uint8_t *der, size_t bytes);
