/* root_test.c - the root of sandboxes as it is found by who lives in it, each in a mount namespace
 * of a child; and a whole process 1 with its /proc and /tmp. */
#include "base/limits.h"
#include "sandbox/blank.h"
#include "sandbox/root.h"
#include "sandbox/test_scene.h"
#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define BASE 3000000u /* of the user ids */

/* ---- preparing ---- */

static bool file_write(const char *path, const char *text, mode_t mode)
{
    cleanup(fd_close) int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd >= 0 && fchmod(fd, mode) == 0 &&
           write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

/* A stage on /mnt, which only we see: code with a file, and a place for the root. */
static bool stage_make(int *ret_code_fd)
{
    bool made = mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
                mount("none", "/mnt", "tmpfs", 0, "size=8m,mode=755") == 0 &&
                mkdir("/mnt/code", 0755) == 0 && mkdir("/mnt/root", 0755) == 0 &&
                file_write("/mnt/code/app", "the code", 0644);
    *ret_code_fd = open("/mnt/code", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return made && *ret_code_fd >= 0;
}

/* Ends in the new root, as root_make() does. *ret_userns_fd is the version's. */
static enum err root_enter(struct scene *s, int *ret_userns_fd)
{
    struct root_plan plan = {.userns_base = BASE, .mount_point = "/mnt/root"};
    int mntns = -1;
    if (!stage_make(&plan.code_fd))
        return error_errno(&s->e, "make a stage");
    enum err err = root_userns_make(BASE, ret_userns_fd, &s->e);
    return err == ERR_OK ? root_make(&plan, *ret_userns_fd, &mntns, &s->e) : err;
}

/* As a sandbox's program: its user, and no capability. */
static bool become_program(int userns_fd)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    return setns(userns_fd, CLONE_NEWUSER) == 0 && setresgid(0, 0, 0) == 0 &&
           setresuid(0, 0, 0) == 0 && syscall(SYS_capset, &header, none) == 0;
}

static bool holds(const char *path, const char *expected)
{
    char text[256] = "";
    cleanup(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, text, sizeof(text) - 1) >= 0 && strcmp(text, expected) == 0;
}

/* Is each name in a directory one of the words, and how many are there? */
static bool only(const char *path, const char *words, unsigned *ret_count)
{
    DIR *list = opendir(path);
    bool all = list != NULL;
    *ret_count = 0;
    for (struct dirent *entry; all && (entry = readdir(list)) != NULL;) {
        char name[300];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        (void)snprintf(name, sizeof(name), " %s ", entry->d_name);
        all = strstr(words, name) != NULL;
        ++*ret_count;
    }
    if (list != NULL)
        (void)closedir(list);
    return all;
}

/* ---- the root ---- */

static void look_around(struct scene *s)
{
    unsigned count;
    int userns;
    WANT(s, root_enter(s, &userns) == ERR_OK);
    WANT(s,
         only("/", " bin dev etc home lib lib32 lib64 libx32 proc root run sbin srv tmp usr var ",
              &count));
    static const char *const empty[] = {"/home", "/run", "/proc", "/tmp", "/dev/pts"};
    for (size_t i = 0; i < ARRAY_COUNT(empty); i++)
        WANT(s, only(empty[i], " ptmx ", &count) && count <= (i == 4));
    WANT(s, only("/var", " tmp ", &count) && count == 1);
    WANT(s, only("/srv", " app ", &count) && count == 1 && holds("/srv/app", "the code"));
    WANT(s, access("/usr/bin/env", X_OK) == 0 && access("/bin/sh", X_OK) == 0);
    WANT(s, access("/mnt", F_OK) != 0 && access("/../mnt/code", F_OK) != 0);
    char where[64] = "";
    WANT(s, getcwd(where, sizeof(where)) != NULL && strcmp(where, "/") == 0);
}

TEST(a_sandbox_sees_its_root_and_nothing_else)
{
    scene_play(CLONE_NEWNS, look_around);
}

static void try_to_write(struct scene *s)
{
    static const char *const places[] = {"/",     "/etc",  "/usr", "/usr/bin",       "/srv",
                                         "/dev",  "/home", "/run", "/var",           "/tmp",
                                         "/proc", "/bin",  "/lib", "/etc/ssl/certs", "/etc/ssl"};
    int userns;
    WANT(s, root_enter(s, &userns) == ERR_OK);
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) { /* even with all of root's capabilities */
        char path[64];
        (void)snprintf(path, sizeof(path), "%s/new", places[i]);
        (void)snprintf(s->e.text, sizeof(s->e.text), "%s", path);
        if (access(places[i], F_OK) == 0)
            WANT(s, mkdir(path, 0755) < 0 && errno == EROFS);
    }
    WANT(s, open("/etc/passwd", O_WRONLY | O_CLOEXEC) < 0 && errno == EROFS);
    WANT(s, open("/srv/app", O_WRONLY | O_CLOEXEC) < 0 && errno == EROFS);
    WANT(s, chmod("/srv/app", 0777) < 0 && errno == EROFS);
    WANT(s, unlink("/bin") < 0 && errno == EROFS);
    WANT(s, mknod("/dev/mem", S_IFCHR | 0600, makedev(1, 1)) < 0 && errno == EROFS);
}

