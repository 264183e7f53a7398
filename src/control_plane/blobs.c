/* blobs.c - archives by their digest. What may take long (fsync, reading the archive through) is
 * done in a child process, so that the loop goes on placing sandboxes. */
#include "control_plane/blobs.h"
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
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEX_BYTES 64u
#define UPLOAD_PREFIX ".upload-"

struct blob {
    char digest[CODE_DIGEST_BYTES + 1];
    uint64_t bytes;
    uint64_t asked_ns; /* when somebody needed it last */
};
struct blobs {
    struct loop *loop;
    char *directory;
    int dir_fd;
    uint64_t staged_for_ns;
    struct strmap by_digest; /* struct blob */
    struct list uploads;     /* struct upload */
    uint64_t bytes, next_upload;
};
struct upload {
    struct blobs *owner;
    struct list node;
    char name[48]; /* in the directory, "" when renamed or removed */
    int fd;
    EVP_MD_CTX *hash;
    uint64_t bytes;
    char digest[CODE_DIGEST_BYTES + 1];
    upload_on_done *on_done; /* NULL: cancelled */
    void *user;
    struct loop_timer at_once; /* when it is here already */
    struct loop_child child;
    int report_fd; /* the child writes its struct error there */
    bool checking;
};

static const char *hex_of(const char *digest)
{
    return digest + strlen("sha256:");
}

static bool is_hex_name(const char *name)
{
    return strlen(name) == HEX_BYTES && strspn(name, "0123456789abcdef") == HEX_BYTES;
}

static struct blob *blob_add(struct blobs *b, const char *hex, uint64_t bytes)
{
    struct blob *blob = mem_new(sizeof(*blob));
    snprintf(blob->digest, sizeof(blob->digest), "sha256:%s", hex);
    blob->bytes = bytes;
    blob->asked_ns = loop_now_ns(b->loop);
    strmap_put(&b->by_digest, str_of(blob->digest), blob);
    b->bytes += bytes;
    return blob;
}

/* ---- life ---- */

static void upload_free(struct upload *u)
{
    if (u->name[0] != '\0')
        (void)unlinkat(u->owner->dir_fd, u->name, 0);
    loop_timer_stop(u->owner->loop, &u->at_once);
    list_remove(&u->node);
    fd_close(&u->fd);
    fd_close(&u->report_fd);
    EVP_MD_CTX_free(u->hash);
    free(u);
}

