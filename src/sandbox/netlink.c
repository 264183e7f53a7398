/* netlink.c - rtnetlink messages. */
#include "sandbox/netlink.h"
#include <errno.h>
#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum err netlink_open(struct netlink *n, struct error *e)
{
    n->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (n->fd < 0)
        return error_errno(e, "open a netlink socket");
    n->sequence = n->count = 0;
    n->bytes = 0;
    return ERR_OK;
}

void netlink_close(struct netlink *n)
{
    fd_close(&n->fd);
}

static void *space(struct netlink *n, size_t bytes)
{
    size_t aligned = NLMSG_ALIGN(bytes);
    assert(n->bytes + aligned <= sizeof(n->data));
    void *place = n->data + n->bytes;
    memset(place, 0, aligned);
    n->bytes += aligned;
    return place;
}

static struct nlmsghdr *last_message(struct netlink *n)
{
    struct nlmsghdr *message = (struct nlmsghdr *)n->data;
    for (uint32_t i = 1; i < n->count; i++)
        message = (struct nlmsghdr *)((char *)message + NLMSG_ALIGN(message->nlmsg_len));
    return message;
}

/* The message ends where the buffer ends. */
static void grow(struct netlink *n)
{
    struct nlmsghdr *message = last_message(n);
    message->nlmsg_len = (uint32_t)(n->data + n->bytes - (char *)message);
}

void *netlink_begin(struct netlink *n, uint16_t type, uint16_t flags, size_t head_bytes,
                    const char *what)
{
    assert(n->count < ARRAY_COUNT(n->what));
    if (n->count == 0)
        n->first_sequence = n->sequence + 1;
    n->what[n->count++] = what;
    struct nlmsghdr *message = space(n, sizeof(*message));
    message->nlmsg_type = type;
    message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
    message->nlmsg_seq = ++n->sequence;
    message->nlmsg_len = sizeof(*message);
    void *head = space(n, head_bytes);
    grow(n);
    return head;
}

void netlink_attribute(struct netlink *n, uint16_t type, const void *data, size_t bytes)
{
    struct nlattr *attribute = space(n, NLA_HDRLEN + bytes);
    attribute->nla_type = type;
    attribute->nla_len = (uint16_t)(NLA_HDRLEN + bytes);
    if (bytes > 0)
        memcpy((char *)attribute + NLA_HDRLEN, data, bytes);
    grow(n);
}

void netlink_attribute_u32(struct netlink *n, uint16_t type, uint32_t value)
{
    netlink_attribute(n, type, &value, sizeof(value));
}

struct nlattr *netlink_nest_begin(struct netlink *n, uint16_t type)
{
    struct nlattr *nest = space(n, NLA_HDRLEN);
    nest->nla_type = type;
    grow(n);
    return nest;
}

void *netlink_nest_space(struct netlink *n, size_t bytes)
{
    void *place = space(n, bytes);
    grow(n);
    return place;
}

void netlink_nest_end(struct netlink *n, struct nlattr *nest)
{
    nest->nla_len = (uint16_t)(n->data + n->bytes - (char *)nest);
    grow(n);
}

static void link_state_take(struct netlink *n, struct nlmsghdr *m)
{
    int left = (int)IFLA_PAYLOAD(m);
    for (struct rtattr *a = IFLA_RTA(NLMSG_DATA(m)); RTA_OK(a, left); a = RTA_NEXT(a, left))
        if (a->rta_type == IFLA_OPERSTATE)
            n->link_state = *(uint8_t *)RTA_DATA(a);
}

enum err netlink_send(struct netlink *n, struct error *e)
{
    uint32_t awaited = n->count, first = n->first_sequence;
    size_t bytes = n->bytes;
    n->count = 0;
    n->bytes = 0;
    if (send(n->fd, n->data, bytes, 0) != (ssize_t)bytes)
        return error_errno(e, "send to netlink");
    enum err err = ERR_OK;
    while (awaited > 0) {
        _Alignas(NLMSG_ALIGNTO) char answer[8192];
        ssize_t got = recv(n->fd, answer, sizeof(answer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(e, "receive from netlink");
        unsigned left = (unsigned)got;
        for (struct nlmsghdr *m = (struct nlmsghdr *)answer; NLMSG_OK(m, left);
             m = NLMSG_NEXT(m, left)) {
            if (m->nlmsg_type == RTM_NEWLINK)
                link_state_take(n, m);
            if (m->nlmsg_type != NLMSG_ERROR || m->nlmsg_seq - first >= ARRAY_COUNT(n->what))
                continue;
            awaited--;
            int failure = -((struct nlmsgerr *)NLMSG_DATA(m))->error;
            if (failure == 0 || err != ERR_OK)
                continue;
            errno = failure;
            err = error_errno(e, "%s", n->what[m->nlmsg_seq - first]);
        }
    }
    return err;
}

/* Asking makes the kernel look at the carrier at once since Linux 6.8. */
enum err netlink_link_wait(struct netlink *n, unsigned index, unsigned patience_ms, struct error *e)
{
    for (unsigned waited_ms = 0; waited_ms <= patience_ms; waited_ms++) {
        struct ifinfomsg *link =
            netlink_begin(n, RTM_GETLINK, 0, sizeof(*link), "ask about an interface");
        link->ifi_index = (int)index;
        n->link_state = IF_OPER_UNKNOWN;
        enum err err = netlink_send(n, e);
        if (err != ERR_OK || n->link_state == IF_OPER_UP)
            return err;
        (void)usleep(1000);
    }
    return error_set(e, ERR_TIMEOUT, "interface %u did not come up within %u ms", index,
                     patience_ms);
}
