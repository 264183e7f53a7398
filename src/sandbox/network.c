/* network.c - network namespaces, veth pairs, the nftables table. */
#include "sandbox/network.h"
#include "sandbox/netlink.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINK_PATIENCE_MS 2000u
#define FUNCTION_PORT_DEFAULT 8080
#define IP_FORWARD "/proc/sys/net/ipv4/ip_forward"

uint32_t network_slot_ip(const struct network_config *c, uint32_t slot)
{
    return c->pool_ip + 4 + slot;
}

static uint32_t gateway_ip(const struct network_config *c)
{
    return c->pool_ip + 1;
}

/* The dash ends the instance's name: those of "a" are told from those of "a1". */
static void interface_name(const struct network_config *c, uint32_t slot, char *ret_name)
{
    int n = snprintf(ret_name, IFNAMSIZ, "dg%.8s-%u", c->instance, slot);
    assert(n < IFNAMSIZ); /* 8 characters and 4 digits fit */
}

/* Locally administered addresses, told by the slot: 02:d1 … host end, 02:d2 … sandbox end. */
static void mac_of(uint32_t slot, bool host_end, uint8_t *ret_mac)
{
    ret_mac[0] = 0x02;
    ret_mac[1] = host_end ? 0xd1 : 0xd2;
    ret_mac[2] = (uint8_t)(slot >> 24);
    ret_mac[3] = (uint8_t)(slot >> 16);
    ret_mac[4] = (uint8_t)(slot >> 8);
    ret_mac[5] = (uint8_t)slot;
}

/* ---- whose addresses ---- */

/* What an instance uses is written to each of its interfaces: they live as long as it does, and
 * only in its network namespace, so others on the host read it there. */
#define CLAIM_FORMAT "dirigent %s slots %u ports %u"
#define CLAIM_BYTES_MAX 80u

static void ip_text(uint32_t ip, char *ret_text)
{
    struct in_addr address = {htonl(ip)};
    (void)inet_ntop(AF_INET, &address, ret_text, INET_ADDRSTRLEN);
}

static void claim_text(const struct network_config *c, char *ret_text)
{
    char pool[INET_ADDRSTRLEN];
    ip_text(c->pool_ip, pool);
    (void)snprintf(ret_text, CLAIM_BYTES_MAX, CLAIM_FORMAT, pool, c->slots_max, c->host_port_base);
}

static bool claim_parse(const char *text, struct network_config *ret_claim)
{
    char pool[32];
    struct in_addr address;
    unsigned slots, ports;
    if (sscanf(text, "dirigent %31s slots %u ports %u", pool, &slots, &ports) != 3 ||
        inet_pton(AF_INET, pool, &address) != 1 || ports > UINT16_MAX)
        return false;
    ret_claim->pool_ip = ntohl(address.s_addr);
    ret_claim->slots_max = slots;
    ret_claim->host_port_base = (uint16_t)ports;
    return true;
}

static bool ranges_overlap(uint64_t a, uint64_t a_count, uint64_t b, uint64_t b_count)
{
    return a < b + b_count && b < a + a_count;
}

static enum err claims_compare(const struct network_config *c, const struct network_config *other,
                               struct error *e)
{
    if (ranges_overlap(c->pool_ip, c->slots_max + 4, other->pool_ip, other->slots_max + 4)) {
        char first[2][INET_ADDRSTRLEN], last[2][INET_ADDRSTRLEN];
        const struct network_config *both[] = {c, other};
        for (int i = 0; i < 2; i++) {
            ip_text(both[i]->pool_ip, first[i]);
            ip_text(network_slot_ip(both[i], both[i]->slots_max - 1), last[i]);
        }
        return error_set(e, ERR_CONFLICT,
                         "--address-pool: the addresses %s to %s of instance '%s' overlap those of "
                         "instance '%s', which runs on this host with %s to %s",
                         first[0], last[0], c->instance, other->instance, first[1], last[1]);
    }
    if (ranges_overlap(c->host_port_base, c->slots_max, other->host_port_base, other->slots_max))
        return error_set(e, ERR_CONFLICT,
                         "--host-port-base: the ports %u to %u of instance '%s' overlap those of "
                         "instance '%s', which runs on this host with %u to %u",
                         c->host_port_base, c->host_port_base + c->slots_max - 1, c->instance,
                         other->instance, other->host_port_base,
                         other->host_port_base + other->slots_max - 1);
    return ERR_OK;
}

/* ---- messages ---- */

