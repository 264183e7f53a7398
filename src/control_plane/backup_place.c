/* backup_place.c - saves and restores, one step after the other. */
#include "control_plane/backup_place.h"
#include "control_plane/records.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE_BYTES (256u * 1024u)
#define COMMIT_WRITES_MAX 100u /* what etcd takes at once */
#define LEADER_CONNECT_MS 1000
#define PARTIAL_NAME ".upload-restore" /* swept by the next start, if it stays */

static const char *hex_of(const char *digest)
{
    return digest + strlen("sha256:");
}

/* ---- saving ---- */

static enum err on_bytes(void *user, const void *data, size_t bytes, struct error *e)
{
    return fd_write_all(*(int *)user, data, bytes) == ERR_OK ? ERR_OK : error_errno(e, "write");
}

/* All at one revision, and the epoch. */
static enum err store_copy(const struct backup_place *from, struct backup_result *ret,
                           struct error *e)
{
    void *self = NULL;
    char leader[256];
    enum err err = from->backend->open(from->where, &self, e);
    if (err != ERR_OK)
        return err;
    err = from->backend->load(self, backup_list_add, &ret->list, &ret->about.next_id, e);
    if (err == ERR_OK)
        err = from->backend->last_epoch(self, &ret->about.epoch, leader, sizeof(leader), e);
    from->backend->close(self);
    if (err == ERR_OK && ret->about.epoch == 0)
        err = error_set(e, ERR_EMPTY, "%s is new: no control plane has ever used it", from->name);
    backup_list_sort_codes(&ret->list);
    return err;
}

static enum err code_pieces_save(struct backup_writer *w, int code_fd, uint64_t bytes,
                                 const char *digest, struct error *e)
{
    cleanup(free_pointer) char *piece = mem_new(PIECE_BYTES);
    enum err err = ERR_OK;
    while (err == ERR_OK && bytes > 0) {
        ssize_t got = read(code_fd, piece, (size_t)MIN(bytes, (uint64_t)PIECE_BYTES));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(e, "read code %s", digest);
        if (got == 0)
            return error_set(e, ERR_CORRUPT, "the archive kept as code %s became shorter", digest);
        bytes -= (uint64_t)got;
        err = backup_write_code_data(w, piece, (size_t)got, e);
    }
    return err;
}

static enum err code_save(struct backup_writer *w, const struct backup_place *from,
                          const struct backup_code *code, struct backup_result *ret,
                          struct error *e)
{
    struct stat st;
    cleanup(fd_close) int fd = from->code_fd < 0 ? -1
                                                 : openat(from->code_fd, hex_of(code->digest),
                                                          O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && (from->code_fd < 0 || errno == ENOENT))
        return error_set(e, ERR_NOT_FOUND,
                         "the code of function '%s' (%s) is not here: name the --data-dir of a "
                         "control plane that has it, or say --no-code",
                         code->function, code->digest);
    if (fd < 0 || fstat(fd, &st) != 0)
        return error_errno(e, "open code %s of function '%s'", code->digest, code->function);
    ret->code_count++;
    ret->code_bytes += (uint64_t)st.st_size;
    enum err err = backup_write_code(w, code->digest, (uint64_t)st.st_size, e);
    return err == ERR_OK ? code_pieces_save(w, fd, (uint64_t)st.st_size, code->digest, e) : err;
}

static enum err write_all(struct backup_writer *w, const struct backup_place *from, bool with_code,
                          struct backup_result *ret, struct error *e)
{
    enum err err = backup_write_about(w, &ret->about, e);
    for (size_t i = 0; i < ret->list.count && err == ERR_OK; i++) {
        const struct backup_item *item = &ret->list.items[i];
        err = backup_write_record(w, item->kind, item->id, item->value, e);
    }
    for (size_t i = 0; i < ret->list.code_count && with_code && err == ERR_OK; i++)
        err = code_save(w, from, &ret->list.codes[i], ret, e);
    return err == ERR_OK ? backup_write_end(w, e) : err;
}

