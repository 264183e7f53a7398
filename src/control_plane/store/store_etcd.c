/* store_etcd.c - registrations in etcd, shared by several control planes.
 *
 * Keys, all with JSON values that carry `format` and `op`, the id of the operation that wrote them
 * last: /dirigent/epoch                   {epoch, leader} /dirigent/next_id {next_id}
 *   /dirigent/<kind>/<id, 16 digits>  {value}
 *
 * Safety is the compare in each transaction, and nothing else: every write compares the revision of
 * the epoch key to the one that this leader wrote, and the revision of each record to the one that
 * it knows. No lease, no clock. A write whose outcome nobody knows is looked for by its op before
 * it is tried again; when the first try is carried out late, it finds other revisions and does
 * nothing. */
#include "base/hash.h"
#include "control_plane/store/etcd.h"
#include "control_plane/store/store_backend.h"
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define PREFIX "/dirigent/"
#define PREFIX_END "/dirigent0" /* the character after '/' */
#define EPOCH_KEY PREFIX "epoch"
#define NEXT_ID_KEY PREFIX "next_id"
#define FORMAT 1
#define TXN_WRITES_MAX 100u          /* etcd's --max-txn-ops is 128 */
#define TXN_BYTES_MAX (1024u * 1024) /* its --max-request-bytes is 1.5 MiB, of base64 */
#define PAGE_RECORDS 500
#define COMPACT_PERIOD_MS (5u * 60 * 1000)
#define COMPACT_KEPT 2u /* periods */
#define RELIST_MS 30000u
#define VERSION_MINOR_MIN 4

static const char *const kind_names[STORE_KIND_COUNT] = {[STORE_FUNCTION] = "functions",
                                                         [STORE_WORKER] = "workers",
                                                         [STORE_DATA_PLANE] = "data_planes",
                                                         [STORE_SANDBOX] = "sandboxes",
                                                         [STORE_API_KEY] = "api_keys"};
static_assert(STORE_KIND_COUNT == 5, "each kind has a name");

struct etcd_store {
    struct etcd *calls, *watch; /* the writing thread's, the following thread's */
    char *name;                 /* of this control plane, in the epoch key */
    uint64_t compact_next_ms, compact_revisions[COMPACT_KEPT];
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t told;
    bool epoch_known;
    uint64_t epoch, epoch_revision, next_id, next_id_revision;
    uint64_t told_revision; /* the follower has told all up to it; 0: nobody follows */
    struct map revisions[STORE_KIND_COUNT]; /* id -> mod_revision, of records that are there */
};

/* ---- small pieces ---- */

static uint64_t now_ms(void)
{
    return clock_mono_ns() / NS_PER_MS;
}

static void pause_ms(int ms)
{
    (void)poll(NULL, 0, ms);
}

static void record_key(enum store_kind kind, uint64_t id, char *ret_key, size_t bytes)
{
    (void)snprintf(ret_key, bytes, PREFIX "%s/%016" PRIx64, kind_names[kind], id);
}

static json_t *key_json(const char *key)
{
    return etcd_base64(str_of(key));
}

static void op_make(char *ret_op)
{
    uint64_t random[2] = {clock_mono_ns(), 0};
    (void)!getrandom(random, sizeof(random), 0);
    (void)snprintf(ret_op, 33, "%016" PRIx64 "%016" PRIx64, random[0], random[1]);
}

static json_t *number_json(uint64_t number)
{
    return json_sprintf("%" PRIu64, number);
}

/* ---- what is in the values ---- */

struct kv {
    char key[96];
    uint64_t mod_revision;
    json_t *value; /* NULL: of a deleted key */
};

static void kv_done(struct kv *kv)
{
    json_decref(kv->value);
}

