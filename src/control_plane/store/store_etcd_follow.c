/* store_etcd_follow.c - a follower's copy: listed, then watched, listed again every 30 s, or less
 * often where that would take more than a fiftieth of the time.
 *
 * A watch is a hint: it may be silent, late, or leave something out. What is told is compared with
 * the revisions that are known, so that a repetition does nothing; a commit that was left out shows
 * in the head's version, and the next listing brings it. Who has taken the epoch leads only after
 * it was told all up to that revision: when the watch does not show it at once, by a listing from
 * another member. */
#include "control_plane/store/store_etcd_internal.h"
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RELIST_MS 30000u
#define RELIST_SHARE 50u
#define LIST_LATER_MS 5000u /* when it was given up for something more urgent */
#define CATCH_UP_MS 100u    /* a watch that works goes on within that, however far it is behind */
#define PAUSE_MS 50

struct follow {
    struct etcd_store *s;
    const struct store_feed *feed;
    struct map seen[STORE_KIND_COUNT]; /* of one listing */
    bool record_seen, epoch_seen, head_seen;
    uint64_t head_version, epoch_told; /* epoch_told: its revision */
    bool broken;                       /* the watch: list again */
    bool is_again;                     /* listed before, and nothing is known to be missed since */
    uint64_t list_due_ms;              /* to be listed again all the same */
    struct error error;
    enum err err;
    /* The revision whose changes are being told: each commit of ours changes epoch or head too. */
    uint64_t group_revision;
    bool group_has_meta;
    char group_key[ETCD_KEY_BYTES];
};

/* ---- one change ---- */

static enum err meta_follow(struct follow *f, const struct etcd_kv *kv, struct error *e)
{
    struct etcd_store *s = f->s;
    bool is_epoch = strcmp(kv->key, ETCD_EPOCH_KEY) == 0;
    pthread_mutex_lock(&s->mutex);
    enum err err = store_etcd_take_meta(s, kv, e);
    uint64_t epoch = s->epoch;
    if (err == ERR_OK && !is_epoch)
        s->told_head = MAX(s->told_head, kv->mod_revision);
    pthread_mutex_unlock(&s->mutex);
    if (err != ERR_OK || !is_epoch || kv->mod_revision <= f->epoch_told)
        return err;
    const char *leader = json_string_value(json_object_get(kv->value, "leader"));
    f->epoch_told = kv->mod_revision;
    f->feed->on_epoch(f->feed->user, epoch, leader != NULL ? leader : "");
    return ERR_OK;
}

