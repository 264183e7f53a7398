/* store_etcd_test.c - the conformance suite on a real etcd of three members, and what happens to
 * its members: killed, stopped, cut off from a majority. Skipped where there is no etcd. */
#include "control_plane/store/etcd.h"
#include "control_plane/store/store_standby.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MEMBERS 3u

struct member {
    pid_t pid;
    uint16_t client_port, peer_port;
    char directory[96];
};
struct cluster {
    char directory[64], where[600];
    bool tls; /* with ca.pem, cert.pem and key.pem of the directory, asked of clients too */
    struct member members[MEMBERS];
};

/* ---- etcd ---- */

static uint16_t free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(bind(fd, (struct sockaddr *)&address, bytes) == 0);
    REQUIRE(getsockname(fd, (struct sockaddr *)&address, &bytes) == 0);
    (void)close(fd);
    return ntohs(address.sin_port);
}

static bool there_is_etcd(void)
{
    return access("/usr/bin/etcd", X_OK) == 0;
}

static void member_start(struct cluster *c, unsigned index, const char *all, bool is_new)
{
    struct member *m = &c->members[index];
    char name[8], client[64], peer[64], log[128];
    (void)snprintf(name, sizeof(name), "m%u", index);
    (void)snprintf(client, sizeof(client), "%s://127.0.0.1:%u", c->tls ? "https" : "http",
                   m->client_port);
    cleanup(free_pointer) char *ca = mem_printf("%s/ca.pem", c->directory);
    cleanup(free_pointer) char *cert = mem_printf("%s/cert.pem", c->directory);
    cleanup(free_pointer) char *key = mem_printf("%s/key.pem", c->directory);
    (void)snprintf(peer, sizeof(peer), "http://127.0.0.1:%u", m->peer_port);
    (void)snprintf(log, sizeof(log), "%s.log", m->directory);
    m->pid = fork();
    REQUIRE(m->pid >= 0);
    if (m->pid > 0)
        return;
    int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    (void)dup2(fd, 1);
    (void)dup2(fd, 2);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *tls[] = {
        "--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key};
    const char *arguments[32] = {"etcd",
                                 "--name",
                                 name,
                                 "--data-dir",
                                 m->directory,
                                 "--listen-client-urls",
                                 client,
                                 "--advertise-client-urls",
                                 client,
                                 "--listen-peer-urls",
                                 peer,
                                 "--initial-advertise-peer-urls",
                                 peer,
                                 "--initial-cluster",
                                 all,
                                 "--initial-cluster-state",
                                 is_new ? "new" : "existing",
                                 "--heartbeat-interval",
                                 "20",
                                 "--election-timeout",
                                 "200"};
    if (c->tls)
        memcpy(arguments + 19, tls, sizeof(tls));
    execv("/usr/bin/etcd", (char **)arguments);
    _exit(127);
}

static void members_text(const struct cluster *c, unsigned count, char *ret_text, size_t bytes)
{
    ret_text[0] = '\0';
    for (unsigned i = 0; i < count; i++)
        (void)snprintf(ret_text + strlen(ret_text), bytes - strlen(ret_text),
                       "%sm%u=http://127.0.0.1:%u", i > 0 ? "," : "", i, c->members[i].peer_port);
}

static void cluster_prepare(struct cluster *c)
{
    *c = (struct cluster){0};
    (void)snprintf(c->directory, sizeof(c->directory), "%s/store-etcd-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    REQUIRE(mkdtemp(c->directory) != NULL);
}

static void cluster_begin(struct cluster *c, unsigned count)
{
    char all[200];
    (void)snprintf(c->where, sizeof(c->where), "me@");
    for (unsigned i = 0; i < count; i++) {
        struct member *m = &c->members[i];
        m->client_port = free_port();
        m->peer_port = free_port();
        (void)snprintf(m->directory, sizeof(m->directory), "%s/m%u", c->directory, i);
        (void)snprintf(c->where + strlen(c->where), sizeof(c->where) - strlen(c->where),
                       "%s%s://127.0.0.1:%u", i > 0 ? "," : "", c->tls ? "https" : "http",
                       m->client_port);
    }
    if (c->tls)
        (void)snprintf(c->where + strlen(c->where), sizeof(c->where) - strlen(c->where),
                       "?ca=%s/ca.pem&cert=%s/cert.pem&key=%s/key.pem", c->directory, c->directory,
                       c->directory);
    members_text(c, count, all, sizeof(all));
    for (unsigned i = 0; i < count; i++)
        member_start(c, i, all, true);
}

static void cluster_start(struct cluster *c, unsigned count)
{
    cluster_prepare(c);
    cluster_begin(c, count);
}

/* Until a majority answers. */
static void cluster_wait(const struct cluster *c)
{
    struct etcd *calls = NULL;
    struct error e = {0};
    REQUIRE(etcd_open(strchr(c->where, '@') + 1, &calls, &e) == ERR_OK);
    for (int i = 0;; i++) {
        json_t *request = json_pack("{s:o}", "key", etcd_base64(STR("x"))), *answer = NULL;
        enum err err = etcd_read(calls, "/v3/kv/range", request, etcd_end_ms(), &answer, &e);
        json_decref(request);
        json_decref(answer);
        if (err == ERR_OK)
            break;
        REQUIRE(i < 5);
    }
    etcd_close(calls);
}

static void member_end(struct member *m)
{
    int status;
    if (m->pid <= 0)
        return;
    (void)kill(m->pid, SIGCONT);
    (void)kill(m->pid, SIGKILL);
    (void)waitpid(m->pid, &status, 0);
    m->pid = 0;
}

static void cluster_end(struct cluster *c)
{
    for (unsigned i = 0; i < MEMBERS; i++)
        member_end(&c->members[i]);
    cleanup(free_pointer) char *command = mem_printf("rm -rf %s", c->directory);
    CHECK(system(command) == 0);
}

static struct cluster the_shared;
static pid_t the_owner;

/* One for all tests that leave it whole; emptied before each. */
static struct cluster *shared(void)
{
    if (the_owner == 0) {
        the_owner = getpid();
        cluster_start(&the_shared, MEMBERS);
        cluster_wait(&the_shared);
    }
    const struct cluster c = the_shared;
    struct etcd *calls = NULL;
    struct error e = {0};
    REQUIRE(etcd_open(strchr(c.where, '@') + 1, &calls, &e) == ERR_OK);
    json_t *answer = NULL, *request = json_pack("{s:o, s:o}", "key", etcd_base64(STR("/dirigent/")),
                                                "range_end", etcd_base64(STR("/dirigent0")));
    REQUIRE(etcd_read(calls, "/v3/kv/deleterange", request, etcd_end_ms(), &answer, &e) == ERR_OK);
    json_decref(request);
    json_decref(answer);
    etcd_close(calls);
    return &the_shared;
}

__attribute__((destructor)) static void shared_remove(void)
{
    if (the_owner == getpid())
        cluster_end(&the_shared);
}

#define NEEDS_ETCD()                            \
    if (!there_is_etcd()) {                     \
        test_skip("there is no /usr/bin/etcd"); \
        return;                                 \
    }

/* ---- conformance ---- */

TEST(conforms_when_new)
{
    NEEDS_ETCD();
    a_new_store_is_empty_and_its_first_epoch_is_1(&store_etcd, shared()->where);
}

TEST(conforms_in_what_is_loaded)
{
    NEEDS_ETCD();
    what_was_put_is_loaded_in_order_and_ids_are_never_used_again(&store_etcd, shared()->where);
}

TEST(conforms_to_an_array)
{
    struct rng rng;
    NEEDS_ETCD();
    for (uint64_t seed = 1; seed <= 3; seed++) {
        rng_init(&rng, seed);
        the_store_agrees_with_an_array(&store_etcd, shared()->where, &rng);
    }
}

TEST(conforms_in_refusing_a_leader_that_was_succeeded)
{
    NEEDS_ETCD();
    a_leader_that_was_succeeded_writes_nothing(&store_etcd, shared()->where);
}

TEST(conforms_in_sharing_transactions)
{
    NEEDS_ETCD();
    writes_that_wait_together_share_transactions_and_keep_their_order(&store_etcd, shared()->where);
}
TEST(conforms_in_epochs_above_a_number)
{
    NEEDS_ETCD();
    an_epoch_can_be_taken_above_any_number(&store_etcd, shared()->where);
}
TEST(conforms_in_being_read_while_in_use)
{
    NEEDS_ETCD();
    a_store_in_use_can_be_read(&store_etcd, shared()->where);
}

/* ---- several control planes ---- */

TEST(a_leader_succeeded_by_another_process_writes_nothing)
{
    void *a = NULL, *b = NULL;
    struct error e = {0};
    uint64_t epoch_a = 0, epoch_b = 0;
    size_t count = 0;
    struct store_write write = {.kind = STORE_FUNCTION, .id = 1, .value = (char *)"x"};
    NEEDS_ETCD();
    const char *where = shared()->where;
    REQUIRE(store_etcd.open(where, &a, &e) == ERR_OK);
    REQUIRE(store_etcd.open(where, &b, &e) == ERR_OK);
    CHECK_EQ(store_etcd.take_epoch(a, &epoch_a, &e), ERR_OK);
    CHECK_EQ(store_etcd.commit(a, epoch_a, &write, NULL, &count, &e), ERR_OK);
    CHECK_EQ(store_etcd.take_epoch(b, &epoch_b, &e), ERR_OK);
    CHECK_EQ(epoch_b, epoch_a + 1);
    CHECK_EQ(store_etcd.commit(a, epoch_a, &write, NULL, &count, &e), ERR_STALE);
    CHECK(strstr(e.text, "another control plane leads") != NULL);
    store_etcd.close(a);
    store_etcd.close(b);
}

TEST(of_two_who_take_the_same_epoch_one_does)
{
    void *a = NULL, *b = NULL;
    struct error e = {0};
    uint64_t next = 0, epoch = 0;
    NEEDS_ETCD();
    const char *where = shared()->where;
    REQUIRE(store_etcd.open(where, &a, &e) == ERR_OK);
    REQUIRE(store_etcd.open(where, &b, &e) == ERR_OK);
    struct buf none = {0};
    struct bench unused = {.records = none};
    REQUIRE(store_etcd.load(a, note_record, &unused, &next, &e) ==
            ERR_OK); /* both know the same epoch */
    REQUIRE(store_etcd.load(b, note_record, &unused, &next, &e) == ERR_OK);
    CHECK_EQ(store_etcd.take_epoch(a, &epoch, &e), ERR_OK);
    CHECK_EQ(store_etcd.take_epoch(b, &epoch, &e), ERR_STALE);
    CHECK_EQ(store_etcd.take_epoch(b, &epoch, &e), ERR_OK); /* having looked again */
    CHECK_EQ(epoch, 2);
    buf_done(&unused.records);
    store_etcd.close(a);
    store_etcd.close(b);
}

TEST(a_standby_is_told_what_is_there_and_what_changes_and_takes_over_knowing_all)
{
    struct bench leader;
    struct standby s;
    NEEDS_ETCD();
    const char *where = shared()->where;
    bench_open_at(&leader, &store_etcd, where);
    CHECK_EQ(put(&leader, STORE_FUNCTION, 1, "one"), ERR_OK);
    CHECK_EQ(put(&leader, STORE_WORKER, 2, "two"), ERR_OK);
    standby_start(&s, where);
    UNTIL(&s, s.synced == 1 && s.epoch == 1);
    CHECK(was_told(&s, "0/1=one\n") && was_told(&s, "1/2=two\n"));
    CHECK_EQ(put(&leader, STORE_FUNCTION, 3, "three"), ERR_OK);
    CHECK_EQ(put(&leader, STORE_FUNCTION, 1, NULL), ERR_OK);
    UNTIL(&s, was_told(&s, "0/3=three\n") && was_told(&s, "0/1=(none)\n"));
    for (uint64_t id = 10; id < 60; id++) {
        char value[32];
        (void)snprintf(value, sizeof(value), "v%" PRIu64, id);
        CHECK_EQ(put(&leader, STORE_DATA_PLANE, id, value), ERR_OK);
    }
    store_take(s.store, 0); /* as if it had not been told of the leader yet */
    UNTIL(&s, s.taken == 1);
    CHECK_EQ(s.taken_err, ERR_STALE);
    store_take(s.store, s.epoch);
    UNTIL(&s, s.taken == 2);
    CHECK_EQ(s.taken_err, ERR_OK);
    CHECK_EQ(s.taken_epoch, 2);
    CHECK_EQ(s.next_id, 60);
    CHECK(was_told(&s, "2/59=v59\n")); /* before it was told that it leads */
    CHECK_EQ(put(&leader, STORE_FUNCTION, 70, "late"), ERR_STALE);
    UNTIL(&s, s.epoch == 2);
    CHECK(!was_told(&s, "late"));
    bench_close(&leader);
    standby_end(&s);
}

TEST(of_two_standbys_one_takes_over)
{
    struct standby a, b;
    NEEDS_ETCD();
    const char *where = shared()->where;
    standby_start(&a, where);
    standby_start(&b, where);
    UNTIL(&a, a.synced == 1);
    UNTIL(&b, b.synced == 1);
    store_take(a.store, a.epoch);
    store_take(b.store, b.epoch);
    UNTIL(&a, a.taken == 1);
    UNTIL(&b, b.taken == 1);
    CHECK_EQ((a.taken_err == ERR_OK) + (b.taken_err == ERR_OK), 1);
    CHECK_EQ((a.taken_err == ERR_STALE) + (b.taken_err == ERR_STALE), 1);
    standby_end(&a);
    standby_end(&b);
}

/* ---- members that fail ---- */

struct writer {
    struct bench b;
    unsigned good, bad;
};

TEST(a_killed_member_loses_no_write)
{
    struct cluster c;
    struct writer w = {0};
    char all[200];
    NEEDS_ETCD();
    cluster_start(&c, MEMBERS);
    cluster_wait(&c);
    members_text(&c, MEMBERS, all, sizeof(all));
    bench_open_at(&w.b, &store_etcd, c.where);
    for (uint64_t id = 1; id <= 60; id++) {
        char value[32];
        (void)snprintf(value, sizeof(value), "v%" PRIu64, id);
        if (id % 20 == 10)
            member_end(&c.members[id / 20]);
        CHECK_EQ(put(&w.b, STORE_FUNCTION, id, value), ERR_OK);
        if (id % 20 == 15)
            member_start(&c, (unsigned)(id / 20), all, false);
        if (id % 20 == 19)
            cluster_wait(&c);
    }
    bench_close(&w.b);
    bench_open_at(&w.b, &store_etcd, c.where);
    size_t lines = 0;
    for (size_t i = 0; i < w.b.records.bytes; i++)
        lines += w.b.records.data[i] == '\n';
    CHECK_EQ(lines, 60);
    CHECK_EQ(w.b.next_id, 61);
    bench_close(&w.b);
    cluster_end(&c);
}

TEST(a_member_that_hangs_is_passed_over)
{
    struct cluster c;
    struct bench b;
    NEEDS_ETCD();
    cluster_start(&c, MEMBERS);
    cluster_wait(&c);
    bench_open_at(&b, &store_etcd, c.where);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "before"), ERR_OK);
    REQUIRE(kill(c.members[0].pid, SIGSTOP) == 0); /* the one that is asked first */
    uint64_t begin_ns = clock_mono_ns();
    CHECK_EQ(put(&b, STORE_FUNCTION, 2, "while it hangs"), ERR_OK);
    CHECK(clock_mono_ns() - begin_ns < ETCD_DEADLINE_MS * NS_PER_MS);
    (void)kill(c.members[0].pid, SIGCONT);
    bench_close(&b);
    cluster_end(&c);
}

