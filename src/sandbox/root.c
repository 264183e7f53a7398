/* root.c - the mount API by descriptor; mount_namespaces(7), user_namespaces(7). */
#include "sandbox/root.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* <sys/mount.h> clashes with <linux/mount.h> in this libc */
#define MNT_DETACH 2
extern int mount(const char *source, const char *target, const char *type, unsigned long flags,
                 const void *data);
extern int umount2(const char *target, int flags);

#define ETC_FILE_BYTES_MAX (4 * MIB)
#define NOBODY 65534

static int sys_open_tree(int dir, const char *path, unsigned flags)
{
    return (int)syscall(SYS_open_tree, dir, path, flags);
}

static int sys_mount_setattr(int fd, uint64_t set, int userns_fd)
{
    struct mount_attr attr = {.attr_set = set};
    if (userns_fd >= 0) {
        attr.attr_set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = (uint64_t)userns_fd;
    }
    return (int)syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr));
}

static int sys_move_mount(int fd, int to_dir, const char *to)
{
    return (int)syscall(SYS_move_mount, fd, "", to_dir, to,
                        MOVE_MOUNT_F_EMPTY_PATH | (to[0] == '\0' ? MOVE_MOUNT_T_EMPTY_PATH : 0));
}

/* A new file system as a detached mount. `options` are "key", "value" pairs and a NULL. */
static int new_mount(const char *type, const char *const *options, unsigned attributes)
{
    cleanup(fd_close) int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    for (; options[0] != NULL; options += 2)
        if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, options[0], options[1], 0) < 0)
            return -1;
    if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return -1;
    return (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
}

/* ---- user namespace ---- */

static enum err map_write(pid_t pid, const char *file, uint32_t base, struct error *e)
{
    char path[64], text[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    int n = snprintf(text, sizeof(text), "0 %u %u\n", base, ROOT_IDS_PER_VERSION);
    cleanup(fd_close) int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        return error_errno(e, "map user ids of a sandbox (%s)", file);
    return ERR_OK;
}

enum err root_userns_make(uint32_t base, int *ret_userns_fd, struct error *e)
{
    /* A namespace is born with a process; this one only waits until it is held by a descriptor. */
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid < 0)
        return error_errno(e, "make a user namespace");
    if (pid == 0)
        for (;;)
            (void)pause();
    enum err err = map_write(pid, "uid_map", base, e);
    if (err == ERR_OK)
        err = map_write(pid, "gid_map", base, e);
    if (err == ERR_OK) {
        char path[64];
        (void)snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
        /* The kernel's record of a user lives as long as a descriptor that he has opened: with this
         * one it is not made anew for each sandbox. */
        bool became = setresuid(base, (uid_t)-1, (uid_t)-1) == 0;
        *ret_userns_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (*ret_userns_fd < 0)
            err = error_errno(e, "open a user namespace");
        if (became && setresuid(0, (uid_t)-1, (uid_t)-1) < 0)
            err = error_errno(e, "become root again");
    }
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    return err;
}

/* ---- what is in the root ---- */

struct building {
    int root_fd;
    const char *host_name;
};

/* Opens a path of the host as its nobody: where a link in /etc leads is the host's business, but
 * what not everybody on the host may see, no sandbox sees. -1 with errno. */
static int host_open(const char *path, int flags)
{
    int gid = setfsgid(NOBODY), uid = setfsuid(NOBODY);
    int fd = open(path, flags | O_NONBLOCK | O_CLOEXEC);
    int failure = errno;
    (void)setfsuid((uid_t)uid);
    (void)setfsgid((gid_t)gid);
    errno = failure;
    return fd;
}

/* The caller frees *ret_text. False: there is no such file, or none that may be read. */
static bool host_read(const char *path, size_t bytes_max, char **ret_text, size_t *ret_bytes)
{
    cleanup(fd_close) int fd = host_open(path, O_RDONLY);
    struct stat st;
    char own[64];
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    (void)snprintf(own, sizeof(own), "/proc/self/fd/%d", fd);
    return file_read(own, bytes_max, ret_text, ret_bytes, NULL) == ERR_OK;
}

/* A read-only clone of a host directory at `to` in the root. Ids are not mapped: all of it belongs
 * to nobody there, and what only the host's root may read stays his. */
