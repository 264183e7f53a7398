/* tls.c - libssl between two buffers. */
#include "wire/tls.h"
#include "keys/join.h"
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>

#define READ_BYTES (16u * 1024u) /* one record */

/* What a connection begins with, and keeps while it lives. */
struct terms {
    unsigned users;
    SSL_CTX *context;
    struct roots roots;
    char cluster[CLUSTER_NAME_BYTES_MAX + 1];
    struct pin pin; /* "": by the roots */
};
struct tls {
    struct terms *terms; /* NULL: not ready */
};
struct tls_session {
    struct terms *terms;
    SSL *ssl;
    BIO *in, *out; /* the SSL's */
    bool is_server, established, has_peer;
    struct subject peer;
    struct error refusal; /* why we do not believe the other side; code ERR_OK: we do */
    enum err refused;
};

static void terms_drop(struct terms *t)
{
    if (t == NULL || --t->users > 0)
        return;
    SSL_CTX_free(t->context);
    roots_done(&t->roots);
    free(t);
}

/* ---- believing ---- */

static enum err judge_by_pin(struct tls_session *s, X509 *leaf, STACK_OF(X509) * chain,
                             uint64_t now_s)
{
    X509 *all[CERTIFICATE_HOSTS_MAX];
    unsigned count = 0;
    all[count++] = leaf;
    for (int i = 0; i < sk_X509_num(chain) && count < ARRAY_COUNT(all); i++)
        if (sk_X509_value(chain, i) != leaf)
            all[count++] = sk_X509_value(chain, i);
    return join_check_server(all, count, str_of(s->terms->pin.text), now_s, &s->peer, &s->refusal);
}

static enum err judge(struct tls_session *s, X509_STORE_CTX *store, uint64_t now_s)
{
    struct subject wanted = {.role = s->is_server ? NODE_NONE : NODE_CONTROL_PLANE};
    X509 *leaf = X509_STORE_CTX_get0_cert(store);
    if (s->terms->pin.text[0] != '\0')
        return judge_by_pin(s, leaf, X509_STORE_CTX_get0_untrusted(store), now_s);
    memcpy(wanted.cluster, s->terms->cluster, sizeof(wanted.cluster));
    enum err err = certificate_verify(leaf, &s->terms->roots, now_s, &s->peer, &s->refusal);
    return err == ERR_OK ? subject_expect(&s->peer, &wanted, &s->refusal) : err;
}

/* Chooses the alert: what the other side can be told is one byte. */
static int verify_error(X509 *leaf, uint64_t now_s)
{
    struct certificate_times times;
    if (certificate_times_of(leaf, &times, NULL) != ERR_OK)
        return X509_V_ERR_CERT_REJECTED;
    if (now_s > times.not_after_s)
        return X509_V_ERR_CERT_HAS_EXPIRED;
    if (now_s < times.not_before_s)
        return X509_V_ERR_CERT_NOT_YET_VALID;
    return X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY;
}

static int on_verify(X509_STORE_CTX *store, void *user)
{
    (void)user;
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls_session *s = SSL_get_app_data(ssl);
    uint64_t now_s = clock_real_s();
    s->refused = judge(s, store, now_s);
    s->has_peer = s->refused == ERR_OK;
    ERR_clear_error();
    if (s->has_peer)
        return 1;
    X509_STORE_CTX_set_error(store, verify_error(X509_STORE_CTX_get0_cert(store), now_s));
    return 0;
}

/* ---- who we are ---- */

struct tls *tls_new(void)
{
    return mem_new(sizeof(struct tls));
}

void tls_free(struct tls *t)
{
    if (t == NULL)
        return;
    terms_drop(t->terms);
    free(t);
}

bool tls_is_ready(const struct tls *t)
{
    return t->terms != NULL;
}

