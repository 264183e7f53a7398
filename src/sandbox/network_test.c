/* network_test.c - slots and the host's table, each test in a network namespace of a child of its
 * own: nothing of this host's network is touched. */
#include "sandbox/network.h"
#include "sandbox/test_scene.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static const struct network_config a = {"a", 0x0a800000, 64, 31000};       /* 10.128.0.0 */
static const struct network_config b_apart = {"b", 0x0a800044, 64, 31064}; /* right behind it */

TEST(slots_have_the_addresses_behind_the_gateway)
{
    CHECK_EQ(network_slot_ip(&a, 0), 0x0a800004);
    CHECK_EQ(network_slot_ip(&a, 300), 0x0a800130);
}

/* ---- a namespace for each ---- */

static bool lo_up(void)
{
    cleanup(fd_close) int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    return ioctl(fd, SIOCSIFFLAGS, &lo) == 0;
}

static void (*the_act)(struct scene *); /* of this process, which plays one */

static void with_lo(struct scene *s)
{
    WANT(s, lo_up());
    the_act(s);
}

static void in_namespace(void (*act)(struct scene *))
{
    the_act = act;
    scene_play(CLONE_NEWNET, with_lo);
}

/* The IPv4 address of an interface where we are, host byte order; 0: it is not there or has none.
 */
static uint32_t address_of(const char *name)
{
    struct ifaddrs *all = NULL;
    uint32_t ip = 0;
    if (getifaddrs(&all) < 0)
        return 0;
    for (struct ifaddrs *i = all; i != NULL; i = i->ifa_next)
        if (strcmp(i->ifa_name, name) == 0 && i->ifa_addr != NULL &&
            i->ifa_addr->sa_family == AF_INET)
            ip = ntohl(((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr);
    freeifaddrs(all);
    return ip;
}

/* Is there a route of exactly this destination where we are? 0: the default one. On `ret_name`. */
static bool route_is_there(uint32_t destination, char *ret_name)
{
    char line[256];
    FILE *f = fopen("/proc/thread-self/net/route", "re");
    bool found = false;
    while (f != NULL && !found && fgets(line, sizeof(line), f) != NULL) {
        unsigned to;
        found = sscanf(line, "%15s %x", ret_name, &to) == 2 && ntohl(to) == destination;
    }
    if (f != NULL)
        (void)fclose(f);
    return found;
}

static bool has_ipv6(const char *name)
{
    char line[256];
    FILE *f = fopen("/proc/thread-self/net/if_inet6", "re");
    bool found = false;
    while (f != NULL && fgets(line, sizeof(line), f) != NULL)
        found |= strstr(line, name) != NULL;
    if (f != NULL)
        (void)fclose(f);
    return found;
}

static int listener_open(uint16_t port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    bool listens = bind(fd, (struct sockaddr *)&to, sizeof(to)) == 0 && listen(fd, 8) == 0;
    return listens ? fd : -1;
}

static bool reaches(uint32_t ip, uint16_t port, int patience_ms)
{
    cleanup(fd_close) int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(ip)}};
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0)
        return true;
    struct pollfd p = {fd, POLLOUT, 0};
    int failure = ETIMEDOUT;
    socklen_t bytes = sizeof(failure);
    if (errno == EINPROGRESS && poll(&p, 1, patience_ms) == 1)
        (void)getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &bytes);
    return failure == 0;
}

static uint64_t cookie_here(void)
{
    cleanup(fd_close) int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    uint64_t cookie = 0;
    socklen_t bytes = sizeof(cookie);
    (void)getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &bytes);
    return cookie;
}

static bool enter(int ns)
{
    return setns(ns, CLONE_NEWNET) == 0;
}

static bool all_gone(const struct network_config *c)
{
    for (int i = 0; i < 1000 && network_interfaces_left(c) > 0; i++)
        (void)usleep(2000);
    return network_interfaces_left(c) == 0;
}

/* ---- slots ---- */

