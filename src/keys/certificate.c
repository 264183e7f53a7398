/* certificate.c - reading and believing. */
#include "keys/certificate.h"
#include "keys/pem.h"
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

void certificate_free(X509 **certificate)
{
    X509_free(*certificate);
    *certificate = NULL;
}

enum err certificate_from_der(const uint8_t *der, size_t bytes, X509 **ret_certificate,
                              struct error *e)
{
    const uint8_t *end = der;
    X509 *certificate cleanup(certificate_free) = d2i_X509(NULL, &end, (long)bytes);
    if (certificate == NULL || end != der + bytes)
        return error_set(e, ERR_INVALID, "its certificate is no X.509: %s", crypto_reason());
    if (X509_get0_pubkey(certificate) == NULL)
        return error_set(e, ERR_INVALID, "its certificate has no usable key: %s", crypto_reason());
    ERR_clear_error();
    *ret_certificate = certificate;
    certificate = NULL;
    return ERR_OK;
}

enum err certificate_from_pem(struct str pem, X509 **ret_certificate, struct error *e)
{
    struct pem_block block cleanup(pem_block_done) = {0};
    enum err err = pem_only(pem, PEM_CERTIFICATE, &block, e);
    return err != ERR_OK ? err : certificate_from_der(block.der, block.bytes, ret_certificate, e);
}

void certificate_append_pem(const X509 *certificate, struct buf *out)
{
    unsigned char *der = NULL;
    int bytes = i2d_X509(certificate, &der);
    if (bytes <= 0)
        abort();
    pem_append(out, PEM_CERTIFICATE, der, (size_t)bytes);
    OPENSSL_free(der);
}

struct pin certificate_pin(const X509 *certificate)
{
    return key_pin(X509_get0_pubkey(certificate));
}

/* ---- what it says ---- */

static enum err subject_of_names(const GENERAL_NAMES *names, struct subject *ret_subject,
                                 struct error *e)
{
    unsigned found = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI)
            continue;
        const ASN1_IA5STRING *text = name->d.uniformResourceIdentifier;
        struct str uri = {(const char *)ASN1_STRING_get0_data(text),
                          (size_t)ASN1_STRING_length(text)};
        if (found++ > 0)
            return error_set(e, ERR_INVALID, "its certificate has more than one URI");
        if (subject_from_uri(uri, ret_subject, e) != ERR_OK) {
            error_prefix(e, "the URI in its certificate");
            return ERR_INVALID;
        }
    }
    if (found == 0)
        return error_set(e, ERR_INVALID, "its certificate names no node of a cluster");
    return ERR_OK;
}

enum err certificate_subject(const X509 *certificate, struct subject *ret_subject, struct error *e)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    ERR_clear_error();
    if (names == NULL)
        return error_set(e, ERR_INVALID, "its certificate names no node of a cluster");
    struct subject subject = {0};
    enum err err = subject_of_names(names, &subject, e);
    GENERAL_NAMES_free(names);
    if (err == ERR_OK)
        *ret_subject = subject;
    return err;
}

static bool seconds_of(const ASN1_TIME *time, uint64_t *ret_s)
{
    struct tm tm;
    if (ASN1_TIME_to_tm(time, &tm) != 1)
        return false;
    time_t s = timegm(&tm);
    *ret_s = s > 0 ? (uint64_t)s : 0;
    return s >= 0;
}

enum err certificate_times_of(const X509 *certificate, struct certificate_times *ret_times,
                              struct error *e)
{
    struct certificate_times times = {0};
    bool good = seconds_of(X509_get0_notBefore(certificate), &times.not_before_s) &&
                seconds_of(X509_get0_notAfter(certificate), &times.not_after_s) &&
                times.not_before_s <= times.not_after_s;
    ERR_clear_error();
    if (!good)
        return error_set(e, ERR_INVALID, "the times in its certificate make no sense");
    *ret_times = times;
    return ERR_OK;
}

void time_text(uint64_t s, char ret_text[TIME_TEXT_BYTES])
{
    time_t t = (time_t)MIN(s, UINT64_C(253402300799)); /* the end of year 9999 */
    struct tm tm;
    gmtime_r(&t, &tm);
    size_t bytes = strftime(ret_text, TIME_TEXT_BYTES, "%Y-%m-%d %H:%M:%S UTC", &tm);
    assert(bytes > 0);
}

/* ---- roots ---- */

void roots_done(struct roots *r)
{
    for (unsigned i = 0; i < r->count; i++)
        X509_free(r->items[i]);
    *r = (struct roots){0};
}

