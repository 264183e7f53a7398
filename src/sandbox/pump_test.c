/* pump_test.c - bytes of two pipes become lines in the CRI format, bounded on the disk. */
#include "sandbox/pump.h"
#include "test.h"
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT_S 1767323045 /* 2026-01-02T03:04:05Z */
#define AT_NS 678901234L
#define STAMP "2026-01-02T03:04:05.678901234Z "

static struct pump *pump_new(uint64_t bytes_max)
{
    struct pump *p = mem_new(sizeof(*p));
    char path[] = "/tmp/pump-test-XXXXXX";
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    (void)unlink(path);
    REQUIRE(fcntl(fd, F_SETFL, O_APPEND) == 0);
    pump_init(p, fd, bytes_max);
    return p;
}

static void say(struct pump *p, unsigned stream, const char *text)
{
    pump_bytes(p, stream, text, strlen(text), AT_S, AT_NS);
}

/* What is in the file; holes read as zeroes. The caller frees. */
static char *written(const struct pump *p, size_t *ret_bytes)
{
    struct stat st;
    REQUIRE(fstat(p->file_fd, &st) == 0);
    char *text = mem_new((size_t)st.st_size + 1);
    REQUIRE(pread(p->file_fd, text, (size_t)st.st_size, 0) == st.st_size);
    if (ret_bytes != NULL)
        *ret_bytes = (size_t)st.st_size;
    return text;
}

static void check_file(struct pump *p, const char *expected)
{
    cleanup(free_pointer) char *text = written(p, NULL);
    CHECK_STR(text, expected);
}

static void pump_free(struct pump *p)
{
    (void)close(p->file_fd);
    free(p);
}

TEST(whole_lines_of_both_streams_are_told_apart)
{
    struct pump *p = pump_new(MIB);
    say(p, 0, "one\ntwo\n");
    say(p, 1, "three\n");
    check_file(p, STAMP "stdout F one\n" STAMP "stdout F two\n" STAMP "stderr F three\n");
    pump_free(p);
}

TEST(a_line_that_comes_in_pieces_is_one_line)
{
    struct pump *p = pump_new(MIB);
    say(p, 0, "he");
    say(p, 1, "between\n");
    say(p, 0, "llo");
    say(p, 0, "\n\n");
    check_file(p, STAMP "stderr F between\n" STAMP "stdout F hello\n" STAMP "stdout F \n");
    pump_free(p);
}

TEST(what_is_not_ended_is_written_at_the_end)
{
    struct pump *p = pump_new(MIB);
    say(p, 0, "no end");
    say(p, 1, "nor here");
    check_file(p, "");
    pump_end(p, AT_S, AT_NS);
    cleanup(free_pointer) char *text = written(p, NULL);
    CHECK(strstr(text, "stdout P no end\n") != NULL || strstr(text, "stdout F no end\n") != NULL);
    CHECK(strstr(text, "stderr P nor here\n") != NULL ||
          strstr(text, "stderr F nor here\n") != NULL);
    pump_free(p);
}

/* Cut anywhere, the same bytes make the same text; long lines come in parts that join to what was
 * said. */
PROPERTY(cuts_change_nothing)
{
    struct pump *whole = pump_new(MIB), *cut = pump_new(MIB);
    size_t bytes = rng_below(rng, 3 * SANDBOX_LOG_LINE_BYTES_MAX);
    cleanup(free_pointer) char *text = mem_new(bytes + 1);
    for (size_t i = 0; i < bytes; i++)
        text[i] = rng_below(rng, 200) == 0 ? '\n' : (char)('a' + rng_below(rng, 26));
    pump_bytes(whole, 0, text, bytes, AT_S, AT_NS);
    for (size_t at = 0; at < bytes;) {
        size_t n = 1 + rng_below(rng, 5000);
        n = MIN(n, bytes - at);
        pump_bytes(cut, 0, text + at, n, AT_S, AT_NS);
        at += n;
    }
    pump_end(whole, AT_S, AT_NS);
    pump_end(cut, AT_S, AT_NS);
    size_t whole_bytes, cut_bytes;
    cleanup(free_pointer) char *a = written(whole, &whole_bytes);
    cleanup(free_pointer) char *b = written(cut, &cut_bytes);
    CHECK(whole_bytes == cut_bytes && memcmp(a, b, whole_bytes) == 0);
    size_t joined = 0;
    const size_t head = sizeof(STAMP "stdout F ") - 1;
    for (char *line = b; line < b + cut_bytes;) {
        char *end = memchr(line, '\n', (size_t)(b + cut_bytes - line));
        REQUIRE(end != NULL && (size_t)(end - line) >= head);
        CHECK(memcmp(line, STAMP "stdout ", head - 2) == 0);
        size_t n = (size_t)(end - line) - head;
        CHECK(n <= SANDBOX_LOG_LINE_BYTES_MAX);
        CHECK(joined + n <= bytes && memcmp(text + joined, line + head, n) == 0);
        joined += n;
        if (line[head - 2] == 'F' && joined < bytes)
            CHECK(text[joined++] == '\n');
        line = end + 1;
    }
    CHECK_EQ(joined, bytes);
    pump_free(whole);
    pump_free(cut);
}

TEST(the_disk_holds_no_more_than_the_bound_and_the_newest_stay)
{
    enum { BOUND = 256 * 1024 };
    struct pump *p = pump_new(BOUND);
    struct stat st;
    char line[1000];
    for (int i = 0; i < 5000; i++) {
        (void)snprintf(line, sizeof(line), "line %d %0*d\n", i, 500, i);
        say(p, 0, line);
    }
    REQUIRE(fstat(p->file_fd, &st) == 0);
    CHECK(st.st_blocks * 512 <= 2 * BOUND);
    size_t bytes;
    cleanup(free_pointer) char *text = written(p, &bytes);
    CHECK(memmem(text, bytes, "line 4999 ", 10) != NULL);
    CHECK(memmem(text, bytes, "line 0 ", 7) == NULL);
    pump_free(p);
}

TEST(binary_bytes_pass)
{
    static const char odd[] = "a\0b\xff\n";
    struct pump *p = pump_new(MIB);
    pump_bytes(p, 0, odd, sizeof(odd) - 1, AT_S, AT_NS);
    size_t bytes;
    cleanup(free_pointer) char *text = written(p, &bytes);
    CHECK(memmem(text, bytes, "stdout F a\0b\xff\n", 14) != NULL);
    pump_free(p);
}

/* In a file system of its own, in a mount namespace that goes with the child. */
static void fill_small_disk(void)
{
    static struct pump p;
    char text[1000];
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("none", "/mnt", "tmpfs", 0, "size=64k") != 0)
        _exit(77);
    int fd = open("/mnt/log", O_RDWR | O_CREAT | O_APPEND, 0600);
    pump_init(&p, fd, MIB);
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\n';
    for (int i = 0; i < 300; i++)
        pump_bytes(&p, 0, text, sizeof(text), AT_S, AT_NS);
    _exit(p.dropped_bytes > 0 && p.written_bytes > 0 ? 0 : 1);
}

TEST(a_full_disk_loses_output_and_stops_nobody)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        fill_small_disk();
    REQUIRE(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        test_skip("needs root and a mount namespace");
    else
        CHECK_EQ(WEXITSTATUS(status), 0);
}