static enum err attach_clone(const struct building *b, int from_fd, const char *to, struct error *e)
{
    cleanup(fd_close) int tree =
        sys_open_tree(from_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
    if (tree < 0)
        return error_errno(e, "clone the host's /%s for a sandbox", to);
    uint64_t attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    if (sys_mount_setattr(tree, attributes, -1) < 0)
        return error_errno(e, "make the clone of the host's /%s read-only", to);
    if (sys_move_mount(tree, b->root_fd, to) < 0)
        return error_errno(e, "attach the host's /%s to a sandbox's root", to);
    return ERR_OK;
}

static enum err make_dirs(const struct building *b, struct error *e)
{
    static const char *const dirs[] = {"etc", "proc", "tmp", "srv",  "dev",    "dev/pts",
                                       "usr", "run",  "var", "home", "etc/ssl"};
    for (size_t i = 0; i < ARRAY_COUNT(dirs); i++)
        if (mkdirat(b->root_fd, dirs[i], 0755) < 0)
            return error_errno(e, "make directory /%s of a sandbox", dirs[i]);
    static const char *const links[][2] = {{"/tmp", "var/tmp"},
                                           {"/tmp", "dev/shm"},
                                           {"/proc/self/fd", "dev/fd"},
                                           {"/proc/self/fd/0", "dev/stdin"},
                                           {"/proc/self/fd/1", "dev/stdout"},
                                           {"/proc/self/fd/2", "dev/stderr"},
                                           {"pts/ptmx", "dev/ptmx"},
                                           {"/tmp", "root"}};
    for (size_t i = 0; i < ARRAY_COUNT(links); i++)
        if (symlinkat(links[i][0], b->root_fd, links[i][1]) < 0)
            return error_errno(e, "make link /%s of a sandbox", links[i][1]);
    return ERR_OK;
}

static enum err make_devices(const struct building *b, struct error *e)
{
    static const struct {
        const char *path;
        unsigned major, minor;
    } devices[] = {{"dev/null", 1, 3},   {"dev/zero", 1, 5},    {"dev/full", 1, 7},
                   {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(devices); i++)
        if (mknodat(b->root_fd, devices[i].path, S_IFCHR | 0666,
                    makedev(devices[i].major, devices[i].minor)) < 0)
            return error_errno(e, "make device /%s of a sandbox", devices[i].path);
    static const char *const options[] = {"ptmxmode", "0666", "mode", "0620", NULL};
    cleanup(fd_close) int pts = new_mount("devpts", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
    if (pts < 0 || sys_move_mount(pts, b->root_fd, "dev/pts") < 0)
        return error_errno(e, "mount /dev/pts of a sandbox");
    return ERR_OK;
}

static enum err write_etc(const struct building *b, const char *name, const char *text,
                          size_t bytes, struct error *e)
{
    char path[128];
    (void)snprintf(path, sizeof(path), "etc/%s", name);
    cleanup(fd_close) int fd =
        openat(b->root_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
    if (fd < 0 || fd_write_all(fd, text, bytes) != ERR_OK)
        return error_errno(e, "write /etc/%s of a sandbox", name);
    return ERR_OK;
}

/* The few files that programs need, as they are on the host now; what the host lacks is left out.
 */
static enum err make_etc(const struct building *b, struct error *e)
{
    char hosts[128];
    (void)snprintf(hosts, sizeof(hosts), "127.0.0.1 localhost\n%s%s%s",
                   b->host_name != NULL ? "127.0.1.1 " : "",
                   b->host_name != NULL ? b->host_name : "", b->host_name != NULL ? "\n" : "");
    const struct {
        const char *name, *text;
    } ours[] = {{"passwd",
                 "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"},
                {"group", "root:x:0:\nnogroup:x:65534:\n"},
                {"hosts", hosts}};
    static const char *const copied[] = {
        "nsswitch.conf", "ld.so.cache", "localtime", "mime.types",      "services",
        "protocols",     "gai.conf",    "host.conf", "ssl/openssl.cnf", "os-release"};
    enum err err = ERR_OK;
    for (size_t i = 0; i < ARRAY_COUNT(ours) && err == ERR_OK; i++)
        err = write_etc(b, ours[i].name, ours[i].text, strlen(ours[i].text), e);
    for (size_t i = 0; i < ARRAY_COUNT(copied) && err == ERR_OK; i++) {
        char path[128], *text = NULL;
        size_t bytes = 0;
        (void)snprintf(path, sizeof(path), "/etc/%s", copied[i]);
        if (host_read(path, ETC_FILE_BYTES_MAX, &text, &bytes))
            err = write_etc(b, copied[i], text, bytes, e);
        free(text);
    }
    if (err != ERR_OK)
        return err;
    /* systemd-resolved's stub listens on the host's loopback; the real servers are in its other
     * file. */
    char *resolv cleanup(free_pointer) = NULL;
    size_t bytes = 0;
    if (host_read("/etc/resolv.conf", 64 * KIB, &resolv, &bytes) &&
        strstr(resolv, "nameserver 127.") != NULL) {
        char *real = NULL;
        if (host_read("/run/systemd/resolve/resolv.conf", 64 * KIB, &real, &bytes)) {
            free(resolv);
            resolv = real;
        }
    }
    return resolv != NULL ? write_etc(b, "resolv.conf", resolv, bytes, e) : ERR_OK;
}

static enum err attach_host_dir(const struct building *b, const char *name, struct error *e)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/%s", name);
    cleanup(fd_close) int fd = host_open(path, O_PATH | O_DIRECTORY);
    return fd < 0 ? error_errno(e, "open the host's %s for a sandbox", path)
                  : attach_clone(b, fd, name, e);
}

static enum err attach_host(const struct building *b, struct error *e)
{
    enum err err = attach_host_dir(b, "usr", e);
    static const char *const merged[] = {"bin", "sbin", "lib", "lib32", "lib64", "libx32"};
    for (size_t i = 0; i < ARRAY_COUNT(merged) && err == ERR_OK; i++) {
        char path[16], target[256];
        struct stat st;
        (void)snprintf(path, sizeof(path), "/%s", merged[i]);
        if (lstat(path, &st) < 0)
            continue;
        ssize_t n = S_ISLNK(st.st_mode) ? readlink(path, target, sizeof(target) - 1) : -1;
        if (n >= 0) {
            target[n] = '\0';
            if (symlinkat(target, b->root_fd, merged[i]) < 0)
                err = error_errno(e, "make link /%s of a sandbox", merged[i]);
        } else if (mkdirat(b->root_fd, merged[i], 0755) < 0) {
            err = error_errno(e, "make directory /%s of a sandbox", merged[i]);
        } else {
            err = attach_host_dir(b, merged[i], e);
        }
    }
    static const char *const shared[] = {"etc/ssl/certs", "etc/alternatives"};
    for (size_t i = 0; i < ARRAY_COUNT(shared) && err == ERR_OK; i++) {
        char path[64];
        (void)snprintf(path, sizeof(path), "/%s", shared[i]);
        cleanup(fd_close) int fd = host_open(path, O_PATH | O_DIRECTORY);
        if (fd >= 0 && mkdirat(b->root_fd, shared[i], 0755) == 0)
            err = attach_clone(b, fd, shared[i], e);
    }
    return err;
}

static enum err root_fill(const struct building *b, struct error *e)
{
    enum err err = make_dirs(b, e);
    if (err == ERR_OK)
        err = make_devices(b, e);
    if (err == ERR_OK)
        err = make_etc(b, e);
    if (err == ERR_OK)
        err = attach_host(b, e);
    return err;
}

enum err root_make(const struct root_plan *plan, int userns_fd, int *ret_mntns_fd, struct error *e)
{
    struct building b = {.root_fd = -1, .host_name = plan->host_name};
    umask(0);
    if (setgroups(0, NULL) < 0) /* see host_open() */
        return error_errno(e, "give up supplementary groups");
    /* The code's directory belongs to the host's mount namespace: cloned before we leave it. It is
     * the sandbox's own, as far as the file system can map ids. */
    cleanup(fd_close) int code = -1;
    if (plan->code_fd >= 0) {
        code =
            sys_open_tree(plan->code_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
        uint64_t attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        if (code < 0 || (sys_mount_setattr(code, attributes, userns_fd) < 0 &&
                         sys_mount_setattr(code, attributes, -1) < 0))
            return error_errno(e, "clone the function's code directory");
    }
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return error_errno(e, "make a mount namespace");
    cleanup(fd_close) int mntns = open("/proc/thread-self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (mntns < 0)
        return error_errno(e, "open the new mount namespace");
    static const char *const options[] = {"size", "8m", "nr_inodes", "1k", "mode", "0755", NULL};
    cleanup(fd_close) int root = new_mount("tmpfs", options, MOUNT_ATTR_NOSUID);
    if (root < 0 || sys_move_mount(root, AT_FDCWD, plan->mount_point) < 0)
        return error_errno(e, "mount the root of a sandbox at '%s'", plan->mount_point);
    b.root_fd = open(plan->mount_point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (b.root_fd < 0)
        return error_errno(e, "open the root of a sandbox");
    enum err err = root_fill(&b, e);
    if (err == ERR_OK && code >= 0 && sys_move_mount(code, b.root_fd, "srv") < 0)
        err = error_errno(e, "attach the function's code");
    if (err == ERR_OK && sys_mount_setattr(root, MOUNT_ATTR_RDONLY, -1) < 0)
        err = error_errno(e, "make the root of a sandbox read-only");
    if (err == ERR_OK && (fchdir(b.root_fd) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
                          umount2(".", MNT_DETACH) < 0 || chdir("/") < 0))
        err = error_errno(e, "make the sandbox's root the only one");
    fd_close(&b.root_fd);
    if (err == ERR_OK)
        *ret_mntns_fd = fd_take(&mntns);
    return err;
}
