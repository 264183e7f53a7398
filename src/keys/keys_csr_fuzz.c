/* keys_csr_fuzz.c - requests for certificates, and the other PEM texts that come from outside:
 * refused with a sentence, or a key of a kind that we take. */
#include "keys/certificate.h"
#include "keys/pem.h"
#include <openssl/err.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct str text = {(const char *)data, bytes};
    struct error e = {0};
    EVP_PKEY *key cleanup(key_free) = NULL, *private_key cleanup(key_free) = NULL;
    if (csr_read(text, &key, &e) == ERR_OK)
        assert(key_check_kind(key, NULL) == ERR_OK);
    else
        assert(e.text[0] != '\0' && strcmp(e.field, "csr") == 0);

    X509 *certificate cleanup(certificate_free) = NULL;
    struct roots roots cleanup(roots_done) = {0};
    struct subject subject;
    struct certificate_times times;
    if (certificate_from_pem(text, &certificate, &e) == ERR_OK) {
        if (certificate_subject(certificate, &subject, &e) == ERR_OK)
            assert(node_name_check(str_of(subject.name), NULL) == ERR_OK);
        if (certificate_times_of(certificate, &times, &e) == ERR_OK)
            assert(times.not_before_s <= times.not_after_s);
    }
    if (roots_from_pem(text, &roots, &e) == ERR_OK) {
        assert(roots.count >= 1 && roots.count <= ROOTS_MAX);
        enum err err = certificate_verify(roots.items[0], &roots, 1700000000, &subject, &e);
        assert(err != ERR_OK); /* a root is no node */
    }
    if (key_from_pem(text, &private_key, &e) == ERR_OK)
        assert(key_check_kind(private_key, NULL) == ERR_OK);
    assert(ERR_peek_error() == 0); /* nothing is left behind for the next user of libcrypto */
    return 0;
}
