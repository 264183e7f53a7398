/* store.c - the store's thread: group commit over any back end. */
#include "control_plane/store/store_backend.h"
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIDY_PERIOD_S 60

struct store {
    const struct store_backend *backend;
    void *self;
    uint64_t epoch;
    struct loop *loop;
    bool started;
    pthread_t thread;

    store_on_lost *on_lost;
    void *on_lost_user;
    atomic_flag lost_told;      /* both threads may lose the store: the first says so */
    struct loop_post lost_post; /* sent at most once */
    enum err lost_err;          /* written before lost_post is sent, read after it */
    struct error lost_error;

    struct store_follower follower;
    bool following;
    pthread_t follow_thread;
    atomic_bool stop; /* both threads come to an end */
    int reached;      /* following thread: 1, 0, -1: not told yet */

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t wakeup;
    struct store_write *first, **last;
    struct store_read *reads;
    bool closing, take; /* take: the epoch after take_newest is to be taken */
    uint64_t take_newest;
    struct store_numbers numbers;
};

enum err store_open(const struct store_backend *backend, const char *where,
                    struct store **ret_store, struct error *e)
{
    struct store *s = mem_new(sizeof(*s));
    s->backend = backend;
    s->last = &s->first;
    atomic_flag_clear(&s->lost_told);
    enum err err = backend->open(where, &s->self, e);
    if (err != ERR_OK) {
        free(s);
        return err;
    }
    pthread_condattr_t monotonic; /* the hosts' clocks are set back and forth */
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->wakeup, &monotonic);
    pthread_condattr_destroy(&monotonic);
    *ret_store = s;
    return ERR_OK;
}

enum err store_take_epoch(struct store *s, uint64_t *ret_epoch, struct error *e)
{
    assert(!s->started);
    enum err err = s->backend->take_epoch(s->self, &s->epoch, e);
    if (err == ERR_OK)
        *ret_epoch = s->epoch;
    return err;
}

enum err store_load(struct store *s, store_on_record *on_record, void *user, uint64_t *ret_next_id,
                    struct error *e)
{
    assert(!s->started);
    return s->backend->load(s->self, on_record, user, ret_next_id, e);
}

/* ---- loop thread: completions ---- */

static void on_write_post(struct loop_post *post)
{
    struct store_write *w = container_of(post, struct store_write, private.post);
    struct error error = w->private.error; /* the write may go in on_done */
    w->on_done(w, w->private.err, &error);
}

static void on_lost_post(struct loop_post *post)
{
    struct store *s = container_of(post, struct store, lost_post);
    s->on_lost(s->on_lost_user, s->lost_err, s->lost_error.text);
}

/* ---- store thread ---- */

struct work { /* for the store's thread, one at a time */
    struct store_write *batch;
    struct store_read *reads;
    bool take, end, idle;
    uint64_t newest;
};

static struct work take_work(struct store *s)
{
    struct work work = {0};
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += TIDY_PERIOD_S;
    pthread_mutex_lock(&s->mutex);
    while (s->first == NULL && s->reads == NULL && !s->closing && !s->take && !work.idle)
        work.idle = pthread_cond_timedwait(&s->wakeup, &s->mutex, &until) == ETIMEDOUT;
    work.take = s->take;
    work.newest = s->take_newest;
    s->take = false;
    work.batch = s->first;
    work.reads = s->reads;
    work.end = s->closing && s->first == NULL && s->reads == NULL;
    s->first = NULL;
    s->reads = NULL;
    s->last = &s->first;
    pthread_mutex_unlock(&s->mutex);
    return work;
}

static void tell_batch(struct store *s, struct store_write *batch, enum err err,
                       const struct error *e)
{
    while (batch != NULL) {
        struct store_write *w = batch;
        batch = w->private.next; /* the loop's thread may free it at once */
        w->private.err = err;
        w->private.error = *e;
        w->private.post.on_post = on_write_post;
        loop_post(s->loop, &w->private.post);
    }
}

static void note_numbers(struct store *s, const struct store_write *batch, enum err err,
                         uint64_t took_us)
{
    uint64_t count = 0;
    for (; batch != NULL; batch = batch->private.next)
        count++;
    pthread_mutex_lock(&s->mutex);
    s->numbers.writes += err == ERR_OK ? count : 0;
    s->numbers.failures += err == ERR_OK ? 0 : count;
    s->numbers.transactions++;
    s->numbers.commit_us_last = took_us;
    s->numbers.commit_us_max = MAX(s->numbers.commit_us_max, took_us);
    pthread_mutex_unlock(&s->mutex);
}

static void tell_lost(struct store *s, enum err err, const struct error *e)
{
    if (atomic_flag_test_and_set(&s->lost_told))
        return;
    s->lost_err = err;
    s->lost_error = *e;
    s->lost_post.on_post = on_lost_post;
    loop_post(s->loop, &s->lost_post);
}

