/* bundle.c - walks a directory by descriptors, packs with libarchive as it is asked for bytes. */
#include "cli/bundle.h"
#include "base/limits.h"
#include "base/str.h"
#include "cli/ignore.h"
#include <archive.h>
#include <archive_entry.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IGNORE_FILE_BYTES_MAX MIB
#define PIECE_BYTES (64u * 1024u)
#define DEPTH_MAX 128u

struct item {
    char *path; /* relative to the top */
    mode_t mode;
    uint64_t bytes;
};
struct bundle {
    char *directory;
    int dir_fd;
    struct ignore_rules *rules;
    struct item *items;
    size_t item_count, item_capacity, file_count;
    uint64_t total_bytes, read_bytes;
    struct archive *archive;
    struct buf packed;
    size_t packed_offset;
    size_t next_item;
    int file_fd; /* of the item being packed, or -1 */
    uint64_t file_left;
    bool ended;
    struct error error;
};

/* ---- what is in the directory ---- */

static void add_item(struct bundle *b, const char *path, const struct stat *st)
{
    if (b->item_count == b->item_capacity) {
        b->item_capacity = b->item_capacity * 2 + 64;
        b->items = mem_resize(b->items, b->item_capacity, sizeof(*b->items));
    }
    uint64_t bytes = S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0;
    b->items[b->item_count++] = (struct item){mem_strdup(path), st->st_mode, bytes};
    b->file_count += !S_ISDIR(st->st_mode);
    b->total_bytes += bytes;
}

static enum err walk(struct bundle *b, int dir_fd, const char *above, unsigned depth,
                     struct error *e);

static enum err visit(struct bundle *b, int dir_fd, const char *name, const char *path,
                      unsigned depth, struct error *e)
{
    struct stat st;
    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return error_errno(e, "look at '%s/%s'", b->directory, path);
    if (ignore_rules_match(b->rules, path, S_ISDIR(st.st_mode)))
        return ERR_OK;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode) && !S_ISLNK(st.st_mode))
        return error_set(e, ERR_USAGE,
                         "'%s/%s' is neither a file, a directory nor a link; name it in "
                         ".dirigentignore to leave it out",
                         b->directory, path);
    if (b->item_count == CODE_ENTRIES_MAX)
        return error_set(e, ERR_USAGE, "'%s' has more than %u files", b->directory,
                         CODE_ENTRIES_MAX);
    add_item(b, path, &st);
    if (!S_ISDIR(st.st_mode))
        return ERR_OK;
    if (depth == DEPTH_MAX)
        return error_set(e, ERR_USAGE, "'%s/%s' is deeper than %u directories", b->directory, path,
                         DEPTH_MAX);
    cleanup(fd_close) int fd =
        openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return error_errno(e, "open directory '%s/%s'", b->directory, path);
    return walk(b, fd, path, depth + 1, e);
}

static int skip_dots(const struct dirent *entry)
{
    return strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
}

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static enum err walk(struct bundle *b, int dir_fd, const char *above, unsigned depth,
                     struct error *e)
{
    struct dirent **entries;
    int count = scandirat(dir_fd, ".", &entries, skip_dots, compare_names);
    if (count < 0)
        return error_errno(e, "list directory '%s/%s'", b->directory, above);
    enum err err = ERR_OK;
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        cleanup(free_pointer) char *path =
            mem_printf("%s%s%s", above, above[0] != '\0' ? "/" : "", name);
        if (err == ERR_OK)
            err = visit(b, dir_fd, name, path, depth, e);
        free(entries[i]);
    }
    free(entries);
    return err;
}

static enum err load_rules(struct bundle *b, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/.dirigentignore", b->directory);
    cleanup(free_pointer) char *text = NULL;
    size_t bytes = 0;
    if (access(path, F_OK) == 0) {
        enum err err = file_read(path, IGNORE_FILE_BYTES_MAX, &text, &bytes, e);
        if (err != ERR_OK)
            return err;
    }
    b->rules = ignore_rules_new((struct str){text != NULL ? text : "", bytes});
    return ERR_OK;
}

static la_ssize_t on_packed(struct archive *archive, void *user, const void *data, size_t bytes)
{
    struct bundle *b = user;
    (void)archive;
    buf_append(&b->packed, data, bytes);
    return (la_ssize_t)bytes;
}

static void archive_begin(struct bundle *b)
{
    b->archive = archive_write_new();
    if (b->archive == NULL)
        abort();
    (void)archive_write_set_format_pax_restricted(b->archive);
    (void)archive_write_add_filter_gzip(b->archive);
    (void)archive_write_set_filter_option(b->archive, "gzip", "timestamp", NULL);
    (void)archive_write_set_filter_option(b->archive, "gzip", "compression-level", "3");
    (void)archive_write_set_bytes_in_last_block(b->archive, 1);
    if (archive_write_open(b->archive, b, NULL, on_packed, NULL) != ARCHIVE_OK)
        abort(); /* it has nothing to fail with */
}

