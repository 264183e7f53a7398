/* seccomp_test.c - the filter's verdict for every system call, by interpreting it as the kernel
 * would; and what a process under it really gets. */
#include "sandbox/seccomp.h"
#include "test.h"
#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECRET UINT64_C(0x0123456789abcdef)
#define ALLOW SECCOMP_RET_ALLOW
#define REFUSED(number) (SECCOMP_RET_ERRNO | (uint32_t)(number))
#if defined(__x86_64__)
#define OURS AUDIT_ARCH_X86_64
#define FOREIGN AUDIT_ARCH_I386
#else
#define OURS AUDIT_ARCH_AARCH64
#define FOREIGN AUDIT_ARCH_ARM
#endif

/* ---- classic BPF on struct seccomp_data; bpf(4) of the BSDs describes the machine ---- */

static uint32_t run(const struct seccomp_program *p, const struct seccomp_data *data)
{
    uint32_t accumulator = 0;
    for (size_t at = 0; at < p->count; at++) {
        const struct sock_filter *i = &p->code[at];
        bool jump = false;
        switch (i->code) {
        case BPF_LD | BPF_W | BPF_ABS:
            REQUIRE(i->k % 4 == 0 && i->k < sizeof(*data));
            memcpy(&accumulator, (const char *)data + i->k, 4);
            continue;
        case BPF_RET | BPF_K:
            return i->k;
        case BPF_JMP | BPF_JA:
            at += i->k;
            continue;
        case BPF_JMP | BPF_JEQ | BPF_K:
            jump = accumulator == i->k;
            break;
        case BPF_JMP | BPF_JGE | BPF_K:
            jump = accumulator >= i->k;
            break;
        case BPF_JMP | BPF_JSET | BPF_K:
            jump = (accumulator & i->k) != 0;
            break;
        default:
            test_fail(__FILE__, __LINE__, "instruction %zu has an unknown code 0x%x", at, i->code);
            return 0;
        }
        at += jump ? i->jt : i->jf;
    }
    test_fail(__FILE__, __LINE__, "ran over the end");
    return 0;
}

static struct seccomp_program program(bool notify)
{
    struct seccomp_program p;
    seccomp_build(&p, SECRET, notify);
    return p;
}

static uint32_t verdict(const struct seccomp_program *p, long nr, uint64_t first, uint64_t second,
                        uint64_t sixth)
{
    struct seccomp_data data = {
        .nr = (int)nr, .arch = OURS, .args = {first, second, 0, 0, 0, sixth}};
    return run(p, &data);
}

static const int setup_calls[] = {SYS_setns,   SYS_unshare,    SYS_fsopen,      SYS_fsconfig,
                                  SYS_fsmount, SYS_move_mount, SYS_sethostname, SYS_capset,
                                  SYS_seccomp, SYS_keyctl};

TEST(what_breaks_out_of_sandboxes_is_refused)
{
    struct seccomp_program p = program(true);
    static const int denied[] = {
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_chroot,
        SYS_open_tree,
        SYS_mount_setattr,
        SYS_fspick,
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_kcmp,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_io_uring_setup,
        SYS_io_uring_enter,
        SYS_io_uring_register,
        SYS_kexec_load,
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_open_by_handle_at,
        SYS_name_to_handle_at,
        SYS_add_key,
        SYS_request_key,
        SYS_reboot,
        SYS_swapon,
        SYS_swapoff,
        SYS_acct,
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_adjtimex,
        SYS_clock_adjtime,
        SYS_setdomainname,
        SYS_syslog,
        SYS_quotactl,
        SYS_fanotify_init,
        SYS_lookup_dcookie,
        SYS_mbind,
        SYS_set_mempolicy,
        SYS_move_pages,
        SYS_migrate_pages,
        SYS_pidfd_getfd,
        SYS_vhangup,
        SYS_nfsservctl,
        SYS_process_madvise,
        SYS_memfd_secret,
    };
    for (size_t i = 0; i < ARRAY_COUNT(denied); i++)
        if (verdict(&p, denied[i], 0, 0, SECRET) != REFUSED(EPERM))
            test_fail(__FILE__, __LINE__, "call %d is not refused", denied[i]);
}

