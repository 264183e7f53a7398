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
    for (int i = 0; i < 4; i++)
        fd_close(&t.dirs[i]); /* dead: its lock is gone */
    CHECK_EQ(cgroup_tree_open(own_name(), 0, &again, &e), ERR_OK);
    CHECK_STR(e.text, "");
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(faccessat(again.dirs[0], "s0", F_OK, 0) != 0);
    cgroup_tree_remove(&again);
    CHECK_EQ(there_are(own_name()), 0);
}
