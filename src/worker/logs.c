/* logs.c - files of lines. A line is "TIME STREAM FLAG TEXT"; times sort as text. */
#include "worker/logs.h"
#include "base/limits.h"
#include "base/list.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILES_PER_FUNCTION_MAX 200u
#define BYTES_PER_FUNCTION_MAX (64 * MIB)
#define TRIM_EVERY \
    32u /* new files: looking through a directory for each would be work for nothing */
#define ANSWER_BYTES_MAX (8 * MIB)
#define SPARES 16u
#define NAMED_AFTER_NS \
    (2 * NS_PER_MS)     /* the start that has just been ordered has the processors for itself */
#define STAMP_BYTES 30u /* "2026-01-02T03:04:05.678901234Z" */

struct file_place { /* how far a follower has read a file */
    uint64_t sandbox_id;
    off_t offset;
};
struct follower {
    struct logs *logs;
    struct list node;
    struct logs_query query;
    struct loop_poll poll; /* inotify */
    int inotify_fd;
    struct file_place *places;
    size_t place_count;
};
/* Making a file costs more than all else that the worker does for a start: some are kept open, and
 * get their names when the start is on its way. */
struct spare {
    int fd;
    uint32_t number; /* its name: "spare-NUMBER" */
};
struct named { /* to be renamed soon */
    uint64_t function_id, sandbox_id;
    uint32_t number;
};
struct logs {
    struct loop *loop;
    int dir_fd;
    struct spare spares[SPARES];
    size_t spare_count;
    uint32_t last_number;
    struct named *named;
    size_t named_count, named_capacity;
    struct loop_timer timer;
    logs_on_chunk *on_chunk;
    void *user;
    struct list followers;
    uint32_t opened;
};

static void on_timer(struct loop_timer *timer);
static void names_give(struct logs *l);
static void spares_sweep(struct logs *l);

