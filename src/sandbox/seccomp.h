/* seccomp.h - the filter of all sandboxes (seccomp(2)), built by ourselves as a binary search tree.
 *
 * It is an allow-list, installed once in the nursery and inherited from there: to install one costs
 * more than all else that a start does in the kernel but clone and exec. What the set-up of a
 * sandbox needs and its program must not have is allowed to who passes a secret of this launcher in
 * the sixth argument, which those calls do not use; the program cannot know it. bind(2) of IP
 * addresses and listen(2) go to the launcher, for all sandboxes through one listener. What the
 * filter does not know is answered ENOSYS, so that libcs fall back; what is known and denied is
 * answered EPERM; a foreign architecture or the x32 table kills. */
#pragma once
#include "base/base.h"
#include <linux/filter.h>

#define SECCOMP_INSTRUCTIONS_MAX 1024u
struct seccomp_program {
    struct sock_filter code[SECCOMP_INSTRUCTIONS_MAX];
    uint16_t count;
};
/* `notify` false: bind and listen are allowed without asking. */
void seccomp_build(struct seccomp_program *ret_program, uint64_t secret, bool notify);
/* Installs for the calling thread; `ret_listener` NULL: no listener. Needs no_new_privs or
 * CAP_SYS_ADMIN. */
must_check enum err seccomp_install(const struct seccomp_program *program, int *ret_listener,
                                    struct error *e);
/* A system call of the set-up, past the filter; at most five arguments. As syscall(2). */
long seccomp_setup_call(uint64_t secret, long nr, long a, long b, long c, long d, long e);
#define SETUP_CALL_(secret, nr, a, b, c, d, e, ...) \
    seccomp_setup_call((secret), (nr), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define SETUP_CALL(secret, nr, ...) SETUP_CALL_(secret, nr, __VA_ARGS__, 0, 0, 0, 0, 0)
