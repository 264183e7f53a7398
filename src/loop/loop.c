/* loop.c - the turn: wait, handle events, run timers, posts and what was deferred. */
#include "loop/internal.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

static void on_wake(struct loop_poll *poll, uint32_t epoll_events)
{
    uint64_t count;
    while (read(poll->fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

enum err loop_new(struct loop **ret_loop, struct error *e)
{
    struct loop *loop = mem_new(sizeof(*loop));
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    list_init(&loop->deferred);
    list_init(&loop->ready);
    list_init(&loop->closed);
    loop->receive_buffer = mem_new(LOOP_RECV_BYTES_MAX);
    loop->wake.on_ready = on_wake;
    enum err err = ERR_OK;
    if (loop->epoll_fd < 0 || loop->wake_fd < 0)
        err = error_errno(e, "make an event loop");
    else
        err = loop_poll_start(loop, &loop->wake, loop->wake_fd, EPOLLIN, e);
    if (err != ERR_OK) {
        loop_free(loop);
        return err;
    }
    loop_update_now(loop);
    *ret_loop = loop;
    return ERR_OK;
}

void loop_free(struct loop *loop)
{
    if (loop == NULL)
        return;
    loop_streams_run_closed(loop); /* frees what was closed in the last turn */
    fd_close(&loop->epoll_fd);
    fd_close(&loop->wake_fd);
    free(loop->receive_buffer);
    free(loop->timers);
    free(loop);
}

uint64_t loop_now_ns(const struct loop *loop)
{
    return loop->now_ns;
}

uint64_t loop_update_now(struct loop *loop)
{
    return loop->now_ns = clock_mono_ns();
}

void loop_stop(struct loop *loop)
{
    loop->stopping = true;
}

void loop_forget_events(struct loop *loop, const void *object)
{
    for (int i = loop->event_index; i < loop->event_count; i++)
        if (loop->events[i].data.ptr == object)
            loop->events[i].data.ptr = NULL;
}

static void run_deferred(struct loop *loop)
{
    /* What is deferred while these run waits for the next turn of this list, still before sleeping.
     */
    while (!list_is_empty(&loop->deferred)) {
        struct loop_deferred *d = list_entry(loop->deferred.next, struct loop_deferred, node);
        list_remove(&d->node);
        d->on_turn_end(d);
    }
}

void loop_defer(struct loop *loop, struct loop_deferred *d)
{
    if (!list_is_linked(&d->node))
        list_push_back(&loop->deferred, &d->node);
}

void loop_defer_cancel(struct loop_deferred *d)
{
    list_remove(&d->node);
}

void loop_post(struct loop *loop, struct loop_post *post)
{
    struct loop_post *head = atomic_load_explicit(&loop->posts, memory_order_relaxed);
    do {
        post->next = head;
    } while (!atomic_compare_exchange_weak_explicit(&loop->posts, &head, post, memory_order_release,
                                                    memory_order_relaxed));
    if (head != NULL)
        return; /* whoever posted the first one has woken the loop */
    uint64_t one = 1;
    while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

static void run_posts(struct loop *loop)
{
    if (atomic_load_explicit(&loop->posts, memory_order_relaxed) == NULL)
        return;
    struct loop_post *newest = atomic_exchange_explicit(&loop->posts, NULL, memory_order_acquire);
    struct loop_post *oldest = NULL;
    while (newest != NULL) {
        struct loop_post *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest != NULL) {
        struct loop_post *next = oldest->next; /* on_post may free the node */
        oldest->on_post(oldest);
        oldest = next;
    }
}

static int wait_ms(const struct loop *loop, int timeout_ms)
{
    if (!list_is_empty(&loop->ready) || !list_is_empty(&loop->closed) ||
        !list_is_empty(&loop->deferred) || loop->stopping)
        return 0;
    if (loop->timer_count == 0)
        return timeout_ms;
    uint64_t due = loop->timers[0]->due_ns;
    if (due <= loop->now_ns)
        return 0;
    uint64_t ms = (due - loop->now_ns + NS_PER_MS - 1) / NS_PER_MS;
    if (timeout_ms >= 0 && (uint64_t)timeout_ms < ms)
        return timeout_ms;
    return ms > INT32_MAX ? INT32_MAX : (int)ms;
}

void loop_run_once(struct loop *loop, int timeout_ms)
{
    int n =
        epoll_wait(loop->epoll_fd, loop->events, LOOP_EVENTS_PER_TURN, wait_ms(loop, timeout_ms));
    loop_update_now(loop);
    loop->event_count = n < 0 ? 0 : n;
    for (loop->event_index = 0; loop->event_index < loop->event_count;) {
        struct epoll_event event = loop->events[loop->event_index++];
        uint32_t *kind = event.data.ptr;
        if (kind == NULL)
            continue;
        if (*kind == LOOP_KIND_STREAM) {
            loop_stream_on_events(container_of(kind, struct loop_stream, kind), event.events);
        } else {
            struct loop_poll *poll = container_of(kind, struct loop_poll, kind);
            poll->on_ready(poll, event.events);
        }
    }
    loop->event_count = 0;
    loop_streams_run_ready(loop);
    run_posts(loop);
    loop_timers_run(loop);
    run_deferred(loop);
    loop_streams_run_closed(loop);
}

void loop_run(struct loop *loop)
{
    loop->stopping = false;
    while (!loop->stopping)
        loop_run_once(loop, -1);
    loop->stopping = false;
}

/* ---- descriptor readiness ---- */

enum err loop_poll_start(struct loop *loop, struct loop_poll *poll, int fd, uint32_t epoll_events,
                         struct error *e)
{
    poll->loop = loop;
    poll->fd = fd;
    poll->kind = LOOP_KIND_POLL;
    struct epoll_event event = {.events = epoll_events, .data.ptr = &poll->kind};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return error_errno(e, "watch descriptor %d", fd);
    poll->active = true;
    return ERR_OK;
}

void loop_poll_change(struct loop_poll *poll, uint32_t epoll_events)
{
    assert(poll->active);
    struct epoll_event event = {.events = epoll_events, .data.ptr = &poll->kind};
    (void)epoll_ctl(poll->loop->epoll_fd, EPOLL_CTL_MOD, poll->fd, &event);
}

void loop_poll_stop(struct loop_poll *poll)
{
    if (!poll->active)
        return;
    poll->active = false;
    (void)epoll_ctl(poll->loop->epoll_fd, EPOLL_CTL_DEL, poll->fd, NULL);
    loop_forget_events(poll->loop, &poll->kind);
}
