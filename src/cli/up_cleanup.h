/* up_cleanup.h - what `up` does so that nothing is left: orphans, run directories, locks of those
 * before it. Blocks. */
#pragma once
#include "base/base.h"

/* Waits until nobody holds `directory`/lock, or until it is not there. ERR_BUSY names directory and
 * process. */
must_check enum err lock_wait_free(const char *directory, uint64_t wait_ms, struct error *e);
/* Reaps those children of this process that have ended, except `keep`: programs that lost their
 * parent became ours. */
void orphans_reap(const pid_t *keep, size_t keep_count);
/* Ends all children of this process: what our programs left behind and the kernel gave to us. They
 * get SIGTERM, and after grace_ms SIGKILL. */
void orphans_end(uint64_t grace_ms);
/* Removes `parent`/`name` with its files and sockets. Never goes into what is mounted there. */
void run_directory_remove(const char *parent, const char *name);