enum err bundle_open(const char *directory, struct bundle **ret_bundle, struct error *e)
{
    struct bundle *b = mem_new(sizeof(*b));
    b->file_fd = -1;
    b->directory = mem_strdup(directory);
    b->dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum err err = ERR_OK;
    if (b->dir_fd < 0 && errno == ENOTDIR)
        err = error_set(e, ERR_USAGE, "'%s' is not a directory", directory);
    else if (b->dir_fd < 0)
        err = error_errno(e, "open directory '%s'", directory);
    if (err == ERR_OK)
        err = load_rules(b, e);
    if (err == ERR_OK)
        err = walk(b, b->dir_fd, "", 0, e);
    if (err == ERR_OK && b->file_count == 0)
        err = error_set(e, ERR_USAGE, "directory '%s' has no files to deploy", directory);
    if (err != ERR_OK) {
        bundle_free(b);
        return err;
    }
    archive_begin(b);
    *ret_bundle = b;
    return ERR_OK;
}

void bundle_free(struct bundle *b)
{
    if (b == NULL)
        return;
    if (b->archive != NULL)
        (void)archive_write_free(b->archive);
    for (size_t i = 0; i < b->item_count; i++)
        free(b->items[i].path);
    free(b->items);
    ignore_rules_free(b->rules);
    buf_done(&b->packed);
    fd_close(&b->file_fd);
    fd_close(&b->dir_fd);
    free(b->directory);
    free(b);
}

/* ---- packing ---- */

/* Who owns a file and who may write it is of no use there: readable for all, executable or not. */
static unsigned packed_mode(mode_t mode)
{
    return S_ISDIR(mode) || (mode & 0111) != 0 ? 0755 : 0644;
}

static enum err begin_item(struct bundle *b, const struct item *item)
{
    struct archive_entry *entry = archive_entry_new();
    char target[CODE_PATH_BYTES_MAX];
    enum err err = ERR_OK;
    archive_entry_set_pathname(entry, item->path);
    archive_entry_set_mode(entry, (item->mode & S_IFMT) | packed_mode(item->mode));
    archive_entry_set_mtime(entry, 0, 0);
    if (S_ISLNK(item->mode)) {
        ssize_t n = readlinkat(b->dir_fd, item->path, target, sizeof(target) - 1);
        if (n < 0)
            err = error_errno(&b->error, "read link '%s/%s'", b->directory, item->path);
        target[MAX(n, 0)] = '\0';
        archive_entry_set_symlink(entry, target);
    } else if (S_ISREG(item->mode)) {
        archive_entry_set_size(entry, (la_int64_t)item->bytes);
        b->file_fd = openat(b->dir_fd, item->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        b->file_left = item->bytes;
        if (b->file_fd < 0)
            err = error_errno(&b->error, "open '%s/%s'", b->directory, item->path);
    }
    if (err == ERR_OK && archive_write_header(b->archive, entry) < ARCHIVE_WARN)
        err = error_set(&b->error, ERR_FAILED, "pack '%s/%s': %s", b->directory, item->path,
                        archive_error_string(b->archive));
    archive_entry_free(entry);
    return err;
}

static enum err pack_piece(struct bundle *b, const struct item *item)
{
    char piece[PIECE_BYTES];
    ssize_t n = b->file_left == 0
                    ? 0
                    : read(b->file_fd, piece, (size_t)MIN(b->file_left, (uint64_t)sizeof(piece)));
    if (n < 0)
        return error_errno(&b->error, "read '%s/%s'", b->directory, item->path);
    if (n == 0 && b->file_left > 0)
        return error_set(&b->error, ERR_FAILED, "'%s/%s' became shorter while it was read",
                         b->directory, item->path);
    if (n == 0) {
        fd_close(&b->file_fd);
        return ERR_OK;
    }
    if (archive_write_data(b->archive, piece, (size_t)n) != n)
        return error_set(&b->error, ERR_FAILED, "pack '%s/%s': %s", b->directory, item->path,
                         archive_error_string(b->archive));
    b->file_left -= (uint64_t)n;
    b->read_bytes += (uint64_t)n;
    return ERR_OK;
}

static enum err pack_some(struct bundle *b)
{
    if (b->file_fd >= 0)
        return pack_piece(b, &b->items[b->next_item - 1]);
    if (b->next_item < b->item_count)
        return begin_item(b, &b->items[b->next_item++]);
    b->ended = true;
    if (archive_write_close(b->archive) != ARCHIVE_OK)
        return error_set(&b->error, ERR_FAILED, "pack '%s': %s", b->directory,
                         archive_error_string(b->archive));
    return ERR_OK;
}

ssize_t bundle_read(struct bundle *b, char *data, size_t bytes)
{
    while (b->packed.bytes == b->packed_offset && !b->ended) {
        b->packed.bytes = b->packed_offset = 0;
        if (pack_some(b) != ERR_OK)
            return -1;
    }
    size_t n = MIN(bytes, b->packed.bytes - b->packed_offset);
    if (n > 0)
        memcpy(data, b->packed.data + b->packed_offset, n);
    b->packed_offset += n;
    return (ssize_t)n;
}

const struct error *bundle_error(const struct bundle *b)
{
    return &b->error;
}

size_t bundle_file_count(const struct bundle *b)
{
    return b->file_count;
}

uint64_t bundle_bytes(const struct bundle *b)
{
    return b->total_bytes;
}

uint64_t bundle_bytes_read(const struct bundle *b)
{
    return b->read_bytes;
}

bool bundle_has(const struct bundle *b, const char *path, bool *ret_executable)
{
    for (size_t i = 0; i < b->item_count; i++) {
        if (strcmp(b->items[i].path, path) != 0 || S_ISDIR(b->items[i].mode))
            continue;
        *ret_executable = (b->items[i].mode & 0111) != 0;
        return true;
    }
    return false;
}
