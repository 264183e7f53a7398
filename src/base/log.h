/* log.h - one event, one line, fields not prose, to stderr:
 *   2026-01-02T03:04:05.678Z info worker sandbox.ready sandbox=… start_us=412
 * `error` needs a person, `warn` was got round, `info` is a change of state, `debug` is for us.
 * The program name and level are process-wide and set once in main() before threads start. Values
 * with spaces, quotes or control characters are quoted and escaped. Any thread; one write(2) a
 * line. */
#pragma once
#include "base/base.h"
#include "base/str.h"

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };
struct log_field {
    const char *key;
    enum { LOG_KIND_U64, LOG_KIND_I64, LOG_KIND_STR } kind;
    union {
        uint64_t u64;
        int64_t i64;
        struct str str;
    };
};
#define LOG_U64(k, v) ((struct log_field){.key = (k), .kind = LOG_KIND_U64, .u64 = (v)})
#define LOG_I64(k, v) ((struct log_field){.key = (k), .kind = LOG_KIND_I64, .i64 = (v)})
#define LOG_STR(k, v) ((struct log_field){.key = (k), .kind = LOG_KIND_STR, .str = str_of(v)})
#define LOG_SPAN(k, v) ((struct log_field){.key = (k), .kind = LOG_KIND_STR, .str = (v)})

void log_init(const char *program, enum log_level level_min);
bool log_wants(enum log_level level);
void log_write(enum log_level level, const char *event, const struct log_field *fields,
               size_t field_count);
#define LOG_AT(level, event, ...)                                    \
    log_write(level, event, (const struct log_field[]){__VA_ARGS__}, \
              sizeof((const struct log_field[]){__VA_ARGS__}) / sizeof(struct log_field))
/* On the way of every order: its fields are not even gathered when nobody wants them. */
#define log_debug(event, ...)                            \
    do {                                                 \
        if (log_wants(LOG_LEVEL_DEBUG))                  \
            LOG_AT(LOG_LEVEL_DEBUG, event, __VA_ARGS__); \
    } while (0)
#define log_info(event, ...) LOG_AT(LOG_LEVEL_INFO, event, __VA_ARGS__)
#define log_warn(event, ...) LOG_AT(LOG_LEVEL_WARN, event, __VA_ARGS__)
#define log_error(event, ...) LOG_AT(LOG_LEVEL_ERROR, event, __VA_ARGS__)