TEST(without_a_majority_a_write_waits_until_there_is_one)
{
    struct cluster c;
    struct bench b;
    char all[200];
    unsigned done = 0;
    NEEDS_ETCD();
    cluster_start(&c, MEMBERS);
    cluster_wait(&c);
    members_text(&c, MEMBERS, all, sizeof(all));
    bench_open_at(&b, &store_etcd, c.where);
    member_end(&c.members[1]);
    member_end(&c.members[2]);
    struct put first = {
        .write = {.kind = STORE_FUNCTION, .id = 1, .value = (char *)"x", .on_done = on_put},
        .done = &done};
    store_submit(b.store, &first.write);
    for (uint64_t end_ns = clock_mono_ns() + (ETCD_DEADLINE_MS + 1500) * NS_PER_MS;
         clock_mono_ns() < end_ns;)
        loop_run_once(b.loop, 100);
    CHECK(done == 0 && b.lost_count == 0);
    member_start(&c, 1, all, false);
    wait_for(&b, &done, 1);
    CHECK_EQ(first.err, ERR_OK);
    CHECK_EQ(put(&b, STORE_FUNCTION, 2, "y"), ERR_OK);
    member_end(&c.members[1]);
    struct put last = first;
    store_submit(b.store, &last.write);
    uint64_t begin_ns = clock_mono_ns();
    bench_close(&b); /* does not wait for it */
    CHECK((clock_mono_ns() - begin_ns) / NS_PER_MS < 3000);
    CHECK(last.err != ERR_OK);
    cluster_end(&c);
}

