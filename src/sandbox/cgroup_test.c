/* cgroup_test.c - where a v1 controller's cgroup of ours is, from texts of the kernel; and, as
 * root, a subtree of our own on this host: limits are set and read back, what was left is swept,
 * nothing stays. */
#include "sandbox/cgroup.h"
#include "test.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- texts ---- */

static const char hybrid[] =
    "25 30 0:22 / /sys rw,nosuid - sysfs sysfs rw\n"
    "31 25 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n"
    "34 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:10 master:1 - cgroup cgroup rw,memory\n"
    "36 31 0:32 /docker/abc /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids\n";
static const char self[] =
    "12:pids:/docker/abc/inner\n9:memory:/user.slice\n4:cpu,cpuacct:/\n0::/init.scope\n";

static void check_path(const char *controller, const char *expected)
{
    char path[256] = "";
    CHECK_EQ(cgroup_v1_path(hybrid, self, controller, path, sizeof(path)), ERR_OK);
    CHECK_STR(path, expected);
}

TEST(a_controller_is_found_by_its_mount_and_our_own_cgroup)
{
    check_path("memory", "/sys/fs/cgroup/memory/user.slice");
    check_path("pids",
               "/sys/fs/cgroup/pids/inner"); /* what is mounted is a part of the hierarchy */
}

TEST(a_controller_mounted_with_another_is_found)
{
    char path[256];
    CHECK_EQ(cgroup_v1_path(hybrid, self, "cpu", path, sizeof(path)), ERR_OK);
    CHECK(strncmp(path, "/sys/fs/cgroup/cpu,cpuacct", 26) == 0);
}

TEST(what_is_not_mounted_is_not_found)
{
    static const char *const missing[] = {"hugetlb", "mem", "memory2", ""};
    for (size_t i = 0; i < ARRAY_COUNT(missing); i++) {
        char path[256];
        CHECK(cgroup_v1_path(hybrid, self, missing[i], path, sizeof(path)) != ERR_OK);
    }
}

/* Whatever the texts are cut or changed to, nothing is written beyond the buffer. */
PROPERTY(damaged_texts_are_survived)
{
    char mounts[sizeof(hybrid)], own[sizeof(self)], path[40];
    memcpy(mounts, hybrid, sizeof(hybrid));
    memcpy(own, self, sizeof(self));
    mounts[rng_below(rng, sizeof(hybrid))] = '\0';
    for (int i = 0; i < 5; i++)
        mounts[rng_below(rng, sizeof(hybrid) - 1)] = (char)(1 + rng_below(rng, 127));
    own[rng_below(rng, sizeof(self))] = '\0';
    enum err err = cgroup_v1_path(mounts, own, "memory", path, sizeof(path));
    CHECK(err != ERR_OK || memchr(path, '\0', sizeof(path)) != NULL);
}

/* ---- made-up hosts: a directory instead of cgroupfs ---- */

struct host {
    char root[64];
    char mountinfo[2048], self[256];
};

