/* code_store.c - fetch, verify, unpack, rename. */
#include "worker/code_store.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/log.h"
#include "worker/unpack.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIGEST_PREFIX "sha256:"
#define DIGEST_BYTES 71u

enum code_state { CODE_FETCHING, CODE_UNPACKING, CODE_READY };
struct code {
    struct code_store *store;
    char digest[DIGEST_BYTES + 1];
    enum code_state state;
    int dir_fd, archive_fd, staging_fd;
    uint64_t got_bytes;
    EVP_MD_CTX *hash;
    bool told_later;
    struct loop_child child;
    int result_fd; /* the child's struct error */
};
struct code_store {
    struct loop *loop;
    int dir_fd;
    const struct code_store_callbacks *callbacks;
    void *user;
    struct strmap codes;
};

static const char *hex_of(const char *digest)
{
    return digest + sizeof(DIGEST_PREFIX) - 1;
}

static bool digest_is_sound(const char *digest)
{
    return strlen(digest) == DIGEST_BYTES && strncmp(digest, DIGEST_PREFIX, sizeof(DIGEST_PREFIX) - 1) == 0 &&
           strspn(hex_of(digest), "0123456789abcdef") == 64;
}

/* Removes a tree below dir, links not followed. */
static void tree_remove(int dir, const char *name)
{
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
        return;
    cleanup(fd_close) int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(dup(fd)) : NULL;
    if (list == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            tree_remove(fd, entry->d_name);
    closedir(list);
    (void)unlinkat(dir, name, AT_REMOVEDIR);
}

static void names_of(const struct code *c, char *ret_archive, char *ret_staging, size_t bytes)
{
    (void)snprintf(ret_archive, bytes, ".fetch-%s", hex_of(c->digest));
    (void)snprintf(ret_staging, bytes, ".unpack-%s", hex_of(c->digest));
}

static void code_free(struct code *c)
{
    fd_close(&c->dir_fd);
    fd_close(&c->archive_fd);
    fd_close(&c->staging_fd);
    fd_close(&c->result_fd);
    loop_child_stop(&c->child);
    EVP_MD_CTX_free(c->hash);
    free(c);
}

static struct code *code_new(struct code_store *s, const char *digest, enum code_state state)
{
    struct code *c = mem_new(sizeof(*c));
    *c = (struct code){.store = s, .state = state, .dir_fd = -1, .archive_fd = -1, .staging_fd = -1, .result_fd = -1};
    (void)snprintf(c->digest, sizeof(c->digest), "%s", digest);
    strmap_put(&s->codes, str_of(c->digest), c);
    return c;
}

/* ---- start ---- */

enum err code_store_new(struct loop *loop, const char *directory, const struct code_store_callbacks *callbacks, void *user,
                        struct code_store **ret_store, struct error *e)
{
    struct code_store *s = mem_new(sizeof(*s));
    *s = (struct code_store){.loop = loop, .callbacks = callbacks, .user = user, .dir_fd = -1};
    enum err err = dir_make_all(directory, 0755, e);
    if (err == ERR_OK && (s->dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        err = error_errno(e, "open '%s'", directory);
    DIR *list = err == ERR_OK ? fdopendir(dup(s->dir_fd)) : NULL;
    if (err == ERR_OK && list == NULL)
        err = error_errno(e, "list '%s'", directory);
    if (err != ERR_OK) {
        code_store_free(s);
        return err;
    }
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        char digest[DIGEST_BYTES + 200];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        (void)snprintf(digest, sizeof(digest), DIGEST_PREFIX "%s", entry->d_name);
        int fd = digest_is_sound(digest) ? openat(s->dir_fd, entry->d_name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
        if (fd >= 0)
            code_new(s, digest, CODE_READY)->dir_fd = fd;
        else
            tree_remove(s->dir_fd, entry->d_name); /* of a fetch that was cut off */
    }
    closedir(list);
    *ret_store = s;
    return ERR_OK;
}

void code_store_free(struct code_store *s)
{
    if (s == NULL)
        return;
    size_t cursor = 0;
    for (struct code *c; (c = strmap_next(&s->codes, &cursor, NULL)) != NULL;)
        code_free(c);
    strmap_done(&s->codes);
    fd_close(&s->dir_fd);
    free(s);
}

/* ---- the end of a fetch ---- */

static void finish(struct code *c, enum err err, const char *why)
{
    struct code_store *s = c->store;
    char archive[96], staging[96], digest[DIGEST_BYTES + 1];
    names_of(c, archive, staging, sizeof(archive));
    memcpy(digest, c->digest, sizeof(digest));
    fd_close(&c->archive_fd);
    fd_close(&c->staging_fd);
    (void)unlinkat(s->dir_fd, archive, 0);
    if (err == ERR_OK) {
        if (renameat(s->dir_fd, staging, s->dir_fd, hex_of(c->digest)) < 0 || fsync(s->dir_fd) < 0 ||
            (c->dir_fd = openat(s->dir_fd, hex_of(c->digest), O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) {
            err = err_from_errno(errno);
            why = "the unpacked code could not be kept";
        }
    }
    int dir_fd = c->dir_fd;
    if (err == ERR_OK) {
        c->state = CODE_READY;
    } else {
        tree_remove(s->dir_fd, staging);
        (void)strmap_remove(&s->codes, str_of(c->digest));
        code_free(c);
    }
    s->callbacks->on_ready(s->user, digest, err, dir_fd, why);
}

static void on_unpacked(struct loop_child *child, int wait_status)
{
    struct code *c = container_of(child, struct code, child);
    struct error e = {0};
    ssize_t n = read(c->result_fd, &e, sizeof(e));
    fd_close(&c->result_fd);
    if (n == (ssize_t)sizeof(e)) {
        e.text[sizeof(e.text) - 1] = '\0';
        finish(c, e.code < ERR_COUNT ? e.code : ERR_FAILED, e.text);
    } else if (WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGXCPU) {
        finish(c, ERR_TOO_LARGE, "unpacking the code took more than two minutes of processor time");
    } else {
        finish(c, ERR_FAILED, "unpacking the code failed");
    }
}

static void unpack_start(struct code *c)
{
    struct code_store *s = c->store;
    char archive[96], staging[96];
    struct error e = {0};
    int ends[2];
    names_of(c, archive, staging, sizeof(archive));
    tree_remove(s->dir_fd, staging);
    if (mkdirat(s->dir_fd, staging, 0755) < 0 ||
        (c->staging_fd = openat(s->dir_fd, staging, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0 || pipe2(ends, O_CLOEXEC) < 0) {
        (void)error_errno(&e, "make a directory for the code");
        finish(c, e.code, e.text);
        return;
    }
    c->state = CODE_UNPACKING;
    pid_t pid = fork();
    if (pid == 0) {
        struct error outcome = {0};
        sigset_t none;
        sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        unpack_restrict(c->staging_fd);
        outcome.code = unpack_into(c->archive_fd, c->staging_fd, NULL, &outcome);
        (void)!write(ends[1], &outcome, sizeof(outcome));
        _exit(0);
    }
    (void)close(ends[1]);
    c->result_fd = ends[0];
    c->child.on_exit = on_unpacked;
    if (pid < 0 || loop_child_start(s->loop, &c->child, pid, &e) != ERR_OK)
        finish(c, ERR_FAILED, "a process to unpack the code could not be started");
}

/* ---- fetching ---- */

static void fetch_start(struct code *c)
{
    char archive[96], staging[96];
    names_of(c, archive, staging, sizeof(archive));
    fd_close(&c->archive_fd);
    c->archive_fd = openat(c->store->dir_fd, archive, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    c->got_bytes = 0;
    EVP_MD_CTX_free(c->hash);
    c->hash = EVP_MD_CTX_new();
    if (c->hash != NULL)
        (void)EVP_DigestInit_ex(c->hash, EVP_sha256(), NULL);
    c->store->callbacks->on_want(c->store->user, c->digest);
}

enum err code_store_need(struct code_store *s, const char *digest, int *ret_dir_fd)
{
    struct code *c = strmap_get(&s->codes, str_of(digest));
    if (c != NULL && c->state == CODE_READY) {
        *ret_dir_fd = c->dir_fd;
        return ERR_OK;
    }
    if (c == NULL) {
        if (!digest_is_sound(digest))
            return ERR_INVALID;
        fetch_start(code_new(s, digest, CODE_FETCHING));
    }
    return ERR_MORE;
}

void code_store_chunk(struct code_store *s, const char *digest, uint64_t offset, uint64_t total_bytes, struct str data, const char *error)
{
    struct code *c = strmap_get(&s->codes, str_of(digest));
    if (c == NULL || c->state != CODE_FETCHING)
        return;
    if (error[0] != '\0') {
        finish(c, ERR_NOT_FOUND, error);
        return;
    }
    if (offset != c->got_bytes || total_bytes > CODE_ARCHIVE_BYTES_MAX || c->hash == NULL) {
        finish(c, ERR_PROTOCOL, "the code came in the wrong order");
        return;
    }
    if (c->archive_fd < 0 || fd_write_all(c->archive_fd, data.data, data.bytes) != ERR_OK) {
        finish(c, err_from_errno(errno), errno == ENOSPC ? "the worker's disk is full" : "the code could not be written to the worker's disk");
        return;
    }
    (void)EVP_DigestUpdate(c->hash, data.data, data.bytes);
    c->got_bytes += data.bytes;
    if (c->got_bytes < total_bytes)
        return;
    unsigned char sum[32];
    char hex[65];
    (void)EVP_DigestFinal_ex(c->hash, sum, NULL);
    for (size_t i = 0; i < sizeof(sum); i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    if (strcmp(hex, hex_of(c->digest)) != 0)
        finish(c, ERR_CORRUPT, "the code that came does not have the digest it should have");
    else
        unpack_start(c);
}

void code_store_connected(struct code_store *s)
{
    size_t cursor = 0;
    for (struct code *c; (c = strmap_next(&s->codes, &cursor, NULL)) != NULL;)
        if (c->state == CODE_FETCHING)
            fetch_start(c);
}

void code_store_collect(struct code_store *s, bool (*is_used)(void *user, const char *digest), void *user)
{
    for (bool again = true; again;) {
        size_t cursor = 0;
        again = false;
        for (struct code *c; !again && (c = strmap_next(&s->codes, &cursor, NULL)) != NULL;) {
            if (c->state != CODE_READY || is_used(user, c->digest))
                continue;
            char gone[96];
            (void)snprintf(gone, sizeof(gone), ".gone-%s", hex_of(c->digest));
            (void)renameat(s->dir_fd, hex_of(c->digest), s->dir_fd, gone); /* at once out of sight */
            tree_remove(s->dir_fd, gone);
            (void)strmap_remove(&s->codes, str_of(c->digest));
            code_free(c);
            again = true; /* the map has changed */
        }
    }
}

const char *code_store_next(const struct code_store *s, size_t *cursor)
{
    for (const struct code *c; (c = strmap_next(&s->codes, cursor, NULL)) != NULL;)
        if (c->state == CODE_READY)
            return c->digest;
    return NULL;
}
