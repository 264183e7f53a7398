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
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIGEST_PREFIX "sha256:"
#define DIGEST_BYTES 71u
#define GONE_PREFIX ".gone-"

enum code_state { CODE_FETCHING, CODE_UNPACKING, CODE_READY };
struct code {
    struct code_store *store;
    char digest[DIGEST_BYTES + 1];
    enum code_state state;
    int dir_fd, archive_fd, staging_fd;
    int archive_errno; /* why there is no archive_fd */
    uint64_t got_bytes;
    EVP_MD_CTX *hash;
    uint64_t unused_since_ns; /* 0: used, when it was last looked at */
    struct loop_child child;
    int result_fd; /* the child's struct error */
};
struct code_store {
    struct loop *loop;
    int dir_fd;
    const struct code_store_callbacks *callbacks;
    void *user;
    struct strmap codes;
    struct loop_child remover; /* removes all that is called ".gone-NUMBER" */
    bool remove_again;
    uint32_t gone_count;
};

static const char *hex_of(const char *digest)
{
    return digest + sizeof(DIGEST_PREFIX) - 1;
}

static bool digest_is_sound(const char *digest)
{
    return strlen(digest) == DIGEST_BYTES &&
           strncmp(digest, DIGEST_PREFIX, sizeof(DIGEST_PREFIX) - 1) == 0 &&
           strspn(hex_of(digest), "0123456789abcdef") == 64;
}

/* Removes a tree below dir, links not followed. */
static void tree_remove(int dir, const char *name)
{
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
        return;
    cleanup(fd_close) int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fcntl(fd, F_DUPFD_CLOEXEC, 0)) : NULL;
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

/* ---- children ---- */