static void host_file(const struct host *h, const char *name, const char *text)
{
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/%s", h->root, name);
    for (char *slash = path + strlen(h->root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        REQUIRE(mkdir(path, 0755) == 0 || errno == EEXIST);
        *slash = '/';
    }
    cleanup(fd_close) int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    REQUIRE(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
}

static void check_file(const struct host *h, const char *name, const char *expected)
{
    char path[256], *text cleanup(free_pointer) = NULL;
    (void)snprintf(path, sizeof(path), "%s/%s", h->root, name);
    CHECK_EQ(file_read(path, 4096, &text, NULL, NULL), ERR_OK);
    if (text != NULL && strcmp(text, expected) != 0)
        test_fail(__FILE__, __LINE__, "%s has \"%s\", not \"%s\"", name, text, expected);
}

static void host_init(struct host *h)
{
    *h = (struct host){.root = "/tmp/cgroup-test-XXXXXX"};
    REQUIRE(mkdtemp(h->root) != NULL);
    (void)snprintf(h->mountinfo, sizeof(h->mountinfo),
                   "25 30 0:22 / /sys rw,nosuid - sysfs sysfs rw\n");
}

static void host_mount(struct host *h, const char *at, const char *type, const char *options)
{
    size_t bytes = strlen(h->mountinfo);
    (void)snprintf(h->mountinfo + bytes, sizeof(h->mountinfo) - bytes,
                   "32 31 0:28 / %s%s rw,nosuid shared:9 - %s %s rw,%s\n", h->root, at, type, type,
                   options);
}

/* `more`: further controllers. */
static void host_init_v2(struct host *h, const char *more)
{
    char list[128];
    host_init(h);
    host_mount(h, "", "cgroup2", "nsdelegate");
    strcpy(h->self, "0::/user.slice/session-1.scope\n");
    (void)snprintf(list, sizeof(list), "cpuset cpu io memory pids%s\n", more);
    host_file(h, "cgroup.controllers", list);
    host_file(h, "cgroup.subtree_control", "");
    host_file(h, "dirigent-x/cgroup.subtree_control", "");
    host_file(h, "dirigent-x/cpu.weight", "");
    static const char *const files[] = {"memory.max",
                                        "memory.swap.max",
                                        "memory.oom.group",
                                        "memory.peak",
                                        "cgroup.max.descendants",
                                        "pids.max",
                                        "cgroup.procs",
                                        "cpu.max"};
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        char name[64];
        (void)snprintf(name, sizeof(name), "dirigent-x/s0/%s", files[i]);
        host_file(h, name, "");
    }
}

static void host_init_v1(struct host *h)
{
    static const char *const files[] = {"memory/dirigent-x/s0/memory.limit_in_bytes",
                                        "memory/dirigent-x/s0/memory.memsw.limit_in_bytes",
                                        "memory/dirigent-x/s0/cgroup.procs",
                                        "cpu,cpuacct/dirigent-x/cpu.shares",
                                        "cpu,cpuacct/dirigent-x/s0/cpu.cfs_quota_us",
                                        "cpu,cpuacct/dirigent-x/s0/cgroup.procs",
                                        "pids/dirigent-x/s0/pids.max",
                                        "pids/dirigent-x/s0/cgroup.procs"};
    host_init(h);
    host_mount(h, "/memory", "cgroup", "memory");
    host_mount(h, "/cpu,cpuacct", "cgroup", "cpu,cpuacct");
    host_mount(h, "/pids", "cgroup", "pids");
    strcpy(h->self, "5:pids:/\n4:memory:/\n3:cpu,cpuacct:/\n0::/\n");
    for (size_t i = 0; i < ARRAY_COUNT(files); i++)
        host_file(h, files[i], "");
}

static void host_done(struct host *h, struct cgroup_tree *t)
{
    char command[128];
    for (int i = 0; i < CGROUP_DIRS_MAX; i++)
        fd_close(&t->dirs[i]);
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", h->root);
    CHECK_EQ(system(command), 0);
}

static enum err make(const struct host *h, int force, struct cgroup_tree *t, struct error *e)
{
    return cgroup_tree_make("dirigent-x", force, h->mountinfo, h->self, t, e);
}

static const struct cgroup_limits some = {
    .memory_bytes = 64 * MIB, .cpu_milli = 500, .pids_max = 33};

TEST(with_version_2_controllers_are_enabled_and_limits_written)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(t.version, 2);
    check_file(&h, "dirigent-x/cgroup.subtree_control", "+memory +cpu +pids");
    CHECK_EQ(cgroup_slot_make(&t, 0, &e), ERR_OK);
    CHECK_EQ(cgroup_slot_limit(&t, 0, &some, &e), ERR_OK);
    CHECK_STR(e.text, "");
    check_file(&h, "dirigent-x/s0/memory.max", "67108864");
    check_file(&h, "dirigent-x/s0/memory.swap.max", "0");
    check_file(&h, "dirigent-x/s0/memory.oom.group", "1");
    check_file(&h, "dirigent-x/s0/cgroup.max.descendants", "0");
    check_file(&h, "dirigent-x/s0/pids.max", "33");
    check_file(&h, "dirigent-x/s0/cpu.max", "50000 100000\n");
    CHECK_EQ(cgroup_slot_enter(&t, 0, &e), ERR_OK);
    check_file(&h, "dirigent-x/s0/cgroup.procs", "0");
    host_done(&h, &t);
}

