/* doctor_test.c - hosts that are played by files. */
#include "cli/doctor.h"
#include "test.h"
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

struct host {
    char root[64], data[80];
    struct findings findings;
};

static void put(const struct host *h, const char *path, const char *text)
{
    cleanup(free_pointer) char *whole = mem_printf("%s%s", h->root, path);
    for (char *at = whole + strlen(h->root) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        (void)mkdir(whole, 0700);
        *at = '/';
    }
    FILE *f = fopen(whole, "w");
    REQUIRE(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* One where all is well that files can tell. */
static void host_make(struct host *h)
{
    static const char *const kinds[] = {"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"};
    (void)snprintf(h->root, sizeof(h->root), "/tmp/doctor-test-XXXXXX");
    REQUIRE(mkdtemp(h->root) != NULL);
    (void)snprintf(h->data, sizeof(h->data), "%s/data", h->root);
    put(h, "/proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
    put(h, "/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n");
    put(h, "/proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        cleanup(free_pointer) char *path = mem_printf("/proc/self/ns/%s", kinds[i]);
        put(h, path, "");
    }
    put(h, "/proc/sys/kernel/seccomp/actions_avail", "kill_process trap errno user_notif allow\n");
    put(h, "/proc/sys/kernel/pid_max", "4194304\n");
    put(h, "/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
    put(h, "/proc/swaps", "Filename Type Size Used Priority\n");
    put(h, "/proc/sys/kernel/core_pattern", "core\n");
    put(h, "/usr/sbin/nft", "#!/bin/sh\n");
    cleanup(free_pointer) char *nft = mem_printf("%s/usr/sbin/nft", h->root);
    REQUIRE(chmod(nft, 0700) == 0);
}

static void host_remove(struct host *h)
{
    cleanup(free_pointer) char *command = mem_printf("rm -rf %s", h->root);
    CHECK_EQ(system(command), 0);
}

static const struct finding *found(struct host *h, const char *subject)
{
    doctor_look(h->root, h->data, &h->findings);
    for (size_t i = 0; i < h->findings.count; i++)
        if (strcmp(h->findings.items[i].subject, subject) == 0)
            return &h->findings.items[i];
    return NULL;
}

static void check(struct host *h, const char *subject, enum finding_level level, const char *word)
{
    const struct finding *f = found(h, subject);
    if (f == NULL || f->level != level || strstr(f->text, word) == NULL)
        test_fail(__FILE__, __LINE__, "%s: %d '%s'", subject, f != NULL ? (int)f->level : -1,
                  f != NULL ? f->text : "not looked at");
    if (f != NULL)
        CHECK((f->level == FINDING_GOOD) == (f->advice[0] == '\0'));
}

TEST(a_good_host_is_called_good)
{
    static const char *const all[] = {"kernel", "cgroups", "namespaces", "seccomp", "nftables",
                                      "pid_max", "ports", "swap", "core_pattern", "sysctl"};
    struct host h;
    host_make(&h);
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        check(&h, all[i], FINDING_GOOD, "");
    host_remove(&h);
}

TEST(what_is_wrong_is_named_with_what_to_do)
{
    struct host h;
    host_make(&h);
    put(&h, "/proc/sys/kernel/osrelease", "5.10.0-28-amd64\n");
    check(&h, "kernel", FINDING_BAD, "5.10");
    put(&h, "/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
    check(&h, "cgroups", FINDING_BAD, "not all");
    put(&h, "/proc/cgroups", "#subsys_name hierarchy\nmemory\t1\ncpu\t2\npids\t3\n");
    put(&h, "/proc/self/mountinfo", "31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
    check(&h, "cgroups", FINDING_GOOD, "version 1");
    put(&h, "/proc/sys/kernel/core_pattern", "|/usr/share/apport/apport %p\n");
    check(&h, "core_pattern", FINDING_WARN, "root reads");
    put(&h, "/proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n");
    check(&h, "swap", FINDING_WARN, "on");
    put(&h, "/proc/sys/kernel/pid_max", "4096\n");
    check(&h, "pid_max", FINDING_WARN, "4096");
    put(&h, "/proc/sys/net/ipv4/ip_local_port_range", "1024\t60999\n");
    check(&h, "ports", FINDING_WARN, "1024");
    put(&h, "/proc/sys/fs/protected_symlinks", "0\n");
    check(&h, "fs.protected_symlinks", FINDING_WARN, "0");
    CHECK(strstr(found(&h, "fs.protected_symlinks")->advice, "sysctl -w fs.protected_symlinks=1") != NULL);
    put(&h, "/proc/sys/kernel/seccomp/actions_avail", "kill trap errno allow\n");
    check(&h, "seccomp", FINDING_WARN, "cannot");
    host_remove(&h);
}

TEST(a_data_directory_in_memory_is_refused)
{
    struct host h;
    if (access("/dev/shm", W_OK) != 0) {
        test_skip("there is no /dev/shm");
        return;
    }
    host_make(&h);
    (void)snprintf(h.data, sizeof(h.data), "/dev/shm/dirigent-is-not-here");
    check(&h, "data directory", FINDING_BAD, "in memory");
    host_remove(&h);
}
