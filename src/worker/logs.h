/* logs.h - the output of sandboxes: DIR/<function id>/<sandbox id, 16 hex digits>.log, written by
 * their process 1 (sandbox/pump.h), kept when they are gone, bounded by count and bytes for each
 * function. Answers LogGet: lines of all of a function's sandboxes in the order of their times,
 * each as "SANDBOX TIME STREAM FLAG TEXT\n". Loop thread only; file reads block shortly. */
#pragma once
#include "base/base.h"
#include "base/str.h"
#include "loop/loop.h"

struct logs;
/* A piece of an answer; `end` with the last one. */
typedef void logs_on_chunk(void *user, uint64_t request_id, struct str data, bool end);
must_check enum err logs_new(struct loop *loop, const char *directory, logs_on_chunk *on_chunk,
                             void *user, struct logs **ret_logs, struct error *e);
void logs_free(struct logs *l);
/* The file for a new sandbox's output; it may get its name a little later, but all functions here
 * find it at once. The caller owns *ret_fd. Removes old files of the function above the bounds. */
must_check enum err logs_open(struct logs *l, uint64_t function_id, uint64_t sandbox_id,
                              int *ret_fd, struct error *e);
/* The last bytes of a sandbox's output as plain text, at most bytes_max, whole lines. */
void logs_tail(struct logs *l, uint64_t function_id, uint64_t sandbox_id, size_t bytes_max,
               struct buf *ret_text);
struct logs_query {
    uint64_t request_id, function_id, sandbox_id; /* sandbox_id 0: all */
    uint32_t lines;                               /* newest; 0: all */
    uint64_t since_ms;
    bool follow;
};
void logs_get(struct logs *l, const struct logs_query *query);
void logs_cancel(struct logs *l, uint64_t request_id);
void logs_cancel_all(struct logs *l);
void logs_function_gone(struct logs *l, uint64_t function_id); /* removes its files */