struct taken_post {
    struct loop_post post;
    struct store *store;
    enum err err;
    uint64_t epoch, next_id;
    struct error error;
};

static void on_taken_post(struct loop_post *post)
{
    struct taken_post *p = container_of(post, struct taken_post, post);
    const struct store_follower *f = &p->store->follower;
    f->on_taken(f->user, p->err, p->epoch, p->next_id, &p->error);
    free(p);
}

static void take_now(struct store *s, uint64_t newest)
{
    struct taken_post *p = mem_new(sizeof(*p));
    p->post.on_post = on_taken_post;
    p->store = s;
    p->err = s->backend->take_epoch_after(s->self, newest, &p->epoch, &p->error);
    if (p->err == ERR_OK)
        p->err = s->backend->catch_up(s->self, &p->error);
    if (p->err == ERR_OK) {
        s->epoch = p->epoch;
        p->next_id = s->backend->next_id(s->self);
    }
    loop_post(s->loop, &p->post);
}

/* The first `count` of a chain, cut off. */
static struct store_write *chain_cut(struct store_write *first, size_t count)
{
    struct store_write *last = first;
    for (size_t i = 1; i < count; i++)
        last = last->private.next;
    struct store_write *rest = last->private.next;
    last->private.next = NULL;
    return rest;
}

/* ERR_OK, or why nothing more is to be written. */
static enum err write_batch(struct store *s, struct store_write *batch, enum err lost,
                            struct error *e)
{
    while (batch != NULL) {
        uint64_t begin_ns = clock_mono_ns();
        size_t count = 0;
        enum err err = lost != ERR_OK
                           ? lost
                           : s->backend->commit(s->self, s->epoch, batch, &s->stop, &count, e);
        bool is_part = err == ERR_OK || err == ERR_TOO_LARGE;
        struct store_write *rest = is_part ? chain_cut(batch, count) : NULL;
        note_numbers(s, batch, err, (clock_mono_ns() - begin_ns) / NS_PER_US);
        tell_batch(s, batch, err, e);
        batch = rest;
        if (!is_part && err != ERR_NO_SPACE)
            lost = err;
    }
    return lost;
}

static void on_read_post(struct loop_post *post)
{
    struct store_read *r = container_of(post, struct store_read, private.post);
    struct error error = r->private.error; /* the read may go in on_done */
    r->on_done(r, r->private.err, &error);
}

static void tell_read(struct store *s, struct store_read *r, enum err err)
{
    r->private.err = err;
    r->private.post.on_post = on_read_post;
    loop_post(s->loop, &r->private.post);
}

static void read_all(struct store *s, struct store_read *reads)
{
    while (reads != NULL) {
        struct store_read *r = reads;
        reads = r->private.next;
        tell_read(s, r,
                  s->backend->load(s->self, r->on_record, r->user, &r->next_id, &r->private.error));
    }
}

static void *store_thread(void *argument)
{
    struct store *s = argument;
    struct error error = {0};
    enum err lost = ERR_OK;
    for (struct work work; !(work = take_work(s)).end;) {
        if (work.take)
            take_now(s, work.newest);
        enum err err = write_batch(s, work.batch, lost, &error);
        if (err != ERR_OK && lost == ERR_OK && !atomic_load(&s->stop)) /* else it was cut short */
            tell_lost(s, err, &error);
        lost = err;
        read_all(s, work.reads);
        if (lost == ERR_OK && s->epoch > 0 && s->backend->tidy != NULL)
            s->backend->tidy(s->self);
    }
    return NULL;
}

/* ---- following thread: what it is told goes to the loop's ---- */

enum news { NEWS_RECORD, NEWS_EPOCH, NEWS_SYNCED, NEWS_REACHED };
struct news_post {
    struct loop_post post;
    struct store *store;
    enum news kind;
    enum store_kind record_kind;
    uint64_t number; /* id, epoch, reached */
    char *text;      /* value, leader, why; NULL: none */
};

static void on_news_post(struct loop_post *post)
{
    struct news_post *p = container_of(post, struct news_post, post);
    const struct store_follower *f = &p->store->follower;
    switch (p->kind) {
    case NEWS_RECORD:
        f->on_record(f->user, p->record_kind, p->number, p->text);
        break;
    case NEWS_EPOCH:
        f->on_epoch(f->user, p->number, p->text);
        break;
    case NEWS_SYNCED:
        f->on_synced(f->user);
        break;
    case NEWS_REACHED:
        f->on_reached(f->user, p->number != 0, p->text);
        break;
    }
    free(p->text);
    free(p);
}

static void post_news(struct store *s, enum news kind, enum store_kind record_kind, uint64_t number,
                      const char *text)
{
    struct news_post *p = mem_new(sizeof(*p));
    *p = (struct news_post){.post.on_post = on_news_post,
                            .store = s,
                            .kind = kind,
                            .record_kind = record_kind,
                            .number = number,
                            .text = text != NULL ? mem_strdup(text) : NULL};
    loop_post(s->loop, &p->post);
}