TEST(with_version_1_each_controller_has_its_own_tree)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v1(&h);
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(t.version, 1);
    CHECK_EQ(cgroup_slot_make(&t, 0, &e), ERR_OK);
    CHECK_EQ(cgroup_slot_limit(&t, 0, &some, &e), ERR_OK);
    check_file(&h, "memory/dirigent-x/s0/memory.limit_in_bytes", "67108864");
    check_file(&h, "memory/dirigent-x/s0/memory.memsw.limit_in_bytes", "67108864");
    check_file(&h, "cpu,cpuacct/dirigent-x/s0/cpu.cfs_quota_us", "50000");
    check_file(&h, "pids/dirigent-x/s0/pids.max", "34"); /* the anchor is the 34th */
    CHECK_EQ(cgroup_slot_enter(&t, 0, &e), ERR_OK);
    check_file(&h, "memory/dirigent-x/s0/cgroup.procs", "0");
    check_file(&h, "pids/dirigent-x/s0/cgroup.procs", "0");
    host_done(&h, &t);
}

/* The hybrid of systemd: version 2 is mounted, and has none of the controllers. */
TEST(version_2_without_controllers_is_passed_over)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v1(&h);
    host_mount(&h, "/unified", "cgroup2", "nsdelegate");
    host_file(&h, "unified/cgroup.controllers", "hugetlb rdma\n");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(t.version, 1);
    host_done(&h, &t);
}

TEST(a_version_that_was_asked_for_and_is_not_there_is_told)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v1(&h);
    CHECK_EQ(make(&h, 2, &t, &e), ERR_UNSUPPORTED);
    CHECK_STR(e.text, "cgroup version 2 with memory, cpu and pids is not mounted on this host");
    host_done(&h, &t);
    host_init_v2(&h, "");
    CHECK_EQ(make(&h, 1, &t, &e), ERR_UNSUPPORTED);
    CHECK(strstr(e.text, "no cgroup controller 'memory' on this host") == e.text);
    host_done(&h, &t);
}

TEST(the_controller_that_is_missing_is_named)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v1(&h);
    memcpy(strstr(h.mountinfo, "rw,pids"), "rw,nope", 7);
    CHECK_EQ(make(&h, 0, &t, &e), ERR_UNSUPPORTED);
    CHECK_STR(e.text, "no cgroup controller 'pids' on this host, neither version 2 nor version 1: "
                      "sandboxes need memory, cpu and pids");
    host_done(&h, &t);
}

TEST(a_subtree_in_use_is_refused)
{
    struct host h;
    struct cgroup_tree t, other;
    struct error e = {0};
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(make(&h, 0, &other, &e), ERR_BUSY);
    CHECK(strstr(e.text, "/dirigent-x' is in use by another worker of the same --instance") !=
          NULL);
    for (int i = 0; i < CGROUP_DIRS_MAX; i++)
        fd_close(&other.dirs[i]);
    host_done(&h, &t);
}

/* What is in the files beforehand stays behind what is written: the kernel has not taken it. */
TEST(a_limit_that_reads_back_otherwise_is_an_error_with_file_and_value)
{
    static const struct {
        const char *file, *before, *text;
    } cases[] = {
        {"memory.max", "999999999999\n",
         "the cgroup's s0/memory.max is '671088649999' after 67108864 was written"},
        {"memory.max", "12345678\nmax", ""}, /* the same number */
        {"pids.max", "77777\n", "the cgroup's s0/pids.max is '33777' after 33 was written"},
        {"cpu.max", "77777 777777 7", "the cgroup's cpu.max is "},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct host h;
        struct cgroup_tree t;
        struct error e = {0};
        char name[64];
        host_init_v2(&h, "");
        (void)snprintf(name, sizeof(name), "dirigent-x/s0/%s", cases[i].file);
        host_file(&h, name, cases[i].before);
        REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
        enum err err = cgroup_slot_limit(&t, 0, &some, &e);
        CHECK_EQ(err, cases[i].text[0] != '\0' ? ERR_FAILED : ERR_OK);
        CHECK(strncmp(e.text, cases[i].text, strlen(cases[i].text)) == 0);
        host_done(&h, &t);
    }
}

/* Sizes are rounded down to whole pages by the kernel; nothing else may differ, not by one. This
 * file takes a decimal number and tells it in base 16 (core(5)): 33 becomes 21. */
