/* hello.h - whether a connection may be what its Hello says, and may say what it says. Pure. */
#pragma once
#include "dirigent.pb-c.h"
#include "keys/subject.h"
#include "loop/loop.h"

enum node_role role_of_wire(Dirigent__Role role); /* NODE_NONE: unknown */

struct hello_rules {
    const char *cluster; /* our --cluster-name; "": any */
    bool secured;        /* connections have TLS: then `peer` decides who it is */
    const struct subject *peer;
    const char *ip;   /* whence it comes */
    bool any_address; /* a worker may name another address than that */
    bool has_members; /* there are other control planes */
};
/* ERR_VERSION, ERR_PERMISSION, ERR_INVALID: the sentence goes to the other side. */
must_check enum err hello_check(const Dirigent__Hello *h, const struct hello_rules *rules,
                                struct error *e);
/* A message of one that is welcome: only what its role may say. ERR_PERMISSION. */
must_check enum err message_check(bool is_worker, const Dirigent__ToControlPlane *m,
                                  struct error *e);
