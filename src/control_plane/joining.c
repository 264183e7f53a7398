/* joining.c - tokens by their id; one attempt at a time for each. */
#include "control_plane/joining.h"
#include "base/hash.h"
#include "base/log.h"
#include "control_plane/hello.h"
#include "control_plane/leadership.h"
#include "control_plane/trust.h"
#include "keys/join.h"
#include "keys/join_limit.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define RETRY_MS 500u
#define TOKENS_MAX 10000u

struct registered {
    uint64_t id; /* in the store */
    struct token_record record;
    bool changing; /* waits for the disk */
};
struct joining {
    struct control_plane *cp;
    struct map by_id;         /* struct registered */
    struct strmap by_text_id; /* the same */
    struct join_limit *limit;
};
struct join_attempt {
    struct joining *joining;
    struct store_write write;
    struct join_answer answer;
    char ip[64];
    joining_answer *tell;
    void *user; /* with `tell` NULL: it is cancelled */
};

/* ---- records ---- */

static void add(struct joining *j, uint64_t id, const struct token_record *record)
{
    struct registered *r = mem_new(sizeof(*r));
    r->id = id;
    r->record = *record;
    map_put(&j->by_id, id, r);
    strmap_put(&j->by_text_id, str_of(record->id), r);
}

void joining_drop(struct joining *j, uint64_t id)
{
    struct registered *r = map_remove(&j->by_id, id);
    if (r == NULL)
        return;
    (void)strmap_remove(&j->by_text_id, str_of(r->record.id));
    free(r);
}

enum err joining_load(struct joining *j, uint64_t id, const char *value, struct error *e)
{
    struct token_record record;
    enum err err = token_record_read(str_of(value), &record, e);
    if (err != ERR_OK) {
        error_prefix(e, "the record of join token %" PRIu64, id);
        return err;
    }
    joining_drop(j, id);
    add(j, id, &record);
    return ERR_OK;
}

const struct token_record *joining_next(const struct joining *j, size_t *cursor)
{
    const struct registered *r = map_next(&j->by_id, cursor);
    return r != NULL ? &r->record : NULL;
}

/* ---- tokens ---- */

static void on_change_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct token_change *c = container_of(write, struct token_change, write);
    struct registered *r = map_get(&c->joining->by_id, write->id);
    free(write->value);
    write->value = NULL;
    if (r != NULL)
        r->changing = false;
    if (err == ERR_OK && c->remove)
        joining_drop(c->joining, write->id);
    else if (err == ERR_OK)
        add(c->joining, write->id, &c->record);
    if (err == ERR_OK)
        log_info(c->remove ? "token.removed" : "token.made", LOG_STR("id", c->record.id),
                 LOG_STR("role", node_role_name(c->record.role)), LOG_STR("name", c->record.name));
    c->on_done(c, err, e);
}

static enum err prepare(struct joining *j, struct token_change *c, struct registered **ret,
                        struct error *e)
{
    *ret = strmap_get(&j->by_text_id, str_of(c->id));
    if (!trust_is_on(j->cp->trust))
        return error_set(e, ERR_CONFLICT,
                         "nobody needs a token to join here: the programs of this cluster talk in "
                         "the clear (--tls off, or auto with --cluster on loopback)");
    if (c->remove && *ret == NULL)
        return error_field(e, ERR_NOT_FOUND, "id", "there is no token '%s'", c->id);
    if (c->remove && (*ret)->changing)
        return error_field(e, ERR_CONFLICT, "id", "the token '%s' is being used: try again", c->id);
    if (c->remove) {
        c->record = (*ret)->record;
        return ERR_OK;
    }
    if (j->by_id.count >= TOKENS_MAX)
        return error_set(e, ERR_BUSY, "there are %u tokens already: remove some", TOKENS_MAX);
    c->order.name = str_of(c->name);
    return token_make(&c->order, clock_real_s(), &c->record, c->text, e);
}