static void make_and_look(struct scene *s)
{
    int netns = -1;
    uint64_t cookie = 0;
    char name[16] = "";
    WANT(s, network_slot_make(&a, 7, &netns, &cookie, &s->e) == ERR_OK);
    WANT(s, address_of("dga-7") == a.pool_ip + 1);
    WANT(s, route_is_there(network_slot_ip(&a, 7), name) && strcmp(name, "dga-7") == 0);
    WANT(s, network_interfaces_left(&a) == 1);
    WANT(s, cookie != 0 && cookie != cookie_here());
    WANT(s, fcntl(netns, F_GETFD) == FD_CLOEXEC);
    WANT(s, enter(netns));
    WANT(s, cookie == cookie_here());
    WANT(s, address_of("eth0") == network_slot_ip(&a, 7));
    WANT(s, address_of("lo") == 0x7f000001);
    WANT(s, route_is_there(0, name) && strcmp(name, "eth0") == 0);
    WANT(s, !has_ipv6("eth0"));
}

TEST(a_slot_has_its_address_its_routes_and_its_cookie)
{
    in_namespace(make_and_look);
}

static void answer_on_small_port(struct scene *s)
{
    int netns = -1;
    uint64_t cookie;
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    WANT(s, enter(netns));
    int fd = listener_open(80);
    WANT(s, fd >= 0 && enter(s->host_ns));
    WANT(s, reaches(network_slot_ip(&a, 0), 80, 1000)); /* at once: it was waited for */
    WANT(s, !reaches(network_slot_ip(&a, 0), 81, 1000));
}

TEST(a_program_in_a_slot_is_reached_at_its_address)
{
    in_namespace(answer_on_small_port);
}

static void close_and_look(struct scene *s)
{
    int netns[3];
    uint64_t cookie;
    char name[16];
    for (uint32_t i = 0; i < 3; i++)
        WANT(s, network_slot_make(&a, i, &netns[i], &cookie, &s->e) == ERR_OK);
    WANT(s, network_interfaces_left(&a) == 3);
    for (uint32_t i = 0; i < 3; i++)
        fd_close(&netns[i]);
    WANT(s, all_gone(&a));
    WANT(s, !route_is_there(network_slot_ip(&a, 0), name));
    WANT(s, network_slot_make(&a, 0, &netns[0], &cookie, &s->e) == ERR_OK); /* and again */
}

TEST(all_of_a_slot_goes_with_its_descriptor)
{
    in_namespace(close_and_look);
}

static void outward_and_back(struct scene *s)
{
    int netns = -1;
    uint64_t cookie;
    char name[16];
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    uint64_t here = cookie_here();
    for (int i = 0; i < 2; i++) {
        WANT(s, network_slot_outward(&a, netns, false, &s->e) == ERR_OK);
        WANT(s, cookie_here() == here); /* we are where we were */
        WANT(s, enter(netns) && !route_is_there(0, name) && route_is_there(a.pool_ip + 1, name));
        WANT(s, enter(s->host_ns));
        WANT(s, network_slot_outward(&a, netns, true, &s->e) == ERR_OK);
        WANT(s, enter(netns) && route_is_there(0, name) && enter(s->host_ns));
    }
    WANT(s, network_slot_outward(&a, netns, true, &s->e) == ERR_OK); /* it has it already */
    WANT(s, network_slot_outward(&a, netns, false, &s->e) == ERR_OK);
    WANT(s, network_slot_outward(&a, netns, false, &s->e) != ERR_OK);
    WANT(s, strstr(s->e.text, "remove a route") == s->e.text);
}

TEST(outward_traffic_is_a_route_that_comes_and_goes)
{
    in_namespace(outward_and_back);
}

