/* seccomp.c - the filter as a tree: sorted ranges of system call numbers, searched by halves. */
#include "sandbox/seccomp.h"
#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "no seccomp filter for this architecture yet"
#endif
#define X32_BIT 0x40000000u
#define KNOWN_MAX 450 /* set_mempolicy_home_node, Linux 5.17: newer ones are ENOSYS */
#define ACT_ALLOW SECCOMP_RET_ALLOW
#define ACT_EPERM (SECCOMP_RET_ERRNO | EPERM)
#define ACT_ENOSYS (SECCOMP_RET_ERRNO | ENOSYS)
#define ACT_NOTIFY SECCOMP_RET_USER_NOTIF
/* Decided by arguments: not final, an index into the checks that are appended behind the tree. */
enum {
    CHECK_SOCKET = 1,
    CHECK_CLONE,
    CHECK_IOCTL,
    CHECK_PERSONALITY,
    CHECK_BIND,
    CHECK_SETUP,
    CHECK_CLONE3
};

#define NAMESPACE_FLAGS                                                                           \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | \
     CLONE_NEWNET | 0x80 /* CLONE_NEWTIME */)

static const int allowed[] = {
#ifdef __x86_64__
    SYS_open,
    SYS_stat,
    SYS_lstat,
    SYS_poll,
    SYS_access,
    SYS_pipe,
    SYS_select,
    SYS_dup2,
    SYS_pause,
    SYS_alarm,
    SYS_fork,
    SYS_vfork,
    SYS_getdents,
    SYS_rename,
    SYS_mkdir,
    SYS_rmdir,
    SYS_creat,
    SYS_link,
    SYS_unlink,
    SYS_symlink,
    SYS_readlink,
    SYS_chmod,
    SYS_chown,
    SYS_lchown,
    SYS_getpgrp,
    SYS_utime,
    SYS_time,
    SYS_arch_prctl,
    SYS_epoll_create,
    SYS_epoll_wait,
    SYS_utimes,
    SYS_futimesat,
    SYS_signalfd,
    SYS_eventfd,
    SYS_inotify_init,
    SYS_sendfile,
    SYS_mknod,
#endif
    SYS_read,
    SYS_write,
    SYS_close,
    SYS_fstat,
    SYS_lseek,
    SYS_mmap,
    SYS_mprotect,
    SYS_munmap,
    SYS_brk,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readv,
    SYS_writev,
    SYS_sched_yield,
    SYS_mremap,
    SYS_msync,
    SYS_mincore,
    SYS_madvise,
    SYS_shmget,
    SYS_shmat,
    SYS_shmctl,
    SYS_dup,
    SYS_nanosleep,
    SYS_getitimer,
    SYS_setitimer,
    SYS_getpid,
    SYS_connect,
    SYS_accept,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_shutdown,
    SYS_bind,
    SYS_listen,
    SYS_getsockname,
    SYS_getpeername,
    SYS_socketpair,
    SYS_setsockopt,
    SYS_getsockopt,
    SYS_execve,
    SYS_exit,
    SYS_wait4,
    SYS_kill,
    SYS_uname,
    SYS_semget,
    SYS_semop,
    SYS_semctl,
    SYS_shmdt,
    SYS_msgget,
    SYS_msgsnd,
    SYS_msgrcv,
    SYS_msgctl,
    SYS_fcntl,
    SYS_flock,
    SYS_fsync,
    SYS_fdatasync,
    SYS_truncate,
    SYS_ftruncate,
    SYS_getcwd,
    SYS_chdir,
    SYS_fchdir,
    SYS_fchmod,
    SYS_fchown,
    SYS_umask,
    SYS_gettimeofday,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_times,
    SYS_getuid,
    SYS_getgid,
    SYS_setuid,
    SYS_setgid,
    SYS_geteuid,
    SYS_getegid,
    SYS_setpgid,
    SYS_getppid,
    SYS_setsid,
    SYS_setreuid,
    SYS_setregid,
    SYS_getgroups,
    SYS_setgroups,
    SYS_setresuid,
    SYS_getresuid,
    SYS_setresgid,
    SYS_getresgid,
    SYS_getpgid,
    SYS_setfsuid,
    SYS_setfsgid,
    SYS_getsid,
    SYS_capget,
    SYS_rt_sigpending,
    SYS_rt_sigtimedwait,
    SYS_rt_sigqueueinfo,
    SYS_rt_sigsuspend,
    SYS_sigaltstack,
    SYS_statfs,
    SYS_fstatfs,
    SYS_getpriority,
    SYS_setpriority,
    SYS_sched_setparam,
    SYS_sched_getparam,
    SYS_sched_setscheduler,
    SYS_sched_getscheduler,
    SYS_sched_get_priority_max,
    SYS_sched_get_priority_min,
    SYS_sched_rr_get_interval,
    SYS_mlock,
    SYS_munlock,
    SYS_mlockall,
    SYS_munlockall,
    SYS_prctl,
    SYS_setrlimit,
    SYS_sync,
    SYS_gettid,
    SYS_readahead,
    SYS_setxattr,
    SYS_lsetxattr,
    SYS_fsetxattr,
    SYS_getxattr,
    SYS_lgetxattr,
    SYS_fgetxattr,
    SYS_listxattr,
    SYS_llistxattr,
    SYS_flistxattr,
    SYS_removexattr,
    SYS_lremovexattr,
    SYS_fremovexattr,
    SYS_tkill,
    SYS_futex,
    SYS_sched_setaffinity,
    SYS_sched_getaffinity,
    SYS_io_setup,
    SYS_io_destroy,
    SYS_io_getevents,
    SYS_io_submit,
    SYS_io_cancel,
    SYS_epoll_ctl,
    SYS_getdents64,
    SYS_set_tid_address,
    SYS_restart_syscall,
    SYS_semtimedop,
    SYS_fadvise64,
    SYS_timer_create,
    SYS_timer_settime,
    SYS_timer_gettime,
    SYS_timer_getoverrun,
    SYS_timer_delete,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_exit_group,
    SYS_tgkill,
    SYS_mq_open,
    SYS_mq_unlink,
    SYS_mq_timedsend,
    SYS_mq_timedreceive,
    SYS_mq_notify,
    SYS_mq_getsetattr,
    SYS_waitid,
    SYS_inotify_add_watch,
    SYS_inotify_rm_watch,
    SYS_openat,
    SYS_mkdirat,
    SYS_mknodat,
    SYS_fchownat,
    SYS_newfstatat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_linkat,
    SYS_symlinkat,
    SYS_readlinkat,
    SYS_fchmodat,
    SYS_faccessat,
    SYS_pselect6,
    SYS_ppoll,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_splice,
    SYS_tee,
    SYS_sync_file_range,
    SYS_vmsplice,
    SYS_utimensat,
    SYS_epoll_pwait,
    SYS_timerfd_create,
    SYS_fallocate,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_accept4,
    SYS_signalfd4,
    SYS_eventfd2,
    SYS_epoll_create1,
    SYS_dup3,
    SYS_pipe2,
    SYS_inotify_init1,
    SYS_preadv,
    SYS_pwritev,
    SYS_rt_tgsigqueueinfo,
    SYS_recvmmsg,
    SYS_prlimit64,
    SYS_syncfs,
    SYS_sendmmsg,
    SYS_getcpu,
    SYS_sched_setattr,
    SYS_sched_getattr,
    SYS_renameat2,
    SYS_getrandom,
    SYS_memfd_create,
    SYS_execveat,
    SYS_membarrier,
    SYS_mlock2,
    SYS_copy_file_range,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_pkey_mprotect,
    SYS_pkey_alloc,
    SYS_pkey_free,
    SYS_statx,
    SYS_rseq,
    SYS_pidfd_send_signal,
    SYS_pidfd_open,
    SYS_close_range,
    SYS_openat2,
    SYS_faccessat2,
    SYS_epoll_pwait2,
    SYS_process_mrelease,
    SYS_futex_waitv,
    SYS_landlock_create_ruleset,
    SYS_landlock_add_rule,
    SYS_landlock_restrict_self,
};
/* What the set-up of a sandbox needs and its program must not have. */
static const int setup_only[] = {
    SYS_setns,      SYS_unshare,     SYS_fsopen, SYS_fsconfig, SYS_fsmount,
    SYS_move_mount, SYS_sethostname, SYS_capset, SYS_seccomp,  SYS_keyctl,
};

