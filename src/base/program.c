/* program.c - directories and locks. flock(2): gone with the process, whatever kills it. */
#include "base/program.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static enum err lock_take(const char *directory, uid_t uid, gid_t gid, int *ret_fd, struct error *e)
{
    char *path cleanup(free_pointer) = mem_printf("%s/lock", directory);
    cleanup(fd_close) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return error_errno(e, "open lock file '%s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK)
            return error_errno(e, "lock '%s'", path);
        char holder[32] = "";
        ssize_t n = pread(fd, holder, sizeof(holder) - 1, 0);
        return error_set(e, ERR_BUSY, "directory '%s' is in use by another instance%s%.*s",
                         directory, n > 0 ? ", process " : "", n > 0 ? (int)n : 0, holder);
    }
    if (geteuid() == 0 && fchown(fd, uid, gid) < 0)
        return error_errno(e, "give '%s' to user %u", path, (unsigned)uid);
    if (ftruncate(fd, 0) < 0 || dprintf(fd, "%d", (int)getpid()) < 0)
        return error_errno(e, "write '%s'", path);
    *ret_fd = fd_take(&fd);
    return ERR_OK;
}

enum err program_dir_open(const char *parent, const char *name, uid_t uid, gid_t gid,
                          char **ret_path, int *ret_lock_fd, struct error *e)
{
    enum err err = dir_make_all(parent, 0755, e);
    if (err != ERR_OK)
        return err;
    char *path cleanup(free_pointer) = mem_printf("%s/%s", parent, name);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return error_errno(e, "make directory '%s'", path);
    cleanup(fd_close) int dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dir < 0)
        return error_errno(e, "open directory '%s'", path);
    if (geteuid() == 0 && fchown(dir, uid, gid) < 0)
        return error_errno(e, "give directory '%s' to user %u", path, (unsigned)uid);
    err = lock_take(path, uid, gid, ret_lock_fd, e);
    if (err != ERR_OK)
        return err;
    *ret_path = path;
    path = NULL;
    return ERR_OK;
}
