/* key_file.h - small files whose loss or reading by others would matter. Blocks; any thread. */
#pragma once
#include "base/str.h"
#include <sys/types.h>

/* For cleanup(): wipes, then frees. */
void key_buf_done(struct buf *b);
/* Reads a file of at most KEY_FILE_BYTES_MAX bytes. ERR_NOT_FOUND, ERR_TOO_LARGE, or the errno's.
 * key_file_read() refuses (ERR_PERMISSION, naming the file) one that its group or all may read or
 * write, that belongs to somebody else than us or root, or that is no plain file. The result is not
 * NUL-terminated; release it with key_buf_done(). */
must_check enum err key_file_read(const char *path, struct buf *ret_data, struct error *e);
must_check enum err public_file_read(const char *path, struct buf *ret_data, struct error *e);

/* Replaces or makes the file as a whole: after a crash at any instant there is the old content or
 * the new one. Durable when it returns. `path` has a '/' or lies in the working directory. */
must_check enum err key_file_write(const char *path, mode_t mode, struct str data, struct error *e);
must_check enum err dir_sync(const char *path, struct error *e);
