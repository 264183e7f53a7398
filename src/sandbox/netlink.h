/* netlink.h - rtnetlink(7) by hand: messages are put together in a buffer, sent at once, and each
 * acknowledgement is looked at. Blocks. One thread. */
#pragma once
#include "base/base.h"
#include <linux/netlink.h>

#define NETLINK_BYTES_MAX 4096u
#define NETLINK_ANSWER_BYTES_MAX 8192u

struct netlink {
    int fd;
    uint32_t sequence, first_sequence;
    uint32_t count; /* messages in the buffer */
    size_t bytes;
    uint8_t link_state;   /* IF_OPER_* in the last answer about a link */
    char link_alias[128]; /* what is written to it there, as `ip link` shows it; "" without */
    const char *what[16]; /* for the error: what each message asks for */
    _Alignas(NLMSG_ALIGNTO) char data[NETLINK_BYTES_MAX];
};
/* Opens a socket in the network namespace of the calling thread. */
must_check enum err netlink_open(struct netlink *n, struct error *e);
void netlink_close(struct netlink *n);
/* Begins a message; `what` is a literal, for errors. Returns its fixed part (`head_bytes`, zeroed).
 */
void *netlink_begin(struct netlink *n, uint16_t type, uint16_t flags, size_t head_bytes,
                    const char *what);
void netlink_attribute(struct netlink *n, uint16_t type, const void *data, size_t bytes);
void netlink_attribute_u32(struct netlink *n, uint16_t type, uint32_t value);
struct nlattr *netlink_nest_begin(struct netlink *n, uint16_t type);
/* Room inside a nest for a fixed part (veth's peer has one). */
void *netlink_nest_space(struct netlink *n, size_t bytes);
void netlink_nest_end(struct netlink *n, struct nlattr *nest);
/* Sends all and waits for all answers. The error names the first request that was refused, with the
 * kernel's own words where it has some; ERR_PROTOCOL: an answer that is too long or cut short.
 * Leaves the buffer empty. */
must_check enum err netlink_send(struct netlink *n, struct error *e);
/* Asks about an interface: sets link_state and link_alias. */
must_check enum err netlink_link_ask(struct netlink *n, unsigned index, struct error *e);
/* Waits until the kernel passes packets through a link: it does not as soon as the link is up, but
 * when its carrier was noticed, and drops what is sent before. ERR_TIMEOUT. */
must_check enum err netlink_link_wait(struct netlink *n, unsigned index, unsigned patience_ms,
                                      struct error *e);
