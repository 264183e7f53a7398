/* store_etcd.c - registrations in etcd, shared by several control planes.
 *
 * Safety is the compare in each transaction, and nothing else: every commit compares the revision
 * of the epoch key to the one that this leader wrote, that of the head (etcd_records.h) to the one
 * that its last commit wrote, and that of each record to the one that it knows. No lease, no clock.
 * A commit whose outcome nobody knows is looked for in the head, by its op, before it is tried
 * again; when the first try is carried out late, it finds other revisions and does nothing.
 *
 * The head is also how a follower knows that it missed nothing: etcd counts how often a key was
 * written, so a commit that a watch left out shows as a step of more than one; and whoever takes
 * the epoch reads in the same transaction which head was the last. */
#include "control_plane/store/store_etcd_internal.h"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define TXN_WRITES_MAX 100u            /* etcd's --max-txn-ops is 128 */
#define TXN_BYTES_MAX (1024u * 1024)   /* its --max-request-bytes is 1.5 MiB */
#define VALUE_BYTES_MAX (1350u * 1024) /* of one that is alone in its transaction */
#define WRITE_BYTES 256u               /* of a write besides its value */
#define COMPACT_PERIOD_MS (5u * 60 * 1000)
#define RETRY_PAUSE_MS 5
#define OP_BYTES 33u
#define VERSION_MINOR_MIN 4

/* ---- small pieces ---- */

static void op_make(char *ret_op)
{
    uint64_t random[2] = {clock_mono_ns(), 0};
    (void)!getrandom(random, sizeof(random), 0);
    (void)snprintf(ret_op, OP_BYTES, "%016" PRIx64 "%016" PRIx64, random[0], random[1]);
}

