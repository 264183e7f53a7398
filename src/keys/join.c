/* join.c - both ends of joining. */
#include "keys/join.h"
#include <openssl/evp.h>
#include <openssl/x509.h>
#include <stdlib.h>

void join_answer_done(struct join_answer *a)
{
    free(a->certificate);
    free(a->roots);
    *a = (struct join_answer){0};
}

/* ---- control plane ---- */

static enum err sign(const struct authority_bundle *bundle, const struct issue_order *order,
                     struct str csr, uint64_t now_s, struct join_answer *answer, struct error *e)
{
    struct buf certificate cleanup(buf_done) = {0}, roots cleanup(buf_done) = {0};
    enum err err =
        authority_issue(authority_bundle_signer(bundle), csr, order, now_s, &certificate, e);
    if (err != ERR_OK)
        return err;
    authority_bundle_roots(bundle, &roots);
    answer->certificate = buf_take_text(&certificate);
    answer->roots = buf_take_text(&roots);
    answer->subject = order->subject;
    return ERR_OK;
}

/* The one who burned it asks again: it has the secret and proves the same key. */
static bool is_repeated(const struct token_record *record, const struct join_request *request,
                        const struct pin *key, uint64_t now_s)
{
    return record->role == request->role && str_equal(str_of(record->used_by), request->name) &&
           pin_is(&record->used_key, str_of(key->text)) && now_s < record->expires_s;
}

/* The token first: who has none gets no request of his read at all. */
static enum err judge(const struct token_record *record, const struct join_request *request,
                      uint64_t now_s, struct pin *ret_key, bool *ret_repeated,
                      enum token_verdict *ret_verdict, struct error *e)
{
    struct token token;
    struct error csr_story = {0};
    EVP_PKEY *key cleanup(key_free) = NULL;
    *ret_repeated = false;
    *ret_verdict = TOKEN_MALFORMED;
    enum err err = token_parse(request->token, &token, e);
    if (err != ERR_OK)
        return err;
    *ret_verdict = token_verify(&token, record, request->role, request->name, now_s, e);
    if (*ret_verdict != TOKEN_GOOD && *ret_verdict != TOKEN_USED)
        return token_verdict_err(*ret_verdict);
    err = csr_read(request->csr, &key, &csr_story);
    if (err == ERR_OK)
        *ret_key = key_pin(key);
    if (*ret_verdict == TOKEN_USED) {
        if (err != ERR_OK || !is_repeated(record, request, ret_key, now_s))
            return token_verdict_err(TOKEN_USED);
        *ret_repeated = true;
        *ret_verdict = TOKEN_GOOD;
    }
    return err == ERR_OK ? ERR_OK : error_field(e, err, csr_story.field, "%s", csr_story.text);
}

static enum err check_name(const struct token_record *record, const struct join_request *request,
                           bool name_is_taken, struct error *e)
{
    if (!name_is_taken || record->name[0] != '\0')
        return ERR_OK;
    const char *role = node_role_name(request->role);
    return error_field(e, ERR_EXISTS, "name",
                       "a %s '%.*s' is in the cluster already: choose another name, or, to put "
                       "this machine in its place, make a token for that name with 'dirigent token "
                       "create --role %s --name %.*s'",
                       role, STR_ARG(request->name), role, STR_ARG(request->name));
}

enum err join_answer(const struct authority_bundle *bundle, const struct token_record *record,
                     bool name_is_taken, const struct join_request *request, uint64_t now_s,
                     uint64_t lifetime_s, struct join_answer *ret_answer,
                     enum token_verdict *ret_verdict, struct error *e)
{
    struct pin pin = {0};
    bool repeated;
    enum err err = judge(record, request, now_s, &pin, &repeated, ret_verdict, e);
    if (err != ERR_OK)
        return err;
    struct issue_order order = {
        .hosts = request->hosts, .host_count = request->host_count, .lifetime_s = lifetime_s};
    err = subject_make(str_of(authority_cluster(bundle->items[0])), request->role, request->name,
                       &order.subject, e);
    if (err == ERR_OK && !repeated)
        err = check_name(record, request, name_is_taken, e);
    struct join_answer answer cleanup(join_answer_done) = {0};
    if (err == ERR_OK)
        err = sign(bundle, &order, request->csr, now_s, &answer, e);
    if (err != ERR_OK)
        return err;
    answer.has_burned = !repeated;
    answer.burned = *record;
    if (!repeated)
        token_burn(&answer.burned, request->name, &pin, now_s);
    *ret_answer = answer;
    answer = (struct join_answer){0};
    return ERR_OK;
}

