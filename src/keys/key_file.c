/* key_file.c - permissions are looked at on the open descriptor, so nobody can swap the file
 * between. */
#include "keys/key_file.h"
#include "base/limits.h"
#include "keys/secret.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

void key_buf_done(struct buf *b)
{
    if (b->data != NULL)
        secret_wipe(b->data, b->capacity);
    buf_done(b);
}

static enum err check_private(const char *path, const struct stat *st, struct error *e)
{
    if ((st->st_mode & 077) != 0)
        return error_set(e, ERR_PERMISSION,
                         "'%s' may be read or written by others than its owner (mode %04o), and "
                         "holds a private key: 'chmod 600 %s', and think of the key as stolen if "
                         "others have been on this machine",
                         path, (unsigned)(st->st_mode & 07777), path);
    if (st->st_uid != geteuid() && st->st_uid != 0)
        return error_set(e, ERR_PERMISSION,
                         "'%s' belongs to user %u, and this program runs as user %u: 'chown %u %s'",
                         path, (unsigned)st->st_uid, (unsigned)geteuid(), (unsigned)geteuid(),
                         path);
    return ERR_OK;
}

static enum err read_all(int fd, const char *path, struct buf *data, struct error *e)
{
    /* Room for the largest at once: growing would leave copies of a key behind. */
    char *to = buf_reserve(data, KEY_FILE_BYTES_MAX + 1);
    while (data->bytes <= KEY_FILE_BYTES_MAX) {
        ssize_t n = read(fd, to + data->bytes, KEY_FILE_BYTES_MAX + 1 - data->bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(e, "read '%s'", path);
        if (n == 0)
            return ERR_OK;
        data->bytes += (size_t)n;
    }
    return error_set(e, ERR_TOO_LARGE, "'%s' is larger than %u bytes", path, KEY_FILE_BYTES_MAX);
}

static enum err read_file(const char *path, bool is_private, struct buf *ret_data, struct error *e)
{
    /* O_NONBLOCK: a FIFO in its place must not hang us. */
    cleanup(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_errno(e, "open '%s'", path);
    if (!S_ISREG(st.st_mode))
        return error_set(e, ERR_INVALID, "'%s' is not a plain file", path);
    enum err err = is_private ? check_private(path, &st, e) : ERR_OK;
    struct buf data cleanup(key_buf_done) = {0};
    if (err == ERR_OK)
        err = read_all(fd, path, &data, e);
    if (err != ERR_OK)
        return err;
    *ret_data = data;
    data = (struct buf){0};
    return ERR_OK;
}

enum err key_file_read(const char *path, struct buf *ret_data, struct error *e)
{
    return read_file(path, true, ret_data, e);
}

enum err public_file_read(const char *path, struct buf *ret_data, struct error *e)
{
    return read_file(path, false, ret_data, e);
}

enum err dir_sync(const char *path, struct error *e)
{
    cleanup(fd_close) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return error_errno(e, "make directory '%s' durable", path);
    return ERR_OK;
}

/* Durable but for its name. */
static enum err write_new(const char *path, mode_t mode, struct str data, struct error *e)
{
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(e, "replace '%s'", path);
    /* O_EXCL: never through a link that somebody put there. */
    cleanup(fd_close) int fd =
        open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0)
        return error_errno(e, "make '%s'", path);
    if (fchmod(fd, mode) < 0) /* whatever the umask is */
        return error_errno(e, "set the mode of '%s'", path);
    enum err err = fd_write_all(fd, data.data, data.bytes);
    if (err != ERR_OK)
        return error_set(e, err, "write '%s': %s", path, err_text(err));
    if (fsync(fd) < 0)
        return error_errno(e, "make '%s' durable", path);
    return ERR_OK;
}

enum err key_file_write(const char *path, mode_t mode, struct str data, struct error *e)
{
    const char *slash = strrchr(path, '/');
    cleanup(free_pointer) char *next = mem_printf("%s.new", path);
    cleanup(free_pointer) char *directory =
        slash == NULL ? mem_strdup(".") : mem_strndup(path, MAX((size_t)(slash - path), (size_t)1));
    enum err err = write_new(next, mode, data, e);
    if (err == ERR_OK && rename(next, path) < 0)
        err = error_errno(e, "replace '%s'", path);
    if (err != ERR_OK) {
        (void)unlink(next);
        return err;
    }
    return dir_sync(directory, e);
}