/* Standby and leader ask the same member; it stands still, and then the leader is gone. */
TEST(a_standby_whose_member_hangs_takes_over_knowing_all)
{
    struct cluster c;
    struct bench leader;
    struct standby s;
    NEEDS_ETCD();
    cluster_start(&c, MEMBERS);
    cluster_wait(&c);
    bench_open_at(&leader, &store_etcd, c.where);
    standby_start(&s, c.where);
    UNTIL(&s, s.synced == 1 && s.epoch == 1);
    REQUIRE(kill(c.members[0].pid, SIGSTOP) == 0);
    CHECK_EQ(put(&leader, STORE_FUNCTION, 7, "seven"), ERR_OK); /* the standby hears nothing */
    uint64_t begin_ns = clock_mono_ns();
    store_take(s.store, s.epoch);
    UNTIL(&s, s.taken == 1);
    CHECK_EQ(s.taken_err, ERR_OK);
    CHECK(was_told(&s, "0/7=seven\n"));
    CHECK((clock_mono_ns() - begin_ns) / NS_PER_MS < 5000); /* an election of etcd's is in it */
    (void)kill(c.members[0].pid, SIGCONT);
    bench_close(&leader);
    standby_end(&s);
    cluster_end(&c);
}

TEST(a_standby_notices_that_the_majority_is_gone_and_that_it_is_back)
{
    struct cluster c;
    struct standby s;
    struct bench b;
    char all[200];
    NEEDS_ETCD();
    cluster_start(&c, MEMBERS);
    cluster_wait(&c);
    members_text(&c, MEMBERS, all, sizeof(all));
    standby_start(&s, c.where);
    UNTIL(&s, s.reached);
    member_end(&c.members[1]); /* its watch is on the first */
    member_end(&c.members[2]);
    UNTIL(&s, !s.reached);
    CHECK(s.why[0] != '\0');
    member_start(&c, 1, all, false);
    UNTIL(&s, s.reached);
    bench_open_at(&b, &store_etcd, c.where); /* and writes are possible again */
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "one"), ERR_OK);
    UNTIL(&s, was_told(&s, "0/1=one\n"));
    bench_close(&b);
    standby_end(&s);
    cluster_end(&c);
}