TEST(nothing_in_it_can_be_written)
{
    scene_play(CLONE_NEWNS, try_to_write);
}

static void look_at_devices(struct scene *s)
{
    static const struct {
        const char *path;
        unsigned major, minor;
    } nodes[] = {{"/dev/null", 1, 3},   {"/dev/zero", 1, 5},    {"/dev/full", 1, 7},
                 {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0}};
    unsigned count;
    int userns;
    char byte = 1;
    WANT(s, root_enter(s, &userns) == ERR_OK);
    WANT(s, only("/dev", " null zero full random urandom tty pts ptmx shm fd stdin stdout stderr ",
                 &count));
    for (size_t i = 0; i < ARRAY_COUNT(nodes); i++) {
        struct stat st;
        WANT(s, lstat(nodes[i].path, &st) == 0 && S_ISCHR(st.st_mode) &&
                    st.st_rdev == makedev(nodes[i].major, nodes[i].minor) &&
                    (st.st_mode & 07777) == 0666);
    }
    WANT(s, become_program(userns));
    cleanup(fd_close) int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    WANT(s, zero >= 0 && read(zero, &byte, 1) == 1 && byte == 0);
    cleanup(fd_close) int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    WANT(s, null >= 0 && write(null, "x", 1) == 1);
    cleanup(fd_close) int terminal = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    WANT(s, terminal >= 0 && access("/dev/pts/0", F_OK) == 0); /* the first: it is its own */
}

TEST(devices_are_the_harmless_ones_and_work)
{
    scene_play(CLONE_NEWNS, look_at_devices);
}

/* proc(5): which mounts there are, and how. By the host's /proc, which is left open. */
static void look_at_mounts(struct scene *s)
{
    int userns, proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char line[1024], at[256], flags[256];
    unsigned count = 0;
    WANT(s, root_enter(s, &userns) == ERR_OK);
    int fd = openat(proc, "thread-self/mountinfo", O_RDONLY | O_CLOEXEC);
    FILE *f = fd >= 0 ? fdopen(fd, "r") : NULL;
    WANT(s, f != NULL);
    while (fgets(line, sizeof(line), f) != NULL) {
        (void)snprintf(s->e.text, sizeof(s->e.text), "%.300s", line);
        WANT(s, sscanf(line, "%*s %*s %*s %*s %255s %255s", at, flags) == 2);
        bool pts = strcmp(at, "/dev/pts") == 0, root = strcmp(at, "/") == 0;
        WANT(s, strstr(flags, "nosuid") != NULL);
        WANT(s, pts || strncmp(flags, "ro,", 3) == 0);
        WANT(s, pts || root || strstr(flags, "nodev") != NULL);
        WANT(s, pts || root || strcmp(at, "/usr") == 0 || strcmp(at, "/srv") == 0 ||
                    strncmp(at, "/etc/", 5) == 0 || strncmp(at, "/lib", 4) == 0 ||
                    strcmp(at, "/bin") == 0 || strcmp(at, "/sbin") == 0);
        WANT(s, strstr(line, " shared:") == NULL && strstr(line, " master:") == NULL);
        count++;
    }
    WANT(s, count >= 4); /* root, /dev/pts, /usr, /srv */
}

TEST(every_mount_is_read_only_without_set_id_bits_and_devices)
{
    scene_play(CLONE_NEWNS, look_at_mounts);
}

static void look_at_owner(struct scene *s)
{
    struct stat st;
    int userns;
    WANT(s, root_enter(s, &userns) == ERR_OK);
    WANT(s, stat("/srv/app", &st) == 0);
    if (st.st_uid == 0)
        return; /* a kernel that does not map ids of this file system */
    WANT(s, st.st_uid == BASE && st.st_gid == BASE);
    WANT(s, become_program(userns));
    WANT(s, stat("/srv/app", &st) == 0 && st.st_uid == 0);
}

TEST(the_code_belongs_to_the_sandboxs_root)
{
    scene_play(CLONE_NEWNS, look_at_owner);
}

static void without_code(struct scene *s)
{
    struct root_plan plan = {.mount_point = "/mnt/root", .userns_base = BASE};
    int userns, mntns = -1;
    unsigned count;
    WANT(s, stage_make(&plan.code_fd));
    plan.code_fd = -1;
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, root_make(&plan, userns, &mntns, &s->e) == ERR_OK);
    WANT(s, only("/srv", "", &count) && count == 0);
    WANT(s, mntns >= 0 && fcntl(mntns, F_GETFD) == FD_CLOEXEC);
}

TEST(a_function_without_code_has_an_empty_srv)
{
    scene_play(CLONE_NEWNS, without_code);
}
