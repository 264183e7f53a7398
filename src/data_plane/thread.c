/* thread.c - the life of one serving thread and what it is told from outside. */
#include "base/log.h"
#include "data_plane/proxy.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

/* ---- small services for the other files ---- */

/* The text changes once a second; the wall clock is read then. */
struct str thread_date(struct thread *t)
{
    uint64_t now = now_ns(t);
    if (now >= t->date_until_ns) {
        uint64_t real_ms = clock_real_ms();
        head_write_date(real_ms / MS_PER_S, t->date);
        t->date_until_ns = now + (MS_PER_S - real_ms % MS_PER_S) * NS_PER_MS;
    }
    return (struct str){t->date, HEAD_DATE_BYTES};
}

struct buf thread_spare_head(struct thread *t)
{
    return t->spare_count > 0 ? t->spare_heads[--t->spare_count] : (struct buf){0};
}

void thread_keep_head(struct thread *t, struct buf *head)
{
    head->bytes = 0;
    if (head->data == NULL || head->capacity > HEAD_KEPT_BYTES_MAX ||
        t->spare_count == SPARE_HEADS_MAX) {
        buf_done(head);
        return;
    }
    t->spare_heads[t->spare_count++] = *head;
    *head = (struct buf){0};
}

struct route_stats *thread_stats(struct thread *t, struct thread_route *tr)
{
    if (tr->stats == NULL) {
        tr->stats = mem_new(sizeof(*tr->stats));
        atomic_store_explicit(&tr->route->stats[t->index], tr->stats, memory_order_release);
    }
    return tr->stats;
}

const struct thread_counters *thread_counters(const struct thread *t)
{
    return &t->counters;
}

struct report {
    struct loop_post post;
    struct thread_shared *shared;
    uint64_t sandbox_id;
    bool is_told;
    char reason[160];
};

static void on_report(struct loop_post *post)
{
    struct report *r = container_of(post, struct report, post);
    r->shared->on_endpoint_failed(r->shared, r->sandbox_id,
                                  r->is_told ? r->reason : NULL);
    free(r);
}

void thread_report_endpoint(struct thread *t, uint64_t sandbox_id, const char *reason)
{
    struct report *r = mem_new(sizeof(*r));
    r->post.on_post = on_report;
    r->shared = t->shared;
    r->sandbox_id = sandbox_id;
    r->is_told = reason != NULL;
    snprintf(r->reason, sizeof(r->reason), "%s", reason != NULL ? reason : "");
    loop_post(t->shared->control_loop, &r->post);
}

/* ---- the table ---- */

static void route_let_go(struct thread *t, struct thread_route *tr)
{
    struct route *r = tr->route;
    free(tr);
    if (atomic_fetch_sub(&r->threads_left, 1) == 1)
        loop_post(t->shared->control_loop, &r->gone_post);
}

void thread_route_leave(struct thread *t, struct thread_route *tr)
{
    if (--tr->users == 0 && tr->removed)
        route_let_go(t, tr);
}

static void route_add(struct thread *t, struct route *r)
{
    struct thread_route *tr = mem_new(sizeof(*tr));
    tr->route = r;
    strmap_put(&t->table, str_of(r->name), tr);
}

/* A function of the same name may have taken the place already. */
static void route_remove(struct thread *t, struct route *r)
{
    struct thread_route *tr = strmap_get(&t->table, str_of(r->name));
    assert(tr != NULL && tr->route == r);
    (void)strmap_remove(&t->table, str_of(r->name));
    tr->removed = true;
    if (tr->users == 0)
        route_let_go(t, tr);
}

static void carry_out(struct thread *t, const struct update_item *item)
{
    struct pool *pool;
    switch (item->kind) {
    case ROUTE_ADD:
        route_add(t, item->route);
        break;
    case ROUTE_REMOVE:
        route_remove(t, item->route);
        break;
    case SANDBOX_DRAINS:
        pool = map_get(&t->pools, item->sandbox_id);
        if (pool != NULL)
            pool_drain(pool);
        break;
    case SANDBOX_GONE:
        pool = map_get(&t->pools, item->sandbox_id);
        if (pool != NULL)
            pool_gone(pool);
        break;
    }
}