static bool cluster_of(const X509_NAME *name, char ret_cluster[CLUSTER_NAME_BYTES_MAX + 1])
{
    int at = X509_NAME_get_index_by_NID(name, NID_organizationName, -1);
    if (at < 0 || X509_NAME_get_index_by_NID(name, NID_organizationName, at) >= 0)
        return false;
    const ASN1_STRING *text = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at));
    struct str cluster = {(const char *)ASN1_STRING_get0_data(text),
                          (size_t)ASN1_STRING_length(text)};
    if (cluster_name_check(cluster, NULL) != ERR_OK)
        return false;
    memcpy(ret_cluster, cluster.data, cluster.bytes);
    ret_cluster[cluster.bytes] = '\0';
    return true;
}

enum err root_check(const X509 *certificate, char ret_cluster[CLUSTER_NAME_BYTES_MAX + 1],
                    struct error *e)
{
    X509 *root = (X509 *)certificate; /* libcrypto fills caches in it, under a lock of its own */
    EVP_PKEY *key = X509_get0_pubkey(root);
    enum err err = key_check_kind(key, e);
    if (err != ERR_OK)
        return err;
    bool is_authority = X509_check_ca(root) == 1 &&
                        (X509_get_extension_flags(root) & EXFLAG_SS) != 0 &&
                        X509_verify(root, key) == 1;
    ERR_clear_error();
    if (!is_authority)
        return error_set(e, ERR_INVALID,
                         "its certificate is not an authority's, signed by itself, or is damaged");
    if (!cluster_of(X509_get_subject_name(root), ret_cluster))
        return error_set(e, ERR_INVALID, "its certificate is not of a cluster's authority");
    return ERR_OK;
}

static enum err roots_add(struct roots *r, const struct pem_block *block, struct error *e)
{
    if (block->kind != PEM_CERTIFICATE)
        return error_set(e, ERR_INVALID, "it holds a %s, and must hold certificates only",
                         pem_kind_label(block->kind));
    if (r->count == ROOTS_MAX)
        return error_set(e, ERR_INVALID, "it holds more than %u authorities", ROOTS_MAX);
    enum err err = certificate_from_der(block->der, block->bytes, &r->items[r->count], e);
    if (err != ERR_OK)
        return err;
    r->count++;
    char cluster[CLUSTER_NAME_BYTES_MAX + 1], first[CLUSTER_NAME_BYTES_MAX + 1] = "";
    err = root_check(r->items[r->count - 1], cluster, e);
    if (err != ERR_OK || r->count == 1)
        return err;
    (void)cluster_of(X509_get_subject_name(r->items[0]), first); /* it was checked */
    if (strcmp(cluster, first) != 0)
        return error_set(e, ERR_INVALID, "its authorities are of two clusters, '%s' and '%s'",
                         first, cluster);
    if (X509_cmp(r->items[0], r->items[1]) == 0)
        return error_set(e, ERR_INVALID, "it holds one authority twice");
    return ERR_OK;
}

enum err roots_from_pem(struct str pem, struct roots *ret_roots, struct error *e)
{
    struct roots roots cleanup(roots_done) = {0};
    for (;;) {
        struct pem_block block cleanup(pem_block_done) = {0};
        enum err err = pem_next(&pem, &block, e);
        if (err == ERR_END)
            break;
        if (err == ERR_OK)
            err = roots_add(&roots, &block, e);
        if (err != ERR_OK)
            return err;
    }
    if (roots.count == 0)
        return error_set(e, ERR_INVALID, "it is empty, and must hold the authority's certificate");
    *ret_roots = roots;
    roots = (struct roots){0};
    return ERR_OK;
}

void roots_append_pem(const struct roots *r, struct buf *out)
{
    for (unsigned i = 0; i < r->count; i++)
        certificate_append_pem(r->items[i], out);
}

X509 *roots_find(const struct roots *r, struct str pin)
{
    for (unsigned i = 0; i < r->count; i++) {
        struct pin own = certificate_pin(r->items[i]);
        if (pin_is(&own, pin))
            return r->items[i];
    }
    return NULL;
}

/* ---- believing ---- */

static enum err say_time(int code, X509 *culprit, uint64_t now_s, struct error *e)
{
    struct certificate_times times = {0};
    char from[TIME_TEXT_BYTES], to[TIME_TEXT_BYTES], now[TIME_TEXT_BYTES];
    if (culprit == NULL || certificate_times_of(culprit, &times, e) != ERR_OK)
        return error_set(e, ERR_INVALID, "the times in its certificate make no sense");
    time_text(times.not_before_s, from);
    time_text(times.not_after_s, to);
    time_text(now_s, now);
    if (code == X509_V_ERR_CERT_HAS_EXPIRED)
        return error_set(e, ERR_PERMISSION,
                         "its certificate ended at %s, and this machine's clock says %s", to, now);
    return error_set(e, ERR_PERMISSION,
                     "its certificate is valid only from %s, and this machine's clock says %s: is "
                     "one of the clocks wrong?",
                     from, now);
}