static enum err record_follow(struct follow *f, const struct etcd_kv *kv, enum store_kind kind,
                              uint64_t id, struct error *e)
{
    struct etcd_store *s = f->s;
    const char *value = kv->value != NULL ? etcd_kv_record(kv, e) : NULL;
    if (kv->value != NULL && value == NULL)
        return ERR_CORRUPT;
    pthread_mutex_lock(&s->mutex);
    uint64_t known = (uint64_t)(uintptr_t)map_get(&s->revisions[kind], id);
    /* What we wrote ourselves is noted already, and may be gone again. */
    bool news = kv->mod_revision > MAX(known, s->written_revision);
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

static enum err kv_follow(struct follow *f, const struct etcd_kv *kv, struct error *e)
{
    enum store_kind kind;
    uint64_t id;
    return etcd_key_parse(kv->key, &kind, &id) ? record_follow(f, kv, kind, id, e)
           : strcmp(kv->key, ETCD_EPOCH_KEY) == 0 || strcmp(kv->key, ETCD_HEAD_KEY) == 0
               ? meta_follow(f, kv, e)
               : ERR_OK; /* of a newer Dirigent */
}

/* ---- listing ---- */

static enum err on_listed(void *user, const struct etcd_kv *kv, struct error *e)
{
    struct follow *f = user;
    enum store_kind kind;
    uint64_t id;
    if (f->is_again && atomic_load(&f->s->hurry))
        return ERR_BUSY;
    if (etcd_key_parse(kv->key, &kind, &id)) {
        map_put(&f->seen[kind], id, f);
        f->record_seen = true;
    }
    f->epoch_seen |= strcmp(kv->key, ETCD_EPOCH_KEY) == 0;
    if (strcmp(kv->key, ETCD_HEAD_KEY) == 0) {
        f->head_seen = true;
        f->head_version = kv->version;
    }
    return kv_follow(f, kv, e);
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

/* Whether what was listed can be ours. */
static enum err listing_check(const struct follow *f, uint64_t revision, struct error *e)
{
    if (revision < f->s->told_revision)
        return error_set(e, ERR_CONFLICT,
                         "etcd went back from revision %" PRIu64 " to %" PRIu64
                         ": it was restored from a backup",
                         f->s->told_revision, revision);
    if (!f->epoch_seen && (f->record_seen || f->head_seen || f->epoch_told > 0))
        return store_etcd_missing(ETCD_EPOCH_KEY, e);
    return f->record_seen && !f->head_seen ? store_etcd_missing(ETCD_HEAD_KEY, e) : ERR_OK;
}

static enum err list_all(struct follow *f, struct error *e)
{
    struct etcd_store *s = f->s;
    struct etcd_range r = {
        .etcd = s->watch, .key = ETCD_PREFIX, .end = ETCD_PREFIX_END, .on = on_listed, .user = f};
    f->record_seen = f->epoch_seen = f->head_seen = false;
    f->head_version = 0;
    enum err err = etcd_range_each(&r, e);
    if (err == ERR_OK)
        err = listing_check(f, r.revision, e);
    for (int kind = 0; kind < STORE_KIND_COUNT; kind++) {
        if (err == ERR_OK)
            forget_unseen(f, (enum store_kind)kind, r.revision);
        map_done(&f->seen[kind]);
    }
    if (err != ERR_OK)
        return err;
    pthread_mutex_lock(&s->mutex);
    s->epoch_known = true; /* also that there is none yet */
    s->told_revision = MAX(s->told_revision, r.revision);
    s->listed_revision = r.revision;
    pthread_cond_broadcast(&s->told);
    pthread_mutex_unlock(&s->mutex);
    return ERR_OK;
}

/* ---- watching ---- */

/* While we lead, nobody but us changes records. */
static enum err group_end(struct follow *f)
{
    struct etcd_store *s = f->s;
    pthread_mutex_lock(&s->mutex);
    bool leads = s->own_epoch != 0 && s->epoch_revision == s->own_revision;
    bool foreign = leads && f->group_revision > s->own_revision && f->group_key[0] != '\0' &&
                   !f->group_has_meta;
    pthread_mutex_unlock(&s->mutex);
    return foreign ? error_set(&f->error, ERR_CONFLICT,
                               "etcd's key %s was changed by something else", f->group_key)
                   : ERR_OK;
}

static enum err group_take(struct follow *f, const struct etcd_kv *kv)
{
    enum store_kind kind;
    uint64_t id;
    enum err err = ERR_OK;
    if (kv->mod_revision != f->group_revision) {
        err = group_end(f);
        f->group_revision = kv->mod_revision;
        f->group_has_meta = false;
        f->group_key[0] = '\0';
    }
    if (etcd_key_parse(kv->key, &kind, &id))
        memcpy(f->group_key, kv->key, sizeof(f->group_key));
    else
        f->group_has_meta = true;
    return err;
}

/* Whether a commit was left out before this one. */
static bool head_is_next(struct follow *f, const struct etcd_kv *kv)
{
    if (strcmp(kv->key, ETCD_HEAD_KEY) != 0 || kv->value == NULL)
        return true;
    bool next = kv->version == f->head_version + 1;
    f->head_version = kv->version;
    return next;
}

static enum err event_take(struct follow *f, const json_t *event)
{
    const char *type = json_string_value(json_object_get(event, "type"));
    struct etcd_kv kv = {0};
    enum err err = etcd_kv_read(json_object_get(event, "kv"),
                                type != NULL && strcmp(type, "DELETE") == 0, &kv, &f->error);
    if (err == ERR_OK)
        err = group_take(f, &kv);
    if (err == ERR_OK)
        err = kv_follow(f, &kv, &f->error);
    if (err == ERR_OK)
        f->broken |= !head_is_next(f, &kv);
    etcd_kv_done(&kv);
    return err;
}

static bool on_watch_message(void *user, const json_t *message)
{
    struct follow *f = user;
    struct etcd_store *s = f->s;
    const json_t *result = json_object_get(message, "result"),
                 *events = json_object_get(result, "events");
    json_t *event;
    size_t i;
    if (result == NULL) { /* the member goes, or has lost its leader */
        f->err = error_set(&f->error, ERR_UNREACHABLE, "etcd at %s ended a watch",
                           etcd_endpoint(s->watch));
        etcd_avoid(s->watch);
        return false;
    }
    f->broken |= json_is_true(json_object_get(result, "canceled")); /* compacted */
    json_array_foreach(events, i, event)
    {
        if (f->err == ERR_OK && !f->broken)
            f->err = event_take(f, event);
    }
    if (f->err == ERR_OK)
        f->err = group_end(f);
    if (f->err != ERR_OK || f->broken)
        return false;
    /* Not by the message's own revision: the first one, without events, has the newest, before what
     * led to it was sent. */
    pthread_mutex_lock(&s->mutex);
    s->watching = true;
    if (json_array_size(events) > 0)
        s->told_revision = MAX(s->told_revision, f->group_revision);
    pthread_cond_broadcast(&s->told);
    pthread_mutex_unlock(&s->mutex);
    return true;
}

/* Without one nothing new is told, and nothing is lost either. */
static void on_majority(void *user, bool has_majority)
{
    struct follow *f = user;
    f->feed->on_reached(f->feed->user, has_majority,
                        has_majority ? "" : "the member of etcd that is watched has no majority");
}

static enum err watch(struct follow *f, const atomic_bool *stop, struct error *e)
{
    struct etcd_store *s = f->s;
    uint64_t now_ms = etcd_now_ms();
    uint32_t for_ms = (uint32_t)(MAX(f->list_due_ms, now_ms + PAUSE_MS) - now_ms);
    json_t *request = json_pack(
        "{s:{s:o, s:o, s:o}}", "create_request", "key", etcd_key_json(ETCD_PREFIX), "range_end",
        etcd_key_json(ETCD_PREFIX_END), "start_revision", etcd_number_json(s->told_revision + 1));
    f->err = ERR_OK;
    f->broken = false;
    f->group_revision = 0;
    f->group_key[0] = '\0';
    enum err err = etcd_stream(s->watch, "/v3/watch", request, for_ms, stop, &s->elsewhere,
                               on_watch_message, on_majority, f, e);
    json_decref(request);
    pthread_mutex_lock(&s->mutex);
    s->watching = false;
    pthread_mutex_unlock(&s->mutex);
    if (f->err != ERR_OK)
        *e = f->error;
    return f->err != ERR_OK ? f->err : err;
}

static bool is_for_ever(enum err err)
{
    return err == ERR_CORRUPT || err == ERR_VERSION || err == ERR_CONFLICT;
}

/* All. Where it was listed before and has been watched, it is given up when somebody cannot wait
 * for it: what is told goes on where it was. */
static enum err list_again(struct follow *f, struct error *e)
{
    uint64_t begin_ms = etcd_now_ms(), head_version = f->head_version;
    enum err err = list_all(f, e);
    uint64_t now_ms = etcd_now_ms();
    if (err == ERR_BUSY && f->is_again) {
        f->head_version = head_version;
        f->list_due_ms = now_ms + LIST_LATER_MS;
        return ERR_OK;
    }
    if (err == ERR_OK) {
        f->is_again = true;
        f->list_due_ms = now_ms + MAX((uint64_t)RELIST_MS, RELIST_SHARE * (now_ms - begin_ms));
    }
    return err;
}

/* Only whether a majority is reached, and still has all of what we were told. */
static enum err reach(struct follow *f, struct error *e)
{
    struct etcd_range r = {.etcd = f->s->watch, .key = ETCD_EPOCH_KEY, .on = on_listed, .user = f};
    f->epoch_seen = false;
    enum err err = etcd_range_each(&r, e);
    return err == ERR_OK ? listing_check(f, r.revision, e) : err == ERR_BUSY ? ERR_OK : err;
}

/* The watch goes on after what was told last, which a listing goes before when something may have
 * been missed, and now and then. */
static enum err round_of(struct follow *f, const atomic_bool *stop, bool *synced, struct error *e)
{
    if (atomic_exchange(&f->s->elsewhere, false))
        etcd_avoid(f->s->watch); /* its watch was silent for too long */
    if (atomic_exchange(&f->s->relist, false))
        f->is_again = false;
    bool lists = !f->is_again || etcd_now_ms() >= f->list_due_ms;
    enum err err = lists ? list_again(f, e) : reach(f, e);
    if (err != ERR_OK)
        return err;
    if (!*synced)
        f->feed->on_synced(f->feed->user);
    *synced = true;
    f->feed->on_reached(f->feed->user, true, "");
    err = watch(f, stop, e);
    f->is_again &= !f->broken;
    return err;
}

enum err store_etcd_follow(void *self, const struct store_feed *feed, const atomic_bool *stop,
                           struct error *e)
{
    struct follow f = {.s = self, .feed = feed};
    bool synced = false;
    enum err err = ERR_OK;
    etcd_stop_by(f.s->watch, stop);
    while (!atomic_load(stop)) {
        err = round_of(&f, stop, &synced, e);
        if (is_for_ever(err))
            break;
        if (err != ERR_OK)
            feed->on_reached(feed->user, false, e->text);
        if (err != ERR_OK || f.broken)
            (void)poll(NULL, 0, PAUSE_MS);
    }
    pthread_mutex_lock(&f.s->mutex);
    f.s->follow_ended = true;
    pthread_cond_broadcast(&f.s->told);
    pthread_mutex_unlock(&f.s->mutex);
    return is_for_ever(err) ? err : ERR_OK;
}

/* ---- catching up ---- */

/* Under the mutex: all up to the revision of our epoch has been told. */
static bool has_all(const struct etcd_store *s)
{
    return s->listed_revision >= s->own_revision ||
           (s->told_revision >= s->own_revision && s->told_head >= s->own_head);
}

static bool is_watching(const struct etcd_store *s)
{
    return s->watching || has_all(s);
}

/* Under the mutex: until it is so. */
static bool wait_for(struct etcd_store *s, bool (*is_so)(const struct etcd_store *s), uint64_t ms)
{
    struct timespec end;
    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    uint64_t end_ns = (uint64_t)end.tv_sec * NS_PER_S + (uint64_t)end.tv_nsec + ms * NS_PER_MS;
    end.tv_sec = (time_t)(end_ns / NS_PER_S);
    end.tv_nsec = (long)(end_ns % NS_PER_S);
    while (!is_so(s) && !s->follow_ended && pthread_cond_timedwait(&s->told, &s->mutex, &end) == 0)
        ;
    return is_so(s);
}

/* Under the mutex: for as long as a watch has more to tell. One that is being opened has its time.
 */
static bool wait_for_watch(struct etcd_store *s)
{
    uint64_t told, end_ms = etcd_end_ms();
    bool has;
    (void)wait_for(s, is_watching, ETCD_DEADLINE_MS);
    do {
        told = s->told_revision;
        has = wait_for(s, has_all, CATCH_UP_MS);
    } while (!has && s->told_revision > told && etcd_now_ms() < end_ms);
    return has;
}

/* Under the mutex. */
static void go_elsewhere(struct etcd_store *s, bool lists)
{
    s->watching = false;
    atomic_store(&s->relist, lists);
    atomic_store(&s->elsewhere, true);
}

enum err store_etcd_catch_up(void *self, struct error *e)
{
    struct etcd_store *s = self;
    atomic_store(&s->hurry, true);
    pthread_mutex_lock(&s->mutex);
    bool has = wait_for_watch(s);
    if (!has) {
        go_elsewhere(s, false);
        has = wait_for_watch(s);
    }
    if (!has) { /* both have left something out */
        go_elsewhere(s, true);
        has = wait_for(s, has_all, ETCD_DEADLINE_MS);
    }
    atomic_store(&s->hurry, false);
    bool ended = s->follow_ended;
    uint64_t epoch = s->own_epoch;
    pthread_mutex_unlock(&s->mutex);
    if (has)
        return ERR_OK;
    return error_set(
        e, ended ? ERR_CLOSED : ERR_TIMEOUT,
        "epoch %" PRIu64 " was taken, but not all that was written before it could be read", epoch);
}
