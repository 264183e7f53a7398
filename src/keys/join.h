/* join.h - how a machine becomes a node, and stays one: what is asked and answered, without
 * sockets. The messages that carry it are in the cluster protocol. Any thread; time is a parameter,
 * in seconds since 1970.
 *
 *   joiner                                            control plane (the leader)
 *   TLS, its certificate unknown: join_check_server() by the pinned hash
 *   identity_request(); token, role, name, request →  join_answer(); the burned record is stored
 *   identity_install() after join_accept()          ← certificate, roots
 *   from now on: mutual TLS; before half of its life:
 *   identity_request(); request                    →  renew_answer()
 *   identity_install()                              ← certificate, roots */
#pragma once
#include "keys/authority.h"
#include "keys/token.h"

struct join_request { /* borrowed texts, as they came */
    struct str token;
    enum node_role role;
    struct str name;
    struct str csr;
    const struct str *hosts; /* for a control plane: its names and addresses */
    unsigned host_count;
};
struct join_answer {           /* owns its texts; join_answer_done() */
    char *certificate, *roots; /* PEM */
    struct subject subject;    /* who it is now */
    /* What the store must hold before the answer may leave. Not `has_burned`: nothing is to be
     * written. */
    bool has_burned;
    struct token_record burned;
};
void join_answer_done(struct join_answer *a); /* for cleanup() */

/* ---- control plane ---- */

/* Judges the token, burns it and signs. `record` is the one stored under the id of token_parse(),
 * or NULL. The caller writes ret->burned in one transaction that fails when the record has changed
 * meanwhile, and sends the answer after that; when it fails, it throws the answer away and asks
 * again with the new record: so a token is good for one node, whatever is retried and whoever
 * leads. A node that asks again with the same token and the same key, because the answer was lost,
 * is answered again while the token lives.
 *
 * `name_is_taken`: a node of this role and name is registered already. Then the token must be for
 * that name, or anybody with a token could take a node's place.
 *
 * *ret_verdict (never NULL) is for log and metrics. Errors: those of token_verdict_err(), and of
 * authority_issue(); ERR_EXISTS, field "name": taken. The sentences are for the joiner. */
must_check enum err join_answer(const struct authority_bundle *bundle,
                                const struct token_record *record, bool name_is_taken,
                                const struct join_request *request, uint64_t now_s,
                                uint64_t lifetime_s, struct join_answer *ret_answer,
                                enum token_verdict *ret_verdict, struct error *e);

/* The next certificate of a node whose connection is verified: `peer` is certificate_subject() of
 * it, never anything that it says. The caller has looked whether that node is still registered. */
must_check enum err renew_answer(const struct authority_bundle *bundle, const struct subject *peer,
                                 struct str csr, const struct str *hosts, unsigned host_count,
                                 uint64_t now_s, uint64_t lifetime_s,
                                 struct join_answer *ret_answer, struct error *e);

/* ---- joiner ---- */

/* Whether the other end of a TLS connection is a control plane of the cluster with this pin:
 * `chain` is what it sent, its own certificate first. Nothing secret may be sent before.
 * ERR_INVALID: the pin is malformed; ERR_PERMISSION: not that cluster, not a control plane, or not
 * valid by this machine's clock. */
must_check enum err join_check_server(X509 *const *chain, unsigned count, struct str pin,
                                      uint64_t now_s, struct subject *ret_server, struct error *e);

/* Whether the answer is what was asked for: for this request's key, signed by one of the roots, one
 * of which is the pinned one, in the server's cluster, with the role and name that were asked for.
 */
must_check enum err join_accept(const struct join_request *request, struct str pin,
                                const struct subject *server, struct str certificate_pem,
                                struct str roots_pem, uint64_t now_s, struct subject *ret_subject,
                                struct error *e);
