/* relay.c - two streams, each the other's sink. */
#include "control_plane/relay.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_TIMEOUT_MS 2000u
#define RELAYS_MAX 1024u

#define UNREACHABLE                                                                            \
    "{\"error\":{\"code\":\"no_leader\",\"message\":\"the control plane that leads cannot be " \
    "reached now\"}}\n"

struct side {
    struct relay *relay;
    struct side *other;
    struct loop_stream stream;
    bool open, ended; /* ended: it says nothing more */
};
struct relay {
    struct relays *all;
    struct list node;
    struct side client, leader;
    struct loop_timer timer; /* while connecting */
    bool connected, closing;
};
struct relays {
    struct loop *loop;
    struct list items;
    size_t count;
    bool closed;
};

static void free_when_closed(struct relay *r)
{
    if (r->client.open || r->leader.open)
        return;
    list_remove(&r->node);
    r->all->count--;
    free(r);
}

static void relay_close(struct relay *r)
{
    if (r->closing)
        return;
    r->closing = true;
    loop_timer_stop(r->all->loop, &r->timer);
    if (r->client.open)
        loop_stream_close(&r->client.stream);
    if (r->leader.open)
        loop_stream_close(&r->leader.stream);
}

static void give_up(struct relay *r)
{
    if (r->closing)
        return;
    char answer[320];
    int bytes =
        snprintf(answer, sizeof(answer),
                 "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                 "Retry-After: 1\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n" UNREACHABLE,
                 sizeof(UNREACHABLE) - 1);
    loop_stream_send(&r->client.stream, answer, (size_t)bytes);
    relay_close(r);
}

static void on_timeout(struct loop_timer *timer)
{
    give_up(container_of(timer, struct relay, timer));
}

static void on_connect(struct loop_stream *s, enum err err)
{
    struct side *leader = container_of(s, struct side, stream);
    struct relay *r = leader->relay;
    if (err != ERR_OK) {
        give_up(r);
        return;
    }
    loop_timer_stop(r->all->loop, &r->timer);
    r->connected = true;
    loop_stream_resume(&r->client.stream);
}

static void on_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct side *from = container_of(s, struct side, stream);
    struct relay *r = from->relay;
    if (r->closing)
        return;
    if (err == ERR_END) {
        from->ended = true;
        if (from->other->ended)
            relay_close(r);
        else
            loop_stream_shutdown(&from->other->stream);
        return;
    }
    if (err != ERR_OK) {
        if (r->connected)
            relay_close(r);
        else
            give_up(r);
        return;
    }
    loop_stream_send(&from->other->stream, data, bytes);
    if (loop_stream_pending(&from->other->stream) > 0)
        loop_stream_pause(&from->stream);
}

static void on_drained(struct loop_stream *s)
{
    struct side *to = container_of(s, struct side, stream);
    if (!to->relay->closing && to->relay->connected)
        loop_stream_resume(&to->other->stream);
}

static void on_closed(struct loop_stream *s)
{
    struct side *side = container_of(s, struct side, stream);
    side->open = false;
    free_when_closed(side->relay);
}

static const struct loop_stream_callbacks callbacks = {
    .on_connect = on_connect, .on_recv = on_recv, .on_drained = on_drained, .on_closed = on_closed};

static enum err dial(struct relay *r, const char *address, struct error *e)
{
    struct sockaddr_storage to;
    socklen_t bytes;
    enum err err = address_parse(address, &to, &bytes, e);
    if (err == ERR_OK)
        err = loop_stream_connect(r->all->loop, &r->leader.stream, &callbacks,
                                  (struct sockaddr *)&to, bytes, NULL, e);
    r->leader.open = err == ERR_OK;
    return err;
}

void relays_add(struct relays *all, int client_fd, const char *address)
{
    struct error e = {0};
    struct relay *r = mem_new(sizeof(*r));
    r->all = all;
    r->client.relay = r->leader.relay = r;
    r->client.other = &r->leader;
    r->leader.other = &r->client;
    loop_timer_init(&r->timer, on_timeout);
    if (all->closed || all->count == RELAYS_MAX ||
        loop_stream_init(all->loop, &r->client.stream, &callbacks, client_fd, &e) != ERR_OK) {
        fd_close(&client_fd);
        free(r);
        return;
    }
    r->client.open = true;
    loop_stream_pause(&r->client.stream);
    list_push_back(&all->items, &r->node);
    all->count++;
    loop_timer_start(all->loop, &r->timer, loop_now_ns(all->loop) + CONNECT_TIMEOUT_MS * NS_PER_MS);
    if (dial(r, address, &e) != ERR_OK) {
        log_warn("relay.failed", LOG_STR("address", address), LOG_STR("why", e.text));
        give_up(r);
    }
}

struct relays *relays_new(struct loop *loop)
{
    struct relays *r = mem_new(sizeof(*r));
    r->loop = loop;
    list_init(&r->items);
    return r;
}

void relays_drop(struct relays *all)
{
    list_for_each(r, &all->items, struct relay, node)
    {
        relay_close(r);
    }
}

void relays_close(struct relays *all)
{
    if (all == NULL)
        return;
    all->closed = true;
    relays_drop(all);
}

void relays_free(struct relays *all)
{
    if (all == NULL)
        return;
    assert(list_is_empty(&all->items));
    free(all);
}

size_t relays_count(const struct relays *r)
{
    return r->count;
}