static void load_entry(struct blobs *b, const char *name)
{
    struct stat st;
    if (str_has_prefix(str_of(name), STR(UPLOAD_PREFIX)))
        (void)unlinkat(b->dir_fd, name, 0); /* of a run that was cut short */
    else if (is_hex_name(name) && fstatat(b->dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
             S_ISREG(st.st_mode))
        blob_add(b, name, (uint64_t)st.st_size);
}

static enum err load(struct blobs *b, struct error *e)
{
    DIR *dir = opendir(b->directory);
    if (dir == NULL)
        return error_errno(e, "read directory '%s'", b->directory);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        load_entry(b, entry->d_name);
    closedir(dir);
    return ERR_OK;
}

enum err blobs_new(struct loop *loop, const char *directory, uint64_t staged_for_ms,
                   struct blobs **ret_blobs, struct error *e)
{
    enum err err = dir_make_all(directory, 0700, e);
    if (err != ERR_OK)
        return err;
    int dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return error_errno(e, "open directory '%s'", directory);
    struct blobs *b = mem_new(sizeof(*b));
    b->loop = loop;
    b->directory = mem_strdup(directory);
    b->dir_fd = dir_fd;
    list_init(&b->uploads);
    b->staged_for_ns = staged_for_ms * NS_PER_MS;
    err = load(b, e);
    if (err != ERR_OK) {
        blobs_free(b);
        return err;
    }
    *ret_blobs = b;
    return ERR_OK;
}

void blobs_free(struct blobs *b)
{
    if (b == NULL)
        return;
    size_t cursor = 0;
    struct blob *blob;
    list_for_each(u, &b->uploads, struct upload, node)
    {
        if (u->child.pid > 0) {
            loop_child_stop(&u->child);
            kill(u->child.pid, SIGKILL);
            (void)waitpid(u->child.pid, NULL, 0);
        }
        upload_free(u);
    }
    while ((blob = strmap_next(&b->by_digest, &cursor, NULL)) != NULL)
        free(blob);
    strmap_done(&b->by_digest);
    fd_close(&b->dir_fd);
    free(b->directory);
    free(b);
}

size_t blobs_count(const struct blobs *b)
{
    return b->by_digest.count;
}

uint64_t blobs_bytes(const struct blobs *b)
{
    return b->bytes;
}

bool blobs_has(const struct blobs *b, const char *digest)
{
    return strmap_get(&b->by_digest, str_of(digest)) != NULL;
}

bool blobs_touch(struct blobs *b, const char *digest)
{
    struct blob *blob = strmap_get(&b->by_digest, str_of(digest));
    if (blob != NULL)
        blob->asked_ns = loop_now_ns(b->loop);
    return blob != NULL;
}

enum err blobs_open(struct blobs *b, const char *digest, int *ret_fd, uint64_t *ret_bytes,
                    struct error *e)
{
    const struct blob *blob = strmap_get(&b->by_digest, str_of(digest));
    if (blob == NULL)
        return error_set(e, ERR_NOT_FOUND, "there is no code %.80s", digest);
    int fd = openat(b->dir_fd, hex_of(digest), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_errno(e, "open code %s in '%s'", digest, b->directory);
    *ret_fd = fd;
    *ret_bytes = blob->bytes;
    return ERR_OK;
}

/* ---- collecting ---- */

static void blob_remove(struct blobs *b, struct blob *blob)
{
    log_info("code.removed", LOG_STR("digest", blob->digest), LOG_U64("bytes", blob->bytes));
    (void)unlinkat(b->dir_fd, hex_of(blob->digest), 0);
    b->bytes -= blob->bytes;
    strmap_remove(&b->by_digest, str_of(blob->digest));
    free(blob);
}

void blobs_collect(struct blobs *b, bool (*is_used)(void *user, const char *digest), void *user)
{
    uint64_t now = loop_now_ns(b->loop);
    size_t cursor = 0, count = 0;
    struct blob *blob, **old = mem_new_array(b->by_digest.count + 1, sizeof(struct blob *));
    while ((blob = strmap_next(&b->by_digest, &cursor, NULL)) != NULL)
        if (now - MIN(now, blob->asked_ns) >= b->staged_for_ns && !is_used(user, blob->digest))
            old[count++] = blob; /* the map must not change while we go through it */
    for (size_t i = 0; i < count; i++)
        blob_remove(b, old[i]);
    free(old);
}

/* ---- uploads ---- */

/* Tells the end, then it is over. */
static void upload_end(struct upload *u, enum err err, const struct error *e)
{
    if (u->on_done != NULL)
        u->on_done(u->user, err, u->digest, u->bytes, e);
    upload_free(u);
}

static void on_at_once(struct loop_timer *timer)
{
    struct upload *u = container_of(timer, struct upload, at_once);
    struct error e = {0};
    upload_end(u, ERR_OK, &e);
}

enum err upload_begin(struct blobs *b, struct upload **ret_upload, struct error *e)
{
    struct upload *u = mem_new(sizeof(*u));
    u->owner = b;
    u->report_fd = -1;
    list_push_back(&b->uploads, &u->node);
    loop_timer_init(&u->at_once, on_at_once);
    snprintf(u->name, sizeof(u->name), UPLOAD_PREFIX "%" PRIu64, ++b->next_upload);
    u->fd = openat(b->dir_fd, u->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (u->fd < 0) {
        enum err err = error_errno(e, "keep the upload in '%s'", b->directory);
        u->name[0] = '\0';
        upload_free(u);
        return err;
    }
    u->hash = EVP_MD_CTX_new();
    if (u->hash == NULL || EVP_DigestInit_ex(u->hash, EVP_sha256(), NULL) != 1) {
        upload_free(u);
        return error_set(e, ERR_NO_MEMORY, "no memory to hash the upload");
    }
    *ret_upload = u;
    return ERR_OK;
}

enum err upload_write(struct upload *u, const void *data, size_t bytes, struct error *e)
{
    if (bytes > CODE_ARCHIVE_BYTES_MAX - u->bytes)
        return error_set(e, ERR_TOO_LARGE, "the archive is larger than %" PRIu64 " MiB",
                         CODE_ARCHIVE_BYTES_MAX / MIB);
    if (fd_write_all(u->fd, data, bytes) != ERR_OK)
        return error_errno(e, "keep the upload in '%s'", u->owner->directory);
    EVP_DigestUpdate(u->hash, data, bytes);
    u->bytes += bytes;
    return ERR_OK;
}

static void name_digest(struct upload *u)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned bytes = 0;
    EVP_DigestFinal_ex(u->hash, sum, &bytes);
    char *at = u->digest + snprintf(u->digest, sizeof(u->digest), "sha256:");
    for (unsigned i = 0; i < bytes; i++)
        at += snprintf(at, 3, "%02x", sum[i]);
}

/* The sentence of a check that ended in another process; nothing written is success, if it also
 * ended well. */
static enum err read_report(int fd, int wait_status, struct error *e)
{
    ssize_t got = read(fd, e, sizeof(*e));
    if (got == (ssize_t)sizeof(*e) && e->code > ERR_OK && e->code < ERR_COUNT)
        return e->code;
    *e = (struct error){0};
    if (got == 0 && WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0)
        return ERR_OK;
    if (WIFSIGNALED(wait_status))
        return error_set(e, ERR_INVALID,
                         "the archive could not be read: its reader was ended by signal %d (%s)",
                         WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)));
    return error_set(e, ERR_INVALID, "the archive could not be read: its reader ended with code %d",
                     WEXITSTATUS(wait_status));
}

