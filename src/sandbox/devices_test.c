/* devices_test.c - what a restricted cgroup lets its members open. As root, in cgroups of its own.
 */
#include "sandbox/devices.h"
#include "test.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const roots[][2] = {
    {"/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup"},
    {"/sys/fs/cgroup/unified/cgroup.controllers", "/sys/fs/cgroup/unified"},
};

static const char *root_v2(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(roots); i++)
        if (access(roots[i][0], F_OK) == 0)
            return roots[i][1];
    return NULL;
}

static bool may_open(const char *directory, unsigned major, unsigned minor)
{
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/node", directory);
    (void)unlink(path);
    if (mknod(path, S_IFCHR | 0666, makedev(major, minor)) < 0)
        _exit(90);
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    int failure = errno;
    (void)unlink(path);
    if (fd >= 0)
        (void)close(fd);
    return fd >= 0 || failure == ENXIO; /* allowed, but nothing is there */
}

/* In the child: 0, or the number of what was not as it should be. Nodes are made before the group
 * is entered: none may be made in it. */
static int look(const char *group, const char *directory)
{
    char path[600], outside[2][300];
    static const unsigned tried[2][2] = {{1, 3}, {1, 11}}; /* null, kmsg */
    for (int i = 0; i < 2; i++) {
        (void)snprintf(outside[i], sizeof(outside[i]), "%s/node%d", directory, i);
        if (mknod(outside[i], S_IFCHR | 0666, makedev(tried[i][0], tried[i][1])) < 0)
            return 1;
    }
    if (!may_open(directory, 1, 3) || !may_open(directory, 1, 11))
        return 2; /* before it is restricted all is open */
    (void)snprintf(path, sizeof(path), "%s/cgroup.procs", group);
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, "0", 1) != 1)
        return 3;
    int null = open(outside[0], O_RDWR), kmsg = open(outside[1], O_RDONLY);
    if (null < 0)
        return 4;
    if (kmsg >= 0 || errno != EPERM)
        return 5;
    (void)snprintf(path, sizeof(path), "%s/made", directory);
    return mknod(path, S_IFCHR | 0666, makedev(1, 3)) < 0 && errno == EPERM ? 0 : 6;
}

static void try(const char *root, enum err (*restrict_devices)(int fd, struct error *e))
{
    char group[256], directory[] = "/dev/shm/devices_test-XXXXXX";
    struct error e = {0};
    (void)snprintf(group, sizeof(group), "%s/dirigent-devices-test-%d", root, (int)getpid());
    if (mkdir(group, 0755) < 0) {
        test_skip("no cgroup can be made here");
        return;
    }
    REQUIRE(mkdtemp(directory) != NULL);
    int fd = open(group, O_RDONLY | O_DIRECTORY);
    enum err err = restrict_devices(fd, &e);
    (void)close(fd);
    if (err == ERR_OK) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(look(group, directory));
        int status = 0;
        REQUIRE(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status));
        CHECK_EQ(WEXITSTATUS(status), 0);
    } else if (err == ERR_UNSUPPORTED) {
        test_skip(e.text);
    } else {
        test_fail(__FILE__, __LINE__, "%s", e.text);
    }
    char command[128];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    CHECK_EQ(system(command), 0);
    for (int i = 0; i < 100 && rmdir(group) < 0 && errno == EBUSY; i++)
        (void)usleep(5000);
    CHECK(access(group, F_OK) < 0);
}

TEST(a_program_restricts_a_cgroup_of_version_2)
{
    if (geteuid() != 0 || root_v2() == NULL)
        test_skip("needs root and cgroups of version 2");
    else
        try(root_v2(), devices_restrict_v2);
}

TEST(a_list_restricts_a_cgroup_of_version_1)
{
    if (geteuid() != 0 || access("/sys/fs/cgroup/devices", F_OK) < 0)
        test_skip("needs root and the devices controller of version 1");
    else
        try("/sys/fs/cgroup/devices", devices_restrict_v1);
}
