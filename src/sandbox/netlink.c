/* netlink.c - rtnetlink messages. */
#include "sandbox/netlink.h"
#include <errno.h>
#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum err netlink_open(struct netlink *n, struct error *e)
{
    n->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (n->fd < 0)
        return error_errno(e, "open a netlink socket");
    /* The kernel's own words beside the number, and not the whole request back; both are niceties.
     */
    int on = 1;
    (void)setsockopt(n->fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof(on));
    (void)setsockopt(n->fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on));
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

static void link_take(struct netlink *n, struct nlmsghdr *m)
{
    int left = (int)IFLA_PAYLOAD(m);
    for (struct rtattr *a = IFLA_RTA(NLMSG_DATA(m)); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
        if (a->rta_type == IFLA_OPERSTATE && RTA_PAYLOAD(a) >= 1)
            n->link_state = *(uint8_t *)RTA_DATA(a);
        if (a->rta_type == IFLA_IFALIAS)
            (void)snprintf(n->link_alias, sizeof(n->link_alias), "%.*s", (int)RTA_PAYLOAD(a),
                           (const char *)RTA_DATA(a));
    }
}

/* What the kernel says beside the number of an error (NLMSGERR_ATTR_MSG), or NULL. The request
 * comes back before it unless that was capped. */
static const char *words_of(struct nlmsghdr *m)
{
    const struct nlmsgerr *answer = NLMSG_DATA(m);
    if ((m->nlmsg_flags & NLM_F_ACK_TLVS) == 0)
        return NULL;
    size_t at = NLMSG_HDRLEN + sizeof(*answer);
    if ((m->nlmsg_flags & NLM_F_CAPPED) == 0)
        at += NLMSG_ALIGN(MAX(answer->msg.nlmsg_len, (uint32_t)NLMSG_HDRLEN)) - NLMSG_HDRLEN;
    while (at + NLA_HDRLEN <= m->nlmsg_len) {
        const struct nlattr *a = (const struct nlattr *)((const char *)m + at);
        if (a->nla_len < NLA_HDRLEN || a->nla_len > m->nlmsg_len - at)
            return NULL;
        const char *text = (const char *)a + NLA_HDRLEN;
        if ((a->nla_type & NLA_TYPE_MASK) == NLMSGERR_ATTR_MSG)
            return memchr(text, '\0', a->nla_len - NLA_HDRLEN) != NULL ? text : NULL;
        at += NLA_ALIGN(a->nla_len);
    }
    return NULL;
}

static enum err refusal_tell(const struct netlink *n, struct nlmsghdr *m, uint32_t index,
                             int failure, struct error *e)
{
    const char *words = words_of(m);
    errno = failure;
    return words != NULL ? error_errno(e, "%s (%s)", n->what[index], words)
                         : error_errno(e, "%s", n->what[index]);
}

/* The message at an offset of an answer; NULL: none that is whole begins there. */
static struct nlmsghdr *message_at(char *answer, size_t bytes, size_t at)
{
    struct nlmsghdr *m = (struct nlmsghdr *)(answer + at);
    if (at + sizeof(*m) > bytes || m->nlmsg_len > bytes - at)
        return NULL;
    size_t least = m->nlmsg_type == NLMSG_ERROR   ? sizeof(struct nlmsgerr)
                   : m->nlmsg_type == RTM_NEWLINK ? sizeof(struct ifinfomsg)
                                                  : 0;
    return m->nlmsg_len >= NLMSG_HDRLEN + least ? m : NULL;
}

/* What is still awaited of the requests `first`.. that were sent, and the first refusal. */
struct awaited {
    uint32_t first, count, left;
    enum err err;
};

static enum err answer_take(struct netlink *n, char *answer, size_t bytes, struct awaited *w,
                            struct error *e)
{
    size_t at = 0;
    for (struct nlmsghdr *m; (m = message_at(answer, bytes, at)) != NULL;
         at += NLMSG_ALIGN(m->nlmsg_len)) {
        if (m->nlmsg_type == RTM_NEWLINK)
            link_take(n, m);
        uint32_t index = m->nlmsg_seq - w->first;
        if (m->nlmsg_type != NLMSG_ERROR || index >= w->count || w->left == 0)
            continue;
        w->left--;
        int failure = -((struct nlmsgerr *)NLMSG_DATA(m))->error;
        if (failure != 0 && w->err == ERR_OK)
            w->err = refusal_tell(n, m, index, failure, e);
    }
    if (at < bytes)
        return error_set(e, ERR_PROTOCOL, "%s: netlink's answer is cut short", n->what[0]);
    return ERR_OK;
}

enum err netlink_send(struct netlink *n, struct error *e)
{
    struct awaited w = {.first = n->first_sequence, .count = n->count, .left = n->count};
    size_t bytes = n->bytes;
    n->count = 0;
    n->bytes = 0;
    if (send(n->fd, n->data, bytes, 0) != (ssize_t)bytes)
        return error_errno(e, "send to netlink");
    while (w.left > 0) {
        _Alignas(NLMSG_ALIGNTO) char answer[NETLINK_ANSWER_BYTES_MAX];
        ssize_t got = recv(n->fd, answer, sizeof(answer), MSG_TRUNC); /* the whole's length */
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(e, "receive from netlink");
        if (got == 0 || (size_t)got > sizeof(answer))
            return error_set(e, ERR_PROTOCOL, "%s: netlink's answer has %zd bytes, at most %zu fit",
                             n->what[0], got, sizeof(answer));
        enum err err = answer_take(n, answer, (size_t)got, &w, e);
        if (err != ERR_OK)
            return err;
    }
    return w.err;
}

enum err netlink_link_ask(struct netlink *n, unsigned index, struct error *e)
{
    struct ifinfomsg *link =
        netlink_begin(n, RTM_GETLINK, 0, sizeof(*link), "ask about an interface");
    link->ifi_index = (int)index;
    n->link_state = IF_OPER_UNKNOWN;
    n->link_alias[0] = '\0';
    return netlink_send(n, e);
}

/* Asking makes the kernel look at the carrier at once since Linux 6.8. */
enum err netlink_link_wait(struct netlink *n, unsigned index, unsigned patience_ms, struct error *e)
{
    for (unsigned waited_ms = 0; waited_ms <= patience_ms; waited_ms++) {
        enum err err = netlink_link_ask(n, index, e);
        if (err != ERR_OK || n->link_state == IF_OPER_UP)
            return err;
        (void)usleep(1000);
    }
    return error_set(e, ERR_TIMEOUT, "interface %u did not come up within %u ms", index,
                     patience_ms);
}