TEST(a_number_that_the_kernel_lowers_is_taken_for_sizes_only)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    char path[128];
    if (access("/proc/self/coredump_filter", W_OK) != 0) {
        test_skip("the kernel has no /proc/self/coredump_filter");
        return;
    }
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    (void)snprintf(path, sizeof(path), "%s/dirigent-x/s0/pids.max", h.root);
    CHECK(unlink(path) == 0 && symlink("/proc/self/coredump_filter", path) == 0);
    CHECK_EQ(cgroup_slot_limit(&t, 0, &some, &e), ERR_FAILED);
    CHECK_STR(e.text, "the cgroup's s0/pids.max is '00000021' after 33 was written");
    host_done(&h, &t);
}

TEST(a_limit_that_cannot_be_read_back_is_an_error)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    char path[128];
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    (void)snprintf(path, sizeof(path), "%s/dirigent-x/s0/pids.max", h.root);
    CHECK(unlink(path) == 0 && symlink("/dev/null", path) == 0); /* takes all, tells nothing */
    CHECK_EQ(cgroup_slot_limit(&t, 0, &some, &e), ERR_FAILED);
    CHECK_STR(e.text, "the cgroup's s0/pids.max is '' after 33 was written");
    host_done(&h, &t);
}

TEST(a_limit_without_a_file_is_an_error_that_names_it)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(cgroup_slot_make(&t, 9, &e), ERR_NOT_FOUND);
    CHECK_STR(e.text, "write 1 to s9/memory.oom.group of the cgroup: No such file or directory");
    host_done(&h, &t);
}

TEST(a_kernel_that_counts_no_swap_is_no_trouble)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    char path[128];
    host_init_v2(&h, "");
    (void)snprintf(path, sizeof(path), "%s/dirigent-x/s0/memory.swap.max", h.root);
    CHECK_EQ(unlink(path), 0);
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(cgroup_slot_make(&t, 0, &e), ERR_OK);
    CHECK_EQ(cgroup_slot_limit(&t, 0, &some, &e), ERR_OK);
    host_done(&h, &t);
}

TEST(huge_pages_are_forbidden_where_there_are_some)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v2(&h, " hugetlb");
    host_file(&h, "dirigent-x/hugetlb.2MB.max", "");
    host_file(&h, "dirigent-x/hugetlb.1GB.rsvd.max", "");
    host_file(&h, "dirigent-x/hugetlb.2MB.current", "5");
    host_file(&h, "dirigent-x/hugetlb.2MB.events", "max 5\n");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    check_file(&h, "cgroup.subtree_control", "+hugetlb+cpu +pids"); /* both writes */
    check_file(&h, "dirigent-x/hugetlb.2MB.max", "0");
    check_file(&h, "dirigent-x/hugetlb.1GB.rsvd.max", "0");
    check_file(&h, "dirigent-x/hugetlb.2MB.current", "5");
    check_file(&h, "dirigent-x/hugetlb.2MB.events", "max 5\n");
    host_done(&h, &t);
    host_init_v1(&h);
    host_mount(&h, "/hugetlb", "cgroup", "hugetlb");
    strcat(h.self, "9:hugetlb:/\n");
    host_file(&h, "hugetlb/dirigent-x/hugetlb.2MB.limit_in_bytes", "");
    host_file(&h, "hugetlb/dirigent-x/hugetlb.2MB.usage_in_bytes", "5");
    host_file(&h, "hugetlb/dirigent-x/cgroup.procs", "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    check_file(&h, "hugetlb/dirigent-x/hugetlb.2MB.limit_in_bytes", "0");
    check_file(&h, "hugetlb/dirigent-x/hugetlb.2MB.usage_in_bytes", "5");
    CHECK_EQ(cgroup_slot_enter(&t, 0, &e), ERR_OK);
    check_file(&h, "hugetlb/dirigent-x/cgroup.procs", "0");
    host_done(&h, &t);
}

TEST(huge_pages_that_cannot_be_forbidden_are_an_error)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v2(&h, " hugetlb");
    host_file(&h, "dirigent-x/hugetlb.2MB.max", "max\n");
    CHECK_EQ(make(&h, 0, &t, &e), ERR_FAILED);
    CHECK_STR(e.text, "the cgroup's hugetlb.2MB.max is '0ax' after 0 was written");
    host_done(&h, &t);
}

