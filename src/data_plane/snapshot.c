/* snapshot.c - one line that says what follows, and the payload. */
#include "data_plane/snapshot.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_NAME "snapshot"
#define NOTES_NAME FILE_NAME ".returned"
#define BYTES_MAX (512u * MIB)
#define BOOT_ID_BYTES 36u
#define HEAD_FORMAT "dirigent-snapshot 1 %s %s\n"
#define HEAD_BYTES \
    (sizeof("dirigent-snapshot 1  \n") - 1 + BOOT_ID_BYTES + 2 * SHA256_DIGEST_LENGTH)

static void boot_id(char *ret_id)
{
    cleanup(free_pointer) char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    memset(ret_id, '0', BOOT_ID_BYTES); /* a kernel that does not say it: then only age counts */
    ret_id[BOOT_ID_BYTES] = '\0';
    if (file_read("/proc/sys/kernel/random/boot_id", 4096, &text, &bytes, &e) == ERR_OK &&
        bytes >= BOOT_ID_BYTES)
        memcpy(ret_id, text, BOOT_ID_BYTES);
}

static void head_make(struct str payload, char *ret_head)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char digest[SHA256_DIGEST_LENGTH];
    char hex[2 * SHA256_DIGEST_LENGTH + 1] = "", boot[BOOT_ID_BYTES + 1];
    (void)SHA256((const unsigned char *)payload.data, payload.bytes, digest);
    for (size_t i = 0; i < sizeof(digest); i++) {
        hex[2 * i] = digits[digest[i] >> 4];
        hex[2 * i + 1] = digits[digest[i] & 15];
    }
    boot_id(boot);
    (void)snprintf(ret_head, HEAD_BYTES + 1, HEAD_FORMAT, boot, hex);
}

/* ---- notes: records of fixed size, appended ---- */

void snapshot_note(const char *directory, const struct snapshot_slots *items, size_t count)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" NOTES_NAME, directory);
    cleanup(fd_close) int fd =
        open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || fd_write_all(fd, items, count * sizeof(*items)) != ERR_OK)
        snapshot_remove(directory); /* rather none than one that promises too much */
}

struct snapshot_slots *snapshot_noted(const char *directory, size_t *ret_count)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" NOTES_NAME, directory);
    char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    *ret_count = 0;
    if (file_read(path, BYTES_MAX, &text, &bytes, &e) != ERR_OK)
        return NULL;
    *ret_count = bytes / sizeof(struct snapshot_slots); /* a last one that is cut was not told */
    return (struct snapshot_slots *)text;
}

enum err snapshot_write(const char *directory, struct str payload, struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" FILE_NAME, directory);
    cleanup(free_pointer) char *beside = mem_printf("%s/." FILE_NAME ".new", directory);
    char head[HEAD_BYTES + 1];
    cleanup(fd_close) int fd =
        open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return error_errno(e, "write '%s'", beside);
    head_make(payload, head);
    if (fd_write_all(fd, head, HEAD_BYTES) != ERR_OK ||
        fd_write_all(fd, payload.data, payload.bytes) != ERR_OK || rename(beside, path) < 0) {
        enum err err = error_errno(e, "write '%s'", path);
        (void)unlink(beside);
        return err;
    }
    cleanup(free_pointer) char *notes = mem_printf("%s/" NOTES_NAME, directory);
    (void)unlink(notes);
    return ERR_OK;
}

void snapshot_touch(const char *directory)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" FILE_NAME, directory);
    (void)utimensat(AT_FDCWD, path, NULL, 0); /* when it fails the file grows old, which is safe */
}

void snapshot_remove(const char *directory)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" FILE_NAME, directory);
    cleanup(free_pointer) char *notes = mem_printf("%s/" NOTES_NAME, directory);
    (void)unlink(path);
    (void)unlink(notes); /* after it: they are what keeps it from promising too much */
}

static enum err check_age(const char *path, uint64_t now_ms, struct error *e)
{
    struct stat status;
    if (stat(path, &status) < 0)
        return errno == ENOENT ? error_set(e, ERR_NOT_FOUND, "there is no snapshot '%s'", path)
                               : error_errno(e, "read '%s'", path);
    uint64_t then_ms =
        (uint64_t)status.st_mtim.tv_sec * 1000 + (uint64_t)status.st_mtim.tv_nsec / NS_PER_MS;
    uint64_t age_ms = now_ms > then_ms
                          ? now_ms - then_ms
                          : then_ms - now_ms; /* a clock that was set back is no proof */
    if (age_ms > SNAPSHOT_AGE_MS_MAX)
        return error_set(e, ERR_STALE,
                         "the snapshot '%s' is %" PRIu64
                         " s old: addresses in it may be others' by now",
                         path, age_ms / 1000);
    return ERR_OK;
}

enum err snapshot_read(const char *directory, uint64_t now_ms, struct buf *ret_payload,
                       struct error *e)
{
    cleanup(free_pointer) char *path = mem_printf("%s/" FILE_NAME, directory);
    cleanup(free_pointer) char *text = NULL;
    char head[HEAD_BYTES + 1], boot[BOOT_ID_BYTES + 1];
    size_t bytes = 0;
    enum err err = check_age(path, now_ms, e);
    if (err == ERR_OK)
        err = file_read(path, BYTES_MAX, &text, &bytes, e);
    if (err != ERR_OK)
        return err;
    boot_id(boot);
    const char *boot_there = text + sizeof("dirigent-snapshot 1 ") - 1;
    if (bytes < HEAD_BYTES)
        return error_set(e, ERR_CORRUPT, "the snapshot '%s' is cut", path);
    if (memcmp(text, "dirigent-snapshot 1 ", sizeof("dirigent-snapshot 1 ") - 1) != 0)
        return error_set(e, ERR_CORRUPT, "'%s' is no snapshot of this format", path);
    if (memcmp(boot_there, boot, BOOT_ID_BYTES) != 0)
        return error_set(e, ERR_STALE, "the snapshot '%s' is from before this host's last start",
                         path);
    head_make((struct str){text + HEAD_BYTES, bytes - HEAD_BYTES}, head);
    if (memcmp(text, head, HEAD_BYTES) != 0)
        return error_set(e, ERR_CORRUPT, "the snapshot '%s' is damaged", path);
    buf_append(ret_payload, text + HEAD_BYTES, bytes - HEAD_BYTES);
    return ERR_OK;
}