static enum err kv_read(const json_t *json, bool deleted, struct kv *ret_kv, struct error *e)
{
    cleanup(buf_done) struct buf key = {0};
    cleanup(buf_done) struct buf text = {0};
    *ret_kv = (struct kv){.mod_revision = etcd_number(json, "mod_revision")};
    if (etcd_unbase64(json_object_get(json, "key"), &key, e) != ERR_OK ||
        key.bytes >= sizeof(ret_kv->key))
        return error_set(e, ERR_CORRUPT, "etcd has a key below " PREFIX " that is none of ours");
    memcpy(ret_kv->key, key.data, key.bytes);
    if (deleted)
        return ERR_OK;
    enum err err = etcd_unbase64(json_object_get(json, "value"), &text, e);
    json_error_t story;
    ret_kv->value =
        err == ERR_OK ? json_loadb(text.bytes > 0 ? text.data : "", text.bytes, 0, &story) : NULL;
    if (!json_is_object(ret_kv->value)) {
        kv_done(ret_kv);
        return error_set(e, ERR_CORRUPT, "the value of etcd's key %s is damaged", ret_kv->key);
    }
    if (json_integer_value(json_object_get(ret_kv->value, "format")) > FORMAT) {
        kv_done(ret_kv);
        return error_set(e, ERR_VERSION, "etcd's key %s was written by a newer Dirigent",
                         ret_kv->key);
    }
    return ERR_OK;
}

/* False: another key. */
static bool key_parse(const char *key, enum store_kind *ret_kind, uint64_t *ret_id)
{
    const char *at = key + sizeof(PREFIX) - 1;
    for (int kind = 0; kind < STORE_KIND_COUNT; kind++) {
        size_t bytes = strlen(kind_names[kind]);
        if (strncmp(at, kind_names[kind], bytes) != 0 || at[bytes] != '/' ||
            strlen(at + bytes + 1) != 16)
            continue;
        char *end = NULL;
        *ret_kind = (enum store_kind)kind;
        *ret_id = strtoull(at + bytes + 1, &end, 16);
        return *end == '\0' && *ret_id > 0;
    }
    return false;
}

static const char *record_value(const struct kv *kv, struct error *e)
{
    const char *value = json_string_value(json_object_get(kv->value, "value"));
    if (value == NULL)
        error_set(e, ERR_CORRUPT, "the value of etcd's key %s is damaged: it has no record",
                  kv->key);
    return value;
}

/* Under the mutex. */
static enum err meta_take(struct etcd_store *s, const struct kv *kv, struct error *e)
{
    const json_t *value = kv->value;
    if (strcmp(kv->key, EPOCH_KEY) == 0) {
        if (value == NULL || json_integer_value(json_object_get(value, "epoch")) <= 0)
            return error_set(e, ERR_CORRUPT, "etcd's key " EPOCH_KEY " is damaged or was deleted");
        if (kv->mod_revision >= s->epoch_revision) {
            s->epoch = (uint64_t)json_integer_value(json_object_get(value, "epoch"));
            s->epoch_revision = kv->mod_revision;
        }
        s->epoch_known = true;
    } else if (strcmp(kv->key, NEXT_ID_KEY) == 0 && value != NULL &&
               kv->mod_revision >= s->next_id_revision) {
        s->next_id = (uint64_t)json_integer_value(json_object_get(value, "next_id"));
        s->next_id_revision = kv->mod_revision;
    }
    return ERR_OK;
}

/* ---- reading ---- */

static json_t *range_request(const char *key, const char *end, uint64_t revision)
{
    json_t *request = json_object();
    json_object_set_new(request, "key", key_json(key));
    if (end != NULL)
        json_object_set_new(request, "range_end", key_json(end));
    if (revision > 0)
        json_object_set_new(request, "revision", number_json(revision));
    json_object_set_new(request, "limit", json_integer(PAGE_RECORDS));
    return request;
}

typedef enum err on_kv(void *user, const struct kv *kv, struct error *e);

/* All keys of [key, end) at `revision` (0: the newest; *ret_revision says which that was), page by
 * page. */
