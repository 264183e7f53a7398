/* secret.h - random texts, their digests, and comparisons that take the same time. Pure but for the
 * kernel's random numbers; any thread. */
#pragma once
#include "base/str.h"

/* base32 (RFC 4648 6) in lower case without padding: nothing to escape, easy to select and to read
 * out. */
#define SECRET_CHARS 52u    /* 256 bits */
#define SECRET_ID_CHARS 10u /* 50 bits: names a secret, is none */
#define DIGEST_BYTES 32u    /* SHA-256 */
#define DIGEST_HEX_CHARS (2 * DIGEST_BYTES)

void secret_make(char ret_text[SECRET_CHARS + 1]);
void secret_make_id(char ret_text[SECRET_ID_CHARS + 1]);
/* Whether it could come from secret_make(), secret_make_id(). */
bool secret_is_text(struct str s);
bool secret_is_id(struct str s);

void digest_of(const void *data, size_t bytes, uint8_t ret_digest[DIGEST_BYTES]);
void digest_hex(const uint8_t digest[DIGEST_BYTES], char ret_hex[DIGEST_HEX_CHARS + 1]);
/* ERR_INVALID unless it is 64 hex digits in lower case. */
must_check enum err digest_from_hex(struct str hex, uint8_t ret_digest[DIGEST_BYTES]);
/* Time does not depend on where they differ. */
bool digest_equal(const uint8_t a[DIGEST_BYTES], const uint8_t b[DIGEST_BYTES]);
/* Overwrites, also where the compiler thinks that nobody looks. */
void secret_wipe(void *data, size_t bytes);