void joining_change(struct joining *j, struct token_change *c)
{
    struct error e = {0};
    struct registered *r;
    enum err err = prepare(j, c, &r, &e);
    if (err != ERR_OK) {
        c->on_done(c, err, &e);
        return;
    }
    c->joining = j;
    c->write = (struct store_write){.kind = STORE_TOKEN,
                                    .id = c->remove ? r->id : j->cp->next_id++,
                                    .value = c->remove ? NULL : token_record_write(&c->record),
                                    .on_done = on_change_stored};
    c->write.next_id = j->cp->next_id;
    if (r != NULL)
        r->changing = true;
    store_submit(j->cp->store, &c->write);
}

static void on_tidied(struct token_change *change, enum err err, const struct error *e)
{
    (void)err, (void)e; /* it is tried again with the next round */
    free(change);
}

void joining_tidy(struct joining *j)
{
    size_t cursor = 0;
    for (const struct registered *r; (r = map_next(&j->by_id, &cursor)) != NULL;) {
        if (r->changing || !token_is_over(&r->record, clock_real_s()))
            continue;
        struct token_change *c = mem_new(sizeof(*c));
        c->remove = true;
        memcpy(c->id, r->record.id, sizeof(c->id));
        c->on_done = on_tidied;
        joining_change(j, c);
        return; /* one a round: the map may have changed */
    }
}

/* ---- joining ---- */

static void tell_refusal(joining_answer *tell, void *user, enum err err, const char *code,
                         const struct error *e, uint32_t retry_ms)
{
    Dirigent__Certificate m = DIRIGENT__CERTIFICATE__INIT;
    m.refused = (char *)e->text;
    m.code = (char *)(code != NULL ? code : err_name(err));
    m.field = (char *)e->field;
    m.retry_ms = retry_ms;
    tell(user, &m);
}

static void tell_certificate(const struct joining *j, const struct join_answer *answer,
                             joining_answer *tell, void *user)
{
    Dirigent__Certificate m = DIRIGENT__CERTIFICATE__INIT;
    struct member_view view;
    char *names[16];
    size_t cursor = 0;
    m.certificate = answer->certificate;
    m.roots = answer->roots;
    m.control_planes = names;
    while (j->cp->leadership != NULL && m.n_control_planes < ARRAY_COUNT(names) &&
           leadership_member_next(j->cp->leadership, &cursor, &view))
        names[m.n_control_planes++] = (char *)view.name;
    tell(user, &m);
}

static void attempt_free(struct join_attempt *a)
{
    join_answer_done(&a->answer);
    free(a->write.value);
    free(a);
}

static void on_burned(struct store_write *write, enum err err, const struct error *e)
{
    struct join_attempt *a = container_of(write, struct join_attempt, write);
    struct registered *r = map_get(&a->joining->by_id, write->id);
    if (r != NULL)
        r->changing = false;
    if (err == ERR_OK && r != NULL)
        r->record = a->answer.burned;
    if (err == ERR_OK)
        log_info("node.joined", LOG_STR("role", node_role_name(a->answer.subject.role)),
                 LOG_STR("name", a->answer.subject.name), LOG_STR("token", a->answer.burned.id),
                 LOG_STR("peer", a->ip));
    if (a->tell != NULL && err == ERR_OK)
        tell_certificate(a->joining, &a->answer, a->tell, a->user);
    else if (a->tell != NULL)
        tell_refusal(a->tell, a->user, err, NULL, e, RETRY_MS);
    attempt_free(a);
}

static enum err judge(struct joining *j, const Dirigent__JoinRequest *m, bool name_is_taken,
                      struct registered **ret, struct join_answer *ret_answer, struct error *e)
{
    struct join_request request = {.token = str_of(m->token),
                                   .role = role_of_wire(m->role),
                                   .name = str_of(m->name),
                                   .csr = str_of(m->csr)};
    struct token token = {0};
    enum token_verdict verdict = TOKEN_MALFORMED;
    *ret = NULL;
    if (request.role != NODE_WORKER && request.role != NODE_DATA_PLANE)
        return error_field(e, ERR_INVALID, "role", "only workers and data planes join by a token");
    if (token_parse(request.token, &token, NULL) == ERR_OK)
        *ret = strmap_get(&j->by_text_id, str_of(token.id));
    if (*ret != NULL && (*ret)->changing)
        return error_field(e, ERR_BUSY, "token", "this token is being used at this moment");
    return join_answer(trust_bundle(j->cp->trust), *ret != NULL ? &(*ret)->record : NULL,
                       name_is_taken, &request, clock_real_s(), trust_lifetime_s(j->cp->trust),
                       ret_answer, &verdict, e);
}

