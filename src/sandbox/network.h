/* network.h - the network of sandboxes: a pool of network namespaces, each with one veth pair and a
 * fixed address, and one static nftables table for all. Nothing here runs on the path of a cold
 * start.
 *
 * Slot n has address pool + 4 + n; the host end of every pair is pool + 1, the gateway. Neighbour
 * entries are permanent, so no ARP is spoken. Host port host_port_base + n of the host is
 * translated to (address, 8080) for data planes on other hosts. Rules: a sandbox can answer the
 * host but not open connections to it; it reaches no other sandbox, no private and no link-local
 * address (but the host's name servers on port 53); what remains is masqueraded. A slot without its
 * default route reaches nothing.
 *
 * Called by the launcher's builder process (slots) and its main process (table). Blocks. */
#pragma once
#include "base/base.h"

struct network_config {
    char instance[16]; /* [a-z0-9]{1,8}: interfaces dg<instance>-<slot>, table
                        dirigent_<instance> */
    uint32_t pool_ip;  /* host byte order; a /19 or larger */
    uint32_t slots_max;
    uint16_t host_port_base;
};
uint32_t network_slot_ip(const struct network_config *c, uint32_t slot); /* host byte order */
/* ERR_CONFLICT: another instance in this network namespace has some of our addresses or host ports;
 * the sentence names it. Interfaces of one that was killed may still be there: patience is for
 * them. (Two that start in the same moment do not see each other: then the later one's slots cannot
 * be made, for no route is taken from another.) */
must_check enum err network_neighbours_check(const struct network_config *c, unsigned patience_ms,
                                             struct error *e);
/* Makes the nftables table (replacing one that a dead launcher of the same instance left) and lets
 * the host forward. *ret_forward_was_off tells whether ip_forward was switched on here. */
must_check enum err network_host_open(const struct network_config *c, bool *ret_forward_was_off,
                                      struct error *e);
void network_host_close(const struct network_config *c, bool forward_was_off);
/* Makes the namespace of a slot; the caller owns *ret_netns_fd, and all of the slot's network goes
 * with its last reference. *ret_cookie is what SO_NETNS_COOKIE (socket(7), Linux 5.14) tells of
 * sockets in it. */
must_check enum err network_slot_make(const struct network_config *c, uint32_t slot,
                                      int *ret_netns_fd, uint64_t *ret_cookie, struct error *e);
/* Adds or removes the default route inside: with or without outward traffic. */
must_check enum err network_slot_outward(const struct network_config *c, int netns_fd, bool outward,
                                         struct error *e);
/* How many interfaces of this instance's slots the host still has. */
unsigned network_interfaces_left(const struct network_config *c);