static void make_twice(struct scene *s)
{
    int netns = -1, again = -1;
    uint64_t cookie;
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    uint64_t here = cookie_here();
    WANT(s, network_slot_make(&a, 0, &again, &cookie, &s->e) == ERR_EXISTS);
    WANT(s, strstr(s->e.text, "make a veth pair") == s->e.text);
    WANT(s, again == -1 && cookie_here() == here);
    WANT(s, reaches(network_slot_ip(&a, 0), 1, 1000) == false);
    WANT(s, address_of("dga-0") == a.pool_ip + 1); /* the first is as it was */
}

TEST(a_slot_is_made_once)
{
    in_namespace(make_twice);
}

/* ---- the host's table ---- */

static bool has_nft(void)
{
    return access("/usr/sbin/nft", X_OK) == 0 || access("/sbin/nft", X_OK) == 0;
}

/* What nft shows; the buffer is the caller's. */
static const char *rules(char *text, size_t bytes)
{
    FILE *f = popen("PATH=/usr/sbin:/sbin:$PATH nft list ruleset 2>&1", "re");
    size_t got = f != NULL ? fread(text, 1, bytes - 1, f) : 0;
    text[got] = '\0';
    if (f != NULL)
        (void)pclose(f);
    return text;
}

static char forwards(void)
{
    char byte = '?';
    cleanup(fd_close) int fd = open("/proc/sys/net/ipv4/ip_forward", O_RDONLY | O_CLOEXEC);
    (void)!read(fd, &byte, 1);
    return byte;
}

static void forward_set(const char *value)
{
    cleanup(fd_close) int fd = open("/proc/sys/net/ipv4/ip_forward", O_WRONLY | O_CLOEXEC);
    (void)!write(fd, value, 1);
}

static void table_and_back(struct scene *s)
{
    static char text[65536];
    bool was_off = false;
    forward_set("0");
    WANT(s, network_host_open(&a, &was_off, &s->e) == ERR_OK);
    WANT(s, was_off && forwards() == '1');
    (void)rules(text, sizeof(text));
    WANT(s, strstr(text, "table ip dirigent_a {") != NULL);
    WANT(s, strstr(text, "31000 : 10.128.0.4 . 8080") != NULL);  /* the first slot */
    WANT(s, strstr(text, "31063 : 10.128.0.67 . 8080") != NULL); /* the last */
    WANT(s, strstr(text, "31064 :") == NULL);
    bool again_off = true;
    WANT(s, network_host_open(&a, &again_off, &s->e) == ERR_OK); /* over what a dead one left */
    WANT(s, !again_off);
    network_host_close(&a, was_off);
    WANT(s, forwards() == '0');
    WANT(s, strstr(rules(text, sizeof(text)), "dirigent") == NULL);
    network_host_close(&a, false); /* nothing to remove is no trouble */
}

TEST(the_table_comes_and_goes_and_nothing_is_left)
{
    if (has_nft())
        in_namespace(table_and_back);
    else
        test_skip("nft is not installed");
}

static void forward_stays(struct scene *s)
{
    bool was_off = true;
    forward_set("1");
    WANT(s, network_host_open(&a, &was_off, &s->e) == ERR_OK);
    network_host_close(&a, was_off);
    WANT(s, !was_off && forwards() == '1');
}

TEST(a_host_that_forwarded_before_does_so_afterwards)
{
    if (has_nft())
        in_namespace(forward_stays);
    else
        test_skip("nft is not installed");
}

