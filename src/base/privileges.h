/* privileges.h - from root to an unprivileged user, once, early in main(). */
#pragma once
#include "base/base.h"

/* Numeric defaults when no user is named: one for each program, so that one that is taken over
 * cannot read the files of the others. In the range that neither Debian's adduser nor systemd gives
 * out. */
#define PRIVILEGES_UID_CONTROL_PLANE 61990u
#define PRIVILEGES_UID_DATA_PLANE 61991u
#define PRIVILEGES_UID_WORKER 61992u

/* "" is `uid_default`, else a number or a name of the user database. The group has the same number,
 * or is the named user's own. */
must_check enum err privileges_resolve(const char *user, uid_t uid_default, uid_t *ret_uid,
                                       gid_t *ret_gid, struct error *e);
/* As root: becomes (uid, gid) with no groups and no capabilities, for good (also across exec), and
 * checks it. Not root: does nothing. */
must_check enum err privileges_drop(uid_t uid, gid_t gid, struct error *e);