/* For people who look into etcd; nothing is decided by it. */
static json_t *time_json(void)
{
    char text[32];
    time_t now = time(NULL);
    struct tm tm;
    (void)gmtime_r(&now, &tm);
    (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
    return json_string(text);
}

enum err store_etcd_missing(const char *key, struct error *e)
{
    return error_set(e, ERR_CORRUPT,
                     "etcd's key %s is missing, and others below " ETCD_PREFIX
                     " are or were there: restore a backup, or delete them all to begin without "
                     "registrations",
                     key);
}

enum err store_etcd_take_meta(struct etcd_store *s, const struct etcd_kv *kv, struct error *e)
{
    uint64_t number = 0;
    bool is_epoch = strcmp(kv->key, ETCD_EPOCH_KEY) == 0;
    if (!is_epoch && strcmp(kv->key, ETCD_HEAD_KEY) != 0)
        return ERR_OK;
    if (kv->value == NULL)
        return error_set(e, ERR_CORRUPT, "etcd's key %s was deleted by something else", kv->key);
    enum err err = etcd_kv_number(kv, is_epoch ? "epoch" : "next_id", &number, e);
    if (err != ERR_OK)
        return err;
    if (is_epoch && kv->mod_revision >= s->epoch_revision) {
        s->epoch = number;
        s->epoch_revision = kv->mod_revision;
    } else if (!is_epoch && kv->mod_revision >= s->head_revision) {
        s->next_id = MAX(s->next_id, number);
        s->head_revision = kv->mod_revision;
    }
    return ERR_OK;
}

/* ---- reading ---- */

struct meta {
    struct etcd_store *s;
    bool found;
};

static enum err on_meta(void *user, const struct etcd_kv *kv, struct error *e)
{
    struct meta *m = user;
    m->found = true;
    pthread_mutex_lock(&m->s->mutex);
    enum err err = store_etcd_take_meta(m->s, kv, e);
    pthread_mutex_unlock(&m->s->mutex);
    return err;
}

static enum err on_without_epoch(void *user, const struct etcd_kv *kv, struct error *e)
{
    return store_etcd_missing(ETCD_EPOCH_KEY, e);
}

static enum err meta_read(struct etcd_store *s, const char *key, uint64_t *revision,
                          bool *ret_found, struct error *e)
{
    struct meta m = {.s = s};
    struct etcd_range r = {
        .etcd = s->calls, .key = key, .revision = *revision, .on = on_meta, .user = &m};
    enum err err = etcd_range_each(&r, e);
    *revision = r.revision;
    *ret_found = m.found;
    return err;
}

/* Epoch and head as they are now, from a majority. */
static enum err epoch_read(struct etcd_store *s, uint64_t *ret_revision, struct error *e)
{
    bool found = false, head_found = false;
    pthread_mutex_lock(&s->mutex);
    bool was_there = s->epoch_revision != 0;
    pthread_mutex_unlock(&s->mutex);
    *ret_revision = 0;
    enum err err = meta_read(s, ETCD_EPOCH_KEY, ret_revision, &found, e);
    if (err == ERR_OK && !found) {
        struct etcd_range r = {.etcd = s->calls,
                               .key = ETCD_PREFIX,
                               .end = ETCD_PREFIX_END,
                               .revision = *ret_revision,
                               .on = on_without_epoch};
        err = was_there ? store_etcd_missing(ETCD_EPOCH_KEY, e) : etcd_range_each(&r, e);
    }
    if (err == ERR_OK)
        err = meta_read(s, ETCD_HEAD_KEY, ret_revision, &head_found, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    s->epoch_known = true;
    pthread_mutex_unlock(&s->mutex);
    return ERR_OK;
}

/* ---- transactions ---- */

struct txn {
    json_t *compare, *success, *failure; /* arrays */
    const char *probe; /* the key that tells by its op whether it was carried out */
    char op[OP_BYTES];
    json_t *answer; /* NULL: it was found by looking */
    bool unknown;   /* what became of an attempt is not known */
    bool refused;   /* the last one was, and it is not worth while to go on */
};

static void txn_init(struct txn *t, const char *probe)
{
    *t = (struct txn){
        .compare = json_array(), .success = json_array(), .failure = json_array(), .probe = probe};
    op_make(t->op);
}

static void txn_done(struct txn *t)
{
    json_decref(t->compare);
    json_decref(t->success);
    json_decref(t->failure);
    json_decref(t->answer);
}

/* When a compare fails, the answer says what is there, in the order of the compares. */
static void txn_expect(struct txn *t, const char *key, uint64_t mod_revision)
{
    json_array_append_new(t->compare, etcd_compare(key, mod_revision));
    json_array_append_new(t->failure, etcd_get(key));
}

struct looked_for {
    const char *op;
    uint64_t revision; /* 0: not found */
};

static enum err on_looked_for(void *user, const struct etcd_kv *kv, struct error *e)
{
    struct looked_for *l = user;
    const char *op = json_string_value(json_object_get(kv->value, "op"));
    if (op != NULL && strcmp(op, l->op) == 0)
        l->revision = kv->mod_revision;
    return ERR_OK;
}

/* *ret_revision: at which it was carried out; 0: not (yet). */
static enum err txn_look(struct etcd_store *s, const struct txn *t, uint64_t end_ms,
                         uint64_t *ret_revision, struct error *e)
{
    struct looked_for l = {.op = t->op};
    struct etcd_range r = {
        .etcd = s->calls, .key = t->probe, .end_ms = end_ms, .on = on_looked_for, .user = &l};
    enum err err = etcd_range_each(&r, e);
    *ret_revision = l.revision;
    return err;
}

/* Refused, after attempts of which nobody knows what became: one may still be on its way. */
static enum err txn_refused(struct etcd_store *s, struct txn *t, uint64_t end_ms,
                            uint64_t *ret_revision, struct error *e)
{
    struct error refusal = *e;
    t->refused = true;
    enum err err = txn_look(s, t, end_ms, ret_revision, e);
    if (err != ERR_OK || *ret_revision != 0)
        return err;
    return error_set(e, ERR_TIMEOUT, "what became of an earlier attempt is not known; the last: %s",
                     refusal.text);
}

/* ERR_CONFLICT: a compare failed; t->answer says which. ERR_UNREACHABLE, ERR_TIMEOUT: nobody knows,
 * and the same transaction may be run again, unless it was refused. `stop` may be NULL. */
static enum err txn_run(struct etcd_store *s, struct txn *t, const atomic_bool *stop,
                        uint64_t *ret_revision, struct error *e)
{
    json_t *request = json_pack("{s:O, s:O, s:O}", "compare", t->compare, "success", t->success,
                                "failure", t->failure);
    uint64_t end_ms = etcd_end_ms();
    enum err err;
    *ret_revision = 0;
    for (;; (void)poll(NULL, 0, RETRY_PAUSE_MS)) {
        err = etcd_try(s->calls, "/v3/kv/txn", request, ETCD_ATTEMPT_MS, &t->answer, e);
        if (err != ERR_UNREACHABLE && err != ERR_TIMEOUT)
            break;
        t->unknown = true;
        if (etcd_now_ms() >= end_ms || (stop != NULL && atomic_load(stop)))
            break;
        if (err == ERR_TIMEOUT)
            err = txn_look(s, t, end_ms, ret_revision, e);
        else
            err = ERR_OK; /* as a rule nothing was sent, and the compares stand for the rest */
        if (err != ERR_OK || *ret_revision != 0)
            break;
    }
    json_decref(request);
    if (err == ERR_OK && *ret_revision == 0) {
        *ret_revision = etcd_number(json_object_get(t->answer, "header"), "revision");
        if (json_is_true(json_object_get(t->answer, "succeeded")))
            return ERR_OK;
        /* A first try that came late may be what is in the way of the second. */
        err = txn_look(s, t, end_ms, ret_revision, e);
        if (err == ERR_OK && *ret_revision == 0)
            err = error_set(e, ERR_CONFLICT, "etcd has other revisions than were expected");
    } else if (t->unknown && (err == ERR_NO_SPACE || err == ERR_TOO_LARGE)) {
        err = txn_refused(s, t, end_ms, ret_revision, e);
    }
    return err;
}

/* The key of the i-th operation of an answer; NULL: none, or no answer. */
static const json_t *answer_kv(const json_t *answer, size_t i)
{
    const json_t *response = json_array_get(json_object_get(answer, "responses"), i);
    return json_array_get(json_object_get(json_object_get(response, "response_range"), "kvs"), 0);
}

/* ---- the epoch ---- */

/* The head as it was when the epoch was taken: nobody but us can write a later one, while the epoch
 * is ours. */
static enum err head_take(struct etcd_store *s, const struct txn *t, uint64_t revision,
                          struct error *e)
{
    uint64_t head_revision = 0;
    if (json_is_true(json_object_get(t->answer, "succeeded"))) {
        struct etcd_kv kv = {0};
        const json_t *json = answer_kv(t->answer, 1);
        enum err err = json != NULL ? etcd_kv_read(json, false, &kv, e) : ERR_OK;
        struct meta m = {.s = s};
        if (err == ERR_OK && json != NULL)
            err = on_meta(&m, &kv, e);
        head_revision = kv.mod_revision;
        etcd_kv_done(&kv);
        if (err != ERR_OK)
            return err;
    } else {
        bool found = false;
        enum err err = meta_read(s, ETCD_HEAD_KEY, &revision, &found, e);
        if (err != ERR_OK)
            return err;
        head_revision = found ? UINT64_MAX : 0;
    }
    pthread_mutex_lock(&s->mutex);
    /* UINT64_MAX: what was read is the newest, since nobody but us writes another. */
    s->own_head = MIN(head_revision, s->head_revision);
    pthread_mutex_unlock(&s->mutex);
    return ERR_OK;
}

static void epoch_txn(struct etcd_store *s, struct txn *t, uint64_t epoch, uint64_t before)
{
    txn_init(t, ETCD_EPOCH_KEY);
    txn_expect(t, ETCD_EPOCH_KEY, before);
    json_t *value = json_pack("{s:i, s:s, s:I, s:s, s:o}", "format", ETCD_FORMAT, "op", t->op,
                              "epoch", (json_int_t)epoch, "leader", s->name, "time", time_json());
    json_array_append_new(t->success, etcd_put(ETCD_EPOCH_KEY, value));
    json_array_append_new(t->success, etcd_get(ETCD_HEAD_KEY));
}

static enum err stale(struct error *e, uint64_t epoch)
{
    return error_set(e, ERR_STALE,
                     "another control plane has taken epoch %" PRIu64 " or a later one", epoch);
}

/* The one after the newest that is known, if that is at most `newest`, and above `above`. */
static enum err take(struct etcd_store *s, uint64_t newest, uint64_t above, uint64_t *ret_epoch,
                     struct error *e)
{
    struct txn t;
    uint64_t revision = 0;
    pthread_mutex_lock(&s->mutex);
    bool known = s->epoch_known;
    pthread_mutex_unlock(&s->mutex);
    enum err err = known ? ERR_OK : epoch_read(s, &revision, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    uint64_t known_epoch = s->epoch, epoch = MAX(known_epoch, above) + 1,
             before = s->epoch_revision;
    pthread_mutex_unlock(&s->mutex);
    if (known_epoch > newest)
        return stale(e, known_epoch);
    epoch_txn(s, &t, epoch, before);
    err = txn_run(s, &t, NULL, &revision, e);
    if (err == ERR_OK)
        err = head_take(s, &t, revision, e);
    txn_done(&t);
    pthread_mutex_lock(&s->mutex);
    if (err == ERR_OK) {
        *ret_epoch = s->own_epoch = epoch;
        s->own_revision = revision;
        if (revision > s->epoch_revision) {
            s->epoch = epoch;
            s->epoch_revision = revision;
        }
    } else if (err == ERR_CONFLICT) {
        err = stale(e, epoch);
        s->epoch_known = s->told_revision > 0; /* who follows is told; else it is read again */
    } else if (s->told_revision == 0) {
        s->epoch_known = false; /* it may be ours */
    }
    pthread_mutex_unlock(&s->mutex);
    return err;
}

static enum err take_epoch(void *self, uint64_t *ret_epoch, struct error *e)
{
    return take(self, UINT64_MAX, 0, ret_epoch, e);
}

static enum err take_epoch_above(void *self, uint64_t above, uint64_t *ret_epoch, struct error *e)
{
    return take(self, UINT64_MAX, above, ret_epoch, e);
}

static enum err take_epoch_after(void *self, uint64_t newest, uint64_t *ret_epoch, struct error *e)
{
    return take(self, newest, 0, ret_epoch, e);
}

struct last {
    uint64_t epoch;
    char *leader;
    size_t leader_bytes;
};

static enum err on_last(void *user, const struct etcd_kv *kv, struct error *e)
{
    struct last *l = user;
    const char *leader = json_string_value(json_object_get(kv->value, "leader"));
    (void)snprintf(l->leader, l->leader_bytes, "%s", leader != NULL ? leader : "");
    return etcd_kv_number(kv, "epoch", &l->epoch, e);
}

static enum err last_epoch(void *self, uint64_t *ret_epoch, char *ret_leader, size_t leader_bytes,
                           struct error *e)
{
    struct etcd_store *s = self;
    struct last l = {.leader = ret_leader, .leader_bytes = leader_bytes};
    struct etcd_range r = {.etcd = s->calls, .key = ETCD_EPOCH_KEY, .on = on_last, .user = &l};
    ret_leader[0] = '\0';
    enum err err = etcd_range_each(&r, e);
    *ret_epoch = l.epoch;
    return err;
}

/* ---- loading ---- */

struct load {
    struct etcd_store *s;
    store_on_record *on_record;
    void *user;
    uint64_t id_max;
};

static enum err on_load(void *user, const struct etcd_kv *kv, struct error *e)
{
    struct load *l = user;
    enum store_kind kind;
    uint64_t id;
    if (!etcd_key_parse(kv->key, &kind, &id))
        return error_set(e, ERR_CORRUPT, "etcd's key %s is none of ours", kv->key);
    const char *value = etcd_kv_record(kv, e);
    if (value == NULL)
        return ERR_CORRUPT;
    l->id_max = MAX(l->id_max, id);
    pthread_mutex_lock(&l->s->mutex);
    map_put(&l->s->revisions[kind], id, (void *)(uintptr_t)kv->mod_revision);
    pthread_mutex_unlock(&l->s->mutex);
    return l->on_record(l->user, kind, id, value, e);
}

static enum err load(void *self, store_on_record *on_record, void *user, uint64_t *ret_next_id,
                     struct error *e)
{
    struct etcd_store *s = self;
    struct load l = {.s = s, .on_record = on_record, .user = user};
    uint64_t revision = 0;
    enum err err = epoch_read(s, &revision, e);
    for (int kind = 0; kind < STORE_KIND_COUNT && err == ERR_OK; kind++) {
        char from[ETCD_KEY_BYTES], end[ETCD_KEY_BYTES];
        struct etcd_range r = {.etcd = s->calls,
                               .key = from,
                               .end = end,
                               .revision = revision,
                               .on = on_load,
                               .user = &l};
        etcd_key_range((enum store_kind)kind, from, end, sizeof(from));
        err = etcd_range_each(&r, e);
    }
    if (err == ERR_OK && l.id_max > 0 && s->head_revision == 0)
        err = store_etcd_missing(ETCD_HEAD_KEY, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    s->next_id = MAX(s->next_id, l.id_max + 1);
    *ret_next_id = s->next_id;
    pthread_mutex_unlock(&s->mutex);
    return ERR_OK;
}

/* ---- writing ---- */

static bool key_is_in(const struct store_write *first, const struct store_write *end)
{
    for (const struct store_write *w = first; w != end; w = w->private.next)
        if (w->kind == end->kind && w->id == end->id)
            return true;
    return false;
}

/* As a JSON string, in which it is stored. */
static size_t value_bytes(const char *value)
{
    size_t bytes = WRITE_BYTES;
    if (value == NULL)
        return bytes;
    for (const unsigned char *at = (const unsigned char *)value; *at != '\0'; at++)
        bytes += *at < 0x20 ? 6 : *at == '"' || *at == '\\' ? 2 : 1;
    return bytes;
}

/* How many of the chain are one transaction: a key can be written once in one. */
static size_t batch_count(const struct store_write *first, size_t limit)
{
    size_t count = 0, bytes = 0;
    for (const struct store_write *w = first; w != NULL && count < limit;
         w = w->private.next, count++) {
        bytes += value_bytes(w->value);
        if (count > 0 && (bytes > TXN_BYTES_MAX || key_is_in(first, w)))
            break;
    }
    return count;
}

static json_t *write_json(const struct store_write *w, const char *key, const char *op)
{
    if (w->value == NULL)
        return etcd_delete(key);
    json_t *value =
        json_pack("{s:i, s:s, s:s}", "format", ETCD_FORMAT, "op", op, "value", w->value);
    assert(value != NULL); /* JSON texts are UTF-8 */
    return etcd_put(key, value);
}

/* Under the mutex. */
static uint64_t commit_txn(struct etcd_store *s, struct txn *t, const struct store_write *first,
                           size_t count)
{
    uint64_t next_id = s->next_id;
    txn_init(t, ETCD_HEAD_KEY);
    txn_expect(t, ETCD_EPOCH_KEY, s->own_revision);
    txn_expect(t, ETCD_HEAD_KEY, s->head_revision);
    const struct store_write *w = first;
    for (size_t i = 0; i < count; i++, w = w->private.next) {
        char key[ETCD_KEY_BYTES];
        etcd_key(w->kind, w->id, key, sizeof(key));
        txn_expect(t, key, (uint64_t)(uintptr_t)map_get(&s->revisions[w->kind], w->id));
        json_array_append_new(t->success, write_json(w, key, t->op));
        next_id = MAX(next_id, MAX(w->next_id, w->id + 1));
    }
    json_t *head = json_pack("{s:i, s:s, s:I}", "format", ETCD_FORMAT, "op", t->op, "next_id",
                             (json_int_t)next_id);
    json_array_append_new(t->success, etcd_put(ETCD_HEAD_KEY, head));
    return next_id;
}

/* Under the mutex. The following thread may have been told of it before. */
static void commit_note(struct etcd_store *s, const struct store_write *first, size_t count,
                        uint64_t revision, uint64_t next_id)
{
    const struct store_write *w = first;
    for (size_t i = 0; i < count; i++, w = w->private.next)
        if (w->value != NULL)
            map_put(&s->revisions[w->kind], w->id, (void *)(uintptr_t)revision);
        else
            (void)map_remove(&s->revisions[w->kind], w->id);
    s->next_id = MAX(s->next_id, next_id);
    s->head_revision = MAX(s->head_revision, revision);
    s->written_revision = revision;
}

static enum err succeeded(struct etcd_store *s, struct error *e)
{
    pthread_mutex_lock(&s->mutex);
    uint64_t epoch = s->epoch;
    pthread_mutex_unlock(&s->mutex);
    return error_set(e, ERR_STALE, "another control plane leads now (epoch %" PRIu64 ")", epoch);
}

/* Who is in the way: another leader, or something that is no control plane. */
static enum err conflict(struct etcd_store *s, const struct txn *t, struct error *e)
{
    const json_t *epoch = answer_kv(t->answer, 0), *compare;
    uint64_t revision = 0;
    size_t i;
    if (epoch == NULL)
        return store_etcd_missing(ETCD_EPOCH_KEY, e);
    if (etcd_number(epoch, "mod_revision") != s->own_revision) {
        enum err err = epoch_read(s, &revision, e);
        return err == ERR_OK ? succeeded(s, e) : err;
    }
    json_array_foreach(t->compare, i, compare)
    {
        cleanup(buf_done) struct buf key = {0};
        if (etcd_number(answer_kv(t->answer, i), "mod_revision") ==
                etcd_number(compare, "mod_revision") ||
            etcd_unbase64(json_object_get(compare, "key"), &key, e) != ERR_OK)
            continue;
        return error_set(e, ERR_CONFLICT, "etcd's key %.*s was changed by something else",
                         (int)key.bytes, key.data);
    }
    return error_set(e, ERR_CONFLICT,
                     "etcd's keys below " ETCD_PREFIX " were changed by something else");
}

/* A leader that gave up would have to begin anew, without the store: nobody would place and start.
 */
static enum err commit_part(struct etcd_store *s, uint64_t epoch, const struct store_write *first,
                            size_t count, const atomic_bool *stop, struct error *e)
{
    struct txn t;
    uint64_t revision = 0;
    pthread_mutex_lock(&s->mutex);
    bool ours = s->own_epoch == epoch && s->epoch_revision <= s->own_revision;
    uint64_t next_id = ours ? commit_txn(s, &t, first, count) : 0;
    pthread_mutex_unlock(&s->mutex);
    if (!ours)
        return succeeded(s, e);
    enum err err;
    etcd_stop_by(s->calls, stop);
    do
        err = txn_run(s, &t, stop, &revision, e);
    while ((err == ERR_TIMEOUT || err == ERR_UNREACHABLE) && !t.refused && stop != NULL &&
           !atomic_load(stop));
    etcd_stop_by(s->calls, NULL);
    if (err == ERR_CONFLICT)
        err = conflict(s, &t, e);
    txn_done(&t);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    commit_note(s, first, count, revision, next_id);
    pthread_mutex_unlock(&s->mutex);
    return ERR_OK;
}

static enum err commit(void *self, uint64_t epoch, const struct store_write *first,
                       const atomic_bool *stop, size_t *ret_count, struct error *e)
{
    size_t count = batch_count(first, TXN_WRITES_MAX), bytes = value_bytes(first->value);
    *ret_count = 1;
    if (bytes > VALUE_BYTES_MAX)
        return error_set(e, ERR_TOO_LARGE, "%zu bytes are too large for etcd, which takes %u",
                         bytes, VALUE_BYTES_MAX);
    enum err err = commit_part(self, epoch, first, count, stop, e);
    while (err == ERR_TOO_LARGE && count > 1) /* its limits may have been set lower */
        err = commit_part(self, epoch, first, count /= 2, stop, e);
    *ret_count = count;
    return err;
}

/* The leader, now and then: history that nobody needs any more goes. */
static void tidy(void *self)
{
    struct etcd_store *s = self;
    struct error e = {0};
    if (etcd_now_ms() < s->compact_next_ms)
        return;
    s->compact_next_ms = etcd_now_ms() + COMPACT_PERIOD_MS;
    uint64_t oldest = s->compact_revisions[0];
    pthread_mutex_lock(&s->mutex);
    uint64_t newest = MAX(s->told_revision, MAX(s->own_revision, s->written_revision));
    pthread_mutex_unlock(&s->mutex);
    memmove(s->compact_revisions, s->compact_revisions + 1,
            sizeof(s->compact_revisions) - sizeof(uint64_t));
    s->compact_revisions[STORE_ETCD_COMPACT_KEPT - 1] = newest;
    if (oldest == 0)
        return;
    json_t *request = json_pack("{s:o}", "revision", etcd_number_json(oldest)), *answer = NULL;
    if (etcd_try(s->calls, "/v3/kv/compaction", request, 8 * ETCD_ATTEMPT_MS, &answer, &e) ==
        ERR_OK)
        json_decref(answer);
    json_decref(request); /* a failure is tried again in 5 minutes, with more to gain */
}

static uint64_t next_id(void *self)
{
    struct etcd_store *s = self;
    pthread_mutex_lock(&s->mutex);
    uint64_t id = MAX(s->next_id, UINT64_C(1));
    pthread_mutex_unlock(&s->mutex);
    return id;
}

/* ---- open and close ---- */

static enum err check_version(struct etcd_store *s, struct error *e)
{
    json_t *answer = NULL;
    enum err err = etcd_read(s->calls, "/version", NULL, etcd_end_ms(), &answer, e);
    if (err != ERR_OK)
        return err;
    const char *text = json_string_value(json_object_get(answer, "etcdserver"));
    unsigned major = 0, minor = 0;
    bool read = text != NULL && sscanf(text, "%u.%u", &major, &minor) == 2;
    bool good = read && (major > 3 || (major == 3 && minor >= VERSION_MINOR_MIN));
    if (!good)
        err = error_set(e, ERR_VERSION, "etcd at %s is version %s: 3.%d or newer is needed",
                        etcd_endpoint(s->calls), read ? text : "unknown", VERSION_MINOR_MIN);
    json_decref(answer);
    return err;
}

static enum err check_members(struct etcd_store *s, struct error *e)
{
    json_t *request = json_object(), *answer = NULL, *member;
    enum err err =
        etcd_read(s->calls, "/v3/cluster/member/list", request, etcd_end_ms(), &answer, e);
    size_t i, voters = 0;
    json_decref(request);
    if (err != ERR_OK)
        return err;
    json_array_foreach(json_object_get(answer, "members"), i, member)
    {
        voters += !json_is_true(json_object_get(member, "isLearner"));
    }
    json_decref(answer);
    if (voters < 2 && !etcd_allows_single(s->calls))
        return error_set(e, ERR_USAGE,
                         "the etcd at %s has a single member: it is lost with its machine. Use "
                         "three, or the embedded store "
                         "(--store sqlite), or say --i-know",
                         etcd_endpoint(s->calls));
    return ERR_OK;
}

static void store_etcd_close(void *self)
{
    struct etcd_store *s = self;
    if (s == NULL)
        return;
    etcd_close(s->calls);
    etcd_close(s->watch);
    for (int kind = 0; kind < STORE_KIND_COUNT; kind++)
        map_done(&s->revisions[kind]);
    pthread_cond_destroy(&s->told);
    pthread_mutex_destroy(&s->mutex);
    free(s->name);
    free(s);
}

/* `where`: NAME@ENDPOINTS; NAME is this control plane's. */
static enum err store_etcd_open(const char *where, void **ret_self, struct error *e)
{
    struct etcd_store *s = mem_new(sizeof(*s));
    const char *at = strchr(where, '@');
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->told, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->name = mem_strndup(where, at != NULL ? (size_t)(at - where) : 0);
    s->compact_next_ms = etcd_now_ms() + COMPACT_PERIOD_MS;
    enum err err = etcd_open(at != NULL ? at + 1 : where, &s->calls, e);
    if (err == ERR_OK)
        err = etcd_copy(s->calls, &s->watch, e);
    if (err == ERR_OK)
        err = check_version(s, e);
    if (err == ERR_OK)
        err = check_members(s, e);
    if (err != ERR_OK) {
        store_etcd_close(s);
        return err;
    }
    *ret_self = s;
    return ERR_OK;
}

const struct store_backend store_etcd = {
    .name = "etcd",
    .open = store_etcd_open,
    .take_epoch = take_epoch,
    .take_epoch_above = take_epoch_above,
    .take_epoch_after = take_epoch_after,
    .last_epoch = last_epoch,
    .load = load,
    .commit = commit,
    .tidy = tidy,
    .follow = store_etcd_follow,
    .catch_up = store_etcd_catch_up,
    .next_id = next_id,
    .close = store_etcd_close,
};
