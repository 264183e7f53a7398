/* hello_test.c - who may be what, and say what. */
#include "control_plane/hello.h"
#include "test.h"
#include "wire/link.h"

static Dirigent__Hello worker_hello(void)
{
    Dirigent__Hello h = DIRIGENT__HELLO__INIT;
    h.protocol_min = PROTOCOL_VERSION_MIN;
    h.protocol_max = PROTOCOL_VERSION_MAX;
    h.role = DIRIGENT__ROLE__ROLE_WORKER;
    h.name = (char *)"w1";
    h.address = (char *)"10.0.0.7";
    return h;
}

static const struct hello_rules open_rules = {.cluster = "", .ip = "10.0.0.7"};

static void check(const Dirigent__Hello *h, const struct hello_rules *rules, enum err expected,
                  const char *word)
{
    struct error e = {0};
    enum err err = hello_check(h, rules, &e);
    CHECK_EQ(err, expected);
    if (err != ERR_OK && strstr(e.text, word) == NULL)
        test_fail(__FILE__, __LINE__, "'%s' does not say '%s'", e.text, word);
}

TEST(protocols_that_overlap_talk_and_others_hear_both_ranges)
{
    Dirigent__Hello h = worker_hello();
    h.protocol_max = PROTOCOL_VERSION_MAX + 5; /* a newer program that still speaks ours */
    check(&h, &open_rules, ERR_OK, "");
    h.protocol_min = PROTOCOL_VERSION_MAX + 1;
    check(&h, &open_rules, ERR_VERSION, "upgrade the control planes first");
    h.protocol_min = h.protocol_max = PROTOCOL_VERSION_MIN - 1;
    check(&h, &open_rules, ERR_VERSION, "cluster protocol");
}

TEST(names_roles_clusters_and_addresses_are_checked)
{
    Dirigent__Hello h = worker_hello();
    struct hello_rules rules = open_rules;
    rules.cluster = "ours";
    check(&h, &rules, ERR_OK, "");
    h.cluster = (char *)"theirs";
    check(&h, &rules, ERR_PERMISSION, "theirs");
    h = worker_hello();
    h.name = (char *)"";
    check(&h, &open_rules, ERR_INVALID, "name");
    h.name = (char *)"w1/../w2";
    check(&h, &open_rules, ERR_INVALID, "name");
    h = worker_hello();
    h.role = DIRIGENT__ROLE__ROLE_UNKNOWN;
    check(&h, &open_rules, ERR_INVALID, "role");
    h = worker_hello();
    h.address = (char *)"10.0.0.7; rm";
    check(&h, &open_rules, ERR_INVALID, "address");
    h = worker_hello();
    h.role = DIRIGENT__ROLE__ROLE_CONTROL_PLANE;
    check(&h, &open_rules, ERR_PERMISSION, "--peers");
}

TEST(a_worker_that_lies_about_its_address_is_refused_unless_that_is_allowed)
{
    Dirigent__Hello h = worker_hello();
    struct hello_rules rules = open_rules;
    h.address = (char *)"10.0.0.8";
    check(&h, &rules, ERR_PERMISSION, "--any-worker-address");
    rules.any_address = true;
    check(&h, &rules, ERR_OK, "");
    rules = open_rules;
    rules.ip = "127.0.0.1"; /* from this host itself, which may have any */
    check(&h, &rules, ERR_OK, "");
    h.address = (char *)"";
    check(&h, &open_rules, ERR_OK, "");
    h = worker_hello();
    h.role = DIRIGENT__ROLE__ROLE_DATA_PLANE; /* whom nobody is sent to by us */
    h.address = (char *)"";
    h.listen_address = (char *)"0.0.0.0:80";
    check(&h, &open_rules, ERR_OK, "");
}

TEST(with_tls_the_certificate_says_who_it_is)
{
    Dirigent__Hello h = worker_hello();
    struct hello_rules rules = open_rules;
    struct subject peer = {.cluster = "c", .role = NODE_WORKER, .name = "w1"};
    rules.secured = true;
    check(&h, &rules, ERR_PERMISSION, "shows no certificate");
    rules.peer = &peer;
    check(&h, &rules, ERR_OK, "");
    strcpy(peer.name, "w2");
    check(&h, &rules, ERR_PERMISSION, "worker 'w2'");
    strcpy(peer.name, "w1");
    peer.role = NODE_DATA_PLANE;
    check(&h, &rules, ERR_PERMISSION, "data-plane 'w1'");
    /* a control plane's name is an address */
    rules.has_members = true;
    h.role = DIRIGENT__ROLE__ROLE_CONTROL_PLANE;
    h.name = (char *)"10.0.0.1:9090";
    peer.role = NODE_CONTROL_PLANE;
    strcpy(peer.name, "10.0.0.1_9090");
    check(&h, &rules, ERR_OK, "");
    h.name = (char *)"10.0.0.2:9090";
    check(&h, &rules, ERR_PERMISSION, "10.0.0.1_9090");
    peer.role = NODE_WORKER;
    check(&h, &rules, ERR_PERMISSION, "worker");
}

TEST(each_role_says_only_what_is_its_own)
{
    Dirigent__ToControlPlane m = DIRIGENT__TO_CONTROL_PLANE__INIT;
    Dirigent__WorkerLoad load = DIRIGENT__WORKER_LOAD__INIT;
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    Dirigent__JoinRequest join = DIRIGENT__JOIN_REQUEST__INIT;
    struct error e = {0};
    CHECK_EQ(message_check(true, &m, &e), ERR_OK);
    CHECK_EQ(message_check(false, &m, &e), ERR_OK);
    m.worker_load = &load;
    CHECK_EQ(message_check(true, &m, &e), ERR_OK);
    CHECK_EQ(message_check(false, &m, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "worker") != NULL);
    m.worker_load = NULL;
    m.n_demands = 1;
    CHECK_EQ(message_check(true, &m, &e), ERR_PERMISSION);
    CHECK_EQ(message_check(false, &m, &e), ERR_OK);
    m.n_demands = 0;
    m.member = &beat;
    CHECK_EQ(message_check(true, &m, &e), ERR_PERMISSION);
    CHECK_EQ(message_check(false, &m, &e), ERR_PERMISSION);
    m.member = NULL;
    m.join = &join;
    CHECK_EQ(message_check(false, &m, &e), ERR_PERMISSION);
}

TEST(hosts_are_found_in_addresses)
{
    static const struct {
        const char *address, *host;
    } cases[] = {{"10.0.0.1:80", "10.0.0.1"},  {"[fd00::1]:80", "fd00::1"},
                 {"10.0.0.1", "10.0.0.1"},     {"fd00::1", "fd00::1"},
                 {"[fd00::1]", "fd00::1"},     {"", ""},
                 {"localhost:1", "localhost"}, {":80", ""}};
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        CHECK(str_equal(address_host(cases[i].address), str_of(cases[i].host)));
    CHECK(address_is_loopback(STR("127.0.0.3")) && address_is_loopback(STR("::1")));
    CHECK(!address_is_loopback(STR("10.0.0.1")));
    CHECK(address_is_any(address_host(":80")) && address_is_any(address_host("[::]:80")));
    CHECK(address_is_any(address_host("0.0.0.0:80")) && !address_is_any(STR("10.0.0.1")));
}