enum err backup_save(const struct backup_place *from, bool with_code, int fd, const char *name,
                     struct backup_result *ret, struct error *e)
{
    *ret = (struct backup_result){.about.created_ms = clock_real_ms(),
                                  .about.version = DIRIGENT_VERSION};
    enum err err = store_copy(from, ret, e);
    if (err != ERR_OK)
        return err;
    struct backup_writer *w = backup_writer_new(on_bytes, &fd);
    err = write_all(w, from, with_code, ret, e);
    backup_writer_free(w);
    if (err == ERR_OK && fsync(fd) != 0 && errno != EINVAL) /* EINVAL: a pipe */
        err = error_errno(e, "make it durable");
    return err == ERR_OK ? ERR_OK : error_prefix(e, "backup '%s'", name);
}

/* ---- reading through ---- */

static enum err on_about(void *user, const struct backup_about *about, struct error *e)
{
    ((struct backup_result *)user)->about = *about;
    return ERR_OK;
}

static enum err on_verify_record(void *user, enum store_kind kind, uint64_t id, const char *value,
                                 struct error *e)
{
    return backup_list_add(&((struct backup_result *)user)->list, kind, id, value, e);
}

static enum err on_verify_code(void *user, const char *digest, uint64_t bytes, struct error *e)
{
    struct backup_result *r = user;
    r->code_count++;
    r->code_bytes += bytes;
    return ERR_OK;
}

enum err backup_verify(int fd, const char *name, struct backup_result *ret, struct error *e)
{
    *ret = (struct backup_result){0};
    const struct backup_sink sink = {.user = ret,
                                     .on_about = on_about,
                                     .on_record = on_verify_record,
                                     .on_code = on_verify_code};
    enum err err = backup_read(fd, name, &sink, e);
    backup_list_sort_codes(&ret->list);
    return err == ERR_OK || strstr(e->text, name) != NULL ? err
                                                          : error_prefix(e, "backup '%s'", name);
}

/* ---- code ---- */

struct code_writer {
    int dir_fd, fd; /* fd: of the archive that is being written, or -1 */
};

/* What is there already is written anew: it may be what was damaged. */
static enum err on_code(void *user, const char *digest, uint64_t bytes, struct error *e)
{
    struct code_writer *c = user;
    (void)bytes;
    (void)unlinkat(c->dir_fd, PARTIAL_NAME, 0);
    c->fd = openat(c->dir_fd, PARTIAL_NAME, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return c->fd >= 0 ? ERR_OK : error_errno(e, "keep code %s", digest);
}

static enum err on_code_data(void *user, const void *data, size_t bytes, struct error *e)
{
    struct code_writer *c = user;
    return fd_write_all(c->fd, data, bytes) == ERR_OK ? ERR_OK : error_errno(e, "keep code");
}

static enum err on_code_end(void *user, const char *digest, struct error *e)
{
    struct code_writer *c = user;
    if (fsync(c->fd) != 0 || renameat(c->dir_fd, PARTIAL_NAME, c->dir_fd, hex_of(digest)) != 0)
        return error_errno(e, "keep code %s", digest);
    fd_close(&c->fd);
    return ERR_OK;
}

static enum err code_restore(const struct backup_place *to, const struct backup_restore *how,
                             struct error *e)
{
    struct code_writer c = {.dir_fd = to->code_fd, .fd = -1};
    const struct backup_sink sink = {
        .user = &c, .on_code = on_code, .on_code_data = on_code_data, .on_code_end = on_code_end};
    enum err err = backup_read(how->fd, how->name, &sink, e);
    if (c.fd >= 0 && err != ERR_OK)
        (void)unlinkat(c.dir_fd, PARTIAL_NAME, 0);
    fd_close(&c.fd);
    if (err == ERR_OK && fsync(to->code_fd) != 0)
        err = error_errno(e, "make the directory with code durable");
    return err;
}

static enum err code_check(const struct backup_place *to, const struct backup_list *list,
                           struct error *e)
{
    for (size_t i = 0; i < list->code_count; i++)
        if (faccessat(to->code_fd, hex_of(list->codes[i].digest), R_OK, AT_EACCESS) != 0)
            return error_set(e, ERR_NOT_FOUND,
                             "the code of function '%s' (%s) is neither in the backup nor here; "
                             "with --no-code it is restored all the same, and does not start "
                             "before its code is uploaded again or another control plane has it",
                             list->codes[i].function, list->codes[i].digest);
    return ERR_OK;
}

/* ---- is somebody there? ---- */

static bool connects(const struct addrinfo *a)
{
    int failure = 0;
    socklen_t bytes = sizeof(failure);
    cleanup(fd_close) int fd =
        socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0)
        return false;
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0)
        return true;
    struct pollfd poll_fd = {.fd = fd, .events = POLLOUT};
    return errno == EINPROGRESS && poll(&poll_fd, 1, LEADER_CONNECT_MS) == 1 &&
           getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &bytes) == 0 && failure == 0;
}