static void add_veth(struct netlink *n, const char *host_name, uint32_t slot, int netns_fd)
{
    uint8_t mac[6];
    (void)netlink_begin(n, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof(struct ifinfomsg),
                        "make a veth pair");
    netlink_attribute(n, IFLA_IFNAME, host_name, strlen(host_name) + 1);
    mac_of(slot, true, mac);
    netlink_attribute(n, IFLA_ADDRESS, mac, sizeof(mac));
    struct nlattr *info = netlink_nest_begin(n, IFLA_LINKINFO);
    netlink_attribute(n, IFLA_INFO_KIND, "veth", 4);
    struct nlattr *data = netlink_nest_begin(n, IFLA_INFO_DATA);
    struct nlattr *peer = netlink_nest_begin(n, VETH_INFO_PEER);
    (void)netlink_nest_space(n, sizeof(struct ifinfomsg));
    netlink_attribute(n, IFLA_IFNAME, "eth0", 5);
    mac_of(slot, false, mac);
    netlink_attribute(n, IFLA_ADDRESS, mac, sizeof(mac));
    netlink_attribute_u32(n, IFLA_NET_NS_FD, (uint32_t)netns_fd);
    netlink_nest_end(n, peer);
    netlink_nest_end(n, data);
    netlink_nest_end(n, info);
}

/* `alias` is written to it, or NULL. */
static void link_up(struct netlink *n, unsigned index, const char *alias)
{
    struct ifinfomsg *link =
        netlink_begin(n, RTM_NEWLINK, 0, sizeof(*link), "bring an interface up");
    link->ifi_index = (int)index;
    link->ifi_flags = link->ifi_change = IFF_UP;
    if (alias != NULL)
        netlink_attribute(n, IFLA_IFALIAS, alias, strlen(alias));
}

static void add_address(struct netlink *n, unsigned index, uint32_t ip)
{
    struct ifaddrmsg *address = netlink_begin(n, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE,
                                              sizeof(*address), "give an interface its address");
    *address = (struct ifaddrmsg){.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = index};
    uint32_t net = htonl(ip);
    netlink_attribute(n, IFA_LOCAL, &net, sizeof(net));
}

static void add_neighbour(struct netlink *n, unsigned index, uint32_t ip, const uint8_t *mac)
{
    struct ndmsg *neighbour = netlink_begin(n, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE,
                                            sizeof(*neighbour), "add a neighbour");
    neighbour->ndm_family = AF_INET;
    neighbour->ndm_ifindex = (int)index;
    neighbour->ndm_state = NUD_PERMANENT;
    uint32_t net = htonl(ip);
    netlink_attribute(n, NDA_DST, &net, sizeof(net));
    netlink_attribute(n, NDA_LLADDR, mac, 6);
}

/* `ip`/32 on the link, or with ip 0 the default route through the gateway. An
 * address that a route leads to already is somebody's: it is not taken from him. */
static void change_route(struct netlink *n, uint16_t type, unsigned index, uint32_t ip,
                         uint32_t via, uint32_t source)
{
    bool adds = type == RTM_NEWROUTE;
    uint16_t flags = !adds ? 0 : NLM_F_CREATE | (via != 0 ? NLM_F_REPLACE : NLM_F_EXCL);
    struct rtmsg *route =
        netlink_begin(n, type, flags, sizeof(*route), adds ? "add a route" : "remove a route");
    *route = (struct rtmsg){.rtm_family = AF_INET,
                            .rtm_dst_len = ip != 0 ? 32 : 0,
                            .rtm_table = RT_TABLE_MAIN,
                            .rtm_protocol = RTPROT_STATIC,
                            .rtm_scope = via != 0 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK,
                            .rtm_type = RTN_UNICAST};
    uint32_t net;
    if (ip != 0) {
        net = htonl(ip);
        netlink_attribute(n, RTA_DST, &net, sizeof(net));
    }
    if (via != 0) {
        net = htonl(via);
        netlink_attribute(n, RTA_GATEWAY, &net, sizeof(net));
    }
    if (source != 0) {
        net = htonl(source);
        netlink_attribute(n, RTA_PREFSRC, &net, sizeof(net));
    }
    netlink_attribute_u32(n, RTA_OIF, index);
}

/* ---- slots ---- */

static void set_sysctl(const char *path, const char *value)
{
    cleanup(fd_close) int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        (void)!write(fd, value,
                     strlen(value)); /* each is a nicety; what must be is checked elsewhere */
}

