/* join_client.h - a machine asks the control planes for its first certificate: the joiner's side of
 * ../keys/join.h over the network. Blocks: runs a loop of its own. */
#pragma once
#include "keys/join.h"

#define JOIN_TIMEOUT_MS 30000u

struct join_order {        /* borrowed */
    const char *addresses; /* of the control planes: "10.0.0.1:9090,10.0.0.2:9090" */
    const char *token, *pin, *name, *csr;
    enum node_role role; /* worker or data plane */
    uint32_t timeout_ms; /* 0: JOIN_TIMEOUT_MS */
};
struct join_grant { /* owns; join_grant_done() */
    char *certificate, *roots;
    char *addresses; /* of all control planes, as they know themselves */
    struct subject subject;
};
void join_grant_done(struct join_grant *g); /* for cleanup() */

/* Asks all until the one that leads has answered. What it answers has been checked: it is for this
 * request, of the cluster with this pin. ERR_UNREACHABLE: nobody could be asked, with the last
 * reason; else what the control plane said, with its field. */
must_check enum err join_client_run(const struct join_order *order, struct join_grant *ret_grant,
                                    struct error *e);
