/* seccomp.h - the two filters of a sandbox (seccomp(2)), built by ourselves as binary search trees.
 *
 * The base filter is an allow-list, installed in the nursery and inherited by every blank for free. It still allows what the
 * set-up of a sandbox needs. The last filter is installed just before the program: it denies that too, and sends bind(2) and listen(2)
 * of IP sockets to the launcher. What neither knows is answered ENOSYS, so that libcs fall back; what is known and denied is answered EPERM;
 * a foreign architecture or the x32 table kills. */
#pragma once
#include "base/base.h"
#include <linux/filter.h>

#define SECCOMP_INSTRUCTIONS_MAX 1024u
struct seccomp_program {
    struct sock_filter code[SECCOMP_INSTRUCTIONS_MAX];
    uint16_t count;
};
void seccomp_base_build(struct seccomp_program *ret_program);
void seccomp_last_build(struct seccomp_program *ret_program);
/* Installs for the calling thread; `ret_listener` NULL: no listener. Needs no_new_privs or CAP_SYS_ADMIN. */
must_check enum err seccomp_install(const struct seccomp_program *program, int *ret_listener, struct error *e);