/* Inside the new namespace. */
static enum err inside_configure(const struct network_config *c, uint32_t slot, struct netlink *n,
                                 struct error *e)
{
    uint8_t host_mac[6];
    unsigned eth0 = if_nametoindex("eth0");
    mac_of(slot, true, host_mac);
    link_up(n, 1, NULL); /* lo is always the first */
    add_address(n, eth0, network_slot_ip(c, slot));
    link_up(n, eth0, NULL);
    add_neighbour(n, eth0, gateway_ip(c), host_mac);
    change_route(n, RTM_NEWROUTE, eth0, gateway_ip(c), 0, 0);
    change_route(n, RTM_NEWROUTE, eth0, 0, gateway_ip(c), 0);
    return netlink_send(n, e);
}

static enum err outside_configure(const struct network_config *c, uint32_t slot, unsigned index,
                                  struct netlink *n, struct error *e)
{
    uint8_t mac[6];
    mac_of(slot, false, mac);
    char claim[CLAIM_BYTES_MAX];
    claim_text(c, claim);
    add_address(n, index, gateway_ip(c));
    link_up(n, index, claim);
    add_neighbour(n, index, network_slot_ip(c, slot), mac);
    change_route(n, RTM_NEWROUTE, index, network_slot_ip(c, slot), 0, gateway_ip(c));
    return netlink_send(n, e);
}

static enum err netns_new(int host_ns, int *ret_netns_fd, struct error *e)
{
    if (unshare(CLONE_NEWNET) < 0)
        return error_errno(e, "make a network namespace");
    /* Ports below 1024 are the function's own business; a namespace that is used again must not be
     * full of TIME_WAIT; there is no IPv6. */
    set_sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    set_sysctl("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    set_sysctl("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
    set_sysctl("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    int fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    enum err err = fd < 0 ? error_errno(e, "open the new network namespace") : ERR_OK;
    if (setns(host_ns, CLONE_NEWNET) < 0)
        abort(); /* we would do all that follows in the wrong namespace */
    *ret_netns_fd = fd;
    return err;
}

static enum err cookie_get(uint64_t *ret_cookie, struct error *e)
{
    cleanup(fd_close) int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t bytes = sizeof(*ret_cookie);
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, ret_cookie, &bytes) < 0)
        return error_errno(e,
                           "get the cookie of a network namespace (Linux 5.14 or newer is needed)");
    return ERR_OK;
}