static void walls(struct scene *s)
{
    int netns[2], inside[2];
    uint64_t cookie;
    bool was_off;
    WANT(s, network_host_open(&a, &was_off, &s->e) == ERR_OK);
    int host = listener_open(8080);
    for (uint32_t i = 0; i < 2; i++) {
        WANT(s, network_slot_make(&a, i, &netns[i], &cookie, &s->e) == ERR_OK);
        WANT(s, enter(netns[i]) && (inside[i] = listener_open(8080)) >= 0 && enter(s->host_ns));
    }
    WANT(s, host >= 0 && reaches(a.pool_ip + 1, 8080, 1000)); /* from the host itself */
    WANT(s, reaches(network_slot_ip(&a, 1), 8080, 1000));
    WANT(s, enter(netns[0]));
    WANT(s, reaches(network_slot_ip(&a, 0), 8080, 1000)); /* itself */
    WANT(s, !reaches(network_slot_ip(&a, 1), 8080, 100)); /* not its neighbour */
    WANT(s, !reaches(a.pool_ip + 1, 8080, 100));          /* not the host */
    WANT(s, !reaches(a.pool_ip + 1, 31001, 100));         /* nor the neighbour by way of it */
    /* That was the table's doing: */
    WANT(s, enter(s->host_ns));
    network_host_close(&a, false);
    WANT(s, enter(netns[0]));
    WANT(s, reaches(network_slot_ip(&a, 1), 8080, 1000) && reaches(a.pool_ip + 1, 8080, 1000));
}

TEST(the_host_reaches_sandboxes_and_they_reach_neither_it_nor_each_other)
{
    if (has_nft())
        in_namespace(walls);
    else
        test_skip("nft is not installed");
}

static void other_host(struct scene *s)
{
    struct network_config far = {"far", 0x0a900000, 16, 40000}; /* its slot is the other host */
    int netns = -1, client = -1, inside;
    uint64_t cookie;
    bool was_off;
    WANT(s, network_host_open(&a, &was_off, &s->e) == ERR_OK);
    WANT(s, network_slot_make(&a, 5, &netns, &cookie, &s->e) == ERR_OK);
    WANT(s, enter(netns) && (inside = listener_open(8080)) >= 0 && enter(s->host_ns));
    WANT(s, network_slot_make(&far, 0, &client, &cookie, &s->e) == ERR_OK);
    WANT(s, enter(client));
    WANT(s, reaches(far.pool_ip + 1, 31005, 1000));
    WANT(s, !reaches(far.pool_ip + 1, 31006, 100)); /* a slot that was not made */
    WANT(s, !reaches(far.pool_ip + 1, 8080, 100));  /* the host itself listens there on nothing */
}

TEST(other_hosts_reach_a_sandbox_by_its_host_port)
{
    if (has_nft())
        in_namespace(other_host);
    else
        test_skip("nft is not installed");
}

/* ---- two instances on one host ---- */

static void same_addresses(struct scene *s)
{
    struct network_config b = {"b", a.pool_ip + 32, 16, 40000};
    int netns = -1;
    uint64_t cookie;
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    WANT(s, network_neighbours_check(&b, 0, &s->e) == ERR_CONFLICT);
    WANT(s, strcmp(s->e.text,
                   "--address-pool: the addresses 10.128.0.32 to 10.128.0.51 of instance 'b' "
                   "overlap those of instance 'a', which runs on this host with 10.128.0.0 to "
                   "10.128.0.67") == 0);
    WANT(s, network_neighbours_check(&a, 0, &s->e) == ERR_OK); /* itself is no other */
}

TEST(addresses_that_another_instance_has_are_refused_and_it_is_named)
{
    in_namespace(same_addresses);
}

static void same_ports(struct scene *s)
{
    struct network_config b = {"b", 0x0a900000, 16, 31063};
    int netns = -1;
    uint64_t cookie;
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    WANT(s, network_neighbours_check(&b, 0, &s->e) == ERR_CONFLICT);
    WANT(s, strcmp(s->e.text,
                   "--host-port-base: the ports 31063 to 31078 of instance 'b' overlap those of "
                   "instance 'a', which runs on this host with 31000 to 31063") == 0);
}

TEST(host_ports_that_another_instance_has_are_refused_and_it_is_named)
{
    in_namespace(same_ports);
}

static void gone_meanwhile(struct scene *s)
{
    struct network_config b = {"b", a.pool_ip, 16, 40000};
    int netns = -1;
    uint64_t cookie;
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    fd_close(&netns); /* killed: the kernel is at it */
    WANT(s, network_neighbours_check(&b, 2000, &s->e) == ERR_OK);
}