static enum err range_each(struct etcd *c, const char *key, const char *end, uint64_t revision,
                           on_kv *on, void *user, uint64_t *ret_revision, struct error *e)
{
    char from[128];
    (void)snprintf(from, sizeof(from), "%s", key);
    for (;;) {
        json_t *request = range_request(from, end, revision), *answer = NULL, *item;
        enum err err = etcd_read(c, "/v3/kv/range", request, &answer, e);
        size_t i;
        json_decref(request);
        if (err != ERR_OK)
            return err;
        if (revision == 0)
            revision = etcd_number(json_object_get(answer, "header"), "revision");
        const json_t *items = json_object_get(answer, "kvs");
        bool more = json_is_true(json_object_get(answer, "more"));
        json_array_foreach(items, i, item)
        {
            struct kv kv = {0};
            if (err == ERR_OK)
                err = kv_read(item, false, &kv, e);
            if (err != ERR_OK)
                break;
            err = on(user, &kv, e);
            (void)snprintf(from, sizeof(from), "%s.",
                           kv.key); /* nothing of ours lies between a key and this */
            kv_done(&kv);
        }
        json_decref(answer);
        if (ret_revision != NULL)
            *ret_revision = revision;
        if (err != ERR_OK || !more)
            return err;
    }
}

static enum err on_meta(void *user, const struct kv *kv, struct error *e)
{
    struct etcd_store *s = user;
    pthread_mutex_lock(&s->mutex);
    enum err err = meta_take(s, kv, e);
    pthread_mutex_unlock(&s->mutex);
    return err;
}