static void feed_record(void *user, enum store_kind kind, uint64_t id, const char *value)
{
    post_news(user, NEWS_RECORD, kind, id, value);
}

static void feed_epoch(void *user, uint64_t epoch, const char *leader)
{
    post_news(user, NEWS_EPOCH, 0, epoch, leader);
}

static void feed_synced(void *user)
{
    post_news(user, NEWS_SYNCED, 0, 0, NULL);
}

static void feed_reached(void *user, bool reached, const char *why)
{
    struct store *s = user;
    if (s->reached == reached)
        return;
    s->reached = reached;
    post_news(s, NEWS_REACHED, 0, reached, why);
}

static void *follow_thread(void *argument)
{
    struct store *s = argument;
    struct error error = {0};
    const struct store_feed feed = {s, feed_record, feed_epoch, feed_synced, feed_reached};
    enum err err = s->backend->follow(s->self, &feed, &s->stop, &error);
    if (err != ERR_OK)
        tell_lost(s, err, &error);
    return NULL;
}

/* Signals are for the loop's thread. */
static int create_thread(struct store *s, pthread_t *thread, void *(*run)(void *), const char *name)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int failure = pthread_create(thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure == 0)
        pthread_setname_np(*thread, name);
    return failure;
}

/* ---- loop thread ---- */

static enum err start_threads(struct store *s, bool follow, struct error *e)
{
    int failure = create_thread(s, &s->thread, store_thread, "store");
    s->started = failure == 0;
    if (failure == 0 && follow) {
        failure = create_thread(s, &s->follow_thread, follow_thread, "store-follow");
        s->following = failure == 0;
    }
    return failure == 0 ? ERR_OK
                        : error_set(e, err_from_errno(failure), "start the store's thread: %s",
                                    strerror(failure));
}

enum err store_start(struct store *s, struct loop *loop, store_on_lost *on_lost, void *user,
                     struct error *e)
{
    assert(s->epoch > 0 && !s->started);
    s->loop = loop;
    s->on_lost = on_lost;
    s->on_lost_user = user;
    return start_threads(s, false, e);
}

enum err store_follow(struct store *s, struct loop *loop, const struct store_follower *follower,
                      struct error *e)
{
    assert(!s->started);
    if (s->backend->follow == NULL)
        return error_set(e, ERR_UNSUPPORTED,
                         "the %s store is for one control plane: several need etcd",
                         s->backend->name);
    s->loop = loop;
    s->follower = *follower;
    s->on_lost = follower->on_lost;
    s->on_lost_user = follower->user;
    s->reached = -1;
    return start_threads(s, true, e);
}

void store_take(struct store *s, uint64_t newest)
{
    assert(s->following);
    pthread_mutex_lock(&s->mutex);
    s->take = true;
    s->take_newest = newest;
    pthread_cond_signal(&s->wakeup);
    pthread_mutex_unlock(&s->mutex);
}

void store_submit(struct store *s, struct store_write *write)
{
    assert(s->loop != NULL && write->id > 0 && write->kind < STORE_KIND_COUNT);
    write->private.next = NULL;
    if (!s->started) {
        struct error e = {0};
        enum err err = error_set(&e, ERR_CLOSED, "the control plane is stopping");
        tell_batch(s, write, err, &e);
        return;
    }
    pthread_mutex_lock(&s->mutex);
    assert(!s->closing);
    *s->last = write;
    s->last = &write->private.next;
    pthread_cond_signal(&s->wakeup);
    pthread_mutex_unlock(&s->mutex);
}

void store_read(struct store *s, struct store_read *read)
{
    assert(s->loop != NULL);
    read->private.next = NULL;
    read->private.error = (struct error){0};
    if (!s->started) {
        tell_read(s, read,
                  error_set(&read->private.error, ERR_CLOSED, "the control plane is stopping"));
        return;
    }
    pthread_mutex_lock(&s->mutex);
    assert(!s->closing);
    read->private.next = s->reads;
    s->reads = read;
    pthread_cond_signal(&s->wakeup);
    pthread_mutex_unlock(&s->mutex);
}

void store_stop(struct store *s)
{
    if (!s->started)
        return;
    pthread_mutex_lock(&s->mutex);
    s->closing = true;
    pthread_cond_signal(&s->wakeup);
    pthread_mutex_unlock(&s->mutex);
    atomic_store(&s->stop, true);
    pthread_join(s->thread, NULL);
    if (s->following)
        pthread_join(s->follow_thread, NULL);
    s->started = s->following = false;
}

void store_close(struct store *s)
{
    if (s == NULL)
        return;
    assert(!s->started);
    s->backend->close(s->self);
    pthread_cond_destroy(&s->wakeup);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

void store_numbers(struct store *s, struct store_numbers *ret)
{
    pthread_mutex_lock(&s->mutex);
    *ret = s->numbers;
    pthread_mutex_unlock(&s->mutex);
}
