/* netlink_test.c - the bytes of requests, answers of every shape (played by the test on a socket
 * pair), and what the kernel says, in a network namespace of a child. */
#include "sandbox/netlink.h"
#include "test.h"
#include <errno.h>
#include <linux/if.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- requests ---- */

TEST(a_request_is_a_header_a_fixed_part_and_attributes)
{
    struct netlink n = {.fd = -1};
    struct ifinfomsg *link = netlink_begin(&n, RTM_NEWLINK, NLM_F_CREATE, sizeof(*link), "make it");
    link->ifi_index = 7;
    netlink_attribute(&n, IFLA_IFNAME, "eth0", 5);
    netlink_attribute_u32(&n, IFLA_MTU, 1500);
    const struct nlmsghdr *m = (const struct nlmsghdr *)n.data;
    CHECK_EQ(m->nlmsg_type, RTM_NEWLINK);
    CHECK_EQ(m->nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE);
    CHECK_EQ(m->nlmsg_len, n.bytes);
    CHECK_EQ(n.bytes, NLMSG_HDRLEN + sizeof(*link) + 12 + 8); /* 5 bytes take 8 */
    const struct nlattr *name = (const struct nlattr *)(n.data + NLMSG_HDRLEN + sizeof(*link));
    CHECK_EQ(name->nla_len, NLA_HDRLEN + 5); /* without the padding */
    CHECK_STR((const char *)name + NLA_HDRLEN, "eth0");
    const struct nlattr *mtu = (const struct nlattr *)((const char *)name + 12);
    CHECK_EQ(mtu->nla_type, IFLA_MTU);
    CHECK_EQ(*(const uint32_t *)((const char *)mtu + NLA_HDRLEN), 1500);
}

TEST(a_nest_spans_what_is_in_it)
{
    struct netlink n = {.fd = -1};
    (void)netlink_begin(&n, RTM_NEWLINK, 0, sizeof(struct ifinfomsg), "nest");
    size_t outer_at = n.bytes;
    struct nlattr *outer = netlink_nest_begin(&n, IFLA_LINKINFO);
    netlink_attribute(&n, IFLA_INFO_KIND, "veth", 4);
    size_t inner_at = n.bytes;
    struct nlattr *inner = netlink_nest_begin(&n, IFLA_INFO_DATA);
    (void)netlink_nest_space(&n, sizeof(struct ifinfomsg));
    netlink_nest_end(&n, inner);
    netlink_nest_end(&n, outer);
    CHECK_EQ(outer->nla_len, n.bytes - outer_at);
    CHECK_EQ(inner->nla_len, n.bytes - inner_at);
    CHECK_EQ(((const struct nlmsghdr *)n.data)->nlmsg_len, n.bytes);
}

TEST(several_requests_go_in_one_buffer_each_with_its_own_number)
{
    struct netlink n = {.fd = -1, .sequence = 41};
    for (int i = 0; i < 3; i++) {
        (void)netlink_begin(&n, RTM_NEWLINK, 0, sizeof(struct ifinfomsg), "one of three");
        netlink_attribute_u32(&n, IFLA_MTU, 100);
    }
    size_t at = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const struct nlmsghdr *m = (const struct nlmsghdr *)(n.data + at);
        CHECK_EQ(m->nlmsg_seq, 42 + i);
        CHECK_EQ(m->nlmsg_len, NLMSG_HDRLEN + sizeof(struct ifinfomsg) + 8);
        at += m->nlmsg_len;
    }
    CHECK_EQ(at, n.bytes);
}

/* ---- answers, played ---- */

struct play {
    struct netlink n;
    int kernel_fd; /* what the kernel would have */
};

/* Two requests wait to be sent, "the first" with number 1 and "the second" with 2. */
static void play_init(struct play *p)
{
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    struct timeval patience = {.tv_sec = 1}; /* a test that waits for ever tells nobody */
    REQUIRE(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) == 0);
    *p = (struct play){.n = {.fd = ends[0]}, .kernel_fd = ends[1]};
    (void)netlink_begin(&p->n, RTM_NEWLINK, 0, sizeof(struct ifinfomsg), "the first");
    (void)netlink_begin(&p->n, RTM_NEWLINK, 0, sizeof(struct ifinfomsg), "the second");
}

static void play_done(struct play *p)
{
    netlink_close(&p->n);
    fd_close(&p->kernel_fd);
}

struct answer {
    struct nlmsghdr head;
    struct nlmsgerr err;
};
static struct answer answer_to(uint32_t sequence, int failure)
{
    return (struct answer){{.nlmsg_len = sizeof(struct answer), NLMSG_ERROR, .nlmsg_seq = sequence},
                           {.error = -failure}};
}

static void play(const struct play *p, const void *data, size_t bytes)
{
    REQUIRE(send(p->kernel_fd, data, bytes, 0) == (ssize_t)bytes);
}