TEST(addresses_of_an_instance_that_ended_are_free)
{
    in_namespace(gone_meanwhile);
}

static void side_by_side(struct scene *s)
{
    static char text[65536];
    struct network_config a1 = {"a1", 0x0a900000, 16, 40000};
    const struct network_config *all[] = {&a, &b_apart, &a1};
    int netns[3], inside[3];
    uint64_t cookie;
    bool was_off;
    for (int i = 0; i < 3; i++) {
        WANT(s, network_neighbours_check(all[i], 0, &s->e) == ERR_OK);
        WANT(s, network_host_open(all[i], &was_off, &s->e) == ERR_OK);
        WANT(s, network_slot_make(all[i], 0, &netns[i], &cookie, &s->e) == ERR_OK);
        WANT(s, enter(netns[i]) && (inside[i] = listener_open(8080)) >= 0 && enter(s->host_ns));
    }
    for (int i = 0; i < 3; i++) {
        WANT(s, network_interfaces_left(all[i]) == 1); /* "a1" is not "a" and a number */
        WANT(s, reaches(network_slot_ip(all[i], 0), 8080, 1000));
    }
    WANT(s, enter(netns[1]) && !reaches(network_slot_ip(&a, 0), 8080, 100) && enter(s->host_ns));
    fd_close(&inside[0]); /* a socket holds its namespace too */
    fd_close(&netns[0]);
    network_host_close(&a, false);
    WANT(s, all_gone(&a));
    WANT(s, network_interfaces_left(&a1) == 1 && network_interfaces_left(&b_apart) == 1);
    WANT(s, reaches(network_slot_ip(&b_apart, 0), 8080, 1000));
    (void)rules(text, sizeof(text));
    WANT(s, strstr(text, "dirigent_a {") == NULL && strstr(text, "dirigent_a1 {") != NULL &&
                strstr(text, "dirigent_b {") != NULL);
}

TEST(instances_with_pools_of_their_own_live_side_by_side)
{
    if (has_nft())
        in_namespace(side_by_side);
    else
        test_skip("nft is not installed");
}

/* Both have looked before either had a slot. */
static void same_moment(struct scene *s)
{
    struct network_config b = {"b", a.pool_ip, 16, 40000};
    int netns = -1, other = -1;
    uint64_t cookie;
    char name[16] = "";
    WANT(s, network_slot_make(&a, 0, &netns, &cookie, &s->e) == ERR_OK);
    WANT(s, network_slot_make(&b, 0, &other, &cookie, &s->e) == ERR_EXISTS);
    WANT(s, strstr(s->e.text, "add a route") == s->e.text && other == -1);
    WANT(s, route_is_there(network_slot_ip(&a, 0), name) && strcmp(name, "dga-0") == 0);
    WANT(s, all_gone(&b) && network_interfaces_left(&a) == 1);
}

TEST(no_slot_takes_an_address_from_another)
{
    in_namespace(same_moment);
}

static void strangers(struct scene *s)
{
    static const char *const names[] = {"dgx-0", "dgb-1", "dg-3", "dga-b", "dglonglongx-1"};
    char command[300];
    for (int i = 0; i < 5; i++) {
        (void)snprintf(command, sizeof(command),
                       "PATH=/usr/sbin:/sbin:$PATH; ip link add %s type veth peer name p%d && "
                       "ip link set %s alias 'dirigent of nobody'",
                       names[i], i, names[i]);
        WANT(s, system(command) == 0);
    }
    WANT(s, network_neighbours_check(&a, 0, &s->e) == ERR_OK);
    WANT(s, network_interfaces_left(&a) == 0);
}

TEST(interfaces_that_tell_nothing_are_passed_over)
{
    if (access("/usr/sbin/ip", X_OK) == 0 || access("/sbin/ip", X_OK) == 0)
        in_namespace(strangers);
    else
        test_skip("ip is not installed");
}