/* ---- what the kernel counted ---- */

TEST(kills_for_want_of_memory_are_counted)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(cgroup_slot_oom_kills(&t, 0), 0); /* no such file */
    host_file(&h, "dirigent-x/s0/memory.events",
              "low 1\nhigh 2\nmax 3\noom 4\noom_kill 12\noom_group_kill 7\n");
    CHECK_EQ(cgroup_slot_oom_kills(&t, 0), 12);
    host_done(&h, &t);
    host_init_v1(&h);
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    host_file(&h, "memory/dirigent-x/s0/memory.oom_control",
              "oom_kill_disable 1\nunder_oom 1\noom_kill 3\n");
    CHECK_EQ(cgroup_slot_oom_kills(&t, 0), 3);
    host_done(&h, &t);
}

TEST(the_most_memory_of_one_use_is_cleared_for_the_next)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    struct cgroup_peak peak = {.fd = -1};
    host_init_v1(&h);
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    CHECK_EQ(cgroup_slot_memory_peak(&t, 0, &peak), 0); /* not known */
    host_file(&h, "memory/dirigent-x/s0/memory.max_usage_in_bytes", "777\n");
    CHECK_EQ(cgroup_slot_memory_peak(&t, 0, &peak), 777);
    cgroup_slot_reset(&t, 0, &peak);
    check_file(&h, "memory/dirigent-x/s0/memory.max_usage_in_bytes", "077\n");
    cgroup_peak_done(&peak);
    host_done(&h, &t);
    host_init_v2(&h, ""); /* as of Linux 6.12: by a descriptor that stays open */
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    host_file(&h, "dirigent-x/s0/memory.peak", "555\n");
    CHECK_EQ(cgroup_slot_memory_peak(&t, 0, &peak), 555);
    cgroup_slot_reset(&t, 0, &peak);
    CHECK(peak.fd >= 0 && !peak.is_fixed);
    host_file(&h, "dirigent-x/s0/memory.peak", "444\n");
    CHECK_EQ(cgroup_slot_memory_peak(&t, 0, &peak), 444); /* less than before, and this use's */
    cgroup_peak_done(&peak);
    CHECK_EQ(peak.fd, -1);
    host_done(&h, &t);
}

/* A file that takes no writes, as before Linux 6.12. */
TEST(a_peak_that_cannot_be_cleared_is_told_only_where_it_is_known)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    struct cgroup_peak peak = {.fd = -1};
    char path[128], other[128];
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    (void)snprintf(path, sizeof(path), "%s/dirigent-x/s0/memory.peak", h.root);
    (void)snprintf(other, sizeof(other), "%s/peak", h.root);
    CHECK(unlink(path) == 0 && symlink("/proc/self/stat", path) == 0); /* cannot be written */
    cgroup_slot_reset(&t, 0, &peak);
    CHECK(peak.fd < 0 && peak.is_fixed);
    host_file(&h, "peak", "555\n");
    CHECK(unlink(path) == 0 && symlink(other, path) == 0);
    peak.before_bytes = 555;
    CHECK_EQ(cgroup_slot_memory_peak(&t, 0, &peak), 0); /* perhaps of an earlier use */
    host_file(&h, "peak", "556\n");
    CHECK_EQ(cgroup_slot_memory_peak(&t, 0, &peak), 556);
    cgroup_slot_reset(&t, 0, &peak);
    CHECK(peak.fd < 0 && peak.before_bytes == 556);
    host_done(&h, &t);
}

TEST(what_is_left_is_driven_out_when_it_is_much)
{
    struct host h;
    struct cgroup_tree t;
    struct error e = {0};
    struct cgroup_peak peak = {.fd = -1};
    host_init_v2(&h, "");
    REQUIRE(make(&h, 0, &t, &e) == ERR_OK);
    host_file(&h, "dirigent-x/s0/memory.reclaim", "");
    host_file(&h, "dirigent-x/s0/memory.current", "1048576\n");
    cgroup_slot_reset(&t, 0, &peak);
    check_file(&h, "dirigent-x/s0/memory.reclaim", "");
    host_file(&h, "dirigent-x/s0/memory.current", "1048577\n");
    cgroup_slot_reset(&t, 0, &peak);
    check_file(&h, "dirigent-x/s0/memory.reclaim", "1048577");
    cgroup_peak_done(&peak);
    host_done(&h, &t);
}

