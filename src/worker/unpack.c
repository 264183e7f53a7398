/* unpack.c - one walk over an archive; writing is optional. Every path is resolved with openat2(2)
 * beneath the target, following no links, so that even a check that was wrong cannot write
 * elsewhere. */
#include "worker/unpack.h"
#include "base/hash.h"
#include "base/limits.h"
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK_BYTES (128u * 1024u)
#define DEPTH_MAX 64u

enum seen { SEEN_FILE = 1, SEEN_DIRECTORY, SEEN_LINK };

struct walk {
    int archive_fd, into_fd; /* into_fd -1: check only */
    uint64_t archive_bytes, entries, bytes;
    struct strmap seen; /* path -> (void *)enum seen */
    struct archive *archive;
    struct error *e;
};

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool utf8_is_sound(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    while (*at != 0) {
        unsigned more = *at < 0x80                  ? 0
                        : *at >= 0xc2 && *at < 0xe0 ? 1
                        : *at >= 0xe0 && *at < 0xf0 ? 2
                        : *at >= 0xf0 && *at < 0xf5 ? 3
                                                    : 4;
        if (more == 4 || (*at == 0xe0 && at[1] < 0xa0) || (*at == 0xed && at[1] > 0x9f) ||
            (*at == 0xf0 && at[1] < 0x90) || (*at == 0xf4 && at[1] > 0x8f))
            return false;
        for (at++; more > 0; more--, at++)
            if ((*at & 0xc0) != 0x80)
                return false;
    }
    return true;
}

/* A name as a sentence can carry it, into JSON and onto terminals: what is no printable ASCII
 * becomes '?', unless all of it is sound UTF-8 (and short). */
static void name_show(const char *name, char *ret_text, size_t bytes)
{
    size_t length = strnlen(name, bytes - 1);
    bool sound = name[length] == '\0' && utf8_is_sound(name);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        ret_text[i] = c < 0x20 || c == 0x7f || (c > 0x7f && !sound) ? '?' : (char)c;
    }
    ret_text[length] = '\0';
}

static enum err refuse(struct walk *w, const char *path, const char *why)
{
    char shown[201];
    name_show(path, shown, sizeof(shown));
    return error_field(w->e, ERR_INVALID, "code", "archive entry '%s': %s", shown, why);
}

/* The same for what the disk or the kernel refuses. */
static enum err failed(struct walk *w, const char *path, const char *doing)
{
    int kept = errno;
    char shown[201];
    name_show(path, shown, sizeof(shown));
    errno = kept;
    return error_errno(w->e, "%s '%s'", doing, shown);
}

/* ---- paths ---- */

/* Checks and normalises "./a//b/" to "a/b". */
static enum err path_clean(struct walk *w, const char *path, char *ret_path)
{
    size_t out = 0;
    unsigned depth = 0;
    if (path == NULL || path[0] == '\0')
        return refuse(w, "",
                      "has no name, or one that is not the UTF-8 that the archive says it is");
    if (path[0] == '/')
        return refuse(w, path, "has an absolute path");
    if (strlen(path) > CODE_PATH_BYTES_MAX)
        return refuse(w, path, "has a path longer than 4095 bytes");
    for (const char *at = path; *at != '\0';) {
        size_t bytes = strcspn(at, "/");
        if (bytes == 2 && at[0] == '.' && at[1] == '.')
            return refuse(w, path, "has '..' in its path");
        if (bytes > CODE_NAME_BYTES_MAX)
            return refuse(w, path, "has a name longer than 255 bytes");
        if (bytes > 0 && !(bytes == 1 && at[0] == '.')) {
            if (++depth > DEPTH_MAX)
                return refuse(w, path, "is nested more than 64 directories deep");
            if (out > 0)
                ret_path[out++] = '/';
            memcpy(ret_path + out, at, bytes);
            out += bytes;
        }
        at += bytes + (at[bytes] == '/');
    }
    ret_path[out] = '\0';
    return ERR_OK;
}

/* Where a symbolic link at `path` leads, by its text alone: it must stay in the tree. The
 * directories above it are no links (parents_make()), so leading '..' lead where the text says.
 * Behind a name that is a link itself they would not: refused. */
static enum err link_check(struct walk *w, const char *path, const char *target)
{
    if (target == NULL || target[0] == '\0')
        return refuse(w, path, "is a symbolic link to nothing");
    if (target[0] == '/')
        return refuse(w, path, "is a symbolic link to an absolute path");
    if (strlen(target) > CODE_PATH_BYTES_MAX)
        return refuse(w, path, "is a symbolic link with too long a target");
    int depth = 0;
    bool named = false;
    for (const char *at = path; (at = strchr(at, '/')) != NULL; at++)
        depth++;
    for (const char *at = target; *at != '\0';) {
        size_t bytes = strcspn(at, "/");
        if (bytes == 2 && at[0] == '.' && at[1] == '.') {
            if (named)
                return refuse(w, path,
                              "is a symbolic link with '..' behind a name; only at its beginning "
                              "is it clear where that leads");
            if (--depth < 0)
                return refuse(w, path, "is a symbolic link that leads out of the archive");
        } else if (bytes > 0 && !(bytes == 1 && at[0] == '.')) {
            named = true;
        }
        at += bytes + (at[bytes] == '/');
    }
    return ERR_OK;
}