/* Whoever took the epoch last is named by its address. One that is there and cut off from us does
 * no harm: its writes are refused from now on, and ours when it takes over again. */
static enum err refuse_leader(const struct backup_place *to, const char *leader, struct error *e)
{
    cleanup(free_pointer) char *host = mem_strdup(leader);
    char *colon = strrchr(host, ':');
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    if (colon == NULL)
        return ERR_OK;
    *colon = '\0';
    char *name = host;
    if (name[0] == '[' && colon[-1] == ']') {
        colon[-1] = '\0';
        name++;
    }
    if (getaddrinfo(name, colon + 1, &hints, &found) != 0)
        return ERR_OK;
    bool there = false;
    for (const struct addrinfo *a = found; a != NULL && !there; a = a->ai_next)
        there = connects(a);
    freeaddrinfo(found);
    if (!there)
        return ERR_OK;
    return error_set(e, ERR_BUSY,
                     "the control plane %s leads with %s and is running: stop all control planes "
                     "first",
                     leader, to->name);
}

/* ---- records ---- */

struct there {                 /* what the store has */
    struct backup_item *items; /* without values */
    size_t count, capacity;
    size_t functions;
    bool cut_short; /* a restore was */
};

static enum err on_there(void *user, enum store_kind kind, uint64_t id, const char *value,
                         struct error *e)
{
    struct there *t = user;
    if (kind == STORE_RESTORE) {
        t->cut_short = true;
        return ERR_OK;
    }
    if (t->count == t->capacity) {
        t->capacity = t->capacity * 2 + 16;
        t->items = mem_resize(t->items, t->capacity, sizeof(*t->items));
    }
    t->items[t->count++] = (struct backup_item){.kind = kind, .id = id};
    t->functions += kind == STORE_FUNCTION;
    return ERR_OK;
}

static enum err refuse_full(const struct backup_place *to, const struct there *t, struct error *e)
{
    if (t->cut_short)
        return error_set(e, ERR_EXISTS,
                         "a restore into %s was cut short: --force replaces what it left",
                         to->name);
    if (t->count > 0)
        return error_set(e, ERR_EXISTS,
                         "%s is not empty (%zu functions, %zu records in all): --force replaces "
                         "all of it by the backup",
                         to->name, t->functions, t->count);
    return ERR_OK;
}

/* A worker that knows a version of this number must not take the next one for it. */
static enum err versions_skip(struct backup_list *list, struct error *e)
{
    for (size_t i = 0; i < list->count; i++) {
        struct backup_item *item = &list->items[i];
        struct function_record r;
        if (item->kind != STORE_FUNCTION)
            continue;
        enum err err = function_record_read(item->id, item->value, &r, e);
        if (err != ERR_OK)
            return err;
        uint32_t used = MAX(r.latest_version, r.versions_used) + BACKUP_VERSIONS_SKIPPED;
        r.versions_used = MIN(used, FUNCTION_VERSION_MAX - 1);
        free(item->value);
        item->value = function_record_write(&r);
        function_record_done(&r);
    }
    return ERR_OK;
}

struct committer {
    const struct backup_place *to;
    void *self;
    uint64_t epoch, next_id;
    struct store_write writes[COMMIT_WRITES_MAX];
    size_t count;
};