TEST(all_is_well_when_each_request_is_acknowledged)
{
    struct play p;
    struct error e = {0};
    play_init(&p);
    struct answer one = answer_to(1, 0), two = answer_to(2, 0);
    play(&p, &one, sizeof(one));
    play(&p, &two, sizeof(two));
    CHECK_EQ(netlink_send(&p.n, &e), ERR_OK);
    CHECK_STR(e.text, "");
    CHECK_EQ(p.n.bytes, 0);
    CHECK_EQ(p.n.count, 0);
    play_done(&p);
}

TEST(the_first_refusal_is_told_and_all_answers_are_taken)
{
    struct play p;
    struct error e = {0};
    play_init(&p);
    struct answer both[] = {answer_to(1, ENODEV), answer_to(2, EEXIST)}; /* in one packet */
    play(&p, both, sizeof(both));
    CHECK(netlink_send(&p.n, &e) != ERR_OK);
    CHECK_STR(e.text, "the first: No such device");
    char byte;
    CHECK(recv(p.n.fd, &byte, 1, MSG_DONTWAIT) < 0); /* nothing is left for the next */
    play_done(&p);
}

TEST(the_request_that_was_refused_is_named)
{
    struct play p;
    struct error e = {0};
    play_init(&p);
    struct answer both[] = {answer_to(1, 0), answer_to(2, EPERM)};
    play(&p, both, sizeof(both));
    CHECK_EQ(netlink_send(&p.n, &e), ERR_PERMISSION);
    CHECK_STR(e.text, "the second: Operation not permitted");
    play_done(&p);
}

/* netlink(7), NETLINK_EXT_ACK: an attribute with a text behind the error, and, when that was not
 * capped, behind the request too. */
static void check_words(bool capped)
{
    struct {
        struct answer a;
        char rest[64];
    } said = {.a = answer_to(1, EINVAL)};
    struct play p;
    struct error e = {0};
    size_t echo = capped ? 0 : 16; /* of the request, beyond its header */
    struct nlattr text = {.nla_len = NLA_HDRLEN + 11, .nla_type = NLMSGERR_ATTR_MSG};
    play_init(&p);
    said.a.err.msg.nlmsg_len = sizeof(struct nlmsghdr) + 16;
    said.a.head.nlmsg_flags = NLM_F_ACK_TLVS | (capped ? NLM_F_CAPPED : 0);
    said.a.head.nlmsg_len += (uint32_t)echo + 16;
    memcpy(said.rest + echo, &text, sizeof(text));
    memcpy(said.rest + echo + NLA_HDRLEN, "not today!", 11);
    struct answer two = answer_to(2, 0);
    play(&p, &said, said.a.head.nlmsg_len);
    play(&p, &two, sizeof(two));
    CHECK_EQ(netlink_send(&p.n, &e), ERR_INVALID);
    CHECK_STR(e.text, "the first (not today!): Invalid argument");
    play_done(&p);
}

TEST(the_kernels_words_are_passed_on)
{
    check_words(true);
    check_words(false);
}

TEST(answers_to_others_are_passed_over)
{
    struct play p;
    struct error e = {0};
    play_init(&p);
    struct answer all[] = {answer_to(0, EIO), answer_to(3, EIO), answer_to(900, EIO),
                           answer_to(1, 0), answer_to(2, 0)};
    play(&p, all, sizeof(all));
    CHECK_EQ(netlink_send(&p.n, &e), ERR_OK);
    play_done(&p);
}

TEST(the_state_of_a_link_is_taken_from_an_answer)
{
    struct {
        struct nlmsghdr head;
        struct ifinfomsg link;
        struct nlattr attribute;
        uint8_t state, padding[3];
    } link = {{.nlmsg_len = sizeof(link), RTM_NEWLINK, .nlmsg_seq = 1},
              {.ifi_index = 3},
              {NLA_HDRLEN + 1, IFLA_OPERSTATE},
              IF_OPER_UP,
              {0}};
    struct play p;
    struct error e = {0};
    play_init(&p);
    struct answer both[] = {answer_to(1, 0), answer_to(2, 0)};
    play(&p, &link, sizeof(link));
    play(&p, both, sizeof(both));
    CHECK_EQ(netlink_send(&p.n, &e), ERR_OK);
    CHECK_EQ(p.n.link_state, IF_OPER_UP);
    play_done(&p);
}

/* Cut anywhere, an answer is an error at once: nobody waits for what will not come. */
TEST(answers_that_are_cut_short_are_errors)
{
    struct answer whole = answer_to(1, 0);
    for (size_t bytes = 1; bytes < sizeof(whole); bytes++)
        for (int honest = 0; honest < 2; honest++) { /* the length in it is cut too */
            struct play p;
            struct error e = {0};
            struct answer cut = whole;
            play_init(&p);
            if (honest)
                cut.head.nlmsg_len = (uint32_t)bytes;
            play(&p, &cut, bytes);
            CHECK_EQ(netlink_send(&p.n, &e), ERR_PROTOCOL);
            CHECK(strstr(e.text, "cut short") != NULL);
            play_done(&p);
        }
}

