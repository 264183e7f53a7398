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

/* ---- what the host has ---- */

/* /etc of a host that we have made up; what is in /mnt/closed is root's alone. */
static bool host_make(void)
{
    static char large[5 * 1024 * 1024];
    memset(large, 'x', sizeof(large) - 1);
    return mkdir("/mnt/closed", 0700) == 0 &&
           file_write("/mnt/closed/secret", "open to all, but nobody gets there", 0644) &&
           file_write("/mnt/public", "everybody's", 0644) &&
           file_write("/mnt/shadow", "a group's", 0640) &&
           mount("none", "/etc", "tmpfs", 0, "mode=755") == 0 &&
           symlink("/mnt/closed/secret", "/etc/services") == 0 &&
           symlink("../mnt/public", "/etc/protocols") == 0 &&
           symlink("/mnt/shadow", "/etc/host.conf") == 0 && mkfifo("/etc/gai.conf", 0666) == 0 &&
           file_write("/etc/mime.types", large, 0644) &&
           file_write("/etc/shadow", "root:secret", 0644) &&
           file_write("/etc/passwd", "somebody:x:1000:1000::/home:/bin/sh\n", 0644) &&
           file_write("/etc/resolv.conf", "nameserver 192.0.2.1\n", 0644) &&
           mkdir("/etc/ssl", 0755) == 0 && mkdir("/etc/ssl/private", 0700) == 0 &&
           symlink("/mnt/closed", "/etc/ssl/certs") == 0 && mkdir("/etc/alternatives", 0755) == 0 &&
           symlink("/mnt/public", "/etc/alternatives/away") == 0 &&
           symlink("../../usr/bin/env", "/etc/alternatives/inside") == 0;
}

static void made_up_host(struct scene *s)
{
    unsigned count;
    int userns;
    struct root_plan plan = {.userns_base = BASE, .host_name = "hello", .mount_point = "/mnt/root"};
    int mntns = -1;
    WANT(s, stage_make(&plan.code_fd) && host_make());
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, root_make(&plan, userns, &mntns, &s->e) == ERR_OK);
    WANT(s, only("/etc", " passwd group hosts protocols resolv.conf ssl alternatives ", &count));
    WANT(s, count == 7);
    WANT(s, holds("/etc/protocols", "everybody's"));
    WANT(s, holds("/etc/resolv.conf", "nameserver 192.0.2.1\n"));
    WANT(s, holds("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 hello\n"));
    WANT(s, holds("/etc/passwd",
                  "root:x:0:0:root:/tmp:/bin/sh\n"
                  "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")); /* of our own */
    WANT(s, access("/etc/alternatives/inside", X_OK) == 0);
    WANT(s, access("/etc/alternatives/away", F_OK) != 0 && errno == ENOENT);
    WANT(s, become_program(userns));
    WANT(s, !only("/etc/ssl/certs", "", &count) || count == 0);
    WANT(s, access("/etc/ssl/certs/secret", F_OK) != 0);
    WANT(s, access("/etc/ssl/private", F_OK) != 0);
}

TEST(of_the_hosts_etc_only_what_is_everybodys_comes_in)
{
    scene_play(CLONE_NEWNS, made_up_host);
}

/* Files that only root of the host may read: root of a sandbox is somebody else. */
static void secret_in_usr(struct scene *s)
{
    struct root_plan plan = {.userns_base = BASE, .mount_point = "/mnt/root"};
    int userns, mntns = -1;
    WANT(s, stage_make(&plan.code_fd));
    WANT(s, mount("none", "/usr", "tmpfs", 0, "mode=755") == 0);
    WANT(s, file_write("/usr/secret", "root's", 0600) && file_write("/usr/open", "all's", 0644));
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, root_make(&plan, userns, &mntns, &s->e) == ERR_OK);
    WANT(s, become_program(userns));
    WANT(s, holds("/usr/open", "all's"));
    WANT(s, open("/usr/secret", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
}

TEST(what_only_the_hosts_root_may_read_a_sandbox_may_not)
{
    scene_play(CLONE_NEWNS, secret_in_usr);
}

/* ---- what is missing ---- */

/* A host without anything but /proc. */
static void bare_host(struct scene *s)
{
    struct root_plan plan = {.code_fd = -1, .userns_base = BASE, .mount_point = "/root"};
    int userns, mntns = -1;
    WANT(s, stage_make(&plan.code_fd));
    WANT(s, mount("none", "/mnt/root", "tmpfs", 0, NULL) == 0);
    WANT(s, mkdir("/mnt/root/proc", 0755) == 0 && mkdir("/mnt/root/root", 0755) == 0);
    WANT(s, mount("/proc", "/mnt/root/proc", NULL, MS_BIND | MS_REC, NULL) == 0);
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, chdir("/mnt/root") == 0 && chroot(".") == 0);
    WANT(s, root_make(&plan, userns, &mntns, &s->e) == ERR_NOT_FOUND && mntns == -1);
    WANT(s,
         strcmp(s->e.text, "open the host's /usr for a sandbox: No such file or directory") == 0);
}

