/* fixture.c - helpers of the tests. */
#include "keys/fixture.h"
#include "keys/pem.h"
#include "test.h"
#include <ftw.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <unistd.h>

struct authority *make_authority(const char *cluster)
{
    struct authority *a = NULL;
    REQUIRE(authority_make(str_of(cluster), NOW_S, &a, NULL) == ERR_OK);
    return a;
}

struct authority_bundle make_bundle(const char *cluster)
{
    struct authority_bundle b = {0};
    REQUIRE(authority_bundle_make(str_of(cluster), NOW_S, &b, NULL) == ERR_OK);
    return b;
}

struct roots roots_of(const struct authority_bundle *b)
{
    struct buf pem cleanup(buf_done) = {0};
    struct roots roots = {0};
    authority_bundle_roots(b, &pem);
    REQUIRE(roots_from_pem(buf_str(&pem), &roots, NULL) == ERR_OK);
    return roots;
}

struct issue_order order_of(const char *cluster, enum node_role role, const char *name)
{
    struct issue_order order = {.subject.role = role};
    snprintf(order.subject.cluster, sizeof(order.subject.cluster), "%s", cluster);
    snprintf(order.subject.name, sizeof(order.subject.name), "%s", name);
    return order;
}

X509 *issue(const struct authority_bundle *b, struct str csr, const struct issue_order *order,
            uint64_t now_s)
{
    struct buf pem cleanup(buf_done) = {0};
    struct error e = {0};
    X509 *x = NULL;
    enum err err = authority_issue(authority_bundle_signer(b), csr, order, now_s, &pem, &e);
    if (err != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    REQUIRE(err == ERR_OK && certificate_from_pem(buf_str(&pem), &x, NULL) == ERR_OK);
    return x;
}

X509 *issue_node(const struct authority_bundle *b, enum node_role role, const char *name,
                 uint64_t now_s)
{
    EVP_PKEY *key cleanup(key_free) = key_make();
    struct buf csr cleanup(buf_done) = {0};
    csr_append_pem(key, &csr);
    struct issue_order order = order_of(authority_cluster(b->items[0]), role, name);
    return issue(b, buf_str(&csr), &order, now_s);
}

static void append_request(X509_REQ *request, struct buf *out)
{
    unsigned char *der = NULL;
    int bytes = i2d_X509_REQ(request, &der);
    REQUIRE(bytes > 0);
    pem_append(out, PEM_CSR, der, (size_t)bytes);
    OPENSSL_free(der);
}

static void sign_request(X509_REQ *request, EVP_PKEY *key)
{
    bool own_digest = EVP_PKEY_is_a(key, "ED25519") || EVP_PKEY_is_a(key, "ED448");
    REQUIRE(X509_REQ_sign(request, key, own_digest ? NULL : EVP_sha256()) > 0);
}

void csr_with_names(EVP_PKEY *key, const char *subject, const char *alternative, struct buf *out)
{
    X509_REQ *request = X509_REQ_new();
    const char *value = strchr(subject, '=') + 1;
    REQUIRE(X509_REQ_set_pubkey(request, key) == 1);
    REQUIRE(X509_NAME_add_entry_by_txt(X509_REQ_get_subject_name(request), "CN", MBSTRING_ASC,
                                       (const unsigned char *)value, -1, -1, 0) == 1);
    if (alternative != NULL) {
        X509V3_CTX context;
        X509V3_set_ctx(&context, NULL, NULL, request, NULL, 0);
        X509_EXTENSION *extension =
            X509V3_EXT_conf_nid(NULL, &context, NID_subject_alt_name, alternative);
        REQUIRE(extension != NULL);
        STACK_OF(X509_EXTENSION) *all = sk_X509_EXTENSION_new_null();
        sk_X509_EXTENSION_push(all, extension);
        REQUIRE(X509_REQ_add_extensions(request, all) == 1);
        sk_X509_EXTENSION_pop_free(all, X509_EXTENSION_free);
    }
    sign_request(request, key);
    append_request(request, out);
    X509_REQ_free(request);
}

void csr_signed_by(EVP_PKEY *named, EVP_PKEY *signer, struct buf *out)
{
    X509_REQ *request = X509_REQ_new();
    REQUIRE(X509_REQ_set_pubkey(request, named) == 1);
    sign_request(request, signer);
    append_request(request, out);
    X509_REQ_free(request);
}

void der_of_pem(struct str pem, struct buf *out)
{
    struct pem_block block cleanup(pem_block_done) = {0};
    REQUIRE(pem_next(&pem, &block, NULL) == ERR_OK);
    buf_append(out, block.der, block.bytes);
}

EVP_PKEY *key_with_explicit_curve(void)
{
    EVP_PKEY *key = EVP_EC_gen("prime256v1");
    REQUIRE(EVP_PKEY_set_utf8_string_param(key, OSSL_PKEY_PARAM_EC_ENCODING, "explicit") == 1);
    return key;
}

char *scratch_make(void)
{
    const char *root = getenv("TMPDIR");
    char *path = mem_printf("%s/keys-test.XXXXXX", root != NULL                    ? root
                                                   : access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                                                                                   : "/tmp");
    REQUIRE(mkdtemp(path) != NULL);
    return path;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

void scratch_done(char **directory)
{
    if (*directory == NULL)
        return;
    CHECK_EQ(nftw(*directory, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
    free(*directory);
    *directory = NULL;
}

char *file_text(const char *path)
{
    char *text = NULL;
    REQUIRE(file_read(path, MIB, &text, NULL, NULL) == ERR_OK);
    return text;
}