/* The epoch key as it is now, from a majority. */
static enum err epoch_read(struct etcd_store *s, uint64_t *ret_revision, struct error *e)
{
    enum err err = range_each(s->calls, EPOCH_KEY, NULL, 0, on_meta, s, ret_revision, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    s->epoch_known = true;
    pthread_mutex_unlock(&s->mutex);
    return range_each(s->calls, NEXT_ID_KEY, NULL, *ret_revision, on_meta, s, NULL, e);
}

/* ---- transactions ---- */

static json_t *compare_revision(const char *key, uint64_t revision)
{
    return json_pack("{s:s, s:s, s:o, s:o}", "target", "MOD", "result", "EQUAL", "key",
                     key_json(key), "mod_revision", number_json(revision));
}

static json_t *put_of(const char *key, json_t *value)
{
    cleanup(free_pointer) char *text = json_dumps(value, JSON_COMPACT);
    json_decref(value);
    return json_pack("{s:{s:o, s:o}}", "requestPut", "key", key_json(key), "value",
                     etcd_base64(str_of(text)));
}

static json_t *range_of(const char *key)
{
    return json_pack("{s:{s:o}}", "requestRange", "key", key_json(key));
}

struct txn {
    json_t *compare, *success;
    const char *probe; /* a key that it writes or deletes; its op says whether it was carried out */
    bool probe_is_put;
    uint64_t probe_revision; /* before */
    const char *op;
};

struct looked_for {
    const char *op;
    bool found, is_ours;
    uint64_t revision;
};

static enum err on_looked_for(void *user, const struct kv *kv, struct error *e)
{
    struct looked_for *l = user;
    const char *op = json_string_value(json_object_get(kv->value, "op"));
    l->found = true;
    l->is_ours = op != NULL && strcmp(op, l->op) == 0;
    l->revision = kv->mod_revision;
    return ERR_OK;
}

/* After an attempt whose outcome nobody knows. *ret_done: it was carried out, at *ret_revision. */
static enum err txn_look(struct etcd_store *s, const struct txn *t, bool *ret_done,
                         uint64_t *ret_revision, struct error *e)
{
    struct looked_for l = {.op = t->op};
    uint64_t revision = 0;
    enum err err = range_each(s->calls, t->probe, NULL, 0, on_looked_for, &l, &revision, e);
    if (err != ERR_OK)
        return err;
    *ret_done = t->probe_is_put ? l.is_ours : !l.found && t->probe_revision != 0;
    *ret_revision = t->probe_is_put ? l.revision : revision;
    return ERR_OK;
}

/* ERR_CONFLICT: a compare failed. */
static enum err txn_run(struct etcd_store *s, const struct txn *t, uint64_t *ret_revision,
                        struct error *e)
{
    json_t *request = json_pack("{s:O, s:O, s:[o]}", "compare", t->compare, "success", t->success,
                                "failure", range_of(EPOCH_KEY));
    uint64_t end_ms = now_ms() + ETCD_DEADLINE_MS;
    enum err err;
    for (;;) {
        json_t *answer = NULL;
        bool done = false;
        err = etcd_try(s->calls, "/v3/kv/txn", request, ETCD_ATTEMPT_MS, &answer, e);
        if (err == ERR_OK) {
            *ret_revision = etcd_number(json_object_get(answer, "header"), "revision");
            if (!json_is_true(json_object_get(answer, "succeeded")))
                err = error_set(e, ERR_CONFLICT, "etcd has other revisions than were expected");
            json_decref(answer);
            /* A first try that came late may be what is in the way of the second. */
            if (err == ERR_CONFLICT && txn_look(s, t, &done, ret_revision, e) == ERR_OK && done)
                err = ERR_OK;
            break;
        }
        bool again = err == ERR_UNREACHABLE || err == ERR_TIMEOUT;
        if (!again || now_ms() >= end_ms)
            break;
        if (err == ERR_TIMEOUT && (err = txn_look(s, t, &done, ret_revision, e)) != ERR_OK)
            break;
        if (done)
            break;
        pause_ms(5);
    }
    json_decref(request);
    return err;
}

/* ---- the epoch ---- */

static enum err take_epoch(void *self, uint64_t *ret_epoch, struct error *e)
{
    struct etcd_store *s = self;
    uint64_t revision = 0;
    char op[33];
    pthread_mutex_lock(&s->mutex);
    bool known = s->epoch_known;
    pthread_mutex_unlock(&s->mutex);
    enum err err = known ? ERR_OK : epoch_read(s, &revision, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    uint64_t epoch = s->epoch, before = s->epoch_revision;
    pthread_mutex_unlock(&s->mutex);
    op_make(op);
    struct txn t = {.compare = json_pack("[o]", compare_revision(EPOCH_KEY, before)),
                    .probe = EPOCH_KEY,
                    .probe_is_put = true,
                    .probe_revision = before,
                    .op = op};
    t.success = json_pack(
        "[o]", put_of(EPOCH_KEY, json_pack("{s:i, s:s, s:I, s:s}", "format", FORMAT, "op", op,
                                           "epoch", (json_int_t)(epoch + 1), "leader", s->name)));
    err = txn_run(s, &t, &revision, e);
    json_decref(t.compare);
    json_decref(t.success);
    pthread_mutex_lock(&s->mutex);
    if (err == ERR_OK) {
        *ret_epoch = s->epoch = epoch + 1;
        s->epoch_revision = revision;
    } else if (err == ERR_CONFLICT) {
        err = error_set(e, ERR_STALE,
                        "another control plane has taken epoch %" PRIu64 " or a later one",
                        epoch + 1);
        s->epoch_known =
            s->told_revision > 0; /* who follows is told of it; else it is read again */
    }
    pthread_mutex_unlock(&s->mutex);
    return err;
}

/* ---- loading ---- */

struct load {
    struct etcd_store *s;
    store_on_record *on_record;
    void *user;
    uint64_t id_max;
};

static enum err on_load(void *user, const struct kv *kv, struct error *e)
{
    struct load *l = user;
    enum store_kind kind;
    uint64_t id;
    if (!key_parse(kv->key, &kind, &id))
        return error_set(e, ERR_CORRUPT, "etcd's key %s is none of ours", kv->key);
    const char *value = record_value(kv, e);
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
        char from[64], end[64];
        (void)snprintf(from, sizeof(from), PREFIX "%s/", kind_names[kind]);
        (void)snprintf(end, sizeof(end), PREFIX "%s0", kind_names[kind]);
        err = range_each(s->calls, from, end, revision, on_load, &l, NULL, e);
    }
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

/* The first write of the chain that is not part of this transaction: a key can be written once in
 * one. */
static const struct store_write *batch_end(const struct store_write *first)
{
    size_t count = 0, bytes = 0;
    const struct store_write *w = first;
    for (; w != NULL && count < TXN_WRITES_MAX; w = w->private.next, count++) {
        bytes += 256 + (w->value != NULL ? strlen(w->value) : 0);
        if (count > 0 && (bytes > TXN_BYTES_MAX || key_is_in(first, w)))
            break;
    }
    return w;
}

/* Under the mutex. */
static uint64_t revision_of(const struct etcd_store *s, const struct store_write *w)
{
    return (uint64_t)(uintptr_t)map_get(&s->revisions[w->kind], w->id);
}

static void txn_add(struct etcd_store *s, struct txn *t, const struct store_write *w,
                    uint64_t *next_id)
{
    char key[96];
    record_key(w->kind, w->id, key, sizeof(key));
    json_array_append_new(t->compare, compare_revision(key, revision_of(s, w)));
    if (w->value != NULL)
        json_array_append_new(t->success, put_of(key, json_pack("{s:i, s:s, s:s}", "format", FORMAT,
                                                                "op", t->op, "value", w->value)));
    else
        json_array_append_new(t->success,
                              json_pack("{s:{s:o}}", "requestDeleteRange", "key", key_json(key)));
    *next_id = MAX(*next_id, MAX(w->next_id, w->id + 1));
}

static void txn_written(struct etcd_store *s, const struct store_write *first,
                        const struct store_write *end, uint64_t revision, uint64_t next_id)
{
    for (const struct store_write *w = first; w != end; w = w->private.next)
        if (w->value != NULL)
            map_put(&s->revisions[w->kind], w->id, (void *)(uintptr_t)revision);
        else
            (void)map_remove(&s->revisions[w->kind], w->id);
    if (next_id > s->next_id) {
        s->next_id = next_id;
        s->next_id_revision = revision;
    }
}

/* Who is in the way: another leader, or something that is no control plane. */
static enum err conflict(struct etcd_store *s, uint64_t epoch, struct error *e)
{
    uint64_t revision = 0;
    pthread_mutex_lock(&s->mutex);
    uint64_t ours = s->epoch_revision;
    pthread_mutex_unlock(&s->mutex);
    enum err err = epoch_read(s, &revision, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    bool stale = s->epoch_revision != ours || s->epoch != epoch;
    pthread_mutex_unlock(&s->mutex);
    return stale ? error_set(e, ERR_STALE, "another control plane leads now (epoch %" PRIu64 ")",
                             s->epoch)
                 : error_set(e, ERR_CONFLICT,
                             "etcd's keys below " PREFIX " were changed by something else");
}

static enum err commit(void *self, uint64_t epoch, const struct store_write *first,
                       size_t *ret_count, struct error *e)
{
    struct etcd_store *s = self;
    const struct store_write *end = batch_end(first);
    char op[33], probe[96];
    uint64_t revision = 0, next_id = 0;
    op_make(op);
    record_key(first->kind, first->id, probe, sizeof(probe));
    struct txn t = {.compare = json_array(),
                    .success = json_array(),
                    .probe = probe,
                    .probe_is_put = first->value != NULL,
                    .op = op};
    pthread_mutex_lock(&s->mutex);
    bool ours = s->epoch == epoch;
    t.probe_revision = revision_of(s, first);
    json_array_append_new(t.compare, compare_revision(EPOCH_KEY, s->epoch_revision));
    for (const struct store_write *w = first; w != end; w = w->private.next)
        txn_add(s, &t, w, &next_id);
    bool id_is_new = next_id > s->next_id || s->next_id_revision == 0;
    if (id_is_new)
        json_array_append_new(
            t.success,
            put_of(NEXT_ID_KEY, json_pack("{s:i, s:s, s:I}", "format", FORMAT, "op", op, "next_id",
                                          (json_int_t)MAX(next_id, s->next_id))));
    pthread_mutex_unlock(&s->mutex);
    enum err err = ours
                       ? txn_run(s, &t, &revision, e)
                       : error_set(e, ERR_STALE,
                                   "another control plane leads now (epoch %" PRIu64 ")", s->epoch);
    json_decref(t.compare);
    json_decref(t.success);
    if (err == ERR_CONFLICT)
        err = conflict(s, epoch, e);
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    txn_written(s, first, end, revision, next_id);
    pthread_mutex_unlock(&s->mutex);
    *ret_count = 0;
    for (const struct store_write *w = first; w != end; w = w->private.next)
        ++*ret_count;
    return ERR_OK;
}

/* The leader, now and then: history that nobody needs any more goes. */
static void tidy(void *self)
{
    struct etcd_store *s = self;
    struct error e = {0};
    if (now_ms() < s->compact_next_ms)
        return;
    s->compact_next_ms = now_ms() + COMPACT_PERIOD_MS;
    uint64_t oldest = s->compact_revisions[0];
    pthread_mutex_lock(&s->mutex);
    uint64_t newest = MAX(s->told_revision, s->epoch_revision);
    pthread_mutex_unlock(&s->mutex);
    memmove(s->compact_revisions, s->compact_revisions + 1,
            sizeof(s->compact_revisions) - sizeof(uint64_t));
    s->compact_revisions[COMPACT_KEPT - 1] = newest;
    if (oldest == 0)
        return;
    json_t *request = json_pack("{s:o}", "revision", number_json(oldest)), *answer = NULL;
    if (etcd_try(s->calls, "/v3/kv/compaction", request, 8 * ETCD_ATTEMPT_MS, &answer, &e) ==
        ERR_OK)
        json_decref(answer);
    json_decref(request); /* a failure is tried again in 5 minutes, with more to gain */
}

/* ---- following ---- */

struct follow {
    struct etcd_store *s;
    const struct store_feed *feed;
    struct map seen[STORE_KIND_COUNT]; /* of one listing */
    struct error error;
    enum err err;
};

/* What is news is told. Following thread. */
static enum err follow_kv(struct follow *f, const struct kv *kv, struct error *e)
{
    struct etcd_store *s = f->s;
    enum store_kind kind;
    uint64_t id;
    if (!key_parse(kv->key, &kind, &id)) {
        pthread_mutex_lock(&s->mutex);
        uint64_t before = s->epoch_revision;
        enum err err = meta_take(s, kv, e);
        bool news = err == ERR_OK && strcmp(kv->key, EPOCH_KEY) == 0 && kv->mod_revision >= before;
        uint64_t epoch = s->epoch;
        pthread_mutex_unlock(&s->mutex);
        if (news) {
            const char *leader = json_string_value(json_object_get(kv->value, "leader"));
            f->feed->on_epoch(f->feed->user, epoch, leader != NULL ? leader : "");
        }
        return err;
    }
    const char *value = kv->value != NULL ? record_value(kv, e) : NULL;
    if (kv->value != NULL && value == NULL)
        return ERR_CORRUPT;
    pthread_mutex_lock(&s->mutex);
    bool news = kv->mod_revision > (uint64_t)(uintptr_t)map_get(&s->revisions[kind], id);
    if (value != NULL && news)
        map_put(&s->revisions[kind], id, (void *)(uintptr_t)kv->mod_revision);
    else if (value == NULL && news)
        (void)map_remove(&s->revisions[kind], id);
    s->next_id = MAX(s->next_id, id + 1);
    pthread_mutex_unlock(&s->mutex);
    if (news)
        f->feed->on_record(f->feed->user, kind, id, value);
    return ERR_OK;
}

static enum err on_listed(void *user, const struct kv *kv, struct error *e)
{
    struct follow *f = user;
    enum store_kind kind;
    uint64_t id;
    if (key_parse(kv->key, &kind, &id))
        map_put(&f->seen[kind], id, f);
    return follow_kv(f, kv, e);
}

/* What was there and is not listed went while nobody looked. */
static void forget_unseen(struct follow *f, enum store_kind kind, uint64_t revision)
{
    struct etcd_store *s = f->s;
    struct map kept = {0};
    uint64_t *gone;
    size_t count = 0;
    pthread_mutex_lock(&s->mutex);
    gone = mem_new_array(s->revisions[kind].count + 1, sizeof(*gone));
    for (size_t i = 0; i < s->revisions[kind].capacity; i++) {
        const struct map_entry *entry = &s->revisions[kind].entries[i];
        if (entry->value == NULL)
            continue;
        if (map_get(&f->seen[kind], entry->key) != NULL ||
            (uint64_t)(uintptr_t)entry->value > revision)
            map_put(&kept, entry->key, entry->value);
        else
            gone[count++] = entry->key;
    }
    map_done(&s->revisions[kind]);
    s->revisions[kind] = kept;
    pthread_mutex_unlock(&s->mutex);
    for (size_t i = 0; i < count; i++)
        f->feed->on_record(f->feed->user, kind, gone[i], NULL);
    free(gone);
}

static void told_up_to(struct etcd_store *s, uint64_t revision)
{
    pthread_mutex_lock(&s->mutex);
    s->told_revision = MAX(s->told_revision, revision);
    pthread_cond_broadcast(&s->told);
    pthread_mutex_unlock(&s->mutex);
}

static enum err list_all(struct follow *f, uint64_t *ret_revision, struct error *e)
{
    enum err err = range_each(f->s->watch, PREFIX, PREFIX_END, 0, on_listed, f, ret_revision, e);
    for (int kind = 0; kind < STORE_KIND_COUNT; kind++) {
        if (err == ERR_OK)
            forget_unseen(f, (enum store_kind)kind, *ret_revision);
        map_done(&f->seen[kind]);
    }
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&f->s->mutex);
    f->s->epoch_known = true; /* also that there is none yet */
    pthread_mutex_unlock(&f->s->mutex);
    told_up_to(f->s, *ret_revision);
    return ERR_OK;
}

static bool on_watch_message(void *user, const json_t *message)
{
    struct follow *f = user;
    const json_t *result = json_object_get(message, "result"),
                 *events = json_object_get(result, "events");
    json_t *event;
    size_t i;
    if (result == NULL || json_is_true(json_object_get(result, "canceled")))
        return false; /* compacted, or the member goes: list again */
    json_array_foreach(events, i, event)
    {
        const char *type = json_string_value(json_object_get(event, "type"));
        struct kv kv = {0};
        f->err = kv_read(json_object_get(event, "kv"), type != NULL && strcmp(type, "DELETE") == 0,
                         &kv, &f->error);
        if (f->err == ERR_OK)
            f->err = follow_kv(f, &kv, &f->error);
        kv_done(&kv);
        if (f->err != ERR_OK)
            return false;
    }
    told_up_to(f->s, etcd_number(json_object_get(result, "header"), "revision"));
    return true;
}

static enum err watch(struct follow *f, uint64_t revision, const atomic_bool *stop, struct error *e)
{
    json_t *request =
        json_pack("{s:{s:o, s:o, s:o}}", "create_request", "key", key_json(PREFIX), "range_end",
                  key_json(PREFIX_END), "start_revision", number_json(revision + 1));
    f->err = ERR_OK;
    enum err err =
        etcd_stream(f->s->watch, "/v3/watch", request, RELIST_MS, stop, on_watch_message, f, e);
    json_decref(request);
    if (f->err != ERR_OK)
        *e = f->error;
    return f->err != ERR_OK ? f->err : err;
}

static bool is_for_ever(enum err err)
{
    return err == ERR_CORRUPT || err == ERR_VERSION;
}

static enum err follow(void *self, const struct store_feed *feed, const atomic_bool *stop,
                       struct error *e)
{
    struct follow f = {.s = self, .feed = feed};
    bool synced = false;
    while (!atomic_load(stop)) {
        uint64_t revision = 0;
        enum err err = list_all(&f, &revision, e);
        if (err == ERR_OK && !synced)
            feed->on_synced(feed->user);
        synced |= err == ERR_OK;
        if (err == ERR_OK)
            err = watch(&f, revision, stop, e);
        if (is_for_ever(err))
            return err;
        feed->on_reached(feed->user, err == ERR_OK, err == ERR_OK ? "" : e->text);
        if (err != ERR_OK)
            pause_ms(50);
    }
    return ERR_OK;
}

static void catch_up(void *self)
{
    struct etcd_store *s = self;
    struct timespec end;
    (void)clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 30; /* a listing in between may be large */
    pthread_mutex_lock(&s->mutex);
    while (s->told_revision < s->epoch_revision &&
           pthread_cond_timedwait(&s->told, &s->mutex, &end) == 0)
        ;
    pthread_mutex_unlock(&s->mutex);
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
    enum err err = etcd_read(s->calls, "/version", NULL, &answer, e);
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
    enum err err = etcd_read(s->calls, "/v3/cluster/member/list", request, &answer, e);
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
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->told, NULL);
    s->name = mem_strndup(where, at != NULL ? (size_t)(at - where) : 0);
    s->compact_next_ms = now_ms() + COMPACT_PERIOD_MS;
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
    .load = load,
    .commit = commit,
    .tidy = tidy,
    .follow = follow,
    .catch_up = catch_up,
    .next_id = next_id,
    .close = store_etcd_close,
};