static void on_update_done(struct loop_post *post)
{
    struct update *u = container_of(post, struct update, done);
    u->on_done(u);
}

static void on_update(struct loop_post *post)
{
    struct update_post *p = container_of(post, struct update_post, post);
    struct update *u = p->update;
    struct thread *t = p->thread;
    for (size_t i = 0; i < u->count; i++)
        carry_out(t, &u->items[i]);
    if (atomic_fetch_sub(&u->threads_left, 1) == 1)
        loop_post(t->shared->control_loop, &u->done);
}

void threads_update(struct thread_shared *shared, struct update *u)
{
    u->done.on_post = on_update_done;
    u->threads_left = shared->thread_count;
    for (uint32_t i = 0; i < shared->thread_count; i++) {
        u->posts[i] = (struct update_post){
            .post.on_post = on_update, .update = u, .thread = shared->threads[i]};
        loop_post(shared->threads[i]->loop, &u->posts[i].post);
    }
}

struct forget {
    struct loop_post post;
    struct thread *thread;
    uint64_t sandbox_id;
};

static void on_forget(struct loop_post *post)
{
    struct forget *f = container_of(post, struct forget, post);
    struct pool *pool = map_get(&f->thread->pools, f->sandbox_id);
    if (pool != NULL)
        pool_forget_idle(pool);
    free(f);
}

void thread_post_forget(struct thread *t, uint64_t sandbox_id)
{
    struct forget *f = mem_new(sizeof(*f));
    *f = (struct forget){.post.on_post = on_forget, .thread = t, .sandbox_id = sandbox_id};
    loop_post(t->loop, &f->post);
}

/* ---- time ---- */

static void on_sweep(struct loop_timer *timer)
{
    struct thread *t = container_of(timer, struct thread, sweep);
    size_t cursor = 0;
    struct pool *pool;
    while ((pool = map_next(&t->pools, &cursor)) != NULL)
        pool_sweep(pool); /* closes later: the map does not change here */
    loop_timer_start(t->loop, timer, now_ns(t) + SWEEP_PERIOD_NS);
}

/* What a client's turn does to the pools must not happen while they are walked. */
static void on_ack_timer(struct loop_timer *timer)
{
    struct thread *t = container_of(timer, struct thread, ack_timer);
    struct client *unheard[256];
    size_t cursor = 0, count = 0;
    bool awaits = false;
    struct pool *pool;
    while ((pool = map_next(&t->pools, &cursor)) != NULL)
        count += pool_unheard(pool, unheard + count, ARRAY_COUNT(unheard) - count, &awaits);
    t->acks_awaited = false;
    for (size_t i = 0; i < count; i++)
        exchange_unheard(unheard[i]);
    if (awaits)
        thread_await_ack(t);
}

void thread_await_ack(struct thread *t)
{
    if (t->acks_awaited)
        return;
    t->acks_awaited = true;
    loop_timer_start(t->loop, &t->ack_timer, now_ns(t) + ACK_CHECK_NS);
}

/* ---- connections ---- */

static void on_accept(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer)
{
    struct thread *t = container_of(listener, struct thread, listener);
    stat_add(&t->counters.accepted, 1);
    client_accept(t, fd, peer);
}

/* ---- end ---- */

static void close_pools(struct thread *t)
{
    struct pool *pool;
    for (size_t cursor = 0; (pool = map_next(&t->pools, &cursor)) != NULL; cursor = 0) {
        (void)map_remove(&t->pools, pool->sandbox_id);
        pool_close(pool);
    }
}

void thread_check_stopped(struct thread *t)
{
    if (!t->stopping || t->client_count > 0 || t->stopped_told)
        return;
    close_pools(t);
    if (t->upstream_count > 0)
        return;
    t->stopped_told = true;
    loop_stop(t->loop);
}

static void on_stop_timer(struct loop_timer *timer)
{
    struct thread *t = container_of(timer, struct thread, stop_timer);
    if (!list_is_empty(&t->clients))
        log_warn("data_plane.cut", LOG_U64("thread", t->index),
                 LOG_U64("requests", t->client_count));
    list_for_each(c, &t->clients, struct client, node) exchange_client_gone(c);
    thread_check_stopped(t);
}