TEST(a_host_without_usr_is_told)
{
    scene_play(CLONE_NEWNS, bare_host);
}

static void no_place(struct scene *s)
{
    struct root_plan plan = {.userns_base = BASE, .mount_point = "/mnt/nowhere"};
    int userns, mntns = -1;
    WANT(s, stage_make(&plan.code_fd));
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, root_make(&plan, userns, &mntns, &s->e) == ERR_NOT_FOUND && mntns == -1);
    WANT(s, strcmp(s->e.text, "mount the root of a sandbox at '/mnt/nowhere': No such file or "
                              "directory") == 0);
}

TEST(a_place_that_is_not_there_is_named)
{
    scene_play(CLONE_NEWNS, no_place);
}

static void code_is_a_file(struct scene *s)
{
    struct root_plan plan = {.userns_base = BASE, .mount_point = "/mnt/root"};
    int userns, mntns = -1;
    WANT(s, stage_make(&plan.code_fd));
    plan.code_fd = open("/mnt/code/app", O_PATH | O_CLOEXEC);
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, root_make(&plan, userns, &mntns, &s->e) != ERR_OK && mntns == -1);
    WANT(s, strstr(s->e.text, "attach the function's code: ") == s->e.text);
}

TEST(code_that_is_no_directory_is_told)
{
    scene_play(CLONE_NEWNS, code_is_a_file);
}

/* ---- users ---- */

static void look_at_users(struct scene *s)
{
    int userns = -1, other = -1;
    char expected[64];
    WANT(s, root_userns_make(BASE, &userns, &s->e) == ERR_OK);
    WANT(s, geteuid() == 0 && getuid() == 0);
    WANT(s, waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD); /* who held it has gone */
    WANT(s, fcntl(userns, F_GETFD) == FD_CLOEXEC);
    WANT(s, root_userns_make(UINT32_MAX - 100, &other, &s->e) != ERR_OK); /* beyond all ids */
    WANT(s, strcmp(s->e.text, "map user ids of a sandbox (uid_map): Invalid argument") == 0);
    WANT(s, other == -1 && waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    WANT(s, become_program(userns));
    (void)snprintf(expected, sizeof(expected), "%10u %10u %10u\n", 0, BASE, ROOT_IDS_PER_VERSION);
    cleanup(fd_close) int fd = open("/proc/self/uid_map", O_RDONLY | O_CLOEXEC);
    WANT(s, fd >= 0);
    WANT(s, setresuid(1, 1, 1) < 0 && errno == EPERM);
    WANT(s, holds("/proc/self/uid_map", expected) && holds("/proc/self/gid_map", expected));
}

TEST(a_versions_users_are_a_range_of_the_hosts)
{
    scene_play(0, look_at_users);
}

/* ---- a whole process 1 ---- */

/* The fork of a nursery, where nothing but the seccomp filter is missing. Returns the control
 * socket; the root is of a helper that ends in it, and waits until we hold it. */
static int sandbox_start(struct scene *s, const char *script, uint64_t tmp_bytes, int output_fd)
{
    int ends[2], said[2], userns = -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, said) < 0 ||
        root_userns_make(BASE, &userns, &s->e) != ERR_OK)
        return -1;
    pid_t helper = fork();
    if (helper == 0) {
        struct root_plan plan = {.userns_base = BASE, .mount_point = "/mnt/root"};
        int mntns;
        bool made = unshare(CLONE_NEWNS) == 0 && stage_make(&plan.code_fd) &&
                    root_make(&plan, userns, &mntns, &s->e) == ERR_OK;
        (void)!write(said[1], s->e.text, made ? 1 : sizeof(s->e.text));
        (void)!read(said[1], s->e.text, 1);
        _exit(0);
    }
    char path[64];
    ssize_t n = read(said[0], s->e.text, sizeof(s->e.text));
    (void)snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)helper);
    int mntns = n == 1 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    (void)!write(said[0], "", 1);
    (void)waitpid(helper, NULL, 0);
    if (mntns < 0 || unshare(CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET) < 0)
        return -1;
    static struct blank_shared shared = {.secret = 1};
    while (prctl(PR_CAPBSET_READ, shared.capabilities, 0, 0, 0) >= 0)
        shared.capabilities++;
    if (fork() == 0)
        blank_run(&shared, -1, ends[1]);
    (void)close(ends[1]);
    static const char *const arguments[] = {"/bin/sh", "-c", NULL, "PATH=/usr/bin:/bin", "lab"};
    struct {
        struct blank_go go;
        char strings[8192];
    } packet = {
        .go = {
            .order = BLANK_GO, .argc = 3, .envc = 1, .tmp_bytes = tmp_bytes, .userns_base = BASE}};
    for (size_t i = 0; i < ARRAY_COUNT(arguments); i++) {
        const char *text = arguments[i] != NULL ? arguments[i] : script;
        memcpy(packet.strings + packet.go.strings_bytes, text, strlen(text) + 1);
        packet.go.strings_bytes += (uint32_t)strlen(text) + 1;
    }
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(3 * sizeof(int))];
    } control = {.header = {CMSG_LEN(3 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), (int[]){mntns, userns, output_fd}, 3 * sizeof(int));
    struct iovec part = {&packet, sizeof(packet.go) + packet.go.strings_bytes};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    return sendmsg(ends[0], &message, 0) > 0 ? ends[0] : -1;
}

