/* unpack.h - archives of code: tar (plain, gzip, xz, bzip2, zstd) and zip, read with libarchive and
 * checked before anything is written. Refused: what is no archive, empty, truncated or too large
 * (compressed, unpacked, in ratio, in files and directories, also those that no entry names); a tar
 * without its end; absolute paths, `..`, names and paths longer than the kernel takes; the same
 * path twice; symbolic links that lead out of the tree, also through other links (so `..` is taken
 * only at the beginning of a link's target); hard links to anything but a regular file of the tree;
 * devices, fifos, sockets. A NUL ends a name. Names keep their bytes whatever the locale. Set-id
 * bits, owners, times and extended attributes are dropped; files are readable by all and keep only
 * their execute bit.
 *
 * Both functions block and parse bytes from outside: they are meant for a child process of their
 * own, restricted with unpack_restrict() first. Errors name the entry. */
#pragma once
#include "base/base.h"

struct unpack_counts {
    uint64_t entries, bytes;
};
/* Reads the whole archive and checks it; writes nothing. `fd` is read from its beginning. */
must_check enum err unpack_verify(int fd, struct error *e);
/* The same, and writes the tree below the directory `into_fd`, which must be empty. Every file and
 * directory is synced. ERR_NO_SPACE when the disk is full. What was written so far stays on
 * failure: the caller removes its staging directory. */
must_check enum err unpack_into(int fd, int into_fd, struct unpack_counts *ret_counts,
                                struct error *e);
/* For a child process: no new privileges, bounds on CPU time, memory and file size, and with
 * Landlock no file access but to what is open already, or below `into_fd` when it is >= 0. What the
 * kernel lacks is left out. */
void unpack_restrict(int into_fd);