static enum seen seen_get(const struct walk *w, const char *path)
{
    return (enum seen)(uintptr_t)strmap_get(&w->seen, str_of(path));
}

static void seen_put(struct walk *w, const char *path, enum seen what)
{
    strmap_put(&w->seen, str_of(path), (void *)(uintptr_t)what);
}

/* Also of directories that no entry names: each costs memory here and an inode there. */
static enum err entry_count(struct walk *w)
{
    if (++w->entries > CODE_ENTRIES_MAX)
        return error_field(w->e, ERR_INVALID, "code",
                           "the archive has more than %u files and directories", CODE_ENTRIES_MAX);
    return ERR_OK;
}

/* All directories above `path` must be directories; those that the archive does not name are made.
 */
static enum err parents_make(struct walk *w, const char *path)
{
    char parent[CODE_PATH_BYTES_MAX + 1];
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        memcpy(parent, path, (size_t)(slash - path));
        parent[slash - path] = '\0';
        enum seen what = seen_get(w, parent);
        if (what == SEEN_DIRECTORY)
            continue;
        if (what != 0)
            return refuse(w, path, "lies below an entry that is no directory");
        enum err err = entry_count(w);
        if (err != ERR_OK)
            return err;
        seen_put(w, parent, SEEN_DIRECTORY);
        if (w->into_fd >= 0 && mkdirat(w->into_fd, parent, 0755) < 0 && errno != EEXIST)
            return failed(w, parent, "make directory");
    }
    return ERR_OK;
}