static bool is_in(int nr, const int *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (list[i] == nr)
            return true;
    return false;
}

static uint32_t action_of(int nr, bool notify)
{
    switch (nr) {
    case SYS_socket:
        return CHECK_SOCKET;
    case SYS_clone:
        return CHECK_CLONE;
    case SYS_clone3: /* its flags are behind a pointer */
        return CHECK_CLONE3;
    case SYS_ioctl:
        return CHECK_IOCTL;
    case SYS_personality:
        return CHECK_PERSONALITY;
    case SYS_bind:
        return notify ? CHECK_BIND : ACT_ALLOW;
    case SYS_listen:
        return notify ? ACT_NOTIFY : ACT_ALLOW;
    default:
        break;
    }
    if (nr > KNOWN_MAX)
        return ACT_ENOSYS;
    if (is_in(nr, setup_only, ARRAY_COUNT(setup_only)))
        return CHECK_SETUP;
    return is_in(nr, allowed, ARRAY_COUNT(allowed)) ? ACT_ALLOW : ACT_EPERM;
}

/* ---- code ---- */

static uint16_t emit(struct seccomp_program *p, uint16_t code, uint8_t jt, uint8_t jf, uint32_t k)
{
    assert(p->count < SECCOMP_INSTRUCTIONS_MAX);
    p->code[p->count] = (struct sock_filter){code, jt, jf, k};
    return p->count++;
}

