/* blank.c - process 1. Order matters: each step needs a privilege that a later one gives up. */
#include "sandbox/blank.h"
#include "base/limits.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STRINGS_BYTES_MAX (ENV_BYTES_MAX + COMMAND_BYTES_MAX + 1024)
#define ARGUMENTS_MAX 1024
#define KEYCTL_JOIN_SESSION_KEYRING 1
#define KEPT_FD 900 /* above what a nursery ever has open */

struct blank {
    const struct blank_shared *shared;
    int control_fd, mntns_fd, userns_fd, output_fd;
    struct blank_go go;
    char *argv[ARGUMENTS_MAX + 1], *env[ENV_COUNT_MAX + 16];
    const char *host_name;
    int pipes[2][2]; /* stdout, stderr: read end, write end */
    int null_fd, proc_fd, tmp_fd, tmp_context;
    pid_t program;
    volatile int exec_errno; /* written by the child, which shares our memory until its exec */
    char strings[STRINGS_BYTES_MAX];
    struct pump pump;
};

/* ---- talking ---- */

static void report_send(const struct blank *b, const struct blank_report *report)
{
    while (send(b->control_fd, report, sizeof(*report), MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

static _Noreturn void fail(const struct blank *b, const char *what)
{
    struct blank_report report = {.kind = BLANK_FAILED};
    (void)snprintf(report.text, sizeof(report.text), "%s: %s", what, strerror(errno));
    report_send(b, &report);
    _exit(1);
}

/* Waits for GO; takes its strings and descriptors. */
static void go_receive(struct blank *b)
{
    struct iovec parts[2] = {{&b->go, sizeof(b->go)}, {b->strings, sizeof(b->strings) - 1}};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = parts,
                             .msg_iovlen = 2,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t n;
    do {
        n = recvmsg(b->control_fd, &message, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (n < (ssize_t)sizeof(b->go) || b->go.order != BLANK_GO || c == NULL ||
        c->cmsg_len != CMSG_LEN(3 * sizeof(int)) ||
        b->go.strings_bytes != (size_t)n - sizeof(b->go) || b->go.argc == 0 ||
        b->go.argc > ARGUMENTS_MAX || b->go.envc >= ARRAY_COUNT(b->env))
        _exit(2); /* the launcher has gone, or is not ours */
    int fds[3];
    memcpy(fds, CMSG_DATA(c), sizeof(fds));
    b->mntns_fd = fds[0];
    b->userns_fd = fds[1];
    b->output_fd = fds[2];
    b->strings[b->go.strings_bytes] = '\0';
    char *at = b->strings, *end = b->strings + b->go.strings_bytes;
    for (uint32_t i = 0; i < b->go.argc + b->go.envc + 1; i++) {
        if (at >= end)
            _exit(2);
        if (i < b->go.argc)
            b->argv[i] = at;
        else if (i < b->go.argc + b->go.envc)
            b->env[i - b->go.argc] = at;
        else
            b->host_name = at;
        at += strlen(at) + 1;
    }
}

static uint64_t now_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- becoming a sandbox ---- */

/* A detached mount; *ret_context, when asked for, can change its options later. */
static int mount_new(const struct blank *b, const char *type, const char *const *options,
                     unsigned attributes, int *ret_context)
{
    uint64_t secret = b->shared->secret;
    cleanup(fd_close) int context = (int)SETUP_CALL(secret, SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    for (; options[0] != NULL; options += 2)
        if (SETUP_CALL(secret, SYS_fsconfig, context, FSCONFIG_SET_STRING, options[0], options[1],
                       0) < 0)
            return -1;
    if (SETUP_CALL(secret, SYS_fsconfig, context, FSCONFIG_CMD_CREATE) < 0)
        return -1;
    int tree = (int)SETUP_CALL(secret, SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
    if (tree >= 0 && ret_context != NULL)
        *ret_context = fd_take(&context);
    return tree;
}

/* All that does not depend on the version, so that it is not in the way of a start. */
static void things_make(struct blank *b)
{
    static const char *const proc[] = {"subset", "pid", "hidepid", "invisible", NULL};
    static const char *const tmp[] = {"nr_inodes", "64k", "mode", "1777", NULL};
    b->proc_fd =
        mount_new(b, "proc", proc, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, NULL);
    if (b->proc_fd < 0)
        fail(b, "make /proc");
    b->tmp_fd = mount_new(b, "tmpfs", tmp, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, &b->tmp_context);
    if (b->tmp_fd < 0)
        fail(b, "make /tmp");
    b->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (b->null_fd < 0 || pipe2(b->pipes[0], O_CLOEXEC | O_NONBLOCK) < 0 ||
        pipe2(b->pipes[1], O_CLOEXEC | O_NONBLOCK) < 0)
        fail(b, "open the program's descriptors");
    for (int i = 0; i < 2;
         i++) /* only our end does not block: the program expects ordinary pipes */
        (void)fcntl(b->pipes[i][1], F_SETFL, O_WRONLY);
}

static int mount_attach(const struct blank *b, int *tree, const char *at)
{
    int result = (int)SETUP_CALL(b->shared->secret, SYS_move_mount, *tree, "", AT_FDCWD, at,
                                 MOVE_MOUNT_F_EMPTY_PATH);
    fd_close(tree);
    return result;
}

static void mounts_join(struct blank *b)
{
    uint64_t secret = b->shared->secret;
    if (SETUP_CALL(secret, SYS_setns, b->mntns_fd, CLONE_NEWNS) < 0 ||
        SETUP_CALL(secret, SYS_unshare, CLONE_NEWNS) < 0)
        fail(b, "join the version's mounts");
    if (mount_attach(b, &b->proc_fd, "/proc") < 0)
        fail(b, "mount /proc");
    char size[32];
    (void)snprintf(size, sizeof(size), "%" PRIu64, b->go.tmp_bytes);
    if (SETUP_CALL(secret, SYS_fsconfig, b->tmp_context, FSCONFIG_SET_STRING, "size", size) < 0 ||
        SETUP_CALL(secret, SYS_fsconfig, b->tmp_context, FSCONFIG_CMD_RECONFIGURE) < 0 ||
        fchownat(b->tmp_fd, "", b->go.userns_base, b->go.userns_base, AT_EMPTY_PATH) < 0)
        fail(b, "size /tmp");
    fd_close(&b->tmp_context);
    if (mount_attach(b, &b->tmp_fd, "/tmp") < 0)
        fail(b, "mount /tmp");
    if (SETUP_CALL(secret, SYS_sethostname, b->host_name, strlen(b->host_name)) < 0)
        fail(b, "set the host name");
}

static void user_join(struct blank *b)
{
    uint64_t secret = b->shared->secret;
    if (SETUP_CALL(secret, SYS_setns, b->userns_fd, CLONE_NEWUSER) < 0)
        fail(b, "join the version's user namespace");
    if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        fail(b, "become the sandbox's user");
    if (SETUP_CALL(secret, SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL) < 0 && errno != ENOSYS)
        fail(b, "make a keyring");
}

/* Landlock, where the kernel has it: writes beneath /tmp and to devices only; no signals or
 * abstract sockets outward. What a version of the kernel does not know is left out; the mounts are
 * read-only all the same. */
static void landlock_enter(struct blank *b)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1)
        return;
    uint64_t writes = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
                      LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
                      LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
                      LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
                      LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;
    if (version >= 2)
        writes |= UINT64_C(1) << 13; /* REFER */
    if (version >= 3)
        writes |= UINT64_C(1) << 14; /* TRUNCATE */
    struct {
        uint64_t handled_fs, handled_net, scoped; /* struct landlock_ruleset_attr of Linux 6.12 */
    } ruleset = {.handled_fs = writes, .scoped = version >= 6 ? 3 : 0};
    cleanup(fd_close) int fd =
        (int)syscall(SYS_landlock_create_ruleset, &ruleset, version >= 6 ? sizeof(ruleset) : 8, 0);
    if (fd < 0)
        fail(b, "make Landlock rules");
    static const char *const writable[] = {"/tmp", "/dev"};
    for (size_t i = 0; i < ARRAY_COUNT(writable); i++) {
        cleanup(fd_close) int dir = open(writable[i], O_PATH | O_CLOEXEC);
        struct landlock_path_beneath_attr rule = {.allowed_access = writes, .parent_fd = dir};
        if (dir < 0 || syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
            fail(b, "add a Landlock rule");
    }
    if (syscall(SYS_landlock_restrict_self, fd, 0) < 0)
        fail(b, "enter Landlock");
}

static void privileges_give_up(struct blank *b)
{
    /* Joining the user namespace gave us all capabilities in it, and a full bounding set. */
    for (unsigned long capability = 0; capability < b->shared->capabilities; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0)
            fail(b, "drop a capability");
    unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP |
                         SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED |
                         SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    if (prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) < 0 ||
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
        SETUP_CALL(b->shared->secret, SYS_capset, &header, none) < 0 ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        fail(b, "give up capabilities");
    /* Changing the user has cleared it: when the launcher dies, so do we. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        fail(b, "be killed with the launcher");
}

/* ---- the program ---- */

struct exec_arguments {
    struct blank *b;
};

static const char *environment_get(const struct blank *b, const char *name)
{
    size_t bytes = strlen(name);
    for (uint32_t i = 0; i < b->go.envc; i++)
        if (strncmp(b->env[i], name, bytes) == 0 && b->env[i][bytes] == '=')
            return b->env[i] + bytes + 1;
    return "";
}

/* As execvp(3), with the sandbox's PATH. Remembers EACCES: "not executable" says more than "not
 * found". */
static int exec_search(struct blank *b)
{
    if (strchr(b->argv[0], '/') != NULL) {
        (void)execve(b->argv[0], b->argv, b->env);
        return errno;
    }
    int failure = ENOENT;
    for (const char *at = environment_get(b, "PATH"); *at != '\0';) {
        size_t bytes = strcspn(at, ":");
        char path[4096];
        int n = snprintf(path, sizeof(path), "%.*s/%s", (int)bytes, at, b->argv[0]);
        if (n > 0 && (size_t)n < sizeof(path)) {
            (void)execve(path, b->argv, b->env);
            if (errno != ENOENT && errno != ENOTDIR)
                failure = errno;
        }
        at += bytes + (at[bytes] == ':');
    }
    return failure;
}

/* The child: shares our memory until exec, has its own copy of the descriptors. */
static int program_exec(void *argument)
{
    struct blank *b = argument;
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setpgid(0, 0); /* a session of its own costs more, and the launcher's has no terminal */
    (void)dup2(b->null_fd, 0);
    (void)dup2(b->pipes[0][1], 1);
    (void)dup2(b->pipes[1][1], 2);
    if (syscall(SYS_close_range, 3, ~0u, 0) < 0)
        _exit(127);
    b->exec_errno = exec_search(b);
    _exit(127);
}

static void program_start(struct blank *b)
{
    static _Alignas(16) char stack[64 * 1024]; /* the child's, until its exec */
    if (chdir("/srv") < 0)
        fail(b, "change to /srv");
    struct blank_report report;
    uint64_t created_ns = now_ns();
    b->exec_errno = 0;
    b->program = clone(program_exec, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, b);
    if (b->program < 0)
        fail(b, "start the program");
    close(b->pipes[0][1]);
    close(b->pipes[1][1]);
    if (b->exec_errno != 0) {
        report = (struct blank_report){.kind = BLANK_FAILED, .exec_errno = b->exec_errno};
        (void)snprintf(report.text, sizeof(report.text), "command '%.120s' cannot be run: %s",
                       b->argv[0], strerror(b->exec_errno));
        report_send(b, &report);
        _exit(1);
    }
    report = (struct blank_report){
        .kind = BLANK_STARTED, .created_ns = created_ns, .executed_ns = now_ns()};
    report_send(b, &report);
}

/* ---- living as process 1 ---- */

static void output_take(struct blank *b, unsigned stream)
{
    static char data[32 * 1024];
    struct timespec now;
    ssize_t n;
    while ((n = read(b->pipes[stream][0], data, sizeof(data))) > 0) {
        (void)clock_gettime(CLOCK_REALTIME, &now);
        pump_bytes(&b->pump, stream, data, (size_t)n, now.tv_sec, now.tv_nsec);
        if (n < (ssize_t)sizeof(data))
            return; /* the rest when poll says so: the other stream has its turn */
    }
    if (n == 0) {
        close(b->pipes[stream][0]);
        b->pipes[stream][0] = -1; /* poll passes over it */
    }
}

static _Noreturn void finish(struct blank *b, int wait_status)
{
    struct timespec now;
    for (unsigned i = 0; i < 2; i++)
        if (b->pipes[i][0] >= 0)
            output_take(b, i);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    pump_end(&b->pump, now.tv_sec, now.tv_nsec);
    struct blank_report report = {.kind = BLANK_EXITED, .wait_status = wait_status};
    report_send(b, &report);
    _exit(0); /* the kernel kills what is left of the sandbox */
}

static void children_reap(struct blank *b)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        if (pid == b->program)
            finish(b, status);
}

static void order_take(struct blank *b)
{
    struct blank_signal order;
    ssize_t n = recv(b->control_fd, &order, sizeof(order), MSG_DONTWAIT);
    if (n == 0)
        _exit(3); /* the launcher has gone */
    if (n == (ssize_t)sizeof(order) && order.order == BLANK_SIGNAL && order.signo > 0 &&
        order.signo < 65)
        if (kill(-b->program, order.signo) < 0)
            (void)kill(b->program, order.signo);
}

static _Noreturn void live(struct blank *b, int signal_fd)
{
    children_reap(b); /* it may have ended while SIGCHLD was on its way */
    for (;;) {
        struct pollfd polls[] = {{.fd = b->pipes[0][0], .events = POLLIN},
                                 {.fd = b->pipes[1][0], .events = POLLIN},
                                 {.fd = b->control_fd, .events = POLLIN},
                                 {.fd = signal_fd, .events = POLLIN}};
        if (poll(polls, ARRAY_COUNT(polls), -1) < 0)
            continue;
        for (unsigned i = 0; i < 2; i++)
            if (polls[i].revents != 0)
                output_take(b, i);
        if (polls[2].revents != 0)
            order_take(b);
        if (polls[3].revents != 0) {
            struct signalfd_siginfo info;
            (void)!read(signal_fd, &info, sizeof(info));
            children_reap(b);
        }
    }
}

void blank_run(const struct blank_shared *shared, int netns_fd, int control_fd)
{
    static struct blank b; /* large; a process has one */
    b.shared = shared;
    b.control_fd = control_fd;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    (void)sigprocmask(SIG_SETMASK, &set, NULL);
    int signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    (void)prctl(PR_SET_NAME, "dirigent-init", 0, 0, 0);
    if (signal_fd < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 ||
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
        fail(&b, "prepare a blank");
    if (netns_fd >= 0 && (SETUP_CALL(shared->secret, SYS_unshare, CLONE_NEWCGROUP) < 0 ||
                          SETUP_CALL(shared->secret, SYS_setns, netns_fd, CLONE_NEWNET) < 0))
        fail(&b, "enter the network namespace");
    /* Nothing that was inherited stays: only the two that are needed, moved out of the way. */
    b.control_fd = fcntl(control_fd, F_DUPFD_CLOEXEC, KEPT_FD);
    signal_fd = fcntl(signal_fd, F_DUPFD_CLOEXEC, KEPT_FD + 1);
    if (b.control_fd != KEPT_FD || signal_fd != KEPT_FD + 1 ||
        syscall(SYS_close_range, 3, KEPT_FD - 1, 0) < 0 ||
        syscall(SYS_close_range, KEPT_FD + 2, ~0u, 0) < 0)
        fail(&b, "close what was inherited");
    things_make(&b);
    struct blank_report parked = {.kind = BLANK_PARKED};
    report_send(&b, &parked);
    go_receive(&b);
    mounts_join(&b);
    user_join(&b);
    landlock_enter(&b); /* before no_new_privs is set it needs a capability, which we still have */
    privileges_give_up(&b);
    pump_init(&b.pump, b.output_fd, SANDBOX_LOG_BYTES_MAX);
    program_start(&b);
    close(b.mntns_fd);
    close(b.userns_fd);
    live(&b, signal_fd);
}