enum err renew_answer(const struct authority_bundle *bundle, const struct subject *peer,
                      struct str csr, const struct str *hosts, unsigned host_count, uint64_t now_s,
                      uint64_t lifetime_s, struct join_answer *ret_answer, struct error *e)
{
    struct issue_order order = {
        .subject = *peer, .hosts = hosts, .host_count = host_count, .lifetime_s = lifetime_s};
    struct join_answer answer cleanup(join_answer_done) = {0};
    enum err err = sign(bundle, &order, csr, now_s, &answer, e);
    if (err != ERR_OK)
        return err;
    *ret_answer = answer;
    answer = (struct join_answer){0};
    return ERR_OK;
}

/* ---- joiner ---- */

/* The root in what the server sent. A server's own certificate can be none. */
static enum err find_pinned(X509 *const *chain, unsigned count, struct str pin, X509 **ret_root,
                            struct error *e)
{
    char cluster[CLUSTER_NAME_BYTES_MAX + 1];
    struct pin other = {0};
    for (unsigned i = 1; i < count; i++) {
        if (root_check(chain[i], cluster, NULL) != ERR_OK)
            continue;
        struct pin is = certificate_pin(chain[i]);
        if (pin_is(&is, pin)) {
            *ret_root = chain[i];
            return ERR_OK;
        }
        other = is;
    }
    if (other.text[0] == '\0')
        return error_field(e, ERR_PERMISSION, "ca-hash",
                           "the server shows no cluster's authority: it is no control plane that "
                           "can be joined, or somebody sits between");
    return error_field(e, ERR_PERMISSION, "ca-hash",
                       "the server's authority has the hash %s, and not %.*s: it is of another "
                       "cluster, or somebody sits between",
                       other.text, STR_ARG(pin));
}

enum err join_check_server(X509 *const *chain, unsigned count, struct str pin, uint64_t now_s,
                           struct subject *ret_server, struct error *e)
{
    struct subject server, wanted = {.role = NODE_CONTROL_PLANE};
    X509 *root = NULL;
    enum err err = pin_check(pin, e);
    if (err == ERR_OK)
        err = find_pinned(chain, count, pin, &root, e);
    if (err != ERR_OK)
        return err;
    struct roots roots = {.items = {root}, .count = 1}; /* borrowed: not done with */
    err = certificate_verify(chain[0], &roots, now_s, &server, e);
    if (err == ERR_OK)
        err = subject_expect(&server, &wanted, e);
    if (err != ERR_OK) {
        (void)error_prefix(e, "the server is not trusted");
        return err;
    }
    *ret_server = server;
    return ERR_OK;
}

static enum err check_key(const struct join_request *request, const X509 *certificate,
                          struct error *e)
{
    EVP_PKEY *key cleanup(key_free) = NULL;
    enum err err = csr_read(request->csr, &key, e);
    if (err == ERR_OK && EVP_PKEY_eq(key, X509_get0_pubkey(certificate)) != 1)
        err = error_set(e, ERR_PERMISSION, "its certificate is for another key than was asked for");
    return err;
}

static enum err accept(const struct join_request *request, struct str pin,
                       const struct subject *server, X509 *certificate, const struct roots *roots,
                       uint64_t now_s, struct subject *ret_subject, struct error *e)
{
    struct subject is, wanted;
    if (roots_find(roots, pin) == NULL)
        return error_set(e, ERR_PERMISSION, "the authority of hash %.*s is not among its roots",
                         STR_ARG(pin));
    enum err err = subject_make(str_of(server->cluster), request->role, request->name, &wanted, e);
    if (err == ERR_OK)
        err = certificate_verify(certificate, roots, now_s, &is, e);
    if (err == ERR_OK)
        err = subject_expect(&is, &wanted, e);
    if (err == ERR_OK)
        err = check_key(request, certificate, e);
    if (err == ERR_OK)
        *ret_subject = is;
    return err;
}

enum err join_accept(const struct join_request *request, struct str pin,
                     const struct subject *server, struct str certificate_pem, struct str roots_pem,
                     uint64_t now_s, struct subject *ret_subject, struct error *e)
{
    struct roots roots cleanup(roots_done) = {0};
    X509 *certificate cleanup(certificate_free) = NULL;
    enum err err = pin_check(pin, e);
    if (err != ERR_OK)
        return err;
    err = roots_from_pem(roots_pem, &roots, e);
    if (err == ERR_OK)
        err = certificate_from_pem(certificate_pem, &certificate, e);
    if (err == ERR_OK)
        err = accept(request, pin, server, certificate, &roots, now_s, ret_subject, e);
    if (err != ERR_OK)
        (void)error_prefix(e, "the answer of the control plane is not taken");
    return err;
}