static enum err say_untrusted(int code, X509 *culprit, uint64_t now_s, struct error *e)
{
    switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return say_time(code, culprit, now_s, e);
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
        return error_set(e, ERR_PERMISSION,
                         "its certificate is signed by an authority that is not trusted here: it "
                         "is of another cluster");
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return error_set(e, ERR_PERMISSION,
                         "the signature of its certificate is wrong: it is "
                         "damaged or forged");
    default:
        return error_set(e, ERR_PERMISSION, "its certificate is not valid: %s",
                         X509_verify_cert_error_string(code));
    }
}

/* One certificate below a root, nothing between; for both sides of a connection. */
static void set_rules(X509_VERIFY_PARAM *rules, uint64_t now_s)
{
    X509_VERIFY_PARAM_set_time(rules, (time_t)now_s);
    X509_VERIFY_PARAM_set_depth(rules, 0);
    X509_VERIFY_PARAM_set_auth_level(rules, 2);
    (void)X509_VERIFY_PARAM_set_purpose(rules, X509_PURPOSE_SSL_SERVER);
    (void)X509_VERIFY_PARAM_set_flags(rules, X509_V_FLAG_X509_STRICT);
}

static enum err verify_chain(X509_STORE_CTX *context, X509_STORE *store, X509 *certificate,
                             uint64_t now_s, struct error *e)
{
    if (X509_STORE_CTX_init(context, store, certificate, NULL) != 1)
        abort();
    set_rules(X509_STORE_CTX_get0_param(context), now_s);
    if (X509_verify_cert(context) == 1)
        return ERR_OK;
    return say_untrusted(X509_STORE_CTX_get_error(context),
                         X509_STORE_CTX_get_current_cert(context), now_s, e);
}

static enum err verify_with(X509 *certificate, const struct roots *roots, uint64_t now_s,
                            struct error *e)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    if (store == NULL || context == NULL)
        abort();
    for (unsigned i = 0; i < roots->count; i++)
        if (X509_STORE_add_cert(store, roots->items[i]) != 1)
            abort();
    enum err err = verify_chain(context, store, certificate, now_s, e);
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    ERR_clear_error();
    return err;
}

enum err certificate_verify(X509 *certificate, const struct roots *roots, uint64_t now_s,
                            struct subject *ret_subject, struct error *e)
{
    assert(roots->count > 0);
    struct subject subject = {0};
    char cluster[CLUSTER_NAME_BYTES_MAX + 1];
    enum err err = verify_with(certificate, roots, now_s, e);
    if (err == ERR_OK && (X509_check_ca(certificate) != 0 ||
                          X509_check_purpose(certificate, X509_PURPOSE_SSL_CLIENT, 0) != 1))
        err = error_set(e, ERR_INVALID, "its certificate is not for a node");
    if (err == ERR_OK)
        err = key_check_kind(X509_get0_pubkey(certificate), e);
    if (err == ERR_OK)
        err = certificate_subject(certificate, &subject, e);
    if (err == ERR_OK)
        err = root_check(roots->items[0], cluster, e);
    ERR_clear_error();
    if (err != ERR_OK)
        return err;
    if (strcmp(cluster, subject.cluster) != 0)
        return error_set(e, ERR_PERMISSION,
                         "its certificate is for cluster '%s', and its authority is that of '%s'",
                         subject.cluster, cluster);
    *ret_subject = subject;
    return ERR_OK;
}

enum err subject_expect(const struct subject *is, const struct subject *wanted, struct error *e)
{
    bool good = (wanted->cluster[0] == '\0' || strcmp(is->cluster, wanted->cluster) == 0) &&
                (wanted->role == NODE_NONE || is->role == wanted->role) &&
                (wanted->name[0] == '\0' || strcmp(is->name, wanted->name) == 0);
    if (good)
        return ERR_OK;
    return error_set(
        e, ERR_PERMISSION,
        "its certificate is that of %s '%.100s' of cluster '%s', and not of %s%s%.100s%s"
        "%s%s%s",
        node_role_name(is->role), is->name, is->cluster,
        wanted->role == NODE_NONE ? "a node" : node_role_name(wanted->role),
        wanted->name[0] != '\0' ? " '" : "", wanted->name, wanted->name[0] != '\0' ? "'" : "",
        wanted->cluster[0] != '\0' ? " of cluster '" : "", wanted->cluster,
        wanted->cluster[0] != '\0' ? "'" : "");
}