static void emit_load(struct seccomp_program *p, size_t offset)
{
    (void)emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

static void emit_return(struct seccomp_program *p, uint32_t action)
{
    (void)emit(p, BPF_RET | BPF_K, 0, 0, action);
}

#define ARGUMENT(n)                        \
    (offsetof(struct seccomp_data, args) + \
     (n)*8) /* its lower half: all our machines are little-endian */

static void emit_secret(struct seccomp_program *p, uint64_t secret, uint32_t otherwise)
{
    emit_load(p, ARGUMENT(5));
    (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 3, (uint32_t)secret);
    emit_load(p, ARGUMENT(5) + 4);
    (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)(secret >> 32));
    emit_return(p, ACT_ALLOW);
    emit_return(p, otherwise);
}

/* The checks by argument: self-contained, so they may stand anywhere in the tree. */
static void emit_check(struct seccomp_program *p, uint32_t check, uint64_t secret)
{
    switch (check) {
    case CHECK_SOCKET: /* AF_UNIX 1, AF_INET 2, AF_INET6 10 */
        emit_load(p, ARGUMENT(0));
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 1);
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 2, 0, 2);
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 10);
        emit_return(p, SECCOMP_RET_ERRNO | EAFNOSUPPORT);
        emit_return(p, ACT_ALLOW);
        break;
    case CHECK_CLONE: /* threads and processes, no namespaces */
        emit_load(p, ARGUMENT(0));
        (void)emit(p, BPF_JMP | BPF_JSET | BPF_K, 0, 1, NAMESPACE_FLAGS & ~0x80u);
        emit_return(p, ACT_EPERM);
        emit_return(p, ACT_ALLOW);
        break;
    case CHECK_IOCTL: /* TIOCSTI and TIOCLINUX write into another's terminal */
        emit_load(p, ARGUMENT(1));
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 0x5412);
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0x541c);
        emit_return(p, ACT_EPERM);
        emit_return(p, ACT_ALLOW);
        break;
    case CHECK_PERSONALITY: /* to Linux, or to ask */
        emit_load(p, ARGUMENT(0));
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 0);
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0xffffffff);
        emit_return(p, ACT_ALLOW);
        emit_return(p, ACT_EPERM);
        break;
    case CHECK_BIND: /* of the size of an IPv4 or IPv6 address */
        emit_load(p, ARGUMENT(2));
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, 16);
        (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 28);
        emit_return(p, ACT_NOTIFY);
        emit_return(p, ACT_ALLOW);
        break;
    case CHECK_SETUP:
        emit_secret(p, secret, ACT_EPERM);
        break;
    case CHECK_CLONE3: /* libcs fall back to clone */
        emit_secret(p, secret, ACT_ENOSYS);
        break;
    default:
        emit_return(p, check);
    }
}

struct range {
    uint32_t first, action; /* up to the next range's first */
};

/* The accumulator holds the number. A jump reaches 255 instructions only: the far half is reached
 * by BPF_JA. */
static void emit_tree(struct seccomp_program *p, const struct range *ranges, size_t count,
                      uint64_t secret)
{
    if (count == 1) {
        emit_check(p, ranges[0].action, secret);
        return;
    }
    size_t half = count / 2;
    (void)emit(p, BPF_JMP | BPF_JGE | BPF_K, 0, 1, ranges[half].first);
    uint16_t jump = emit(p, BPF_JMP | BPF_JA, 0, 0, 0);
    emit_tree(p, ranges, half, secret);
    p->code[jump].k = (uint32_t)(p->count - jump - 1);
    emit_tree(p, ranges + half, count - half, secret);
}

void seccomp_build(struct seccomp_program *p, uint64_t secret, bool notify)
{
    struct range ranges[600];
    size_t count = 0;
    p->count = 0;
    for (int nr = 0; nr <= KNOWN_MAX + 1; nr++) {
        uint32_t action = action_of(nr, notify);
        if (count == 0 || ranges[count - 1].action != action)
            ranges[count++] = (struct range){(uint32_t)nr, action};
    }
    emit_load(p, offsetof(struct seccomp_data, arch));
    (void)emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCHITECTURE);
    emit_return(p, SECCOMP_RET_KILL_PROCESS);
    emit_load(p, offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
    (void)emit(p, BPF_JMP | BPF_JGE | BPF_K, 0, 1, X32_BIT);
    emit_return(p, SECCOMP_RET_KILL_PROCESS);
#endif
    emit_tree(p, ranges, count, secret);
}

enum err seccomp_install(const struct seccomp_program *program, int *ret_listener, struct error *e)
{
    struct sock_fprog filter = {program->count, (struct sock_filter *)program->code};
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                          ret_listener != NULL ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0, &filter);
    if (result < 0)
        return error_errno(e, "install a seccomp filter");
    if (ret_listener != NULL)
        *ret_listener = (int)result;
    return ERR_OK;
}

long seccomp_setup_call(uint64_t secret, long nr, long a, long b, long c, long d, long e)
{
    return syscall(nr, a, b, c, d, e, secret);
}