/* ---- this host ---- */

static bool tree_open(struct cgroup_tree *t, const char *name)
{
    struct error e = {0};
    if (geteuid() != 0) {
        test_skip("needs root");
        return false;
    }
    enum err err = cgroup_tree_open(name, 0, t, &e);
    if (err != ERR_OK)
        test_skip(e.text); /* a host without usable cgroups */
    return err == ERR_OK;
}

static const char *own_name(void)
{
    static char name[64];
    (void)snprintf(name, sizeof(name), "dirigent-cgtest-%d", (int)getpid());
    return name;
}

static unsigned there_are(const char *name)
{
    char command[200], line[16] = "";
    (void)snprintf(command, sizeof(command), "find /sys/fs/cgroup -name '%s*' 2>/dev/null | wc -l",
                   name);
    FILE *f = popen(command, "r");
    REQUIRE(f != NULL && fgets(line, sizeof(line), f) != NULL);
    (void)pclose(f);
    return (unsigned)atoi(line);
}

static uint64_t number_in(const struct cgroup_tree *t, int dir, const char *file)
{
    char text[64] = "";
    cleanup(fd_close) int fd = openat(t->dirs[dir], file, O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
    return strtoull(text, NULL, 10);
}

TEST(limits_are_what_the_kernel_says_afterwards)
{
    struct cgroup_tree t;
    struct error e = {0};
    struct cgroup_limits limits = {.memory_bytes = 64 * MIB, .cpu_milli = 500, .pids_max = 33};
    if (!tree_open(&t, own_name()))
        return;
    CHECK_EQ(cgroup_slot_make(&t, 3, &e), ERR_OK);
    CHECK_EQ(cgroup_slot_limit(&t, 3, &limits, &e), ERR_OK);
    CHECK_STR(e.text, "");
    bool one = t.version == 1;
    CHECK_EQ(number_in(&t, 0, one ? "s3/memory.limit_in_bytes" : "s3/memory.max"), 64 * MIB);
    CHECK_EQ(number_in(&t, one ? 2 : 0, "s3/pids.max"), 34); /* process 1 comes on top */
    CHECK_EQ(cgroup_slot_oom_kills(&t, 3), 0);
    cgroup_tree_remove(&t);
    CHECK_EQ(there_are(own_name()), 0);
}

TEST(a_limit_that_the_kernel_does_not_take_is_an_error)
{
    struct cgroup_tree t;
    struct error e = {0};
    struct cgroup_limits limits = {.memory_bytes = 4 * MIB + 1, .cpu_milli = 100, .pids_max = 5};
    if (!tree_open(&t, own_name()))
        return;
    CHECK(cgroup_slot_limit(&t, 9, &limits, &e) != ERR_OK); /* of a slot that was not made */
    CHECK(e.text[0] != '\0');
    cgroup_tree_remove(&t);
}

TEST(what_a_dead_launcher_left_is_ended_and_swept)
{
    struct cgroup_tree t, again;
    struct error e = {0};
    int status;
    if (!tree_open(&t, own_name()))
        return;
    CHECK_EQ(cgroup_slot_make(&t, 0, &e), ERR_OK);
    CHECK_EQ(cgroup_slot_limit(&t, 0, &(struct cgroup_limits){64 * MIB, 100, 10}, &e), ERR_OK);
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (cgroup_slot_enter(&t, 0, &e) != ERR_OK)
            _exit(1);
        (void)close_range(3, ~0u, 0); /* as a sandbox has none of them */
        for (;;)
            (void)pause();
    }
    char byte;
    (void)close(ends[1]);
    CHECK_EQ(read(ends[0], &byte, 1),
             0); /* the other end is closed: it is there, and holds nothing */
    (void)close(ends[0]);
    for (int i = 0; i < CGROUP_DIRS_MAX; i++)
        fd_close(&t.dirs[i]); /* dead: its lock is gone */
    CHECK_EQ(cgroup_tree_open(own_name(), 0, &again, &e), ERR_OK);
    CHECK_STR(e.text, "");
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(faccessat(again.dirs[0], "s0", F_OK, 0) != 0);
    cgroup_tree_remove(&again);
    CHECK_EQ(there_are(own_name()), 0);
}
