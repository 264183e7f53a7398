/* root.h - a version's finished root as a mount namespace, built once and shared by its sandboxes.
 *
 * The root is one read-only tmpfs with /etc's few files, device nodes and empty places for /proc
 * and /tmp; host directories (/usr and what is not merged into it, certificates) and the code (at
 * /srv) are read-only, nosuid, nodev clones. The code's ids are mapped where kernel and file system
 * allow; the host's are not, and its files are opened as its nobody: nothing is given away that is
 * not everybody's on the host. Mounts are made and attached by descriptor (fsopen(2), open_tree(2),
 * mount_setattr(2), move_mount(2)).
 *
 * Runs in a forked helper of the launcher: it ends in the new namespace, without supplementary
 * groups. */
#pragma once
#include "base/base.h"

#define ROOT_IDS_PER_VERSION 65536u

struct root_plan {
    int code_fd;             /* directory for /srv, or -1 */
    uint32_t userns_base;    /* first host id of the version's range */
    const char *host_name;   /* for /etc/hosts (else programs ask the DNS for it), or NULL */
    const char *mount_point; /* an existing directory; hidden in the helper's namespace only */
};
/* `userns_fd`: the version's user namespace, from root_userns_make(). *ret_mntns_fd is the
 * caller's. */
must_check enum err root_make(const struct root_plan *plan, int userns_fd, int *ret_mntns_fd,
                              struct error *e);
/* A user namespace that maps 0..65535 to base.. */
must_check enum err root_userns_make(uint32_t base, int *ret_userns_fd, struct error *e);