static enum err allow(struct joining *j, const char *ip, uint64_t *ret_wait_ms, struct error *e)
{
    *ret_wait_ms = 0;
    if (trust_bundle(j->cp->trust) == NULL) {
        *ret_wait_ms = RETRY_MS;
        return error_set(e, ERR_BUSY, "the cluster's authority is being made");
    }
    return join_limit_take(j->limit, str_of(ip), shell_now_ms(j->cp), ret_wait_ms, e);
}

struct join_attempt *joining_ask(struct joining *j, const char *ip, const Dirigent__JoinRequest *m,
                                 bool name_is_taken, joining_answer *tell, void *user)
{
    struct error e = {0};
    struct registered *r = NULL;
    struct join_answer answer = {0};
    uint64_t wait_ms = 0;
    if (!j->cp->leads) {
        (void)error_set(&e, ERR_BUSY, "it is not the control plane that leads: ask the others");
        tell_refusal(tell, user, ERR_BUSY, "not_leader", &e, RETRY_MS);
        return NULL;
    }
    enum err err = allow(j, ip, &wait_ms, &e);
    if (err == ERR_OK)
        err = judge(j, m, name_is_taken, &r, &answer, &e);
    if (err != ERR_OK) {
        log_warn("node.not_joined", LOG_STR("peer", ip), LOG_STR("why", e.text));
        uint64_t retry_ms = err == ERR_BUSY ? MAX(wait_ms, (uint64_t)RETRY_MS) : 0;
        tell_refusal(tell, user, err, NULL, &e, (uint32_t)retry_ms);
        return NULL;
    }
    if (!answer.has_burned) {
        tell_certificate(j, &answer, tell, user);
        join_answer_done(&answer);
        return NULL;
    }
    struct join_attempt *a = mem_new(sizeof(*a));
    a->joining = j;
    a->answer = answer;
    a->tell = tell;
    a->user = user;
    (void)snprintf(a->ip, sizeof(a->ip), "%s", ip);
    a->write = (struct store_write){.kind = STORE_TOKEN,
                                    .id = r->id,
                                    .value = token_record_write(&answer.burned),
                                    .next_id = j->cp->next_id,
                                    .on_done = on_burned};
    r->changing = true;
    store_submit(j->cp->store, &a->write);
    return a;
}

void joining_cancel(struct join_attempt *a)
{
    if (a != NULL)
        a->tell = NULL;
}

void joining_renew(struct joining *j, const struct subject *peer, const Dirigent__RenewRequest *m,
                   joining_answer *tell, void *user)
{
    struct error e = {0};
    struct join_answer answer cleanup(join_answer_done) = {0};
    enum err err = renew_answer(trust_bundle(j->cp->trust), peer, str_of(m->csr), NULL, 0,
                                clock_real_s(), trust_lifetime_s(j->cp->trust), &answer, &e);
    if (err == ERR_OK)
        log_info("node.renewed", LOG_STR("role", node_role_name(peer->role)),
                 LOG_STR("name", peer->name));
    if (err == ERR_OK)
        tell_certificate(j, &answer, tell, user);
    else
        tell_refusal(tell, user, err, NULL, &e, 0);
}

/* ---- life ---- */

struct joining *joining_new(struct control_plane *cp)
{
    struct joining *j = mem_new(sizeof(*j));
    uint64_t seed = 0;
    j->cp = cp;
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = clock_mono_ns();
    j->limit = join_limit_new(seed);
    return j;
}

void joining_free(struct joining *j)
{
    if (j == NULL)
        return;
    size_t cursor = 0;
    for (struct registered *r; (r = map_next(&j->by_id, &cursor)) != NULL;)
        free(r);
    map_done(&j->by_id);
    strmap_done(&j->by_text_id);
    join_limit_free(&j->limit);
    free(j);
}