static enum err commit(struct committer *c, struct error *e)
{
    for (size_t i = 0; i + 1 < c->count; i++)
        c->writes[i].private.next = &c->writes[i + 1];
    for (size_t done = 0, count = 0; done < c->count; done += count) {
        const struct store_write *w = &c->writes[done];
        enum err err = c->to->backend->commit(c->self, c->epoch, w, NULL, &count, e);
        if (err != ERR_OK)
            return backup_has_kind(w->kind) ? error_prefix(e, "from record %s %" PRIu64 " on",
                                                           backup_kind_name(w->kind), w->id)
                                            : err;
    }
    c->count = 0;
    return ERR_OK;
}

static enum err add(struct committer *c, enum store_kind kind, uint64_t id, char *value,
                    struct error *e)
{
    enum err err = c->count == COMMIT_WRITES_MAX ? commit(c, e) : ERR_OK;
    if (err == ERR_OK)
        c->writes[c->count++] =
            (struct store_write){.kind = kind, .id = id, .value = value, .next_id = c->next_id};
    return err;
}

/* The only thing in its transaction: it is there before anything else, and goes after it. */
static enum err mark(struct committer *c, bool there, struct error *e)
{
    char text[] = "{}";
    enum err err = commit(c, e);
    if (err == ERR_OK)
        err = add(c, STORE_RESTORE, 1, there ? text : NULL, e);
    return err == ERR_OK ? commit(c, e) : err;
}

static int compare_items(const void *a, const void *b)
{
    const struct backup_item *x = a, *y = b;
    if (x->kind != y->kind)
        return x->kind < y->kind ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static enum err records_replace(struct committer *c, const struct there *there,
                                const struct backup_list *list, struct error *e)
{
    enum err err = mark(c, true, e);
    for (size_t i = 0; i < there->count && err == ERR_OK; i++)
        if (list->count == 0 || bsearch(&there->items[i], list->items, list->count,
                                        sizeof(*list->items), compare_items) == NULL)
            err = add(c, there->items[i].kind, there->items[i].id, NULL, e);
    for (size_t i = 0; i < list->count && err == ERR_OK; i++)
        err = add(c, list->items[i].kind, list->items[i].id, list->items[i].value, e);
    if (err == ERR_OK)
        err = mark(c, false, e);
    if (err == ERR_OK)
        return ERR_OK;
    return error_prefix(e,
                        "the restore into %s was cut short, and no control plane starts with it "
                        "before it was done again with --force",
                        c->to->name);
}

static enum err records_restore(const struct backup_place *to, void *self,
                                const struct backup_restore *how, struct backup_result *ret,
                                struct error *e)
{
    struct there there = {0};
    char leader[256] = "";
    uint64_t next_id = 0, last_epoch = 0;
    enum err err = to->backend->last_epoch(self, &last_epoch, leader, sizeof(leader), e);
    if (err == ERR_OK)
        err = refuse_leader(to, leader, e);
    if (err == ERR_OK)
        err = to->backend->load(self, on_there, &there, &next_id, e);
    if (err == ERR_OK && !how->force)
        err = refuse_full(to, &there, e);
    if (err == ERR_OK)
        err = code_restore(to, how, e);
    if (err == ERR_OK && !how->without_code)
        err = code_check(to, &ret->list, e);
    if (err == ERR_OK)
        err = versions_skip(&ret->list, e);
    if (err == ERR_OK)
        err = to->backend->take_epoch_above(
            self, MAX(last_epoch, ret->about.epoch) + BACKUP_EPOCHS_SKIPPED - 1, &ret->epoch, e);
    struct committer *c = mem_new(sizeof(*c));
    c->to = to;
    c->self = self;
    c->epoch = ret->epoch;
    c->next_id = MAX(next_id, ret->about.next_id) + BACKUP_IDS_SKIPPED;
    if (err == ERR_OK)
        err = records_replace(c, &there, &ret->list, e);
    free(c);
    free(there.items);
    return err;
}

enum err backup_restore(const struct backup_place *to, const struct backup_restore *how,
                        struct backup_result *ret, struct error *e)
{
    void *self = NULL;
    enum err err = backup_verify(how->fd, how->name, ret, e);
    if (err == ERR_OK)
        err = to->backend->open(to->where, &self, e);
    if (err != ERR_OK)
        return err;
    err = records_restore(to, self, how, ret, e);
    to->backend->close(self);
    return err;
}
