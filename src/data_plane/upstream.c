/* upstream.c - connections to sandboxes: kept ones are used last in, first out; each carries one
 * request at a time. */
#include "data_plane/proxy.h"
#include <errno.h>
#include <linux/tcp.h> /* netinet/tcp.h lacks tcpi_bytes_acked */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

static const struct loop_stream_callbacks stream_callbacks;

static struct sandbox *sandbox_of(const struct dispatch_endpoint *endpoint)
{
    return endpoint->user;
}

/* ---- pools ---- */

static void on_gone_timer(struct loop_timer *timer)
{
    struct pool *p = container_of(timer, struct pool, gone_timer);
    /* What ended properly has told so by itself; what is silent since then will say nothing any
     * more. */
    list_for_each(u, &p->active, struct upstream,
                  node) if (u->client != NULL && u->received_ns <= p->gone_ns)
        exchange_sandbox_gone(u->client);
    if (!list_is_empty(&p->active)) {
        p->gone_ns = now_ns(p->thread);
        loop_timer_start(p->thread->loop, timer, p->gone_ns + GONE_GRACE_NS);
    }
}

struct pool *pool_of(struct thread *t, struct dispatch_endpoint *endpoint)
{
    struct pool *p = endpoint->thread_user[t->index];
    if (p != NULL)
        return p;
    p = mem_new(sizeof(*p));
    p->thread = t;
    p->sandbox_id = endpoint->sandbox_id;
    p->endpoint = endpoint;
    list_init(&p->idle);
    list_init(&p->active);
    loop_timer_init(&p->gone_timer, on_gone_timer);
    endpoint->thread_user[t->index] = p;
    map_put(&t->pools, p->sandbox_id, p);
    return p;
}

static void pool_free_when_empty(struct pool *p)
{
    if (!p->gone || !list_is_empty(&p->idle) || !list_is_empty(&p->active))
        return;
    loop_timer_stop(p->thread->loop, &p->gone_timer);
    free(p);
}

static void close_upstream(struct upstream *u)
{
    if (u->closing)
        return;
    u->closing = true;
    u->client = NULL;
    u->pool->idle_count -= u->is_idle;
    u->is_idle = false;
    loop_timer_stop(u->pool->thread->loop, &u->connect_timer);
    loop_stream_close(&u->stream);
}

void pool_forget_idle(struct pool *p)
{
    list_for_each(u, &p->idle, struct upstream, node) close_upstream(u);
}

/* What was not acknowledged yet is not waited for long. Where all was, the function takes its time,
 * and only its host is asked whether it is there: it is lost when three questions of a second each
 * have no answer. */
static void watch_host(struct upstream *u)
{
    int on = 1, after_s = 1, count = 3;
    unsigned unheard_ms = 2 * UPSTREAM_CONNECT_TIMEOUT_MS;
    struct tcp_info info = {0};
    socklen_t bytes = sizeof(info);
    int fd = u->stream.fd;
    if (fd < 0)
        return;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &after_s, sizeof(after_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &after_s, sizeof(after_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 && info.tcpi_unacked > 0)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unheard_ms, sizeof(unheard_ms));
}

void pool_drain(struct pool *p)
{
    pool_forget_idle(p);
    list_for_each(u, &p->active, struct upstream, node) if (u->client != NULL && u->connected)
        watch_host(u);
}

size_t pool_unheard(struct pool *p, struct client **ret_clients, size_t count_max,
                    bool *ret_awaits)
{
    uint64_t now = now_ns(p->thread);
    size_t count = 0;
    list_for_each(u, &p->active, struct upstream, node)
    {
        struct client *c = u->client;
        if (c == NULL || c->state != CLIENT_SENT || u->is_heard)
            continue;
        if (now - c->sent_ns < ACK_TIMEOUT_NS)
            *ret_awaits = true;
        else if (!upstream_took_nothing(u))
            u->is_heard = true;
        else if (count < count_max)
            ret_clients[count++] = c;
        else
            *ret_awaits = true;
    }
    return count;
}

void pool_gone(struct pool *p)
{
    (void)map_remove(&p->thread->pools, p->sandbox_id);
    p->endpoint->thread_user[p->thread->index] = NULL;
    p->endpoint = NULL;
    p->gone = true;
    p->gone_ns = now_ns(p->thread);
    pool_forget_idle(p);
    if (!list_is_empty(&p->active))
        loop_timer_start(p->thread->loop, &p->gone_timer, p->gone_ns + GONE_GRACE_NS);
    pool_free_when_empty(p);
}

void pool_sweep(struct pool *p)
{
    uint64_t now = now_ns(p->thread);
    list_for_each(u, &p->idle, struct upstream, node) if (now - u->used_ns > IDLE_UPSTREAM_NS)
        close_upstream(u);
}

void pool_close(struct pool *p)
{
    p->endpoint->thread_user[p->thread->index] = NULL;
    p->endpoint = NULL;
    p->gone = true;
    pool_forget_idle(p);
    pool_free_when_empty(p);
}

static void pool_add_idle(struct pool *p, struct upstream *u)
{
    list_remove(&u->node);
    list_push_front(&p->idle, &u->node);
    p->idle_count++;
    u->is_idle = true;
    u->client = NULL;
    u->used_ns = now_ns(p->thread);
    atomic_store_explicit(&sandbox_of(p->endpoint)->kept_by, p->thread->index + 1,
                          memory_order_relaxed);
}

