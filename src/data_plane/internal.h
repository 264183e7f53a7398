/* internal.h - what the files of src/data_plane share: routes, targets, serving threads. Nobody else includes it.
 *
 * The control thread (data_plane.c) owns all routes and changes them as the control plane says; each serving thread has tables of its
 * own, changed by posts to its loop. A route is freed when the control thread and every serving thread have let it go. */
#pragma once
#include "base/hash.h"
#include "base/list.h"
#include "base/rng.h"
#include "base/str.h"
#include "data_plane/dispatch.h"
#include "http/http1.h"
#include "loop/loop.h"
#include <netinet/in.h>
#include <stdatomic.h>

#define STATUS_CLASSES 6u

struct data_plane;

/* Why waiting requests were failed; shared by all of them. */
struct failure {
    _Atomic unsigned references;
    unsigned status, retry_after_s;
    char *code, *message, *output;
};
struct failure *failure_new(unsigned status, const char *code, const char *message, struct str output, unsigned retry_after_s);
void failure_release(struct failure *f);

struct route {
    struct data_plane *dp;
    _Atomic unsigned references;
    uint64_t function_id;
    char *name;
    struct dispatch *dispatch;
    _Atomic uint32_t timeout_ms;
    _Atomic uint64_t body_bytes_max;
    _Atomic bool active;           /* has had a request since the last report */
    _Atomic bool demand_posted;
    struct loop_post demand_post;  /* to the control thread: report now */
    _Atomic uint64_t answers[STATUS_CLASSES], cold;
    /* control thread only */
    bool reported_nonzero, in_snapshot;
    double average; /* in flight, over the last period */
};
void route_release(struct route *r);

struct target { /* `user` of a dispatch_endpoint: where a sandbox is; constant */
    struct sockaddr_storage address;
    socklen_t address_bytes;
    char worker[64];
    uint32_t place_us, create_us, exec_us, listen_us;
    uint64_t added_ns;
    struct route *route;
};

struct counters { /* written by one thread, read by the control thread */
    _Atomic uint64_t requests, connections, answers[STATUS_CLASSES], upstream_connects, retries, cold, added_us_sum, added_count;
};

struct serving { /* one thread */
    struct data_plane *dp;
    uint32_t index;
    struct loop *loop;
    struct loop_listener listener;
    struct strmap by_name;
    struct list clients;
    uint32_t client_count;
    bool draining;
    struct rng rng;
    struct counters counters;
    struct loop_post round_post; /* of the memory rounds, data_plane.c */
    struct loop_post stop_post, end_post;
};

struct data_plane {
    struct loop *loop; /* the control thread's */
    struct serving *threads;
    uint32_t thread_count;
    _Atomic bool connected;
    _Atomic uint32_t clients_left; /* while draining */
    struct loop_post drained_post;
    _Atomic bool drained_posted;
    char name[64];
};

/* proxy.c: one serving thread */
void proxy_on_accept(struct loop_listener *listener, int fd, const struct sockaddr_storage *peer);
void proxy_drain(struct serving *t); /* idle connections close, others after their answer */
void proxy_endpoint_free(struct dispatch_endpoint *endpoint, uint32_t threads);
/* Kept connections of one thread to an endpoint that goes. On that thread. */
void proxy_pool_close(struct dispatch_endpoint *endpoint, uint32_t thread);
/* data_plane.c: what serving threads tell the control thread */
void control_demand_now(struct route *r);
void control_endpoint_failed(struct data_plane *dp, uint64_t sandbox_id, const char *why);
void control_metrics(struct data_plane *dp, struct buf *out);
void control_client_gone(struct data_plane *dp);
