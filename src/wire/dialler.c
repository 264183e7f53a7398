/* dialler.c - keeps one connection: dial, hand over, dial again when it is lost. */
#include "base/rng.h"
#include "wire/link.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DELAY_MS_MIN 10u
#define DELAY_MS_MAX 1000u
#define CONNECT_TIMEOUT_MS 2000u

struct dialler {
    struct loop *loop;
    struct dialler_callbacks callbacks;
    struct link_callbacks link_callbacks; /* ours, around the user's */
    void *user;
    struct sockaddr_storage address;
    socklen_t address_bytes;
    struct loop_stream stream; /* while connecting */
    struct loop_timer timer;   /* the next attempt, or the end of patience with this one */
    struct link *link;
    struct tls *tls; /* NULL: in the clear */
    struct rng rng;
    uint64_t up_ns; /* since when the link is */
    uint32_t delay_ms;
    bool up; /* the user knows of the link */
    bool connecting, stream_open, freed;
};

static void dial(struct dialler *d);

static void on_timer(struct loop_timer *timer);

static void dial_later(struct dialler *d)
{
    uint64_t jittered_us =
        d->delay_ms * US_PER_MS / 2 + rng_below(&d->rng, d->delay_ms * US_PER_MS / 2 + 1);
    loop_timer_start(d->loop, &d->timer, loop_now_ns(d->loop) + jittered_us * NS_PER_US);
    d->delay_ms = d->delay_ms == 0 ? DELAY_MS_MIN : MIN(d->delay_ms * 2, DELAY_MS_MAX);
}

static void failed(struct dialler *d, const char *why)
{
    if (d->callbacks.on_failed != NULL)
        d->callbacks.on_failed(d, d->user, why);
    dial_later(d);
}

static void on_link_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct dialler *d = user;
    d->callbacks.link.on_frame(link, d->user, data, bytes);
}

static void on_link_drained(struct link *link, void *user)
{
    struct dialler *d = user;
    if (d->callbacks.link.on_drained != NULL)
        d->callbacks.link.on_drained(link, d->user);
}

static void tell_up(struct dialler *d)
{
    d->up = true;
    d->up_ns = loop_now_ns(d->loop);
    d->callbacks.on_up(d, d->user, d->link);
}

static void on_link_secured(struct link *link, void *user)
{
    tell_up(user);
}

static void on_link_closed(struct link *link, void *user, enum err err, const char *why)
{
    struct dialler *d = user;
    d->link = NULL;
    if (!d->up) {
        failed(d, why);
        return;
    }
    d->up = false;
    if (loop_now_ns(d->loop) - d->up_ns >= DIALLER_STEADY_MS * NS_PER_MS)
        d->delay_ms = 0;
    d->callbacks.link.on_closed(link, d->user, err, why);
    dial_later(d);
}

static void on_connect(struct loop_stream *s, enum err err)
{
    struct dialler *d = container_of(s, struct dialler, stream);
    d->connecting = false;
    loop_timer_stop(d->loop, &d->timer);
    if (err != ERR_OK) {
        char why[160];
        (void)snprintf(why, sizeof(why), "%s", strerror(s->error_number));
        loop_stream_close(s);
        failed(d, why);
        return;
    }
    /* The link registers the socket anew under its own stream. */
    struct error e = {0};
    int fd = loop_stream_release(s);
    if (link_accept(d->loop, fd, &d->link_callbacks, d, &d->link, &e) != ERR_OK) {
        fd_close(&fd);
        failed(d, e.text);
        return;
    }
    if (d->tls == NULL)
        tell_up(d);
    else if (link_secure(d->link, d->tls, false, NULL, &e) != ERR_OK)
        return; /* its end is told */
}

/* Nothing comes before the link has taken over, or it is kept by the kernel for the link. */
static void on_early_recv(struct loop_stream *s, enum err err, const char *data, size_t bytes)
{
    struct dialler *d = container_of(s, struct dialler, stream);
    if (!d->connecting)
        return;
    d->connecting = false;
    loop_stream_close(s);
    failed(d, "connection broken");
}

static void on_stream_closed(struct loop_stream *s)
{
    struct dialler *d = container_of(s, struct dialler, stream);
    d->stream_open = false;
    if (d->freed)
        free(d);
}

static const struct loop_stream_callbacks connecting_callbacks = {
    .on_connect = on_connect, .on_recv = on_early_recv, .on_closed = on_stream_closed};

static void dial(struct dialler *d)
{
    struct error e = {0};
    enum err err = loop_stream_connect(d->loop, &d->stream, &connecting_callbacks,
                                       (struct sockaddr *)&d->address, d->address_bytes, NULL, &e);
    if (err != ERR_OK) {
        failed(d, e.text);
        return;
    }
    d->connecting = d->stream_open = true;
    loop_timer_start(d->loop, &d->timer, loop_now_ns(d->loop) + CONNECT_TIMEOUT_MS * NS_PER_MS);
}

static void on_timer(struct loop_timer *timer)
{
    struct dialler *d = container_of(timer, struct dialler, timer);
    if (d->stream_open && !d->connecting) {
        loop_timer_start(d->loop, timer, loop_now_ns(d->loop) + NS_PER_MS); /* still being closed */
        return;
    }
    if (!d->connecting) {
        dial(d);
        return;
    }
    d->connecting = false;
    loop_stream_close(&d->stream);
    failed(d, "no answer within 2 s");
}

enum err dialler_new(struct loop *loop, const char *address, struct tls *tls,
                     const struct dialler_callbacks *callbacks, void *user,
                     struct dialler **ret_dialler, struct error *e)
{
    struct dialler *d = mem_new(sizeof(*d));
    enum err err = address_parse(address, &d->address, &d->address_bytes, e);
    if (err != ERR_OK) {
        free(d);
        return err;
    }
    d->loop = loop;
    d->callbacks = *callbacks;
    d->link_callbacks = (struct link_callbacks){.on_secured = on_link_secured,
                                                .on_frame = on_link_frame,
                                                .on_drained = on_link_drained,
                                                .on_closed = on_link_closed};
    d->tls = tls;
    d->user = user;
    rng_init(&d->rng, clock_mono_ns()); /* jitter only */
    loop_timer_init(&d->timer, on_timer);
    loop_timer_start(
        loop, &d->timer,
        0); /* callbacks never run inside a call: the first attempt is in the next turn */
    *ret_dialler = d;
    return ERR_OK;
}

void dialler_settled(struct dialler *d)
{
    d->delay_ms = 0;
}

void dialler_hurry(struct dialler *d)
{
    if (d->link != NULL || d->freed)
        return;
    if (d->connecting) {
        d->connecting = false;
        loop_stream_close(&d->stream);
    }
    d->delay_ms = 0;
    loop_timer_start(d->loop, &d->timer, loop_now_ns(d->loop));
}

void dialler_free(struct dialler *d)
{
    if (d == NULL)
        return;
    loop_timer_stop(d->loop, &d->timer);
    if (d->link != NULL)
        link_abandon(d->link);
    d->freed = true;
    if (!d->stream_open) {
        free(d);
        return;
    }
    if (d->connecting)
        loop_stream_close(&d->stream);
    d->connecting = false;
}
