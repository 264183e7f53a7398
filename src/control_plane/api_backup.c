/* api_backup.c - POST /v1/backup: all registrations and the code they use, as one stream
 * (backup.h).
 *
 * The records are read by the store's thread at one revision; code is read piece by piece as the
 * client takes it. What fails after the beginning cuts the stream, which whoever reads it finds
 * out. POST, since what it gives away is not for a page in somebody's browser. */
#include "base/log.h"
#include "control_plane/api_internal.h"
#include "control_plane/backup_list.h"
#include "control_plane/blobs.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE_BYTES (64u * 1024u)
#define RECORD_BYTES 1024u /* as a rule */
#define TURN_BYTES (4u * PIECE_BYTES)
#define PENDING_BYTES_MAX (1024u * 1024u)

struct backup_call {
    struct control_plane *cp;
    struct http_exchange *x; /* NULL: the client went away */
    bool reading, without_code;
    struct store_read read;
    struct backup_list list;
    struct backup_writer *writer;
    size_t item_next, code_next;
    int fd; /* code being sent, or -1 */
    uint64_t left;
    struct loop_timer pump;
};

static void backup_call_free(struct backup_call *call)
{
    loop_timer_stop(call->cp->loop, &call->pump);
    fd_close(&call->fd);
    backup_writer_free(call->writer);
    backup_list_done(&call->list);
    free(call);
}

static void on_backup_gone(struct http_exchange *x, void *user)
{
    struct backup_call *call = user;
    call->x = NULL;
    if (!call->reading)
        backup_call_free(call);
}

/* ---- sending ---- */

static enum err on_bytes(void *user, const void *data, size_t bytes, struct error *e)
{
    struct backup_call *call = user;
    http_exchange_write(call->x, (struct str){data, bytes});
    (void)e;
    return ERR_OK;
}

static enum err code_begin(struct backup_call *call, struct error *e)
{
    const struct backup_code *code = &call->list.codes[call->code_next];
    enum err err = blobs_open(call->cp->blobs, code->digest, &call->fd, &call->left, e);
    if (err == ERR_OK)
        err = backup_write_code(call->writer, code->digest, call->left, e);
    return err;
}

static enum err code_piece(struct backup_call *call, struct error *e)
{
    char piece[PIECE_BYTES];
    ssize_t got;
    do
        got = read(call->fd, piece, (size_t)MIN(call->left, (uint64_t)sizeof(piece)));
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return error_errno(e, "read code %s", call->list.codes[call->code_next].digest);
    if (got == 0)
        return error_set(e, ERR_CORRUPT, "the archive kept as code %s became shorter",
                         call->list.codes[call->code_next].digest);
    call->left -= (uint64_t)got;
    return backup_write_code_data(call->writer, piece, (size_t)got, e);
}

/* One record, or a piece of code. *ret_end: there is nothing more. */
static enum err send_some(struct backup_call *call, bool *ret_end, struct error *e)
{
    if (call->item_next < call->list.count) {
        const struct backup_item *item = &call->list.items[call->item_next++];
        return backup_write_record(call->writer, item->kind, item->id, item->value, e);
    }
    *ret_end = call->without_code || call->code_next == call->list.code_count;
    if (*ret_end)
        return backup_write_end(call->writer, e);
    enum err err = call->fd < 0 ? code_begin(call, e) : code_piece(call, e);
    if (err == ERR_OK && call->left == 0) {
        fd_close(&call->fd);
        call->code_next++;
    }
    return err;
}

static void finish(struct backup_call *call, enum err err, const struct error *e)
{
    if (err == ERR_OK)
        log_info("backup.sent", LOG_U64("records", call->list.count),
                 LOG_U64("archives", call->code_next));
    else
        log_error("backup.cut", LOG_STR("why", e->text));
    if (call->x != NULL)
        http_exchange_end(call->x);
    backup_call_free(call);
}

/* As much as the client takes, but not so much that others wait. */
static void send_more(struct backup_call *call)
{
    struct error e = {0};
    bool end = false;
    for (uint64_t spent = 0; spent < TURN_BYTES;) {
        if (http_exchange_pending(call->x) >= PENDING_BYTES_MAX)
            return; /* on_drained goes on */
        spent += call->item_next < call->list.count ? RECORD_BYTES : PIECE_BYTES;
        enum err err = send_some(call, &end, &e);
        if (err != ERR_OK || end) {
            finish(call, err, &e);
            return;
        }
    }
    loop_timer_start(call->cp->loop, &call->pump, loop_now_ns(call->cp->loop));
}

static void on_pump(struct loop_timer *timer)
{
    send_more(container_of(timer, struct backup_call, pump));
}

static void on_drained(struct http_exchange *x, void *user)
{
    struct backup_call *call = user;
    if (!loop_timer_is_running(&call->pump))
        loop_timer_start(call->cp->loop, &call->pump, loop_now_ns(call->cp->loop));
}

/* ---- reading ---- */

static enum err check_code(struct backup_call *call, struct error *e)
{
    for (size_t i = 0; i < call->list.code_count && !call->without_code; i++)
        if (!blobs_touch(call->cp->blobs, call->list.codes[i].digest))
            return error_set(e, ERR_EMPTY,
                             "the code of function '%s' (%s) is not on this control plane, which "
                             "asks the others for it: try again, or say --no-code",
                             call->list.codes[i].function, call->list.codes[i].digest);
    return ERR_OK;
}

static void on_read(struct store_read *read, enum err err, const struct error *read_error)
{
    struct backup_call *call = container_of(read, struct backup_call, read);
    struct error e = *read_error;
    call->reading = false;
    if (call->x == NULL) {
        backup_call_free(call);
        return;
    }
    backup_list_sort_codes(&call->list);
    if (err == ERR_OK)
        err = check_code(call, &e);
    if (err != ERR_OK) {
        answer_error(call->x, err, &e);
        backup_call_free(call);
        return;
    }
    const struct backup_about about = {.epoch = call->cp->epoch,
                                       .next_id = call->read.next_id,
                                       .created_ms = clock_real_ms(),
                                       .version = DIRIGENT_VERSION};
    http_exchange_begin(call->x, 200, "application/vnd.dirigent.backup",
                        "Cache-Control: no-store\r\n", on_drained);
    err = backup_write_about(call->writer, &about, &e);
    if (err == ERR_OK)
        send_more(call);
    else
        finish(call, err, &e);
}

void handle_backup(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    char code[8];
    struct error e = {0};
    enum err err = query_get(x, "code", code, sizeof(code), &e);
    if (err == ERR_OK && code[0] != '\0' && strcmp(code, "0") != 0 && strcmp(code, "1") != 0)
        err = error_field(&e, ERR_INVALID, "code", "code must be 0 or 1");
    if (err != ERR_OK) {
        answer_error(x, err, &e);
        return;
    }
    struct backup_call *call = mem_new(sizeof(*call));
    call->cp = cp;
    call->x = x;
    call->fd = -1;
    call->without_code = strcmp(code, "0") == 0;
    call->writer = backup_writer_new(on_bytes, call);
    loop_timer_init(&call->pump, on_pump);
    http_exchange_set_user(x, call, on_backup_gone);
    call->reading = true;
    call->read =
        (struct store_read){.on_record = backup_list_add, .user = &call->list, .on_done = on_read};
    store_await(x);
    store_read(cp->store, &call->read);
}