TEST(an_answer_that_is_too_long_is_an_error)
{
    static char long_one[NETLINK_ANSWER_BYTES_MAX + 4];
    struct play p;
    struct error e = {0};
    play_init(&p);
    struct answer head = answer_to(1, 0);
    head.head.nlmsg_len = sizeof(long_one);
    memcpy(long_one, &head, sizeof(head));
    play(&p, long_one, sizeof(long_one));
    CHECK_EQ(netlink_send(&p.n, &e), ERR_PROTOCOL);
    CHECK_STR(e.text, "the first: netlink's answer has 8196 bytes, at most 8192 fit");
    play_done(&p);
}

/* Whatever comes, it is read within its bounds, the call ends, and an error has a text. */
PROPERTY(damaged_answers_are_survived)
{
    struct {
        struct answer a;
        char rest[48];
    } said = {.a = answer_to(1, EINVAL)};
    struct play p;
    struct error e = {0};
    play_init(&p);
    said.a.head.nlmsg_flags = NLM_F_ACK_TLVS;
    said.a.head.nlmsg_len = sizeof(said);
    for (uint64_t i = rng_below(rng, 12); i > 0; i--)
        ((uint8_t *)&said)[rng_below(rng, sizeof(said))] = (uint8_t)rng_below(rng, 256);
    play(&p, &said, 1 + rng_below(rng, sizeof(said)));
    struct answer both[] = {answer_to(1, 0), answer_to(2, 0)};
    play(&p, both, sizeof(both));
    play(&p, both, sizeof(both));
    enum err err = netlink_send(&p.n, &e);
    CHECK((err == ERR_OK) == (e.text[0] == '\0'));
    play_done(&p);
}

/* ---- the kernel ---- */

/* Runs `act` as root of an own network namespace; it returns a text, "" when all is well. */
static void in_namespace(const char *(*act)(struct netlink *n, struct error *e))
{
    int ends[2], status;
    if (geteuid() != 0) {
        test_skip("needs root");
        return;
    }
    REQUIRE(pipe(ends) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        struct netlink n;
        struct error e = {0};
        const char *wrong = "no network namespace can be made";
        if (unshare(CLONE_NEWNET) == 0)
            wrong = netlink_open(&n, &e) == ERR_OK ? act(&n, &e) : e.text;
        (void)!write(ends[1], wrong, strlen(wrong));
        _exit(0);
    }
    (void)close(ends[1]);
    char wrong[600] = "";
    ssize_t got = read(ends[0], wrong, sizeof(wrong) - 1);
    (void)close(ends[0]);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
    CHECK(got >= 0);
    CHECK_STR(wrong, "");
}

static const char *bring_lo_up(struct netlink *n, struct error *e)
{
    struct ifinfomsg *link = netlink_begin(n, RTM_NEWLINK, 0, sizeof(*link), "bring lo up");
    link->ifi_index = 1;
    link->ifi_flags = link->ifi_change = IFF_UP;
    return netlink_send(n, e) == ERR_OK ? "" : e->text;
}

TEST(the_kernel_does_what_is_asked)
{
    in_namespace(bring_lo_up);
}

static const char *ask_for_what_is_not(struct netlink *n, struct error *e)
{
    struct ifinfomsg *link = netlink_begin(n, RTM_NEWLINK, 0, sizeof(*link), "bring lo up");
    link->ifi_index = 1;
    link->ifi_flags = link->ifi_change = IFF_UP;
    link = netlink_begin(n, RTM_NEWLINK, 0, sizeof(*link), "bring 4711 up");
    link->ifi_index = 4711;
    enum err err = netlink_send(n, e);
    return err != ERR_OK && strstr(e->text, "bring 4711 up") == e->text &&
                   strstr(e->text, "No such device") != NULL
               ? ""
           : e->text[0] != '\0' ? e->text
                                : "it was done";
}

TEST(the_kernels_refusal_names_the_request)
{
    in_namespace(ask_for_what_is_not);
}

static const char *refused_with_words(struct netlink *n, struct error *e)
{
    struct rtmsg *route = netlink_begin(n, RTM_NEWROUTE, NLM_F_CREATE, sizeof(*route), "a route");
    *route = (struct rtmsg){.rtm_family = AF_INET, .rtm_dst_len = 33}; /* no such length */
    return netlink_send(n, e) == ERR_INVALID && strstr(e->text, "a route (") == e->text ? ""
           : e->text[0] != '\0'                                                         ? e->text
                                : "it was done";
}

TEST(the_kernel_explains_what_it_refuses)
{
    in_namespace(refused_with_words);
}

static const char *wait_for_lo(struct netlink *n, struct error *e)
{
    enum err err = netlink_link_wait(n, 1, 20, e); /* is down, and stays so */
    return err == ERR_TIMEOUT && strstr(e->text, "interface 1 did not come up within 20 ms") ? ""
           : e->text[0] != '\0' ? e->text
                                : "it came up";
}

TEST(a_link_that_stays_down_is_waited_for_no_longer_than_said)
{
    in_namespace(wait_for_lo);
}
