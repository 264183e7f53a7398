/* program.h - what the start of each program shares: its directories and the lock on them. */
#pragma once
#include "base/base.h"

/* Makes `parent`/`name` (parents too, world-searchable; the directory itself 0700) owned by uid:gid
 * when root, and takes its lock file for the life of the process. *ret_path is the caller's to
 * free. *ret_lock_fd stays open. ERR_BUSY names the directory and the process that holds it. */
must_check enum err program_dir_open(const char *parent, const char *name, uid_t uid, gid_t gid,
                                     char **ret_path, int *ret_lock_fd, struct error *e);
