/* secret.c - randomness comes from the kernel and nowhere else. */
#include "keys/secret.h"
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <sys/random.h>

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

static void random_fill(uint8_t *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = getrandom(data, bytes, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            abort(); /* a secret that could be guessed is worse than none */
        data += n;
        bytes -= (size_t)n;
    }
}

/* Five bits make a character; the last one of 256 bits has only one bit of them. */
static void random_text(char *text, size_t chars, unsigned bits_of_last)
{
    uint8_t raw[SECRET_CHARS];
    assert(chars <= sizeof(raw));
    random_fill(raw, chars);
    for (size_t i = 0; i < chars; i++)
        text[i] = alphabet[raw[i] & 31u];
    text[chars - 1] = alphabet[raw[chars - 1] & 31u & ~((1u << (5 - bits_of_last)) - 1)];
    text[chars] = '\0';
    secret_wipe(raw, sizeof(raw));
}

void secret_make(char ret_text[SECRET_CHARS + 1])
{
    random_text(ret_text, SECRET_CHARS, 1);
}

void secret_make_id(char ret_text[SECRET_ID_CHARS + 1])
{
    random_text(ret_text, SECRET_ID_CHARS, 5);
}

static bool is_base32(struct str s)
{
    for (size_t i = 0; i < s.bytes; i++)
        if (!(s.data[i] >= 'a' && s.data[i] <= 'z') && !(s.data[i] >= '2' && s.data[i] <= '7'))
            return false;
    return true;
}

bool secret_is_text(struct str s)
{
    return s.bytes == SECRET_CHARS && is_base32(s) &&
           (s.data[SECRET_CHARS - 1] == 'a' || s.data[SECRET_CHARS - 1] == 'q');
}

bool secret_is_id(struct str s)
{
    return s.bytes == SECRET_ID_CHARS && is_base32(s);
}

void digest_of(const void *data, size_t bytes, uint8_t ret_digest[DIGEST_BYTES])
{
    unsigned written = 0;
    int done = EVP_Digest(data, bytes, ret_digest, &written, EVP_sha256(), NULL);
    assert(done == 1 && written == DIGEST_BYTES); /* SHA-256 fails only without memory */
}

void digest_hex(const uint8_t digest[DIGEST_BYTES], char ret_hex[DIGEST_HEX_CHARS + 1])
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        ret_hex[2 * i] = digits[digest[i] >> 4];
        ret_hex[2 * i + 1] = digits[digest[i] & 15];
    }
    ret_hex[DIGEST_HEX_CHARS] = '\0';
}

enum err digest_from_hex(struct str hex, uint8_t ret_digest[DIGEST_BYTES])
{
    if (hex.bytes != DIGEST_HEX_CHARS)
        return ERR_INVALID;
    uint8_t digest[DIGEST_BYTES] = {0};
    for (size_t i = 0; i < DIGEST_HEX_CHARS; i++) {
        char c = hex.data[i];
        bool is_digit = c >= '0' && c <= '9';
        if (!is_digit && !(c >= 'a' && c <= 'f'))
            return ERR_INVALID;
        digest[i / 2] = (uint8_t)(digest[i / 2] << 4 | (is_digit ? c - '0' : c - 'a' + 10));
    }
    memcpy(ret_digest, digest, DIGEST_BYTES);
    return ERR_OK;
}

bool digest_equal(const uint8_t a[DIGEST_BYTES], const uint8_t b[DIGEST_BYTES])
{
    return CRYPTO_memcmp(a, b, DIGEST_BYTES) == 0;
}

void secret_wipe(void *data, size_t bytes)
{
    OPENSSL_cleanse(data, bytes);
}
