/* relay.h - connections of clients to a control plane that does not lead, carried to the one that
 * does: bytes both ways, with back-pressure, nothing read into them. Loop thread only; never
 * blocks. */
#pragma once
#include "loop/loop.h"

struct relays; /* opaque */

struct relays *relays_new(struct loop *loop);
void relays_drop(struct relays *r);  /* all connections that are there */
void relays_close(struct relays *r); /* all connections; those that come after are refused */
void relays_free(struct relays *r);  /* a turn after relays_close(); NULL does nothing */
/* Takes the client's descriptor, whatever comes of it. A leader that cannot be reached: 503 in
 * HTTP/1.1. */
void relays_add(struct relays *r, int client_fd, const char *address);
size_t relays_count(const struct relays *r);