struct upstream *pool_take_idle(struct pool *p)
{
    list_for_each(u, &p->idle, struct upstream, node)
    {
        if (u->closing)
            continue;
        list_remove(&u->node);
        list_push_front(&p->active, &u->node);
        p->idle_count--;
        u->is_idle = false;
        u->is_reused = true;
        return u;
    }
    return NULL;
}

/* ---- one connection ---- */

static void on_connect_timer(struct loop_timer *timer)
{
    struct upstream *u = container_of(timer, struct upstream, connect_timer);
    struct client *c = u->client;
    close_upstream(u);
    stat_add(&u->pool->thread->counters.upstream_connect_failures, 1);
    if (c != NULL)
        exchange_connect_failed(c, true, "no answer within 1 s");
}

static void on_connect(struct loop_stream *s, enum err err)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    struct client *c = u->client;
    loop_timer_stop(u->pool->thread->loop, &u->connect_timer);
    if (err == ERR_OK) {
        u->connected = true;
        if (u->pool->gone || dispatch_endpoint_is_ending(u->pool->endpoint))
            watch_host(u); /* it was granted before */
        exchange_connected(c);
        return;
    }
    int error = s->error_number;
    bool is_silent = error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
    char why[96];
    snprintf(why, sizeof(why), "%s", strerror(error));
    close_upstream(u);
    stat_add(&u->pool->thread->counters.upstream_connect_failures, 1);
    exchange_connect_failed(c, is_silent, why);
}

static void on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    u->received_ns = now_ns(u->pool->thread);
    if (u->client == NULL || !u->connected)
        close_upstream(u); /* idle: it closed, or says what nobody asked for */
    else
        exchange_receive(u->client, err, data, bytes);
}

static void on_drained(struct loop_stream *s)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    if (u->client != NULL)
        client_take_kept(u->client);
}

static void on_closed(struct loop_stream *s)
{
    struct upstream *u = container_of(s, struct upstream, stream);
    struct pool *p = u->pool;
    struct thread *t = p->thread;
    struct dispatch_endpoint *slot = u->slot;
    struct thread_route *tr = u->slot_route;
    list_remove(&u->node);
    buf_done(&u->in);
    http_chunked_done(&u->chunked);
    free(u);
    t->upstream_count--;
    pool_free_when_empty(p);
    if (slot != NULL) {
        dispatch_release(tr->route->dispatch, t->index, slot, now_ns(t));
        thread_route_leave(t, tr);
    }
    thread_check_stopped(t);
}

static const struct loop_stream_callbacks stream_callbacks = {
    .on_connect = on_connect, .on_recv = on_recv, .on_drained = on_drained, .on_closed = on_closed};

void upstream_connect(struct pool *p, struct client *c)
{
    struct thread *t = p->thread;
    struct sandbox *sandbox = sandbox_of(p->endpoint);
    struct upstream *u = mem_new(sizeof(*u));
    bool connected = false;
    u->pool = p;
    loop_timer_init(&u->connect_timer, on_connect_timer);
    http_chunked_init(&u->chunked);
    stat_add(&t->counters.upstream_connects, 1);
    if (loop_stream_connect(t->loop, &u->stream, &stream_callbacks,
                            (struct sockaddr *)&sandbox->address, sandbox->address_bytes,
                            &connected, &t->error) != ERR_OK) {
        stat_add(&t->counters.upstream_connect_failures, 1);
        free(u);
        exchange_connect_failed(c, false, t->error.text);
        return;
    }
    list_push_front(&p->active, &u->node);
    t->upstream_count++;
    u->client = c;
    c->upstream = u;
    u->connected = connected;
    if (connected)
        exchange_connected(c);
    else
        loop_timer_start(t->loop, &u->connect_timer,
                         now_ns(t) + UPSTREAM_CONNECT_TIMEOUT_MS * NS_PER_MS);
}

void upstream_attach(struct upstream *u, struct client *c)
{
    u->client = c;
    u->sent_before = u->sent_bytes;
    u->is_heard = false;
    c->upstream = u;
}

void upstream_send(struct upstream *u, const struct iovec *parts, int count)
{
    for (int i = 0; i < count; i++)
        u->sent_bytes += parts[i].iov_len;
    loop_stream_sendv(&u->stream, parts, count);
}

void upstream_finish(struct upstream *u)
{
    struct pool *p = u->pool;
    bool keep = !u->spoiled && !p->gone && !dispatch_endpoint_is_ending(p->endpoint) &&
                !p->thread->stopping && p->idle_count < IDLE_UPSTREAMS_MAX &&
                loop_stream_pending(&u->stream) == 0;
    u->in.bytes = 0;
    u->scanned = 0;
    u->client = NULL;
    if (keep) {
        pool_add_idle(p, u);
        loop_stream_resume(&u->stream);
    } else {
        close_upstream(u);
    }
}

void upstream_abandon(struct upstream *u, struct client *c)
{
    if (u->closing)
        return;
    u->slot = c->endpoint;
    u->slot_route = c->route;
    if (u->slot != NULL)
        u->slot_route->users++;
    c->endpoint = NULL;
    c->upstream = NULL;
    close_upstream(u);
}

bool upstream_took_nothing(const struct upstream *u)
{
    struct tcp_info info;
    socklen_t bytes = sizeof(info);
    if (u->stream.fd < 0 || getsockopt(u->stream.fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) < 0 ||
        bytes < offsetof(struct tcp_info, tcpi_bytes_acked) + sizeof(info.tcpi_bytes_acked))
        return false;
    return info.tcpi_bytes_acked <= u->sent_before + 1; /* the 1 is our SYN */
}