TEST(what_ordinary_programs_use_is_allowed)
{
    struct seccomp_program p = program(true);
    static const int common[] = {
        SYS_read,
        SYS_write,
        SYS_openat,
        SYS_close,
        SYS_mmap,
        SYS_munmap,
        SYS_mprotect,
        SYS_brk,
        SYS_rt_sigaction,
        SYS_rt_sigreturn,
        SYS_futex,
        SYS_execve,
        SYS_exit,
        SYS_exit_group,
        SYS_wait4,
        SYS_kill,
        SYS_epoll_ctl,
        SYS_epoll_pwait,
        SYS_accept4,
        SYS_connect,
        SYS_sendto,
        SYS_recvfrom,
        SYS_sendmsg,
        SYS_recvmsg,
        SYS_getrandom,
        SYS_memfd_create,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_prlimit64,
        SYS_statx,
        SYS_rseq,
        SYS_getdents64,
        SYS_pipe2,
        SYS_eventfd2,
        SYS_timerfd_create,
        SYS_signalfd4,
        SYS_fcntl,
        SYS_socketpair,
        SYS_sched_getaffinity,
        SYS_setitimer,
        SYS_prctl,
        SYS_madvise,
        SYS_fallocate,
        SYS_copy_file_range,
        SYS_set_robust_list,
        SYS_tgkill,
        SYS_getpid,
        SYS_gettid,
        SYS_setsid,
        SYS_setuid,
        SYS_chdir,
        SYS_unlinkat,
        SYS_renameat2,
        SYS_landlock_restrict_self,
    };
    for (size_t i = 0; i < ARRAY_COUNT(common); i++)
        if (verdict(&p, common[i], 0, 0, 0) != ALLOW)
            test_fail(__FILE__, __LINE__, "call %d is not allowed", common[i]);
}

TEST(the_calls_of_the_set_up_need_the_secret)
{
    struct seccomp_program p = program(true);
    for (size_t i = 0; i < ARRAY_COUNT(setup_calls); i++) {
        CHECK_EQ(verdict(&p, setup_calls[i], 0, 0, SECRET), ALLOW);
        CHECK_EQ(verdict(&p, setup_calls[i], 0, 0, 0), REFUSED(EPERM));
        for (unsigned bit = 0; bit < 64; bit++)
            CHECK_EQ(verdict(&p, setup_calls[i], 0, 0, SECRET ^ UINT64_C(1) << bit),
                     REFUSED(EPERM));
    }
    CHECK_EQ(verdict(&p, SYS_clone3, 0, 0, SECRET), ALLOW);
    CHECK_EQ(verdict(&p, SYS_clone3, 0, 0, SECRET + 1), REFUSED(ENOSYS));
}

TEST(what_is_not_known_yet_does_not_exist)
{
    struct seccomp_program p = program(true);
    for (long nr = 451; nr < 1200; nr++)
        CHECK_EQ(verdict(&p, nr, 0, 0, SECRET), REFUSED(ENOSYS));
}

TEST(every_call_has_one_of_the_verdicts)
{
    struct seccomp_program p = program(true), plain = program(false);
    for (long nr = 0; nr <= 450; nr++) {
        uint32_t v = verdict(&p, nr, 0, 0, 0), w = verdict(&plain, nr, 0, 0, 0);
        bool sound = v == ALLOW || v == REFUSED(EPERM) || v == REFUSED(ENOSYS) ||
                     v == REFUSED(EAFNOSUPPORT) || v == SECCOMP_RET_USER_NOTIF;
        if (!sound)
            test_fail(__FILE__, __LINE__, "call %ld: 0x%x", nr, v);
        CHECK_EQ(w, v == SECCOMP_RET_USER_NOTIF ? ALLOW
                                                : v); /* without a listener nothing waits for one */
    }
}

