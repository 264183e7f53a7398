/* router.h - the control thread of a data plane: the connection to the control plane, the routes
 * and endpoints it tells of, and the demand that is reported to it. Owns every route; the serving
 * threads are told of changes (thread.h).
 *
 * While no control plane is reached all routes stay: warm requests go on, cold ones wait to their
 * deadline. A data plane that starts then serves what its snapshot says (snapshot.h). */
#pragma once
#include "data_plane/thread.h"
#include "wire/credentials.h"

struct router; /* opaque */

struct router_options {
    struct thread_shared *shared;    /* threads made, not yet started */
    struct credentials *credentials; /* outlives it */
    const char *name, *cluster_name, *listen_address;
    const char *data_path; /* where its snapshot is kept */
    void *user;
    /* Once: requests can be served, from what a control plane or the snapshot told; or nobody has
     * told anything for so long that clients must hear it. Until then they wait in the kernel. */
    void (*on_serve)(void *user);
    void (*on_stopped)(void *user); /* after router_stop(): all threads have ended their requests */
};
/* On shared->control_loop. Dials at once. */
must_check enum err router_new(const struct router_options *options, struct router **ret_router,
                               struct error *e);
/* No new requests; when the last has ended, or at the deadline, on_stopped. The control plane hears
 * goodbye then. */
void router_stop(struct router *c, uint64_t deadline_ns);
/* Threads joined. */
void router_free(struct router *c);
