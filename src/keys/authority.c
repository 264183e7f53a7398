/* authority.c - one root, and what it signs. */
#include "keys/authority.h"
#include "keys/authority_internal.h"
#include <arpa/inet.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>

void authority_free(struct authority **authority)
{
    struct authority *a = *authority;
    if (a == NULL)
        return;
    key_free(&a->key);
    certificate_free(&a->certificate);
    free(a);
    *authority = NULL;
}

const char *authority_cluster(const struct authority *a)
{
    return a->cluster;
}

struct pin authority_pin(const struct authority *a)
{
    return key_pin(a->key);
}

X509 *authority_certificate(const struct authority *a)
{
    return a->certificate;
}

/* ---- parts of a certificate; what fails only without memory aborts ---- */

static void must(bool done)
{
    if (!done)
        abort();
}

/* 128 random bits: nobody can foresee what will be signed (CA/Browser Forum 7.1 asks 64). */
static void set_serial(X509 *x)
{
    BIGNUM *number = BN_new();
    do
        must(number != NULL && BN_rand(number, 128, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1);
    while (BN_is_zero(number));
    must(BN_to_ASN1_INTEGER(number, X509_get_serialNumber(x)) != NULL);
    BN_free(number);
}

static void set_times(X509 *x, uint64_t from_s, uint64_t to_s)
{
    must(ASN1_TIME_set(X509_getm_notBefore(x), (time_t)from_s) != NULL);
    must(ASN1_TIME_set(X509_getm_notAfter(x), (time_t)to_s) != NULL);
}

static void name_add(X509_NAME *name, const char *field, const char *value)
{
    must(X509_NAME_add_entry_by_txt(name, field, MBSTRING_ASC, (const unsigned char *)value, -1, -1,
                                    0) == 1);
}

static void add_extension(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, x, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    must(extension != NULL && X509_add_ext(x, extension, -1) == 1);
    X509_EXTENSION_free(extension);
}

static X509 *certificate_begin(uint64_t from_s, uint64_t to_s, EVP_PKEY *key)
{
    X509 *x = X509_new();
    must(x != NULL && X509_set_version(x, X509_VERSION_3) == 1 && X509_set_pubkey(x, key) == 1);
    set_serial(x);
    set_times(x, from_s, to_s);
    return x;
}

/* ---- a root ---- */

/* The name has a part of the key's hash: during a rotation two roots of one cluster are told apart
 * by people, and by software that looks for an issuer by name. */
static X509 *certificate_of_root(EVP_PKEY *key, const char *cluster, uint64_t now_s)
{
    uint64_t from_s = now_s - MIN(now_s, (uint64_t)CERTIFICATE_BACKDATED_S);
    X509 *x = certificate_begin(from_s, now_s + AUTHORITY_LIFETIME_S, key);
    char common_name[64];
    struct pin pin = key_pin(key);
    snprintf(common_name, sizeof(common_name), "authority %.8s", pin.text + 7);
    X509_NAME *name = X509_get_subject_name(x);
    name_add(name, "O", cluster);
    name_add(name, "CN", common_name);
    must(X509_set_issuer_name(x, name) == 1);
    add_extension(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0");
    add_extension(x, x, NID_key_usage, "critical,keyCertSign,cRLSign");
    add_extension(x, x, NID_subject_key_identifier, "hash");
    must(X509_sign(x, key, key_digest(key)) > 0);
    return x;
}

enum err authority_make(struct str cluster, uint64_t now_s, struct authority **ret_authority,
                        struct error *e)
{
    enum err err = cluster_name_check(cluster, e);
    if (err != ERR_OK)
        return err;
    struct authority *a = mem_new(sizeof(*a));
    memcpy(a->cluster, cluster.data, cluster.bytes);
    a->key = key_make();
    a->certificate = certificate_of_root(a->key, a->cluster, now_s);
    *ret_authority = a;
    return ERR_OK;
}

enum err authority_of(EVP_PKEY **key, X509 **certificate, struct authority **ret_authority,
                      struct error *e)
{
    struct authority *a cleanup(authority_free) = mem_new(sizeof(*a));
    enum err err = root_check(*certificate, a->cluster, e);
    if (err != ERR_OK)
        return err;
    if (X509_check_private_key(*certificate, *key) != 1) {
        ERR_clear_error();
        return error_set(e, ERR_INVALID, "its key does not belong to its certificate");
    }
    a->key = *key;
    a->certificate = *certificate;
    *key = NULL;
    *certificate = NULL;
    *ret_authority = a;
    a = NULL;
    return ERR_OK;
}

enum err authority_check_time(const struct authority *a, uint64_t now_s,
                              struct certificate_times *ret_times, struct error *e)
{
    char edge[TIME_TEXT_BYTES], now[TIME_TEXT_BYTES];
    enum err err = certificate_times_of(a->certificate, ret_times, e);
    if (err != ERR_OK)
        return err;
    bool is_early = now_s < ret_times->not_before_s;
    if (!is_early && now_s <= ret_times->not_after_s)
        return ERR_OK;
    time_text(is_early ? ret_times->not_before_s : ret_times->not_after_s, edge);
    time_text(now_s, now);
    return error_set(e, ERR_PERMISSION,
                     is_early
                         ? "the cluster's authority is valid only from %s, and this machine's "
                           "clock says %s: is it wrong?"
                         : "the cluster's authority ended at %s, and this machine's clock says "
                           "%s: everybody must join a new one, unless the clock is wrong",
                     edge, now);
}

/* ---- issuing ---- */

static GENERAL_NAME *general_name(int type, int string_type, const void *data, size_t bytes)
{
    GENERAL_NAME *name = GENERAL_NAME_new();
    ASN1_STRING *text = ASN1_STRING_type_new(string_type);
    must(name != NULL && text != NULL && ASN1_STRING_set(text, data, (int)bytes) == 1);
    GENERAL_NAME_set0_value(name, type, text);
    return name;
}

static bool is_dns_name(struct str host)
{
    return host.bytes > 0 && host.bytes <= NODE_NAME_BYTES_MAX &&
           node_name_check(host, NULL) == ERR_OK && memchr(host.data, '_', host.bytes) == NULL;
}

/* An address or a DNS name, never with a wildcard. */
static GENERAL_NAME *name_of_host(struct str host)
{
    char text[INET6_ADDRSTRLEN] = "";
    unsigned char address[16];
    if (host.bytes < sizeof(text)) {
        memcpy(text, host.data, host.bytes);
        if (strlen(text) == host.bytes && inet_pton(AF_INET, text, address) == 1)
            return general_name(GEN_IPADD, V_ASN1_OCTET_STRING, address, 4);
        if (strlen(text) == host.bytes && inet_pton(AF_INET6, text, address) == 1)
            return general_name(GEN_IPADD, V_ASN1_OCTET_STRING, address, 16);
    }
    return is_dns_name(host) ? general_name(GEN_DNS, V_ASN1_IA5STRING, host.data, host.bytes)
                             : NULL;
}

static enum err names_of(const struct issue_order *order, GENERAL_NAMES *names, struct error *e)
{
    char uri[SUBJECT_URI_BYTES];
    subject_uri(&order->subject, uri);
    must(sk_GENERAL_NAME_push(names, general_name(GEN_URI, V_ASN1_IA5STRING, uri, strlen(uri))) >
         0);
    for (unsigned i = 0; i < order->host_count; i++) {
        struct str host = order->hosts[i];
        GENERAL_NAME *name = name_of_host(host);
        if (name == NULL)
            return error_field(e, ERR_INVALID, "hosts",
                               "'%.*s' is neither an address nor a DNS name without '*' and '_'",
                               (int)MIN(host.bytes, (size_t)100), host.bytes > 0 ? host.data : "");
        must(sk_GENERAL_NAME_push(names, name) > 0);
    }
    return ERR_OK;
}

static enum err add_names(X509 *x, const struct issue_order *order, struct error *e)
{
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    must(names != NULL);
    enum err err = names_of(order, names, e);
    if (err == ERR_OK)
        must(X509_add1_ext_i2d(x, NID_subject_alt_name, names, 0, 0) == 1);
    GENERAL_NAMES_free(names);
    return err;
}

/* The subject is for people who look at a certificate; programs read the URI. */
static void set_subject(X509 *x, const struct subject *s)
{
    X509_NAME *name = X509_get_subject_name(x);
    name_add(name, "O", s->cluster);
    name_add(name, "OU", node_role_name(s->role));
    if (strlen(s->name) <= 64) /* ub-common-name, RFC 5280 A.1 */
        name_add(name, "CN", s->name);
}

static enum err check_order(const struct authority *a, const struct issue_order *order,
                            struct error *e)
{
    struct subject s;
    enum err err = subject_make(str_of(order->subject.cluster), order->subject.role,
                                str_of(order->subject.name), &s, e);
    if (err != ERR_OK)
        return err;
    if (strcmp(s.cluster, a->cluster) != 0)
        return error_field(e, ERR_INVALID, "cluster",
                           "the authority of cluster '%s' signs nothing for cluster '%s'",
                           a->cluster, s.cluster);
    if (order->host_count > 0 && s.role != NODE_CONTROL_PLANE)
        return error_field(e, ERR_INVALID, "hosts",
                           "only a control plane's certificate may name hosts, not a %s's",
                           node_role_name(s.role));
    if (order->host_count > CERTIFICATE_HOSTS_MAX)
        return error_field(e, ERR_INVALID, "hosts", "at most %u hosts fit a certificate",
                           CERTIFICATE_HOSTS_MAX);
    if (order->lifetime_s != 0 && (order->lifetime_s < CERTIFICATE_LIFETIME_S_MIN ||
                                   order->lifetime_s > CERTIFICATE_LIFETIME_S_MAX))
        return error_field(e, ERR_INVALID, "lifetime",
                           "a certificate lives for %u to %u seconds, not for %" PRIu64,
                           CERTIFICATE_LIFETIME_S_MIN, CERTIFICATE_LIFETIME_S_MAX,
                           order->lifetime_s);
    return ERR_OK;
}

static enum err sign(const struct authority *a, EVP_PKEY *key, const struct issue_order *order,
                     uint64_t now_s, uint64_t to_s, struct buf *out, struct error *e)
{
    X509 *x cleanup(certificate_free) =
        certificate_begin(now_s - MIN(now_s, (uint64_t)CERTIFICATE_BACKDATED_S), to_s, key);
    set_subject(x, &order->subject);
    must(X509_set_issuer_name(x, X509_get_subject_name(a->certificate)) == 1);
    add_extension(x, a->certificate, NID_basic_constraints, "critical,CA:FALSE");
    add_extension(x, a->certificate, NID_key_usage, "critical,digitalSignature");
    add_extension(x, a->certificate, NID_ext_key_usage, "serverAuth,clientAuth");
    add_extension(x, a->certificate, NID_subject_key_identifier, "hash");
    add_extension(x, a->certificate, NID_authority_key_identifier, "keyid:always");
    enum err err = add_names(x, order, e);
    if (err != ERR_OK)
        return err;
    must(X509_sign(x, a->key, key_digest(a->key)) > 0);
    certificate_append_pem(x, out);
    return ERR_OK;
}

enum err authority_issue(const struct authority *a, struct str csr, const struct issue_order *order,
                         uint64_t now_s, struct buf *out, struct error *e)
{
    struct certificate_times own;
    EVP_PKEY *key cleanup(key_free) = NULL;
    enum err err = check_order(a, order, e);
    if (err == ERR_OK)
        err = authority_check_time(a, now_s, &own, e);
    if (err == ERR_OK)
        err = csr_read(csr, &key, e);
    if (err != ERR_OK)
        return err;
    if (EVP_PKEY_eq(key, a->key) == 1)
        return error_field(e, ERR_INVALID, "csr", "the request has the authority's own key");
    uint64_t lifetime_s =
        order->lifetime_s != 0 ? order->lifetime_s : CERTIFICATE_LIFETIME_S_DEFAULT;
    err = sign(a, key, order, now_s, MIN(now_s + lifetime_s, own.not_after_s), out, e);
    ERR_clear_error();
    return err;
}
