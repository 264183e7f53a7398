/* replicas.h - a worker's or data plane's connections to the control planes: one to each address,
 * all kept open, and at most one of them to the leader. dirigent.proto describes the handshake.
 * Loop thread only; never blocks.
 *
 * Orders of an older epoch than the newest seen are refused, and whoever sent them is told so
 * (promises: an order of a leader that was succeeded has no effect). */
#pragma once
#include "dirigent.pb-c.h"
#include "wire/credentials.h"
#include "wire/link.h"

#define REPLICAS_MAX 9u

struct replicas; /* opaque */
struct replicas_callbacks {
    /* Send a Hello with everything; what happens from now on is for this connection. Welcome or
     * loss (on_lost) follows. */
    void (*on_hello)(void *user, struct link *link);
    /* The same without state: set the fields that name the sender, no more. `hello` is sent then.
     */
    void (*on_name)(void *user, Dirigent__Hello *hello);
    /* From the connection of the last on_hello; valid during the call. `epoch` has been checked. */
    void (*on_message)(void *user, struct link *link, const Dirigent__FromControlPlane *m);
    /* The connection of the last on_hello leads no more: closed, or another replica leads. */
    void (*on_lost)(void *user, const char *why);
    /* Each failed attempt to dial. */
    void (*on_failed)(void *user, const char *address, const char *why);
    /* Where messages are unpacked to, each freed before the next comes. NULL: the heap. */
    ProtobufCAllocator *allocator;
};
/* `addresses`: "10.0.0.1:9090,10.0.0.2:9090", at most REPLICAS_MAX. Dials all at once.
 * `credentials` outlive it, and are renewed over its connections; NULL: in the clear. */
must_check enum err replicas_new(struct loop *loop, const char *addresses,
                                 struct credentials *credentials,
                                 const struct replicas_callbacks *callbacks, void *user,
                                 struct replicas **ret_replicas, struct error *e);
void replicas_free(struct replicas *r); /* closes all without telling; NULL does nothing */

/* The connection of the last on_hello, NULL: none. */
struct link *replicas_link(const struct replicas *r);
uint64_t replicas_epoch(const struct replicas *r); /* the newest seen; 0: none yet */
size_t replicas_count(const struct replicas *r);