static _Noreturn void verify_and_exit(int archive_fd, int report_fd)
{
    struct error e = {0};
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    unpack_restrict(-1);
    if (unpack_verify(archive_fd, &e) != ERR_OK)
        (void)!write(report_fd, &e, sizeof(e));
    _exit(0);
}

/* Bytes from outside are parsed by a process that can do nothing else. */
static enum err verify_restricted(int archive_fd, struct error *e)
{
    int report[2], wait_status = 0;
    if (pipe2(report, O_CLOEXEC) != 0)
        return error_errno(e, "check the upload");
    pid_t pid = fork();
    if (pid == 0)
        verify_and_exit(archive_fd, report[1]);
    fd_close(&report[1]);
    enum err err = pid < 0 ? error_errno(e, "check the upload") : ERR_OK;
    if (err == ERR_OK && waitpid(pid, &wait_status, 0) == pid)
        err = read_report(report[0], wait_status, e);
    fd_close(&report[0]);
    return err;
}

/* In the child, so that the loop need not wait for the disk. */
static enum err check_and_keep(const struct upload *u, struct error *e)
{
    enum err err = verify_restricted(u->fd, e);
    if (err != ERR_OK)
        return err;
    if (fsync(u->fd) != 0)
        return error_errno(e, "make the upload durable");
    if (renameat(u->owner->dir_fd, u->name, u->owner->dir_fd, hex_of(u->digest)) != 0 ||
        fsync(u->owner->dir_fd) != 0)
        return error_errno(e, "give the upload its name");
    return ERR_OK;
}

static int compare_fds(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* A connection that we close must not stay open in the child. */
static void close_all_but(int *keep, size_t count)
{
    unsigned from = STDERR_FILENO + 1;
    qsort(keep, count, sizeof(*keep), compare_fds);
    for (size_t i = 0; i < count; i++) {
        if ((unsigned)keep[i] > from)
            (void)close_range(from, (unsigned)keep[i] - 1, 0);
        from = MAX(from, (unsigned)keep[i] + 1);
    }
    (void)close_range(from, UINT32_MAX, 0);
}

static _Noreturn void child_run(const struct upload *u, int report_fd)
{
    struct error e = {0};
    sigset_t none;
    close_all_but((int[]){u->fd, u->owner->dir_fd, report_fd}, 3);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGTERM, SIG_DFL);
    (void)signal(SIGINT, SIG_DFL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (check_and_keep(u, &e) != ERR_OK)
        (void)!write(report_fd, &e, sizeof(e));
    _exit(0);
}

static void on_child_exit(struct loop_child *child, int wait_status)
{
    struct upload *u = container_of(child, struct upload, child);
    struct blobs *b = u->owner;
    u->child.pid = 0;
    struct error e = {0};
    enum err err = read_report(u->report_fd, wait_status, &e);
    if (err == ERR_OK) {
        u->name[0] = '\0'; /* renamed */
        if (!blobs_touch(b, u->digest)) {
            blob_add(b, hex_of(u->digest), u->bytes);
            log_info("code.kept", LOG_STR("digest", u->digest), LOG_U64("bytes", u->bytes));
        }
    }
    upload_end(u, err, &e);
}

static enum err start_child(struct upload *u, struct error *e)
{
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0)
        return error_errno(e, "check the upload");
    u->report_fd = report[0];
    pid_t pid = fork();
    if (pid == 0)
        child_run(u, report[1]);
    enum err err = pid < 0 ? error_errno(e, "check the upload") : ERR_OK;
    fd_close(&report[1]);
    if (err != ERR_OK)
        return err;
    u->child.on_exit = on_child_exit;
    err = loop_child_start(u->owner->loop, &u->child, pid, e);
    if (err != ERR_OK) {
        kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        u->child.pid = 0;
    }
    return err;
}

void upload_finish(struct upload *u, upload_on_done *on_done, void *user)
{
    struct error e = {0};
    u->on_done = on_done;
    u->user = user;
    u->checking = true;
    name_digest(u);
    if (blobs_touch(u->owner, u->digest)) {
        loop_timer_start(u->owner->loop, &u->at_once, loop_now_ns(u->owner->loop));
        return;
    }
    enum err err = start_child(u, &e);
    if (err != ERR_OK)
        upload_end(u, err, &e);
}

void upload_cancel(struct upload *u)
{
    if (u->checking)
        u->on_done = NULL;
    else
        upload_free(u);
}