enum err logs_new(struct loop *loop, const char *directory, logs_on_chunk *on_chunk, void *user,
                  struct logs **ret_logs, struct error *e)
{
    struct logs *l = mem_new(sizeof(*l));
    *l = (struct logs){.loop = loop, .on_chunk = on_chunk, .user = user, .dir_fd = -1};
    list_init(&l->followers);
    enum err err = dir_make_all(directory, 0700, e);
    if (err == ERR_OK && (l->dir_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        err = error_errno(e, "open '%s'", directory);
    if (err != ERR_OK) {
        logs_free(l);
        return err;
    }
    loop_timer_init(&l->timer, on_timer);
    spares_sweep(l);
    loop_timer_start(loop, &l->timer, loop_now_ns(loop));
    *ret_logs = l;
    return ERR_OK;
}

static void follower_free(struct follower *f)
{
    loop_poll_stop(&f->poll);
    fd_close(&f->inotify_fd);
    list_remove(&f->node);
    free(f->places);
    free(f);
}

void logs_free(struct logs *l)
{
    if (l == NULL)
        return;
    logs_cancel_all(l);
    if (l->dir_fd >= 0) {
        loop_timer_stop(l->loop, &l->timer);
        names_give(l);
        spares_sweep(l);
    }
    fd_close(&l->dir_fd);
    free(l->named);
    free(l);
}

/* ---- files ---- */

static int function_dir(const struct logs *l, uint64_t function_id)
{
    char name[32];
    (void)snprintf(name, sizeof(name), "%" PRIu64, function_id);
    return openat(l->dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void file_name(uint64_t sandbox_id, char *ret_name, size_t bytes)
{
    (void)snprintf(ret_name, bytes, "%016" PRIx64 ".log", sandbox_id);
}

struct file {
    uint64_t sandbox_id, disk_bytes;
};

static int compare_files(const void *a, const void *b) /* ids grow with time */
{
    uint64_t x = ((const struct file *)a)->sandbox_id, y = ((const struct file *)b)->sandbox_id;
    return x < y ? -1 : x > y;
}

/* All of a function's files, oldest first; the caller frees. */
static struct file *files_list(int dir, size_t *ret_count)
{
    struct file *files = NULL;
    size_t count = 0, capacity = 0;
    int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy >= 0 ? fdopendir(copy) : NULL;
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;) {
        char *end;
        struct stat st;
        uint64_t id = strtoull(entry->d_name, &end, 16);
        if (end != entry->d_name + 16 || strcmp(end, ".log") != 0 ||
            fstatat(dir, entry->d_name, &st, 0) < 0)
            continue;
        if (count == capacity)
            files = mem_resize(files, capacity = MAX(capacity * 2, (size_t)64), sizeof(*files));
        files[count++] = (struct file){id, (uint64_t)st.st_blocks * 512};
    }
    if (list != NULL)
        closedir(list);
    if (count > 0)
        qsort(files, count, sizeof(*files), compare_files);
    *ret_count = count;
    return files;
}

static void trim(int dir)
{
    size_t count;
    struct file *files cleanup(free_pointer) = files_list(dir, &count);
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; i++)
        bytes += files[i].disk_bytes;
    for (size_t i = 0;
         i < count && (count - i > FILES_PER_FUNCTION_MAX || bytes > BYTES_PER_FUNCTION_MAX); i++) {
        char name[32];
        file_name(files[i].sandbox_id, name, sizeof(name));
        (void)unlinkat(dir, name, 0); /* a sandbox that still writes loses only the name */
        bytes -= files[i].disk_bytes;
    }
}

static void spare_name(uint32_t number, char *ret_name, size_t bytes)
{
    (void)snprintf(ret_name, bytes, "spare-%u", number);
}

static bool spare_make(struct logs *l)
{
    char name[32];
    struct spare *spare = &l->spares[l->spare_count];
    spare->number = ++l->last_number;
    spare_name(spare->number, name, sizeof(name));
    spare->fd = openat(l->dir_fd, name,
                       O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    l->spare_count += spare->fd >= 0;
    return spare->fd >= 0;
}

/* Those of this process, and those that one before it left. */
static void spares_sweep(struct logs *l)
{
    while (l->spare_count > 0)
        fd_close(&l->spares[--l->spare_count].fd);
    int copy = openat(l->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = copy >= 0 ? fdopendir(copy) : NULL;
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;)
        if (strncmp(entry->d_name, "spare-", 6) == 0)
            (void)unlinkat(l->dir_fd, entry->d_name, 0);
    if (list != NULL)
        closedir(list);
}

static void name_give(struct logs *l, const struct named *named)
{
    char old[32], directory[32], name[64];
    spare_name(named->number, old, sizeof(old));
    (void)snprintf(directory, sizeof(directory), "%" PRIu64, named->function_id);
    (void)snprintf(name, sizeof(name), "%s/%016" PRIx64 ".log", directory, named->sandbox_id);
    if (renameat(l->dir_fd, old, l->dir_fd, name) < 0 && errno == ENOENT) {
        (void)mkdirat(l->dir_fd, directory, 0700);
        (void)renameat(l->dir_fd, old, l->dir_fd, name);
    }
    if (++l->opened % TRIM_EVERY == 0) {
        cleanup(fd_close) int dir = function_dir(l, named->function_id);
        if (dir >= 0)
            trim(dir);
    }
}

static void names_give(struct logs *l)
{
    for (size_t i = 0; i < l->named_count; i++)
        name_give(l, &l->named[i]);
    l->named_count = 0;
}

static void on_timer(struct loop_timer *timer)
{
    struct logs *l = container_of(timer, struct logs, timer);
    names_give(l);
    while (l->spare_count < SPARES && spare_make(l))
        ;
}

enum err logs_open(struct logs *l, uint64_t function_id, uint64_t sandbox_id, int *ret_fd,
                   struct error *e)
{
    if (l->spare_count == 0 && !spare_make(l))
        return error_errno(e, "make the output file of a sandbox");
    if (l->named_count == l->named_capacity)
        l->named = mem_resize(l->named, l->named_capacity = MAX(l->named_capacity * 2, (size_t)16),
                              sizeof(*l->named));
    struct spare spare = l->spares[--l->spare_count];
    l->named[l->named_count++] = (struct named){function_id, sandbox_id, spare.number};
    if (!loop_timer_is_running(&l->timer))
        loop_timer_start(l->loop, &l->timer, loop_now_ns(l->loop) + NAMED_AFTER_NS);
    *ret_fd = spare.fd;
    return ERR_OK;
}

/* Whole lines of a file from `offset` on; *offset moves behind them. The head may be a hole. */
static void file_read_lines(int dir, uint64_t sandbox_id, off_t *offset, size_t bytes_max,
                            struct buf *ret)
{
    char name[32];
    file_name(sandbox_id, name, sizeof(name));
    cleanup(fd_close) int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return;
    if (st.st_size < *offset)
        *offset = 0; /* it was begun anew */
    off_t data = lseek(fd, *offset, SEEK_DATA);
    bool cut = data > *offset; /* the first line is a part of one */
    if (data >= 0)
        *offset = data;
    if (st.st_size - *offset > (off_t)bytes_max) {
        *offset = st.st_size - (off_t)bytes_max;
        cut = true;
    }
    size_t bytes = (size_t)(st.st_size - *offset), got = 0, before = ret->bytes;
    char *place = buf_reserve(ret, bytes + 1);
    for (ssize_t n;
         got < bytes && (n = pread(fd, place + got, bytes - got, *offset + (off_t)got)) > 0;)
        got += (size_t)n;
    while (got > 0 && place[got - 1] != '\n')
        got--; /* the last line is being written */
    *offset += (off_t)got;
    ret->bytes += got;
    if (cut && got > 0) {
        char *end = memchr(place, '\n', got);
        size_t part = end != NULL ? (size_t)(end - place) + 1 : got;
        memmove(place, place + part, got - part);
        ret->bytes = before + got - part;
    }
}

void logs_tail(struct logs *l, uint64_t function_id, uint64_t sandbox_id, size_t bytes_max,
               struct buf *ret_text)
{
    names_give(l);
    cleanup(fd_close) int dir = function_dir(l, function_id);
    cleanup(buf_done) struct buf raw = {0};
    off_t offset = 0;
    if (dir < 0)
        return;
    file_read_lines(dir, sandbox_id, &offset, bytes_max * 2, &raw);
    struct buf plain = {0};
    for (struct str rest = buf_str(&raw); rest.bytes > 0;) {
        struct str line = str_split(rest, '\n', &rest), text = line;
        for (int i = 0; i < 3; i++)
            (void)str_split(text, ' ', &text); /* time, stream, flag */
        if (text.data == NULL)
            continue;
        buf_append_str(&plain, text);
        buf_append(&plain, "\n", 1);
    }
    size_t skip = plain.bytes > bytes_max ? plain.bytes - bytes_max : 0;
    if (skip > 0) {
        const char *end = memchr(plain.data + skip, '\n', plain.bytes - skip);
        skip = end != NULL ? (size_t)(end - plain.data) + 1 : skip;
    }
    buf_append(ret_text, plain.bytes > 0 ? plain.data + skip : "", plain.bytes - skip);
    buf_done(&plain);
}

/* ---- answers ---- */

struct line {
    struct str text; /* "TIME STREAM FLAG TEXT" */
    uint64_t sandbox_id;
    size_t order; /* keeps lines of one moment as they came */
};

static int compare_lines(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    int order =
        memcmp(x->text.data, y->text.data, MIN(STAMP_BYTES, MIN(x->text.bytes, y->text.bytes)));
    return order != 0 ? order : x->order < y->order ? -1 : x->order > y->order;
}

static void stamp_of(uint64_t ms, char *ret_stamp, size_t bytes)
{
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    char text[32];
    (void)gmtime_r(&seconds, &tm);
    (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(ret_stamp, bytes, "%s.%03u000000Z", text, (unsigned)(ms % 1000));
}

/* Lines since the given places, merged by time. */
static void lines_collect(int dir, const struct logs_query *q, struct file_place *places,
                          size_t count, struct buf *ret)
{
    struct buf *texts = mem_new_array(count, sizeof(*texts));
    struct line *lines = NULL;
    size_t line_count = 0, capacity = 0;
    char since[64] = "";
    if (q->since_ms > 0)
        stamp_of(q->since_ms, since, sizeof(since));
    for (size_t i = 0; i < count; i++) {
        file_read_lines(dir, places[i].sandbox_id, &places[i].offset, ANSWER_BYTES_MAX, &texts[i]);
        for (struct str rest = buf_str(&texts[i]); rest.bytes > 0;) {
            struct str line = str_split(rest, '\n', &rest);
            if (line.bytes < STAMP_BYTES || strncmp(line.data, since, STAMP_BYTES) < 0)
                continue;
            if (line_count == capacity)
                lines =
                    mem_resize(lines, capacity = MAX(capacity * 2, (size_t)256), sizeof(*lines));
            lines[line_count] = (struct line){line, places[i].sandbox_id, line_count};
            line_count++;
        }
    }
    if (line_count > 0)
        qsort(lines, line_count, sizeof(*lines), compare_lines);
    size_t first = q->lines > 0 && line_count > q->lines ? line_count - q->lines : 0;
    for (size_t i = first; i < line_count; i++)
        buf_printf(ret, "%016" PRIx64 " %.*s\n", lines[i].sandbox_id, STR_ARG(lines[i].text));
    for (size_t i = 0; i < count; i++)
        buf_done(&texts[i]);
    free(texts);
    free(lines);
}

static void answer(struct logs *l, uint64_t request_id, const struct buf *text, bool end)
{
    size_t done = 0;
    do {
        size_t bytes = MIN(text->bytes - done, (size_t)BLOB_CHUNK_BYTES);
        bool last = done + bytes == text->bytes;
        l->on_chunk(l->user, request_id, (struct str){text->data + done, bytes}, end && last);
        done += bytes;
    } while (done < text->bytes);
}

/* Files that a follower has not seen yet begin at their start. */
static void places_update(struct follower *f, int dir)
{
    size_t count;
    struct file *files cleanup(free_pointer) = files_list(dir, &count);
    for (size_t i = 0; i < count; i++) {
        bool known = f->query.sandbox_id != 0 && files[i].sandbox_id != f->query.sandbox_id;
        for (size_t k = 0; k < f->place_count && !known; k++)
            known = f->places[k].sandbox_id == files[i].sandbox_id;
        if (known)
            continue;
        f->places = mem_resize(f->places, f->place_count + 1, sizeof(*f->places));
        f->places[f->place_count++] = (struct file_place){files[i].sandbox_id, 0};
    }
}

static void follower_send(struct follower *f, bool end)
{
    cleanup(fd_close) int dir = function_dir(f->logs, f->query.function_id);
    struct buf text = {0};
    if (dir >= 0) {
        places_update(f, dir);
        lines_collect(dir, &f->query, f->places, f->place_count, &text);
    }
    if (text.bytes > 0 || end)
        answer(f->logs, f->query.request_id, &text, end);
    buf_done(&text);
}

static void on_inotify(struct loop_poll *poll, uint32_t epoll_events)
{
    struct follower *f = container_of(poll, struct follower, poll);
    char events[4096];
    while (read(f->inotify_fd, events, sizeof(events)) > 0)
        ; /* what has changed is read from the files */
    follower_send(f, false);
}

void logs_get(struct logs *l, const struct logs_query *query)
{
    names_give(l);
    struct follower *f = mem_new(sizeof(*f));
    *f = (struct follower){.logs = l, .query = *query, .inotify_fd = -1};
    list_push_back(&l->followers, &f->node);
    if (!query->follow) {
        follower_send(f, true);
        follower_free(f);
        return;
    }
    char path[64], name[32];
    struct error e = {0};
    (void)snprintf(name, sizeof(name), "%" PRIu64, query->function_id);
    (void)mkdirat(l->dir_fd, name, 0700); /* to be watched before its first sandbox */
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", l->dir_fd, name);
    f->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    f->poll.on_ready = on_inotify;
    if (f->inotify_fd < 0 ||
        inotify_add_watch(f->inotify_fd, path, IN_MODIFY | IN_MOVED_TO | IN_ONLYDIR) < 0 ||
        loop_poll_start(l->loop, &f->poll, f->inotify_fd, EPOLLIN, &e) != ERR_OK) {
        follower_send(f, true);
        follower_free(f);
        return;
    }
    follower_send(f, false);
    f->query.lines = 0; /* that was for what is there already */
    f->query.since_ms = 0;
}

void logs_cancel(struct logs *l, uint64_t request_id)
{
    list_for_each(f, &l->followers, struct follower, node)
    {
        if (f->query.request_id == request_id)
            follower_free(f);
    }
}

void logs_cancel_all(struct logs *l)
{
    list_for_each(f, &l->followers, struct follower, node)
    {
        follower_free(f);
    }
}

void logs_function_gone(struct logs *l, uint64_t function_id)
{
    names_give(l);
    char name[32];
    cleanup(fd_close) int dir = function_dir(l, function_id);
    size_t count = 0;
    struct file *files cleanup(free_pointer) = dir >= 0 ? files_list(dir, &count) : NULL;
    for (size_t i = 0; i < count; i++) {
        file_name(files[i].sandbox_id, name, sizeof(name));
        (void)unlinkat(dir, name, 0);
    }
    (void)snprintf(name, sizeof(name), "%" PRIu64, function_id);
    (void)unlinkat(l->dir_fd, name, AT_REMOVEDIR);
}