static void on_stop(struct loop_post *post)
{
    struct thread *t = container_of(post, struct thread, stop_post);
    t->stopping = true;
    loop_listener_stop(&t->listener);
    loop_timer_stop(t->loop, &t->sweep);
    loop_timer_stop(t->loop, &t->ack_timer);
    list_for_each(c, &t->clients, struct client,
                  node) if (c->state == CLIENT_HEAD && c->in.bytes == 0) client_close(c);
    loop_timer_start(t->loop, &t->stop_timer, t->stop_deadline_ns);
    thread_check_stopped(t);
}

void thread_stop(struct thread *t, uint64_t deadline_ns)
{
    t->stop_deadline_ns = deadline_ns;
    loop_post(t->loop, &t->stop_post);
}

static void on_stopped(struct loop_post *post)
{
    struct thread *t = container_of(post, struct thread, stopped_post);
    t->shared->on_thread_stopped(t->shared);
}

static void *run(void *user)
{
    struct thread *t = user;
    loop_run(t->loop);
    loop_post(t->shared->control_loop, &t->stopped_post);
    return NULL;
}

/* ---- life ---- */

enum err thread_new(struct thread_shared *shared, uint32_t index, int listen_fd,
                    struct thread **ret_thread, struct error *e)
{
    struct thread *t = mem_new(sizeof(*t));
    uint64_t seed;
    t->shared = shared;
    t->index = index;
    list_init(&t->clients);
    loop_timer_init(&t->sweep, on_sweep);
    loop_timer_init(&t->ack_timer, on_ack_timer);
    loop_timer_init(&t->stop_timer, on_stop_timer);
    t->stop_post.on_post = on_stop;
    t->stopped_post.on_post = on_stopped;
    t->listener.on_accept = on_accept;
    enum err err = ERR_OK;
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        err = error_errno(e, "get a random seed");
    rng_init(&t->rng, seed);
    if (err == ERR_OK)
        err = loop_new(&t->loop, e);
    if (err != ERR_OK) {
        loop_free(t->loop);
        free(t);
        return err;
    }
    t->listen_fd = listen_fd;
    loop_timer_start(t->loop, &t->sweep, now_ns(t) + SWEEP_PERIOD_NS);
    *ret_thread = t;
    return ERR_OK;
}

enum err thread_start(struct thread *t, struct error *e)
{
    /* What it was told before is in force before it hears the first client. */
    loop_run_once(t->loop, 0);
    enum err err = loop_listener_start(t->loop, &t->listener, t->listen_fd, e);
    if (err != ERR_OK)
        return err;
    t->listen_fd = -1;
    int failure = pthread_create(&t->id, NULL, run, t);
    if (failure != 0)
        return error_set(e, ERR_NO_MEMORY, "start a thread: %s", strerror(failure));
    t->started = true;
    return ERR_OK;
}

void thread_join(struct thread *t)
{
    if (t->started)
        (void)pthread_join(t->id, NULL);
    t->started = false;
}

void thread_run_late(struct thread *t)
{
    assert(!t->started);
    loop_run_once(t->loop, 0);
}

void thread_free(struct thread *t)
{
    if (t == NULL)
        return;
    struct thread_route *tr;
    struct str name;
    assert(!t->started && t->client_count == 0);
    if (t->listener.poll.active)
        loop_listener_stop(&t->listener);
    fd_close(&t->listen_fd);
    loop_timer_stop(t->loop, &t->sweep);
    loop_timer_stop(t->loop, &t->ack_timer);
    loop_timer_stop(t->loop, &t->stop_timer);
    for (size_t cursor = 0; (tr = strmap_next(&t->table, &cursor, &name)) != NULL;)
        free(tr);
    loop_free(t->loop);
    strmap_done(&t->table);
    map_done(&t->pools);
    buf_done(&t->out);
    buf_done(&t->extra);
    while (t->spare_count > 0)
        buf_done(&t->spare_heads[--t->spare_count]);
    free(t);
}