static int compare_ints(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* In a child: it dies with the worker, and holds nothing open that the worker's peers and
 * successors would take for the worker itself: its connections, its locks. */
static void child_begin(int *keep, size_t count)
{
    sigset_t none;
    unsigned from = STDERR_FILENO + 1;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    qsort(keep, count, sizeof(*keep), compare_ints);
    for (size_t i = 0; i < count; i++) {
        if ((unsigned)keep[i] > from)
            (void)syscall(SYS_close_range, from, (unsigned)keep[i] - 1, 0);
        from = MAX(from, (unsigned)keep[i] + 1);
    }
    (void)syscall(SYS_close_range, from, ~0u, 0);
}

static void child_kill(struct loop_child *child)
{
    if (!child->poll.active)
        return;
    loop_child_stop(child);
    (void)kill(child->pid, SIGKILL);
    (void)waitpid(child->pid, NULL, 0);
}

/* ---- removal: a tree of a hundred thousand files takes seconds, in which a worker that waited
 * would be taken for dead ---- */

static void gone_remove(int dir_fd)
{
    DIR *list = fdopendir(openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;)
        if (strncmp(entry->d_name, GONE_PREFIX, sizeof(GONE_PREFIX) - 1) == 0)
            tree_remove(dir_fd, entry->d_name);
    if (list != NULL)
        closedir(list);
}

static void remover_start(struct code_store *s);

static void on_removed(struct loop_child *child, int wait_status)
{
    struct code_store *s = container_of(child, struct code_store, remover);
    if (s->remove_again)
        remover_start(s);
}

static void remover_start(struct code_store *s)
{
    struct error e = {0};
    s->remove_again = s->remover.poll.active;
    if (s->remove_again)
        return;
    pid_t pid = fork();
    if (pid == 0) {
        int keep[] = {s->dir_fd};
        child_begin(keep, ARRAY_COUNT(keep));
        gone_remove(s->dir_fd);
        _exit(0);
    }
    s->remover.on_exit = on_removed;
    if (pid >= 0 && loop_child_start(s->loop, &s->remover, pid, &e) == ERR_OK)
        return;
    if (pid >= 0)
        (void)waitpid(pid, NULL, 0);
    else
        gone_remove(s->dir_fd);
}

/* Out of sight at once, off the disk soon. */
static void gone_put(struct code_store *s, const char *name)
{
    char gone[32];
    do {
        (void)snprintf(gone, sizeof(gone), GONE_PREFIX "%u", ++s->gone_count);
    } while (renameat2(s->dir_fd, name, s->dir_fd, gone, RENAME_NOREPLACE) < 0 &&
             errno == EEXIST); /* of one before us */
    remover_start(s);
}

static void code_free(struct code *c)
{
    fd_close(&c->dir_fd);
    fd_close(&c->archive_fd);
    fd_close(&c->staging_fd);
    fd_close(&c->result_fd);
    child_kill(&c->child);
    EVP_MD_CTX_free(c->hash);
    free(c);
}

static struct code *code_new(struct code_store *s, const char *digest, enum code_state state)
{
    struct code *c = mem_new(sizeof(*c));
    *c = (struct code){.store = s,
                       .state = state,
                       .dir_fd = -1,
                       .archive_fd = -1,
                       .staging_fd = -1,
                       .result_fd = -1};
    (void)snprintf(c->digest, sizeof(c->digest), "%s", digest);
    strmap_put(&s->codes, str_of(c->digest), c);
    return c;
}

/* ---- start ---- */

enum err code_store_new(struct loop *loop, const char *directory,
                        const struct code_store_callbacks *callbacks, void *user,
                        struct code_store **ret_store, struct error *e)
{
    struct code_store *s = mem_new(sizeof(*s));
    *s = (struct code_store){.loop = loop, .callbacks = callbacks, .user = user, .dir_fd = -1};
    enum err err = dir_make_all(directory, 0755, e);
    if (err == ERR_OK && (s->dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        err = error_errno(e, "open '%s'", directory);
    DIR *list = err == ERR_OK ? fdopendir(fcntl(s->dir_fd, F_DUPFD_CLOEXEC, 0)) : NULL;
    if (err == ERR_OK && list == NULL)
        err = error_errno(e, "list '%s'", directory);
    if (err != ERR_OK) {
        code_store_free(s);
        return err;
    }
    bool leftovers = false;
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        char digest[DIGEST_BYTES + 200];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        (void)snprintf(digest, sizeof(digest), DIGEST_PREFIX "%s", entry->d_name);
        int fd = digest_is_sound(digest) ? openat(s->dir_fd, entry->d_name,
                                                  O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                                         : -1;
        if (fd >= 0)
            code_new(s, digest, CODE_READY)->dir_fd = fd;
        else if (strncmp(entry->d_name, GONE_PREFIX, sizeof(GONE_PREFIX) - 1) == 0)
            leftovers = true;
        else
            gone_put(s, entry->d_name); /* of a fetch that was cut off */
    }
    closedir(list);
    if (leftovers)
        remover_start(s);
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
    child_kill(&s->remover);
    fd_close(&s->dir_fd);
    free(s);
}

/* ---- the end of a fetch ---- */

/* The staging directory becomes the code, on the disk before anybody is told. */
static enum err keep(struct code *c, const char *staging)
{
    struct code_store *s = c->store;
    if (renameat(s->dir_fd, staging, s->dir_fd, hex_of(c->digest)) < 0)
        return err_from_errno(errno);
    if (fsync(s->dir_fd) == 0 &&
        (c->dir_fd = openat(s->dir_fd, hex_of(c->digest), O_PATH | O_DIRECTORY | O_CLOEXEC)) >= 0)
        return ERR_OK;
    enum err err = err_from_errno(errno);
    gone_put(s, hex_of(c->digest)); /* or the name would be taken when it comes again */
    return err;
}

static void finish(struct code *c, enum err err, const char *why)
{
    struct code_store *s = c->store;
    char archive[96], staging[96], digest[DIGEST_BYTES + 1];
    names_of(c, archive, staging, sizeof(archive));
    memcpy(digest, c->digest, sizeof(digest));
    fd_close(&c->archive_fd);
    fd_close(&c->staging_fd);
    (void)unlinkat(s->dir_fd, archive, 0);
    if (err == ERR_OK && (err = keep(c, staging)) != ERR_OK)
        why = "the unpacked code could not be kept";
    int dir_fd = c->dir_fd;
    if (err == ERR_OK) {
        c->state = CODE_READY;
    } else {
        if (faccessat(s->dir_fd, staging, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            gone_put(s, staging);
        (void)strmap_remove(&s->codes, str_of(c->digest));
        code_free(c);
    }
    if (err == ERR_NO_SPACE)
        code_store_collect(s, 0, 0); /* there may be room for the next try */
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
    if (mkdirat(s->dir_fd, staging, 0755) < 0 ||
        (c->staging_fd =
             openat(s->dir_fd, staging, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0 ||
        pipe2(ends, O_CLOEXEC) < 0) {
        (void)error_errno(&e, "make a directory for the code");
        finish(c, e.code, e.text);
        return;
    }
    c->state = CODE_UNPACKING;
    pid_t pid = fork();
    if (pid == 0) {
        struct error outcome = {0};
        int keep_fds[] = {c->archive_fd, c->staging_fd, ends[1]};
        child_begin(keep_fds, ARRAY_COUNT(keep_fds));
        unpack_restrict(c->staging_fd);
        outcome.code = unpack_into(c->archive_fd, c->staging_fd, NULL, &outcome);
        (void)!write(ends[1], &outcome, sizeof(outcome));
        _exit(0);
    }
    (void)close(ends[1]);
    c->result_fd = ends[0];
    c->child.on_exit = on_unpacked;
    if (pid >= 0 && loop_child_start(s->loop, &c->child, pid, &e) == ERR_OK)
        return;
    if (pid >= 0) {
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
    }
    finish(c, ERR_FAILED, "a process to unpack the code could not be started");
}

/* ---- fetching ---- */

static void fetch_start(struct code *c)
{
    char archive[96], staging[96];
    names_of(c, archive, staging, sizeof(archive));
    fd_close(&c->archive_fd);
    c->archive_fd = openat(c->store->dir_fd, archive,
                           O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    c->archive_errno = errno; /* told with the first piece: not from inside the call that asks */
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

void code_store_chunk(struct code_store *s, const char *digest, uint64_t offset,
                      uint64_t total_bytes, struct str data, const char *error)
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
        enum err err = err_from_errno(c->archive_fd < 0 ? c->archive_errno : errno);
        finish(c, err,
               err == ERR_NO_SPACE ? "the worker's disk is full"
                                   : "the code could not be written to the worker's disk");
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

static void code_remove(struct code_store *s, struct code *c)
{
    gone_put(s, hex_of(c->digest));
    (void)strmap_remove(&s->codes, str_of(c->digest));
    code_free(c);
}

/* Looks at all that is there: counts what is unused, and finds what has been so for longest. */
static struct code *unused_oldest(struct code_store *s, uint64_t now_ns, size_t *ret_count)
{
    struct code *oldest = NULL;
    size_t cursor = 0;
    *ret_count = 0;
    for (struct code *c; (c = strmap_next(&s->codes, &cursor, NULL)) != NULL;) {
        if (c->state != CODE_READY || s->callbacks->is_used(s->user, c->digest)) {
            c->unused_since_ns = 0;
            continue;
        }
        if (c->unused_since_ns == 0)
            c->unused_since_ns = now_ns;
        if (oldest == NULL || c->unused_since_ns < oldest->unused_since_ns)
            oldest = c;
        ++*ret_count;
    }
    return oldest;
}

void code_store_collect(struct code_store *s, uint64_t now_ns, uint64_t keep_ns)
{
    size_t count;
    for (struct code *c; (c = unused_oldest(s, now_ns, &count)) != NULL;) {
        if (count <= CODE_UNUSED_COUNT_MAX && keep_ns > 0 && now_ns - c->unused_since_ns < keep_ns)
            return;
        code_remove(s, c);
    }
}

const char *code_store_next(const struct code_store *s, size_t *cursor)
{
    for (const struct code *c; (c = strmap_next(&s->codes, cursor, NULL)) != NULL;)
        if (c->state == CODE_READY)
            return c->digest;
    return NULL;
}
