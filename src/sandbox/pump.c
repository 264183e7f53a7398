/* pump.c - lines with a time in front. */
#include "sandbox/pump.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PUNCH_BYTES (256u * 1024u)

void pump_init(struct pump *p, int file_fd, uint64_t bytes_max)
{
    memset(p, 0, offsetof(struct pump, out));
    p->file_fd = file_fd;
    p->bytes_max = bytes_max;
    p->streams[0].name = "stdout";
    p->streams[1].name = "stderr";
    struct stat st;
    if (fstat(file_fd, &st) == 0)
        p->written_bytes = (uint64_t)st.st_size;
}

static void bound(struct pump *p)
{
    if (p->written_bytes - p->punched_bytes < p->bytes_max + PUNCH_BYTES)
        return;
    uint64_t until = (p->written_bytes - p->bytes_max) & ~UINT64_C(4095);
    if (fallocate(p->file_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)p->punched_bytes,
                  (off_t)(until - p->punched_bytes)) == 0) {
        p->punched_bytes = until;
    } else if (ftruncate(p->file_fd, 0) == 0) {
        p->written_bytes = p->punched_bytes = 0;
    }
}

static void flush(struct pump *p)
{
    size_t done = 0;
    while (done < p->out_bytes) {
        ssize_t n = write(p->file_fd, p->out + done, p->out_bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            p->dropped_bytes += p->out_bytes - done;
            break;
        }
        done += (size_t)n;
    }
    p->written_bytes += done;
    p->out_bytes = 0;
    bound(p);
}

static void line_write(struct pump *p, struct pump_stream *s, char tag, int64_t now_s, long now_ns)
{
    char head[80], stamp[32];
    time_t seconds = (time_t)now_s;
    struct tm tm;
    (void)gmtime_r(&seconds, &tm);
    (void)strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &tm);
    int n = snprintf(head, sizeof(head), "%s.%09ldZ %s %c ", stamp, now_ns, s->name, tag);
    if (p->out_bytes + (size_t)n + s->bytes + 1 > sizeof(p->out))
        flush(p);
    memcpy(p->out + p->out_bytes, head, (size_t)n);
    p->out_bytes += (size_t)n;
    memcpy(p->out + p->out_bytes, s->line, s->bytes);
    p->out_bytes += s->bytes;
    p->out[p->out_bytes++] = '\n';
    s->bytes = 0;
}

void pump_bytes(struct pump *p, unsigned stream, const char *data, size_t bytes, int64_t now_s,
                long now_ns)
{
    struct pump_stream *s = &p->streams[stream];
    while (bytes > 0) {
        const char *end = memchr(data, '\n', bytes);
        size_t line = end != NULL ? (size_t)(end - data) : bytes;
        size_t part = MIN(line, sizeof(s->line) - s->bytes);
        memcpy(s->line + s->bytes, data, part);
        s->bytes += part;
        data += part;
        bytes -= part;
        if (part < line || (end == NULL && s->bytes == sizeof(s->line))) {
            line_write(p, s, 'P', now_s, now_ns);
        } else if (end != NULL) {
            line_write(p, s, 'F', now_s, now_ns);
            data++;
            bytes--;
        }
    }
    flush(p);
}

void pump_end(struct pump *p, int64_t now_s, long now_ns)
{
    for (int i = 0; i < 2; i++)
        if (p->streams[i].bytes > 0)
            line_write(p, &p->streams[i], 'F', now_s, now_ns);
    flush(p);
}
