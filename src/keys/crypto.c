/* crypto.c - keys and requests. What fails here only without memory aborts, as everywhere. */
#include "keys/crypto.h"
#include "base/limits.h"
#include "keys/pem.h"
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>

#define CURVE "prime256v1" /* P-256 */

const char *crypto_reason(void)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());
    ERR_clear_error();
    return reason != NULL ? reason : "no reason given";
}

/* ---- pins ---- */

static enum err pin_digest(struct str text, uint8_t ret_digest[DIGEST_BYTES])
{
    struct str prefix = STR("sha256:");
    if (!str_has_prefix(text, prefix))
        return ERR_INVALID;
    return digest_from_hex((struct str){text.data + prefix.bytes, text.bytes - prefix.bytes},
                           ret_digest);
}

enum err pin_check(struct str text, struct error *e)
{
    uint8_t digest[DIGEST_BYTES];
    if (pin_digest(text, digest) == ERR_OK)
        return ERR_OK;
    return error_field(e, ERR_INVALID, "ca-hash",
                       "the hash of the cluster's authority is 'sha256:' and 64 hex digits in "
                       "lower case, as 'dirigent token create' prints it");
}

bool pin_is(const struct pin *pin, struct str text)
{
    uint8_t a[DIGEST_BYTES], b[DIGEST_BYTES];
    return pin_digest(str_of(pin->text), a) == ERR_OK && pin_digest(text, b) == ERR_OK &&
           digest_equal(a, b);
}

struct pin key_pin(const EVP_PKEY *key)
{
    unsigned char *der = NULL;
    int bytes = i2d_PUBKEY(key, &der);
    if (bytes <= 0)
        abort();
    uint8_t digest[DIGEST_BYTES];
    digest_of(der, (size_t)bytes, digest);
    OPENSSL_free(der);
    struct pin pin = {.text = "sha256:"};
    digest_hex(digest, pin.text + 7);
    return pin;
}

/* ---- keys ---- */

void key_free(EVP_PKEY **key)
{
    EVP_PKEY_free(*key);
    *key = NULL;
}

EVP_PKEY *key_make(void)
{
    EVP_PKEY *key = EVP_EC_gen(CURVE);
    if (key == NULL)
        abort(); /* no memory, or no randomness: a key must not be made by other means */
    return key;
}

static bool is_p256(const EVP_PKEY *key)
{
    char group[32] = "";
    int is_explicit = 0;
    if (EVP_PKEY_get_base_id(key) != EVP_PKEY_EC ||
        EVP_PKEY_get_utf8_string_param(key, OSSL_PKEY_PARAM_GROUP_NAME, group, sizeof(group),
                                       NULL) != 1)
        return false;
    /* Spelled-out parameters can hide a weak curve (CVE-2020-0601). */
    (void)EVP_PKEY_get_int_param(key, OSSL_PKEY_PARAM_EC_DECODED_FROM_EXPLICIT_PARAMS,
                                 &is_explicit);
    return strcmp(group, CURVE) == 0 && is_explicit == 0;
}

enum err key_check_kind(const EVP_PKEY *key, struct error *e)
{
    bool good = is_p256(key) || EVP_PKEY_get_base_id(key) == EVP_PKEY_ED25519;
    ERR_clear_error();
    if (good)
        return ERR_OK;
    return error_set(e, ERR_UNSUPPORTED, "its key is neither ECDSA on P-256 nor Ed25519");
}

const EVP_MD *key_digest(const EVP_PKEY *key)
{
    return EVP_PKEY_get_base_id(key) == EVP_PKEY_ED25519 ? NULL : EVP_sha256();
}

/* Of an EC key the file has both halves; one flipped bit in the private one would go unnoticed
 * until the first handshake. */
static enum err check_halves(EVP_PKEY *key, struct error *e)
{
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
    int good = context != NULL ? EVP_PKEY_pairwise_check(context) : 0;
    EVP_PKEY_CTX_free(context);
    if (good == 1)
        return ERR_OK;
    return error_set(e, ERR_INVALID, "its key is damaged: %s", crypto_reason());
}