/* 18 MB, of which no answer takes more than 16 MiB of base64. */
TEST(large_records_are_read_in_smaller_pages)
{
    enum { COUNT = 18, BYTES = 1000000 };
    struct bench b;
    struct standby s;
    NEEDS_ETCD();
    const char *where = shared()->where;
    char *value = mem_new(BYTES + 1);
    memset(value, 'x', BYTES);
    bench_open_at(&b, &store_etcd, where);
    for (uint64_t id = 1; id <= COUNT; id++)
        CHECK_EQ(put(&b, STORE_FUNCTION, id, value), ERR_OK);
    bench_close(&b);
    bench_open_at(&b, &store_etcd, where);
    CHECK(b.records.bytes > (size_t)COUNT * BYTES);
    standby_start(&s, where);
    UNTIL(&s, s.synced == 1);
    CHECK(s.told.bytes > (size_t)COUNT * BYTES);
    standby_end(&s);
    bench_close(&b);
    free(value);
}

/* ---- TLS ---- */

static void run_in(const char *directory, const char *command)
{
    cleanup(free_pointer) char *text =
        mem_printf("cd %s && { %s; } >>openssl.log 2>&1", directory, command);
    REQUIRE(system(text) == 0);
}

/* An authority, and a certificate of it for 127.0.0.1, used by members and client alike. */
static void certificates_make(const struct cluster *c)
{
    run_in(c->directory,
           "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
           "-subj /CN=authority -keyout ca.key -out ca.pem && "
           "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
           "-subj /CN=other -keyout other.key -out other.pem && "
           "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=member "
           "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.csr && "
           "printf 'subjectAltName=IP:127.0.0.1\n' >extensions && "
           "openssl x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
           "-extfile extensions -out cert.pem");
}

