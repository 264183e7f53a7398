/* fd.c - descriptors, small files, directories. */
#include "base/base.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void fd_close(int *fd)
{
    if (*fd < 0)
        return;
    int kept = errno;
    (void)close(*fd); /* never retried: the descriptor is gone whatever it says */
    errno = kept;
    *fd = -1;
}

enum err fd_write_all(int fd, const void *data, size_t bytes)
{
    const char *next = data;
    while (bytes > 0) {
        ssize_t n = write(fd, next, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(errno);
        next += n;
        bytes -= (size_t)n;
    }
    return ERR_OK;
}

enum err file_read(const char *path, size_t bytes_max, char **ret_text, size_t *ret_bytes,
                   struct error *e)
{
    cleanup(fd_close) int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(e, "open '%s'", path);
    /* Files of /proc tell no size: read until the end, growing. */
    size_t capacity = 4096, bytes = 0;
    char *text = mem_new(capacity);
    for (;;) {
        ssize_t n = read(fd, text + bytes, capacity - bytes - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            free(text);
            return error_errno(e, "read '%s'", path);
        }
        if (n == 0)
            break;
        bytes += (size_t)n;
        if (bytes > bytes_max) {
            free(text);
            return error_set(e, ERR_TOO_LARGE, "'%s' is larger than %zu bytes", path, bytes_max);
        }
        if (bytes + 1 == capacity)
            text = mem_resize(text, capacity *= 2, 1);
    }
    text[bytes] = '\0';
    *ret_text = text;
    if (ret_bytes != NULL)
        *ret_bytes = bytes;
    return ERR_OK;
}

enum err dir_make_all(const char *path, mode_t mode, struct error *e)
{
    char *copy cleanup(free_pointer) = mem_strdup(path);
    for (char *slash = copy; slash != NULL;) {
        slash = strchr(slash + 1, '/');
        if (slash != NULL)
            *slash = '\0';
        if (mkdir(copy, mode) < 0 && errno != EEXIST)
            return error_errno(e, "make directory '%s'", copy);
        if (slash != NULL)
            *slash = '/';
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return error_errno(e, "look at directory '%s'", path);
    if (!S_ISDIR(st.st_mode))
        return error_set(e, ERR_INVALID, "'%s' is not a directory", path);
    return ERR_OK;
}