TEST(foreign_architectures_and_the_x32_table_are_killed)
{
    struct seccomp_program p = program(true);
    struct seccomp_data data = {.nr = SYS_read, .arch = FOREIGN};
    CHECK_EQ(run(&p, &data), SECCOMP_RET_KILL_PROCESS);
#ifdef __x86_64__
    CHECK_EQ(verdict(&p, 0x40000000 | SYS_read, 0, 0, SECRET), SECCOMP_RET_KILL_PROCESS);
    CHECK_EQ(verdict(&p, -1, 0, 0, SECRET), SECCOMP_RET_KILL_PROCESS);
#endif
}

TEST(arguments_decide)
{
    struct seccomp_program p = program(true);
    for (uint64_t family = 0; family < 60; family++) {
        bool known = family == AF_UNIX || family == AF_INET || family == AF_INET6;
        CHECK_EQ(verdict(&p, SYS_socket, family, 0, 0), known ? ALLOW : REFUSED(EAFNOSUPPORT));
    }
    static const uint64_t namespaces[] = {CLONE_NEWNS,  CLONE_NEWCGROUP, CLONE_NEWUTS,
                                          CLONE_NEWIPC, CLONE_NEWUSER,   CLONE_NEWPID,
                                          CLONE_NEWNET};
    for (size_t i = 0; i < ARRAY_COUNT(namespaces); i++)
        CHECK_EQ(verdict(&p, SYS_clone, namespaces[i] | 17, 0, 0), REFUSED(EPERM));
    CHECK_EQ(verdict(&p, SYS_clone,
                     CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, 0, 0),
             ALLOW);
    CHECK_EQ(verdict(&p, SYS_clone, 17, 0, 0), ALLOW);
    CHECK_EQ(verdict(&p, SYS_ioctl, 0, 0x5412, 0), REFUSED(EPERM)); /* TIOCSTI */
    CHECK_EQ(verdict(&p, SYS_ioctl, 0, 0x541c, 0), REFUSED(EPERM)); /* TIOCLINUX */
    CHECK_EQ(verdict(&p, SYS_ioctl, 0, 0x5413, 0), ALLOW);
    CHECK_EQ(verdict(&p, SYS_personality, 0, 0, 0), ALLOW);
    CHECK_EQ(verdict(&p, SYS_personality, 0xffffffff, 0, 0), ALLOW);
    CHECK_EQ(verdict(&p, SYS_personality, 0x0400000, 0, 0), REFUSED(EPERM)); /* READ_IMPLIES_EXEC */
}

TEST(bind_and_listen_go_to_the_launcher)
{
    struct seccomp_program p = program(true);
    for (uint64_t bytes = 0; bytes < 130; bytes++) {
        struct seccomp_data data = {.nr = SYS_bind, .arch = OURS, .args = {3, 0, bytes}};
        CHECK_EQ(run(&p, &data), bytes == 16 || bytes == 28 ? SECCOMP_RET_USER_NOTIF : ALLOW);
    }
    CHECK_EQ(verdict(&p, SYS_listen, 3, 128, 0), SECCOMP_RET_USER_NOTIF);
}

/* In the child, under the filter. 0, or what was wrong. */
static int live(void)
{
    struct seccomp_program p = program(false);
    struct error e = {0};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || seccomp_install(&p, NULL, &e) != ERR_OK)
        return 1;
    if (unshare(CLONE_NEWUTS) != -1 || errno != EPERM)
        return 2;
    if (geteuid() == 0 && SETUP_CALL(SECRET, SYS_unshare, CLONE_NEWUTS) != 0)
        return 3;
    if (socket(AF_NETLINK, SOCK_RAW, 0) != -1 || errno != EAFNOSUPPORT)
        return 4;
    if (syscall(SYS_clone3, NULL, 0) != -1 || errno != ENOSYS)
        return 5;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || listen(fd, 1) != 0)
        return 6;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    int status;
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 7;
}

TEST(a_process_lives_under_it)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(live());
    int status = 0;
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
}
