/* store.c - the store's thread: group commit over any back end. */
#include "control_plane/store/store_backend.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct store {
    const struct store_backend *backend;
    void *self;
    uint64_t epoch;
    struct loop *loop;
    bool started;
    pthread_t thread;

    store_on_lost *on_lost;
    void *on_lost_user;
    struct loop_post lost_post; /* sent at most once */
    enum err lost_err;          /* written by the store's thread before lost_post, read after it */
    struct error lost_error;

    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t wakeup;
    struct store_write *first, **last;
    bool closing;
    struct store_numbers numbers;
};

enum err store_open(const struct store_backend *backend, const char *where,
                    struct store **ret_store, struct error *e)
{
    struct store *s = mem_new(sizeof(*s));
    s->backend = backend;
    s->last = &s->first;
    enum err err = backend->open(where, &s->self, e);
    if (err != ERR_OK) {
        free(s);
        return err;
    }
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->wakeup, NULL);
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

static struct store_write *take_queue(struct store *s)
{
    pthread_mutex_lock(&s->mutex);
    while (s->first == NULL && !s->closing)
        pthread_cond_wait(&s->wakeup, &s->mutex);
    struct store_write *batch = s->first;
    s->first = NULL;
    s->last = &s->first;
    pthread_mutex_unlock(&s->mutex);
    return batch;
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
    s->lost_err = err;
    s->lost_error = *e;
    s->lost_post.on_post = on_lost_post;
    loop_post(s->loop, &s->lost_post);
}

static void *store_thread(void *argument)
{
    struct store *s = argument;
    struct error error = {0};
    bool lost = false;
    struct store_write *batch;
    while ((batch = take_queue(s)) != NULL) {
        uint64_t begin_ns = clock_mono_ns();
        enum err err = lost ? s->lost_err : s->backend->commit(s->self, s->epoch, batch, &error);
        note_numbers(s, batch, err, (clock_mono_ns() - begin_ns) / NS_PER_US);
        tell_batch(s, batch, err, &error);
        if (err != ERR_OK && err != ERR_NO_SPACE && !lost) {
            lost = true;
            tell_lost(s, err, &error);
        }
    }
    return NULL;
}

/* Signals are for the loop's thread. */
static int create_thread(struct store *s)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int failure = pthread_create(&s->thread, NULL, store_thread, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure == 0)
        pthread_setname_np(s->thread, "store");
    return failure;
}

/* ---- loop thread ---- */

enum err store_start(struct store *s, struct loop *loop, store_on_lost *on_lost, void *user,
                     struct error *e)
{
    assert(s->epoch > 0 && !s->started);
    s->loop = loop;
    s->on_lost = on_lost;
    s->on_lost_user = user;
    int failure = create_thread(s);
    if (failure != 0)
        return error_set(e, err_from_errno(failure), "start the store's thread: %s",
                         strerror(failure));
    s->started = true;
    return ERR_OK;
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

void store_stop(struct store *s)
{
    if (!s->started)
        return;
    pthread_mutex_lock(&s->mutex);
    s->closing = true;
    pthread_cond_signal(&s->wakeup);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->thread, NULL);
    s->started = false;
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