static struct terms *terms_new(void)
{
    struct terms *t = mem_new(sizeof(*t));
    t->users = 1;
    t->context = SSL_CTX_new(TLS_method());
    if (t->context == NULL)
        abort();
    (void)SSL_CTX_set_min_proto_version(t->context, TLS1_3_VERSION);
    (void)SSL_CTX_set_session_cache_mode(t->context, SSL_SESS_CACHE_OFF);
    (void)SSL_CTX_set_num_tickets(t->context, 0);
    (void)SSL_CTX_set_mode(t->context, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_verify(t->context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_cert_verify_callback(t->context, on_verify, NULL);
    return t;
}

static void put_in_force(struct tls *t, struct terms *terms)
{
    terms_drop(t->terms);
    t->terms = terms;
}

/* The roots go with our certificate: a joiner knows no more of the cluster than a root's hash. */
static bool show(SSL_CTX *context, const struct identity *i)
{
    bool ok = SSL_CTX_use_certificate(context, i->certificate) == 1 &&
              SSL_CTX_use_PrivateKey(context, i->key) == 1;
    for (unsigned r = 0; ok && r < i->roots.count; r++)
        ok = SSL_CTX_add1_chain_cert(context, i->roots.items[r]) == 1;
    return ok;
}

enum err tls_set_identity(struct tls *t, const struct identity *identity, struct error *e)
{
    struct terms *terms = terms_new();
    if (!show(terms->context, identity)) {
        terms_drop(terms);
        return error_set(e, ERR_INVALID, "the certificate cannot be used for TLS: %s",
                         crypto_reason());
    }
    for (unsigned r = 0; r < identity->roots.count; r++) {
        (void)X509_up_ref(identity->roots.items[r]);
        terms->roots.items[r] = identity->roots.items[r];
    }
    terms->roots.count = identity->roots.count;
    memcpy(terms->cluster, identity->subject.cluster, sizeof(terms->cluster));
    put_in_force(t, terms);
    return ERR_OK;
}

enum err tls_set_joiner(struct tls *t, struct str pin, struct error *e)
{
    enum err err = pin_check(pin, e);
    if (err != ERR_OK)
        return err;
    struct terms *terms = terms_new();
    memcpy(terms->pin.text, pin.data, pin.bytes); /* of that length: it was checked */
    put_in_force(t, terms);
    return ERR_OK;
}

/* ---- sessions ---- */

static void move_out(struct tls_session *s, struct buf *out)
{
    char *data;
    long bytes = BIO_get_mem_data(s->out, &data);
    if (bytes <= 0)
        return;
    buf_append(out, data, (size_t)bytes);
    (void)BIO_reset(s->out);
}

static const char *alert_meaning(int reason)
{
    switch (reason) {
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
        return "it says that our certificate has ended: compare the clocks";
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
        return "it says that our certificate is of another cluster's authority";
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
        return "it does not take our certificate: not valid yet by its clock, or damaged";
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return "it does not take our certificate";
    }
    return NULL;
}

static enum err failure(struct tls_session *s, struct error *e)
{
    unsigned long code = ERR_peek_last_error();
    const char *alert =
        ERR_GET_LIB(code) == ERR_LIB_SSL ? alert_meaning(ERR_GET_REASON(code)) : NULL;
    if (s->refused != ERR_OK) {
        ERR_clear_error();
        return error_set(e, ERR_PERMISSION, "%s", s->refusal.text);
    }
    if (alert != NULL) {
        ERR_clear_error();
        return error_set(e, ERR_PERMISSION, "%s", alert);
    }
    return error_set(e, ERR_PROTOCOL, "TLS: %s", crypto_reason());
}

/* ERR_MORE: the rest has not come yet. */
static enum err step_error(struct tls_session *s, int result, struct error *e)
{
    switch (SSL_get_error(s->ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return ERR_MORE;
    case SSL_ERROR_ZERO_RETURN:
        return error_set(e, ERR_END, "closed by the other side");
    default:
        return failure(s, e);
    }
}

enum err tls_session_new(struct tls *t, bool is_server, struct buf *out,
                         struct tls_session **ret_session, struct error *e)
{
    if (!tls_is_ready(t))
        return error_set(e, ERR_BUSY, "there is no certificate of our own yet");
    struct tls_session *s = mem_new(sizeof(*s));
    s->terms = t->terms;
    s->terms->users++;
    s->is_server = is_server;
    s->ssl = SSL_new(s->terms->context);
    s->in = BIO_new(BIO_s_mem());
    s->out = BIO_new(BIO_s_mem());
    if (s->ssl == NULL || s->in == NULL || s->out == NULL)
        abort();
    SSL_set_bio(s->ssl, s->in, s->out);
    SSL_set_app_data(s->ssl, s);
    if (is_server)
        SSL_set_accept_state(s->ssl);
    else
        SSL_set_connect_state(s->ssl);
    ERR_clear_error();
    enum err err = is_server ? ERR_MORE : step_error(s, SSL_do_handshake(s->ssl), e);
    if (err != ERR_MORE) {
        tls_session_free(s);
        return err;
    }
    move_out(s, out);
    *ret_session = s;
    return ERR_OK;
}

void tls_session_free(struct tls_session *s)
{
    if (s == NULL)
        return;
    SSL_free(s->ssl);
    terms_drop(s->terms);
    free(s);
}

static enum err read_all(struct tls_session *s, struct buf *plain, struct error *e)
{
    for (;;) {
        size_t bytes = 0;
        char *room = buf_reserve(plain, READ_BYTES);
        int result = SSL_read_ex(s->ssl, room, READ_BYTES, &bytes);
        if (result != 1)
            return step_error(s, result, e);
        plain->bytes += bytes;
    }
}

enum err tls_session_take(struct tls_session *s, const void *data, size_t bytes, struct buf *plain,
                          struct buf *out, struct error *e)
{
    enum err err = ERR_OK;
    ERR_clear_error();
    if (bytes > INT32_MAX || BIO_write(s->in, data, (int)bytes) != (int)bytes)
        abort();
    if (!s->established) {
        int result = SSL_do_handshake(s->ssl);
        if (result == 1)
            s->established = true;
        else
            err = step_error(s, result, e);
    }
    if (err == ERR_OK)
        err = read_all(s, plain, e);
    move_out(s, out);
    return err == ERR_MORE ? ERR_OK : err;
}

void tls_session_put(struct tls_session *s, const void *data, size_t bytes, struct buf *out)
{
    size_t written;
    ERR_clear_error();
    /* Into memory all of it goes at once; after a fatal alert nothing does, and nobody waits. */
    if (bytes > 0)
        (void)SSL_write_ex(s->ssl, data, bytes, &written);
    ERR_clear_error();
    move_out(s, out);
}

void tls_session_end(struct tls_session *s, struct buf *out)
{
    ERR_clear_error();
    if (s->established)
        (void)SSL_shutdown(s->ssl);
    ERR_clear_error();
    move_out(s, out);
}

bool tls_session_is_established(const struct tls_session *s)
{
    return s->established;
}

const struct subject *tls_session_peer(const struct tls_session *s)
{
    return s->established && s->has_peer ? &s->peer : NULL;
}