TEST(with_certificates_it_works_and_with_wrong_ones_it_says_why)
{
    struct cluster c;
    struct bench b;
    struct standby s;
    void *self = NULL;
    struct error e = {0};
    NEEDS_ETCD();
    cluster_prepare(&c);
    c.tls = true;
    certificates_make(&c);
    cluster_begin(&c, MEMBERS);
    cluster_wait(&c);
    bench_open_at(&b, &store_etcd, c.where);
    CHECK_EQ(put(&b, STORE_FUNCTION, 1, "one"), ERR_OK);
    standby_start(&s, c.where);
    UNTIL(&s, was_told(&s, "0/1=one\n"));
    CHECK_EQ(put(&b, STORE_FUNCTION, 2, "two"), ERR_OK);
    UNTIL(&s, was_told(&s, "0/2=two\n"));
    standby_end(&s);
    bench_close(&b);
    uint16_t port = c.members[0].client_port;
    cleanup(free_pointer) char *wrong =
        mem_printf("me@https://127.0.0.1:%u?ca=%s/other.pem&cert=%s/cert.pem&key=%s/key.pem", port,
                   c.directory, c.directory, c.directory);
    uint64_t begin_ns = clock_mono_ns();
    CHECK_EQ(store_etcd.open(wrong, &self, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "certificate") != NULL);
    cleanup(free_pointer) char *none =
        mem_printf("me@https://127.0.0.1:%u?ca=%s/ca.pem", port, c.directory);
    CHECK_EQ(store_etcd.open(none, &self, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "certificate") != NULL);
    CHECK(clock_mono_ns() - begin_ns < 2 * NS_PER_S); /* it will not get better */
    cluster_end(&c);
}