/* The next report of a kind; others before it are passed over. False: there is none in 5 s. */
static bool report_await(struct scene *s, int control, enum blank_report_kind kind,
                         struct blank_report *r)
{
    for (;;) {
        struct pollfd p = {control, POLLIN, 0};
        if (poll(&p, 1, 5000) != 1 || recv(control, r, sizeof(*r), 0) != (ssize_t)sizeof(*r))
            return false;
        if (r->kind == BLANK_FAILED)
            (void)snprintf(s->e.text, sizeof(s->e.text), "%.200s", r->text);
        if (r->kind == kind)
            return true;
    }
}

/* Runs a script as a sandbox's program; *ret_text is its output with heads of lines, static. */
static void script_run(struct scene *s, const char *script, uint64_t tmp_bytes, int *ret_status,
                       const char **ret_text)
{
    static char text[65536];
    struct blank_report report;
    int output = open("/tmp", O_TMPFILE | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    WANT(s, output >= 0);
    int control = sandbox_start(s, script, tmp_bytes, output);
    WANT(s, control >= 0);
    WANT(s, report_await(s, control, BLANK_EXITED, &report));
    *ret_status = report.wait_status;
    ssize_t n = pread(output, text, sizeof(text) - 1, 0);
    text[MAX(n, 0)] = '\0';
    *ret_text = text;
    (void)snprintf(s->e.text, sizeof(s->e.text), "%.500s", text);
}

static void small_tmp(struct scene *s)
{
    int status;
    const char *text = "";
    script_run(s,
               "head -c 3000000 /dev/zero >/tmp/fits && echo first fits; "
               "head -c 3000000 /dev/zero >/tmp/more || echo no more; "
               "stat -c 'mode %a of %u' /tmp; "
               "echo x >/srv/x || echo srv closed; echo x >/dev/null && echo null open; exit 7",
               4 * MIB, &status, &text);
    WANT(s, WIFEXITED(status) && WEXITSTATUS(status) == 7);
    WANT(s, strstr(text, " stdout F first fits\n") != NULL);
    WANT(s, strstr(text, " stdout F no more\n") != NULL);
    WANT(s, strstr(text, " stdout F mode 1777 of 0\n") != NULL);
    WANT(s, strstr(text, " stdout F srv closed\n") != NULL);
    WANT(s, strstr(text, " stdout F null open\n") != NULL);
    WANT(s, strstr(text, " stderr F ") != NULL && strstr(text, "No space left on device") != NULL);
}

TEST(tmp_is_bounded_and_the_only_place_to_write)
{
    scene_play(CLONE_NEWNS, small_tmp);
}

static void small_proc(struct scene *s)
{
    int status;
    const char *text = "";
    script_run(s,
               "echo i am $$; echo numbers $(ls /proc | grep -c '^[0-9]'); "
               "echo names $(ls /proc | grep -v '^[0-9]'); "
               "for f in kcore sys sysrq-trigger keys timer_list cmdline net meminfo; do "
               "test -e /proc/$f && echo there is $f; done; "
               "ls -d /proc/1 || echo process 1 is hidden; "
               "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; "
               "ls /proc/self/fd | tr '\\n' ' '",
               MIB, &status, &text);
    WANT(s, WIFEXITED(status) && WEXITSTATUS(status) == 0);
    WANT(s, strstr(text, " F i am 2\n") != NULL);
    WANT(s, strstr(text, "there is kcore") == NULL && strstr(text, "there is sys") == NULL &&
                strstr(text, "there is keys") == NULL && strstr(text, "there is timer") == NULL &&
                strstr(text, "there is cmdline") == NULL && strstr(text, "there is mem") == NULL);
    WANT(s, strstr(text, "names self thread-self\n") != NULL ||
                strstr(text, "names mounts net self thread-self\n") != NULL);
    WANT(s, strstr(text, "process 1 is hidden") != NULL);
    WANT(s, strstr(text, "CapEff:\t0000000000000000") != NULL);
    WANT(s, strstr(text, "CapBnd:\t0000000000000000") != NULL);
    WANT(s, strstr(text, "NoNewPrivs:\t1") != NULL);
    WANT(s, strstr(text, " F 0 1 2 3 \n") != NULL); /* 3 is that of ls itself */
}

TEST(proc_shows_the_sandboxs_processes_and_nothing_of_the_kernel)
{
    scene_play(CLONE_NEWNS, small_proc);
}

static void ends_by_signal(struct scene *s)
{
    struct blank_report report;
    int output = open("/tmp", O_TMPFILE | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    int control = sandbox_start(s, "kill -9 $$", MIB, output);
    WANT(s, control >= 0 && report_await(s, control, BLANK_STARTED, &report));
    WANT(s, report.created_ns > 0 && report.executed_ns >= report.created_ns);
    WANT(s, report_await(s, control, BLANK_EXITED, &report));
    WANT(s, WIFSIGNALED(report.wait_status) && WTERMSIG(report.wait_status) == SIGKILL);
}

TEST(how_the_program_ended_is_told)
{
    scene_play(CLONE_NEWNS, ends_by_signal);
}

static void closes_early(struct scene *s)
{
    int status;
    const char *text = "";
    script_run(s, "echo one; exec >&-; echo two >&2; sleep 0.05; echo three >&2; exit 5", MIB,
               &status, &text);
    WANT(s, WIFEXITED(status) && WEXITSTATUS(status) == 5);
    WANT(s, strstr(text, " stdout F one\n") != NULL);
    WANT(s, strstr(text, " stderr F two\n") != NULL && strstr(text, " stderr F three\n") != NULL);
}

TEST(a_program_that_closes_its_output_early_lives_on)
{
    scene_play(CLONE_NEWNS, closes_early);
}

static void leaves_a_child(struct scene *s)
{
    int status;
    const char *text = "";
    uint64_t began_ns = clock_mono_ns();
    script_run(s, "sleep 1000 & printf 'no end of line'; printf '%040000d' 7 >&2", MIB, &status,
               &text);
    WANT(s, WIFEXITED(status) && WEXITSTATUS(status) == 0);
    WANT(s, strstr(text, " stdout F no end of line\n") != NULL);
    WANT(s, strstr(text, " stderr P 0000") != NULL); /* the first parts of a long line */
    WANT(s, clock_mono_ns() - began_ns < 4 * NS_PER_S);
}

TEST(a_child_that_holds_the_output_does_not_hold_up_the_end)
{
    scene_play(CLONE_NEWNS, leaves_a_child);
}
