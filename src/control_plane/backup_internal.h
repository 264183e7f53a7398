/* backup_internal.h - what the writer (backup.c) and the reader (backup_read.c) of backups share.
 */
#pragma once
#include "control_plane/backup.h"
#include <openssl/evp.h>

#define BACKUP_FORMAT "dirigent backup "
#define BACKUP_FIRST_LINE BACKUP_FORMAT "1\n"
#define BACKUP_ABOUT "about"
#define BACKUP_CODE "code"
#define BACKUP_END "end"
#define BACKUP_CODE_PREFIX "sha256:"
#define BACKUP_HEX_BYTES 64u
#define BACKUP_LINE_BYTES_MAX 128u /* kind, 64 digits, 20 digits */

/* False: there is no such kind in a backup. */
bool backup_kind_find(struct str name, enum store_kind *ret_kind);

/* SHA-256; aborts without memory, as mem_new(). */
EVP_MD_CTX *backup_hash_new(void); /* has begun */
void backup_hash_begin(EVP_MD_CTX *hash);
/* The hash begins anew. */
void backup_hash_end(EVP_MD_CTX *hash, char ret_hex[BACKUP_HEX_BYTES + 1]);
