/* pump.h - a sandbox's output: bytes of two pipes become lines of one file in the CRI log format
 *   2026-01-02T03:04:05.678901234Z stdout F text
 * (F: a whole line, P: a part of one that is longer than the limit or not ended yet). The file is
 * append-only; above its bound the oldest part is given back to the disk by punching a hole
 * (fallocate(2)), or where that is not possible the file begins anew. A full disk loses output and
 * never stops the program. */
#pragma once
#include "base/base.h"
#include "base/limits.h"

struct pump_stream {
    const char *name; /* "stdout" */
    size_t bytes;     /* of an unfinished line */
    char line[SANDBOX_LOG_LINE_BYTES_MAX];
};
struct pump {
    int file_fd;
    uint64_t written_bytes, punched_bytes, bytes_max, dropped_bytes;
    struct pump_stream streams[2]; /* stdout, stderr */
    size_t out_bytes;
    char out[32 * 1024];
};
void pump_init(struct pump *p, int file_fd, uint64_t bytes_max);
/* `now_s`, `now_ns`: wall clock. */
void pump_bytes(struct pump *p, unsigned stream, const char *data, size_t bytes, int64_t now_s,
                long now_ns);
void pump_end(struct pump *p, int64_t now_s, long now_ns); /* writes unfinished lines */