static int open_beneath(int dir, const char *path, uint64_t flags, mode_t mode)
{
    struct open_how how = {.flags = flags | O_CLOEXEC,
                           .mode = mode,
                           .resolve =
                               RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
}

/* ---- entries ---- */

static enum err content_count(struct walk *w, const char *path, uint64_t bytes)
{
    w->bytes += bytes;
    if (w->bytes > CODE_UNPACKED_BYTES_MAX)
        return refuse(w, path, "makes the unpacked code larger than 2 GiB");
    if (w->bytes > 16 * MIB && w->bytes / CODE_RATIO_MAX > w->archive_bytes)
        return refuse(w, path, "is compressed beyond any honest ratio");
    return ERR_OK;
}

static enum err archive_failed(struct walk *w, const char *doing)
{
    const char *text = archive_error_string(w->archive);
    char shown[201], why[201];
    name_show(doing, shown, sizeof(shown));
    name_show(text != NULL ? text : "no reason given", why, sizeof(why));
    if (archive_errno(w->archive) == ENOMEM)
        return error_set(w->e, ERR_NO_MEMORY, "%s: out of memory", shown);
    return error_field(w->e, ERR_INVALID, "code", "the archive is damaged or incomplete (%s: %s)",
                       shown, why);
}

static bool write_at(int fd, const char *data, size_t bytes, off_t offset)
{
    while (bytes > 0) {
        ssize_t n = pwrite(fd, data, bytes, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false; /* a disk that fills up takes a part first, and says why at the next try
                           */
        data += n;
        bytes -= (size_t)n;
        offset += n;
    }
    return true;
}

static enum err content_copy(struct walk *w, const char *path, uint64_t size, int fd)
{
    uint64_t end = 0;
    for (;;) {
        const void *data;
        size_t bytes;
        la_int64_t offset;
        int result = archive_read_data_block(w->archive, &data, &bytes, &offset);
        if (result == ARCHIVE_EOF)
            break;
        if (result < ARCHIVE_OK)
            return archive_failed(w, path);
        if (offset < 0 || (uint64_t)offset < end)
            return refuse(w, path, "has content that overlaps");
        enum err err = content_count(w, path, (uint64_t)offset - end + bytes);
        if (err != ERR_OK)
            return err;
        end = (uint64_t)offset + bytes;
        if (fd >= 0 && !write_at(fd, data, bytes, (off_t)offset))
            return failed(w, path, "write");
    }
    /* A sparse file may end in a hole, which is in no block. */
    if (size > end) {
        enum err err = content_count(w, path, size - end);
        if (err != ERR_OK)
            return err;
        end = size;
    }
    if (fd >= 0 && ftruncate(fd, (off_t)end) < 0)
        return failed(w, path, "write");
    return ERR_OK;
}

static enum err file_take(struct walk *w, const char *path, mode_t mode, uint64_t size)
{
    if (seen_get(w, path) != 0)
        return refuse(w, path, "is there twice");
    seen_put(w, path, SEEN_FILE);
    cleanup(fd_close) int fd = -1;
    if (w->into_fd >= 0) {
        fd = open_beneath(w->into_fd, path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
                          (mode & 0111) != 0 ? 0755 : 0644);
        if (fd < 0)
            return failed(w, path, "write");
    }
    enum err err = content_copy(w, path, size, fd);
    if (err == ERR_OK && fd >= 0 && fsync(fd) < 0)
        err = failed(w, path, "write to the disk");
    return err;
}

static enum err hardlink_take(struct walk *w, const char *path, const char *target)
{
    char clean[CODE_PATH_BYTES_MAX + 1];
    enum err err = path_clean(w, target, clean);
    if (err != ERR_OK)
        return err;
    if (seen_get(w, clean) != SEEN_FILE)
        return refuse(w, path, "is a hard link to something that is no file of the archive");
    if (seen_get(w, path) != 0)
        return refuse(w, path, "is there twice");
    seen_put(w, path, SEEN_FILE);
    if (w->into_fd >= 0 && linkat(w->into_fd, clean, w->into_fd, path, 0) < 0)
        return failed(w, path, "link");
    return ERR_OK;
}

static enum err symlink_take(struct walk *w, const char *path, const char *target)
{
    enum err err = link_check(w, path, target);
    if (err != ERR_OK)
        return err;
    if (seen_get(w, path) != 0)
        return refuse(w, path, "is there twice");
    seen_put(w, path, SEEN_LINK); /* nothing may lie below it */
    if (w->into_fd >= 0 && symlinkat(target, w->into_fd, path) < 0)
        return failed(w, path, "make link");
    return ERR_OK;
}

static enum err directory_take(struct walk *w, const char *path)
{
    enum seen what = seen_get(w, path);
    if (what == SEEN_DIRECTORY)
        return ERR_OK; /* named after something in it */
    if (what != 0)
        return refuse(w, path, "is there twice");
    seen_put(w, path, SEEN_DIRECTORY);
    if (w->into_fd >= 0 && mkdirat(w->into_fd, path, 0755) < 0)
        return failed(w, path, "make directory");
    return ERR_OK;
}

static enum err entry_take(struct walk *w, struct archive_entry *entry)
{
    char path[CODE_PATH_BYTES_MAX + 1];
    const char *hardlink = archive_entry_hardlink(entry);
    enum err err = path_clean(w, archive_entry_pathname(entry), path);
    if (err != ERR_OK)
        return err;
    err = entry_count(w);
    if (err != ERR_OK)
        return err;
    if (archive_entry_is_encrypted(entry))
        return refuse(w, path, "is encrypted");
    mode_t mode = archive_entry_mode(entry);
    if (path[0] == '\0') /* "." itself */
        return S_ISDIR(mode) ? ERR_OK : refuse(w, ".", "is no directory");
    err = parents_make(w, path);
    if (err != ERR_OK)
        return err;
    if (hardlink != NULL)
        return hardlink_take(w, path, hardlink);
    if (S_ISREG(mode))
        return file_take(w, path, mode,
                         archive_entry_size_is_set(entry)
                             ? (uint64_t)MAX(archive_entry_size(entry), (la_int64_t)0)
                             : 0);
    if (S_ISDIR(mode))
        return directory_take(w, path);
    if (S_ISLNK(mode))
        return symlink_take(w, path, archive_entry_symlink(entry));
    return refuse(w, path, "is a device, fifo or socket");
}

/* ---- the walk ---- */

static bool begins_like_text(int fd)
{
    unsigned char data[64];
    ssize_t n = pread(fd, data, sizeof(data), 0);
    for (ssize_t i = 0; i < n; i++)
        if (data[i] < 0x20 && data[i] != '\n' && data[i] != '\r' && data[i] != '\t')
            return false;
    return n > 0;
}

static enum err walk_open(struct walk *w)
{
    struct stat st;
    if (fstat(w->archive_fd, &st) < 0)
        return error_errno(w->e, "look at the archive");
    w->archive_bytes = (uint64_t)st.st_size;
    if (w->archive_bytes == 0)
        return error_field(w->e, ERR_INVALID, "code", "the archive is empty: 0 bytes");
    if (w->archive_bytes > CODE_ARCHIVE_BYTES_MAX)
        return error_field(w->e, ERR_TOO_LARGE, "code", "the archive is larger than %llu MiB",
                           (unsigned long long)(CODE_ARCHIVE_BYTES_MAX / MIB));
    if (lseek(w->archive_fd, 0, SEEK_SET) < 0)
        return error_errno(w->e, "read the archive");
    w->archive = archive_read_new();
    if (w->archive == NULL)
        return error_set(w->e, ERR_NO_MEMORY, "open the archive: out of memory");
    (void)archive_read_support_filter_gzip(w->archive);
    (void)archive_read_support_filter_xz(w->archive);
    (void)archive_read_support_filter_bzip2(w->archive);
    (void)archive_read_support_filter_zstd(w->archive);
    (void)archive_read_support_format_tar(w->archive);
    (void)archive_read_support_format_zip_seekable(w->archive);
    if (archive_read_open_fd(w->archive, w->archive_fd, BLOCK_BYTES) != ARCHIVE_OK)
        return error_field(
            w->e, ERR_INVALID, "code",
            "this is no archive: neither tar (plain, gzip, xz, bzip2, zstd) nor zip%s",
            begins_like_text(w->archive_fd) ? "; it looks like text" : "");
    return ERR_OK;
}

/* A tar ends in blocks of zeros. One that was cut between two entries would look whole otherwise.
 */
static enum err end_check(struct walk *w)
{
    bool is_tar = (archive_format(w->archive) & ARCHIVE_FORMAT_BASE_MASK) == ARCHIVE_FORMAT_TAR;
    if (is_tar && archive_filter_bytes(w->archive, 0) == archive_read_header_position(w->archive))
        return error_field(w->e, ERR_INVALID, "code",
                           "the archive is incomplete: a tar must end in a block of zeros");
    return ERR_OK;
}

static enum err walk_run(struct walk *w)
{
    for (;;) {
        struct archive_entry *entry;
        int result = archive_read_next_header(w->archive, &entry);
        if (result == ARCHIVE_EOF)
            break;
        bool sound = result == ARCHIVE_OK || result == ARCHIVE_WARN;
        if (!sound && w->entries == 0)
            return error_field(
                w->e, ERR_INVALID, "code",
                "this is no archive: neither tar (plain, gzip, xz, bzip2, zstd) nor zip%s",
                begins_like_text(w->archive_fd) ? "; it looks like text" : "");
        if (!sound)
            return archive_failed(w, "read the next entry");
        enum err err = entry_take(w, entry);
        if (err != ERR_OK)
            return err;
    }
    if (w->seen.count == 0)
        return error_field(w->e, ERR_INVALID, "code", "the archive has no files");
    return end_check(w);
}

static enum err walk(int fd, int into_fd, struct unpack_counts *ret_counts, struct error *e)
{
    struct walk w = {.archive_fd = fd, .into_fd = into_fd, .e = e};
    /* libarchive turns names that are marked as UTF-8 into the locale's: in "C", ours, they would
     * be lost. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0), before = uselocale(utf8);
    enum err err = walk_open(&w);
    if (err == ERR_OK)
        err = walk_run(&w);
    if (err == ERR_OK && into_fd >= 0 && syncfs(into_fd) < 0)
        err = error_errno(e, "write the code to the disk");
    if (ret_counts != NULL)
        *ret_counts = (struct unpack_counts){w.entries, w.bytes};
    if (w.archive != NULL)
        (void)archive_read_free(w.archive);
    strmap_done(&w.seen);
    (void)uselocale(before);
    if (utf8 != (locale_t)0)
        freelocale(utf8);
    return err;
}

enum err unpack_verify(int fd, struct error *e)
{
    return walk(fd, -1, NULL, e);
}

enum err unpack_into(int fd, int into_fd, struct unpack_counts *ret_counts, struct error *e)
{
    umask(022);
    return walk(fd, into_fd, ret_counts, e);
}

/* ---- restriction ---- */

void unpack_restrict(int into_fd)
{
    static const struct {
        int resource;
        rlim_t value;
    } limits[] = {{RLIMIT_CPU, 120},
                  {RLIMIT_AS, 4 * GIB},
                  {RLIMIT_FSIZE, CODE_UNPACKED_BYTES_MAX},
                  {RLIMIT_CORE, 0},
                  {RLIMIT_NPROC, 0}};
    for (size_t i = 0; i < ARRAY_COUNT(limits); i++) {
        struct rlimit limit = {limits[i].value, limits[i].value};
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
        if (limits[i].resource == RLIMIT_AS)
            continue; /* the sanitizer's shadow is larger than any bound */
#endif
        (void)setrlimit((__rlimit_resource_t)limits[i].resource, &limit);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return;
    uint64_t all = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1; /* every right of the first version */
    struct landlock_ruleset_attr rules = {.handled_access_fs = all};
    cleanup(fd_close) int fd = (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0);
    if (fd < 0)
        return;
    struct landlock_path_beneath_attr beneath = {.allowed_access = all, .parent_fd = into_fd};
    if (into_fd >= 0)
        (void)syscall(SYS_landlock_add_rule, fd, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0);
    (void)syscall(SYS_landlock_restrict_self, fd, 0);
}
