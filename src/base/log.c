/* log.c - one line an event. */
#include "base/log.h"
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX 4096

/* Process-wide by nature, set before threads start. */
static const char *log_program = "dirigent";
static enum log_level log_level_min = LOG_LEVEL_INFO;

void log_init(const char *program, enum log_level level_min)
{
    log_program = program;
    log_level_min = level_min;
}

static size_t put(char *line, size_t used, struct str s)
{
    size_t room = LINE_BYTES_MAX - 1 - used, bytes = MIN(s.bytes, room);
    if (bytes > 0)
        memcpy(line + used, s.data, bytes);
    return used + bytes;
}

static bool needs_quotes(struct str s)
{
    if (s.bytes == 0)
        return true;
    for (size_t i = 0; i < s.bytes; i++)
        if ((unsigned char)s.data[i] <= ' ' || s.data[i] == '"' || s.data[i] == '=' ||
            s.data[i] == '\\' || s.data[i] == 0x7f)
            return true;
    return false;
}

static size_t put_text(char *line, size_t used, struct str s)
{
    if (!needs_quotes(s))
        return put(line, used, s);
    used = put(line, used, STR("\""));
    for (size_t i = 0; i < s.bytes; i++) {
        unsigned char c = (unsigned char)s.data[i];
        char escaped[8];
        if (c == '"' || c == '\\')
            (void)snprintf(escaped, sizeof(escaped), "\\%c", c);
        else if (c == '\n')
            (void)snprintf(escaped, sizeof(escaped), "\\n");
        else if (c < ' ' || c == 0x7f)
            (void)snprintf(escaped, sizeof(escaped), "\\x%02x", c);
        else
            (void)snprintf(escaped, sizeof(escaped), "%c", c);
        used = put(line, used, str_of(escaped));
    }
    return put(line, used, STR("\""));
}

static size_t put_field(char *line, size_t used, const struct log_field *field)
{
    char number[32];
    used = put(line, used, STR(" "));
    used = put(line, used, str_of(field->key));
    used = put(line, used, STR("="));
    switch (field->kind) {
    case LOG_KIND_U64:
        (void)snprintf(number, sizeof(number), "%" PRIu64, field->u64);
        return put(line, used, str_of(number));
    case LOG_KIND_I64:
        (void)snprintf(number, sizeof(number), "%" PRId64, field->i64);
        return put(line, used, str_of(number));
    case LOG_KIND_STR:
        return put_text(line, used, field->str);
    }
    return used;
}

bool log_wants(enum log_level level)
{
    return level >= log_level_min;
}

void log_write(enum log_level level, const char *event, const struct log_field *fields,
               size_t field_count)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if (!log_wants(level))
        return;
    struct timespec t;
    (void)clock_gettime(CLOCK_REALTIME, &t);
    struct tm tm;
    (void)gmtime_r(&t.tv_sec, &tm);
    char line[LINE_BYTES_MAX], head[128], stamp[32];
    (void)strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(head, sizeof(head), "%s.%03ldZ %s %s ", stamp, t.tv_nsec / 1000000, names[level],
                   log_program);
    size_t used = put(line, 0, str_of(head));
    used = put(line, used, str_of(event));
    for (size_t i = 0; i < field_count; i++)
        used = put_field(line, used, &fields[i]);
    line[used++] = '\n'; /* put() always leaves room for it */
    (void)fd_write_all(STDERR_FILENO, line, used);
}