enum err network_slot_make(const struct network_config *c, uint32_t slot, int *ret_netns_fd,
                           uint64_t *ret_cookie, struct error *e)
{
    cleanup(fd_close) int host_ns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    cleanup(fd_close) int netns = -1;
    if (host_ns < 0)
        return error_errno(e, "open the host's network namespace");
    enum err err = netns_new(host_ns, &netns, e);
    if (err != ERR_OK)
        return err;
    char name[IFNAMSIZ];
    interface_name(c, slot, name);
    struct netlink n;
    err = netlink_open(&n, e);
    if (err == ERR_OK) {
        add_veth(&n, name, slot, netns);
        err = netlink_send(&n, e);
        unsigned index = err == ERR_OK ? if_nametoindex(name) : 0;
        char sysctl[96]; /* no IPv6, so none of its chatter */
        (void)snprintf(sysctl, sizeof(sysctl), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
        set_sysctl(sysctl, "1");
        if (err == ERR_OK)
            err = outside_configure(c, slot, index, &n, e);
        netlink_close(&n);
    }
    if (err != ERR_OK)
        return err;
    if (setns(netns, CLONE_NEWNET) < 0)
        return error_errno(e, "enter the new network namespace");
    err = netlink_open(&n, e);
    if (err == ERR_OK) {
        err = inside_configure(c, slot, &n, e);
        if (err == ERR_OK)
            err = netlink_link_wait(&n, if_nametoindex("eth0"), LINK_PATIENCE_MS, e);
        if (err == ERR_OK)
            err = cookie_get(ret_cookie, e);
        netlink_close(&n);
    }
    if (setns(host_ns, CLONE_NEWNET) < 0)
        abort();
    if (err == ERR_OK && (err = netlink_open(&n, e)) == ERR_OK) {
        err = netlink_link_wait(&n, if_nametoindex(name), LINK_PATIENCE_MS, e);
        netlink_close(&n);
    }
    if (err == ERR_OK)
        *ret_netns_fd = fd_take(&netns);
    return err;
}

enum err network_slot_outward(const struct network_config *c, int netns_fd, bool outward,
                              struct error *e)
{
    cleanup(fd_close) int host_ns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (host_ns < 0 || setns(netns_fd, CLONE_NEWNET) < 0)
        return error_errno(e, "enter a network namespace");
    struct netlink n;
    enum err err = netlink_open(&n, e);
    if (err == ERR_OK) {
        change_route(&n, outward ? RTM_NEWROUTE : RTM_DELROUTE, if_nametoindex("eth0"), 0,
                     gateway_ip(c), 0);
        err = netlink_send(&n, e);
        netlink_close(&n);
    }
    if (setns(host_ns, CLONE_NEWNET) < 0)
        abort();
    return err;
}

/* Whose slot an interface is: dg<instance>-<slot>. */
static bool interface_instance(const char *name, char *ret_instance)
{
    size_t bytes = strcspn(name, "-");
    if (strncmp(name, "dg", 2) != 0 || bytes < 3 || bytes > 10 || name[bytes] != '-' ||
        name[bytes + 1] == '\0' ||
        strspn(name + bytes + 1, "0123456789") != strlen(name + bytes + 1))
        return false;
    (void)snprintf(ret_instance, 9, "%.*s", (int)(bytes - 2), name + 2);
    return true;
}

unsigned network_interfaces_left(const struct network_config *c)
{
    unsigned left = 0;
    struct if_nameindex *all = if_nameindex();
    for (struct if_nameindex *i = all; i != NULL && i->if_index != 0; i++) {
        char instance[16];
        left += interface_instance(i->if_name, instance) && strcmp(instance, c->instance) == 0;
    }
    if_freenameindex(all);
    return left;
}

/* Once for each other instance. */
static enum err neighbours_look(const struct network_config *c, struct netlink *n, struct error *e)
{
    struct if_nameindex *all = if_nameindex();
    struct network_config other = {0};
    enum err err = all == NULL ? error_errno(e, "list the host's interfaces") : ERR_OK;
    for (struct if_nameindex *i = all; err == ERR_OK && i != NULL && i->if_index != 0; i++) {
        char instance[16];
        if (!interface_instance(i->if_name, instance) || strcmp(instance, c->instance) == 0 ||
            strcmp(instance, other.instance) == 0)
            continue;
        if (netlink_link_ask(n, i->if_index, NULL) != ERR_OK) /* gone meanwhile */
            continue;
        if (!claim_parse(n->link_alias, &other))
            continue;
        strcpy(other.instance, instance);
        err = claims_compare(c, &other, e);
    }
    if (all != NULL)
        if_freenameindex(all);
    return err;
}

enum err network_neighbours_check(const struct network_config *c, unsigned patience_ms,
                                  struct error *e)
{
    struct netlink n;
    enum err err = netlink_open(&n, e);
    if (err != ERR_OK)
        return err;
    for (unsigned waited_ms = 0;; waited_ms += 10) {
        err = neighbours_look(c, &n, e);
        if (err != ERR_CONFLICT || waited_ms >= patience_ms)
            break;
        (void)usleep(10000);
    }
    netlink_close(&n);
    return err;
}

/* ---- the host's table ---- */

/* Runs `nft -f -` with the text. */
static enum err nft_run(const char *text, size_t bytes, struct error *e)
{
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) < 0)
        return error_errno(e, "make a pipe");
    if (pipe2(out, O_CLOEXEC) < 0) {
        close(in[0]);
        close(in[1]);
        return error_errno(e, "make a pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        (void)dup2(in[0], 0);
        (void)dup2(out[1], 2);
        (void)dup2(out[1], 1);
        char *environment[] = {(char *)"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
        execve("/usr/sbin/nft", (char *[]){(char *)"nft", (char *)"-f", (char *)"-", NULL},
               environment);
        execve("/sbin/nft", (char *[]){(char *)"nft", (char *)"-f", (char *)"-", NULL},
               environment);
        static const char missing[] = "the program 'nft' is not installed (package nftables)";
        (void)!write(2, missing, sizeof(missing) - 1);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    enum err err = pid < 0 ? error_errno(e, "start nft") : fd_write_all(in[1], text, bytes);
    close(in[1]);
    char answer[400] = "";
    size_t got = 0;
    for (ssize_t n; got < sizeof(answer) - 1 &&
                    (n = read(out[0], answer + got, sizeof(answer) - 1 - got)) > 0;)
        got += (size_t)n;
    close(out[0]);
    int status = 0;
    if (pid > 0)
        (void)waitpid(pid, &status, 0);
    answer[strcspn(answer, "\n")] = '\0';
    if (pid > 0 && (status != 0 || err != ERR_OK))
        return error_set(e, ERR_FAILED, "nftables refused the rules: %s",
                         answer[0] != '\0' ? answer : "no reason given");
    return err;
}

struct text {
    char *data;
    size_t bytes, capacity;
};
printf_like(2, 3) static void put(struct text *t, const char *format, ...)
{
    __builtin_va_list args;
    __builtin_va_start(args, format);
    int n = vsnprintf(t->data + t->bytes, t->capacity - t->bytes, format, args);
    __builtin_va_end(args);
    assert(n >= 0 && t->bytes + (size_t)n < t->capacity);
    t->bytes += (size_t)n;
}

/* The host's name servers are often private addresses: they are let through on port 53. */
static void put_name_servers(struct text *t)
{
    char *text = NULL;
    if (file_read("/etc/resolv.conf", 64 * KIB, &text, NULL, NULL) != ERR_OK)
        return;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        struct in_addr address;
        char server[64];
        if (sscanf(line, " nameserver %63s", server) != 1 ||
            inet_pton(AF_INET, server, &address) != 1 || (ntohl(address.s_addr) >> 24) == 127)
            continue;
        put(t, "  ip daddr %s meta l4proto { tcp, udp } th dport 53 accept\n", server);
    }
    free(text);
}

static void rules_make(const struct network_config *c, struct text *t)
{
    char gateway[INET_ADDRSTRLEN], address[INET_ADDRSTRLEN];
    ip_text(gateway_ip(c), gateway);
    put(t, "table ip dirigent_%s\ndelete table ip dirigent_%s\ntable ip dirigent_%s {\n",
        c->instance, c->instance, c->instance);
    put(t, " map ports {\n  type inet_service : ipv4_addr . inet_service\n  elements = {");
    for (uint32_t slot = 0; slot < c->slots_max; slot++) {
        ip_text(network_slot_ip(c, slot), address);
        put(t, "%s %u : %s . %u", slot > 0 ? "," : "", c->host_port_base + slot, address,
            FUNCTION_PORT_DEFAULT);
    }
    put(t, " }\n }\n");
    /* Data planes of this host talk to sandboxes directly: no connection tracking for that. */
    put(t,
        " chain raw_in { type filter hook prerouting priority raw; policy accept;\n"
        "  iifname \"dg%s-*\" fib saddr . iif oif 0 drop\n"
        "  iifname \"dg%s-*\" ip daddr %s notrack\n }\n",
        c->instance, c->instance, gateway);
    put(t,
        " chain raw_out { type filter hook output priority raw; policy accept;\n"
        "  oifname \"dg%s-*\" ip saddr %s notrack\n }\n",
        c->instance, gateway);
    put(t,
        " chain translate { type nat hook prerouting priority dstnat; policy accept;\n"
        "  iifname != \"dg%s-*\" fib daddr type local dnat ip to tcp dport map @ports\n }\n",
        c->instance);
    put(t,
        " chain masquerade_out { type nat hook postrouting priority srcnat; policy accept;\n"
        "  iifname \"dg%s-*\" oifname != \"dg%s-*\" masquerade\n }\n",
        c->instance, c->instance);
    /* To the host: answers only. */
    put(t,
        " chain to_host { type filter hook input priority filter; policy accept;\n"
        "  iifname != \"dg%s-*\" accept\n  tcp flags & (fin|syn|rst|ack) == syn drop\n"
        "  meta l4proto tcp accept\n  drop\n }\n",
        c->instance);
    put(t,
        " chain through { type filter hook forward priority filter; policy accept;\n"
        "  iifname != \"dg%s-*\" accept\n  oifname \"dg%s-*\" drop\n  ct state established,related "
        "accept\n",
        c->instance, c->instance);
    put_name_servers(t);
    put(t, "  ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, "
           "172.16.0.0/12,"
           " 192.168.0.0/16, 224.0.0.0/3 } drop\n  tcp dport 25 drop\n }\n}\n");
}

enum err network_host_open(const struct network_config *c, bool *ret_forward_was_off,
                           struct error *e)
{
    struct text t = {.capacity = 16384 + (size_t)c->slots_max * 48};
    t.data = mem_new(t.capacity);
    rules_make(c, &t);
    enum err err = nft_run(t.data, t.bytes, e);
    free(t.data);
    if (err != ERR_OK)
        return err;
    char *forward = NULL;
    *ret_forward_was_off = false;
    if (file_read(IP_FORWARD, 16, &forward, NULL, NULL) == ERR_OK && forward[0] == '0') {
        set_sysctl(IP_FORWARD, "1");
        *ret_forward_was_off = true;
    }
    free(forward);
    return ERR_OK;
}

void network_host_close(const struct network_config *c, bool forward_was_off)
{
    char text[160];
    int n = snprintf(text, sizeof(text), "table ip dirigent_%s\ndelete table ip dirigent_%s\n",
                     c->instance, c->instance);
    (void)nft_run(text, (size_t)n, NULL);
    if (forward_was_off)
        set_sysctl(IP_FORWARD, "0");
}