enum err key_from_der(const uint8_t *der, size_t bytes, EVP_PKEY **ret_key, struct error *e)
{
    const uint8_t *end = der;
    PKCS8_PRIV_KEY_INFO *info = d2i_PKCS8_PRIV_KEY_INFO(NULL, &end, (long)bytes);
    EVP_PKEY *key cleanup(key_free) = info != NULL ? EVP_PKCS82PKEY(info) : NULL;
    PKCS8_PRIV_KEY_INFO_free(info);
    if (key == NULL || end != der + bytes)
        return error_set(e, ERR_INVALID, "its key is no PKCS#8: %s", crypto_reason());
    enum err err = key_check_kind(key, e);
    if (err == ERR_OK)
        err = check_halves(key, e);
    if (err != ERR_OK)
        return err;
    ERR_clear_error();
    *ret_key = key;
    key = NULL;
    return ERR_OK;
}

enum err key_from_pem(struct str pem, EVP_PKEY **ret_key, struct error *e)
{
    struct pem_block block cleanup(pem_block_done) = {0};
    enum err err = pem_only(pem, PEM_PRIVATE_KEY, &block, e);
    return err != ERR_OK ? err : key_from_der(block.der, block.bytes, ret_key, e);
}

void key_append_pem(const EVP_PKEY *key, struct buf *out)
{
    unsigned char *der = NULL;
    PKCS8_PRIV_KEY_INFO *info = EVP_PKEY2PKCS8(key);
    int bytes = info != NULL ? i2d_PKCS8_PRIV_KEY_INFO(info, &der) : 0;
    PKCS8_PRIV_KEY_INFO_free(info);
    if (bytes <= 0)
        abort();
    pem_append(out, PEM_PRIVATE_KEY, der, (size_t)bytes);
    OPENSSL_clear_free(der, (size_t)bytes);
}

/* ---- requests ---- */

void csr_append_pem(EVP_PKEY *key, struct buf *out)
{
    X509_REQ *request = X509_REQ_new();
    unsigned char *der = NULL;
    int bytes = 0;
    if (request != NULL && X509_REQ_set_version(request, X509_REQ_VERSION_1) == 1 &&
        X509_REQ_set_pubkey(request, key) == 1 && X509_REQ_sign(request, key, key_digest(key)) > 0)
        bytes = i2d_X509_REQ(request, &der);
    X509_REQ_free(request);
    if (bytes <= 0)
        abort(); /* the key is ours and whole */
    pem_append(out, PEM_CSR, der, (size_t)bytes);
    OPENSSL_free(der);
}

static enum err csr_refuse(struct error *e, enum err code, const char *why)
{
    return error_field(e, code, "csr", "the request for a certificate is refused: %s", why);
}

static enum err csr_check(X509_REQ *request, EVP_PKEY **ret_key, struct error *e)
{
    EVP_PKEY *key = X509_REQ_get0_pubkey(request);
    if (key == NULL)
        return csr_refuse(e, ERR_INVALID, "its public key cannot be read");
    if (key_check_kind(key, NULL) != ERR_OK)
        return csr_refuse(e, ERR_UNSUPPORTED, "its key is neither ECDSA on P-256 nor Ed25519");
    if (X509_REQ_verify(request, key) != 1)
        return csr_refuse(e, ERR_INVALID, "its signature is not by its own key");
    EVP_PKEY_up_ref(key);
    *ret_key = key;
    return ERR_OK;
}

static enum err csr_from_der(const uint8_t *der, size_t bytes, EVP_PKEY **ret_key, struct error *e)
{
    const uint8_t *end = der;
    X509_REQ *request = d2i_X509_REQ(NULL, &end, (long)bytes);
    enum err err = request == NULL || end != der + bytes
                       ? csr_refuse(e, ERR_INVALID, "it is no PKCS#10")
                       : csr_check(request, ret_key, e);
    X509_REQ_free(request);
    ERR_clear_error();
    return err;
}

enum err csr_read(struct str csr, EVP_PKEY **ret_key, struct error *e)
{
    if (csr.bytes > CSR_BYTES_MAX)
        return csr_refuse(e, ERR_TOO_LARGE, "it has more than 16384 bytes");
    if (!str_has_prefix(csr, STR("-----")))
        return csr_from_der((const uint8_t *)csr.data, csr.bytes, ret_key, e);
    struct pem_block block cleanup(pem_block_done) = {0};
    struct error why = {0};
    if (pem_only(csr, PEM_CSR, &block, &why) != ERR_OK)
        return csr_refuse(e, ERR_INVALID, why.text);
    return csr_from_der(block.der, block.bytes, ret_key, e);
}