TEST(a_single_member_is_refused_unless_it_is_wanted)
{
    struct cluster c;
    void *self = NULL;
    struct error e = {0};
    NEEDS_ETCD();
    cluster_start(&c, 1);
    cluster_wait(&c);
    CHECK_EQ(store_etcd.open(c.where, &self, &e), ERR_USAGE);
    CHECK(strstr(e.text, "single member") != NULL);
    cleanup(free_pointer) char *wanted = mem_printf("%s?single=1", c.where);
    CHECK_EQ(store_etcd.open(wanted, &self, &e), ERR_OK);
    store_etcd.close(self);
    cluster_end(&c);
}

TEST(nobody_there_is_said_with_the_address)
{
    void *self = NULL;
    struct error e = {0};
    uint16_t port = free_port();
    cleanup(free_pointer) char *where = mem_printf("me@http://127.0.0.1:%u", port);
    CHECK_EQ(store_etcd.open(where, &self, &e), ERR_UNREACHABLE);
    CHECK(strstr(e.text, "etcd at http://127.0.0.1:") != NULL);
    CHECK(store_etcd.open("me@127.0.0.1:1", &self, &e) == ERR_USAGE);
    CHECK(store_etcd.open("me@http://a:1?oops=1", &self, &e) == ERR_USAGE);
}

TEST(a_damaged_key_is_named)
{
    struct bench b;
    void *self = NULL;
    struct error e = {0};
    uint64_t next = 0;
    NEEDS_ETCD();
    const char *where = shared()->where;
    bench_open_at(&b, &store_etcd, where);
    CHECK_EQ(put(&b, STORE_FUNCTION, 5, "five"), ERR_OK);
    bench_close(&b);
    struct etcd *calls = NULL;
    json_t *answer = NULL;
    REQUIRE(etcd_open(strchr(where, '@') + 1, &calls, &e) == ERR_OK);
    json_t *request =
        json_pack("{s:o, s:o}", "key", etcd_base64(STR("/dirigent/functions/0000000000000005")),
                  "value", etcd_base64(STR("{\"format\":1,\"op\":\"x\"}")));
    REQUIRE(etcd_read(calls, "/v3/kv/put", request, etcd_end_ms(), &answer, &e) == ERR_OK);
    json_decref(request);
    json_decref(answer);
    etcd_close(calls);
    REQUIRE(store_etcd.open(where, &self, &e) == ERR_OK);
    struct bench unused = {0};
    CHECK_EQ(store_etcd.load(self, note_record, &unused, &next, &e), ERR_CORRUPT);
    CHECK(strstr(e.text, "/dirigent/functions/0000000000000005") != NULL);
    buf_done(&unused.records);
    store_etcd.close(self);
}
