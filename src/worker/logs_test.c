/* logs_test.c - output of sandboxes: found, limited, followed, removed. Files are written as a
 * sandbox's process 1 does. */
#include "base/limits.h"
#include "test.h"
#include "test_tree.h"
#include "worker/logs.h"

struct bench {
    struct loop *loop;
    struct logs *logs;
    char path[64];
    struct buf got; /* of request 1 */
    unsigned ends, others;
};

static void on_chunk(void *user, uint64_t request_id, struct str data, bool end)
{
    struct bench *b = user;
    if (request_id != 1) {
        b->others++;
        return;
    }
    if (data.bytes > 0)
        buf_append(&b->got, data.data, data.bytes);
    b->ends += end;
}

static void begin(struct bench *b)
{
    struct error e = {0};
    *b = (struct bench){0};
    REQUIRE(test_tree_new("logs-test", b->path, sizeof(b->path)));
    REQUIRE(loop_new(&b->loop, &e) == ERR_OK);
    REQUIRE(logs_new(b->loop, b->path, on_chunk, b, &b->logs, &e) == ERR_OK);
}

static void end(struct bench *b)
{
    logs_free(b->logs);
    loop_free(b->loop);
    buf_done(&b->got);
    test_tree_remove(AT_FDCWD, b->path);
}

static void settle(struct bench *b)
{
    for (int i = 0; i < 20; i++)
        loop_run_once(b->loop, 5);
}

/* Lines of one sandbox, one each second from `second` on. */
static void say(struct bench *b, uint64_t function_id, uint64_t sandbox_id, int second, int count,
                const char *word)
{
    struct error e = {0};
    int fd = -1;
    REQUIRE(logs_open(b->logs, function_id, sandbox_id, &fd, &e) == ERR_OK);
    for (int i = 0; i < count; i++) {
        char line[200];
        int n = snprintf(line, sizeof(line), "2026-01-02T03:04:%02d.000000000Z stdout F %s %d\n",
                         second + i, word, i);
        REQUIRE(write(fd, line, (size_t)n) == n);
    }
    (void)close(fd);
    settle(b);
}

static unsigned lines_in(const struct bench *b)
{
    unsigned lines = 0;
    for (size_t i = 0; i < b->got.bytes; i++)
        lines += b->got.data[i] == '\n';
    return lines;
}

static bool has(const struct bench *b, const char *text)
{
    return b->got.bytes > 0 && memmem(b->got.data, b->got.bytes, text, strlen(text)) != NULL;
}

static void get(struct bench *b, struct logs_query query)
{
    query.request_id = 1;
    b->got.bytes = 0;
    b->ends = 0;
    logs_get(b->logs, &query);
    settle(b);
}

TEST(lines_of_all_sandboxes_come_in_the_order_of_their_times)
{
    struct bench b;
    begin(&b);
    say(&b, 7, 0xa, 0, 3, "first");
    say(&b, 7, 0xb, 1, 3, "second");
    say(&b, 8, 0xc, 0, 3, "another");
    get(&b, (struct logs_query){.function_id = 7});
    CHECK_EQ(b.ends, 1);
    CHECK_EQ(lines_in(&b), 6);
    CHECK(has(&b, "000000000000000a 2026-01-02T03:04:00.000000000Z stdout F first 0\n"));
    CHECK(!has(&b, "another"));
    const char *a1 = memmem(b.got.data, b.got.bytes, "first 1", 7),
               *b0 = memmem(b.got.data, b.got.bytes, "second 0", 8);
    const char *b1 = memmem(b.got.data, b.got.bytes, "second 1", 8),
               *a2 = memmem(b.got.data, b.got.bytes, "first 2", 7);
    CHECK(a1 != NULL && b0 != NULL && a2 != NULL && b1 != NULL && a1 < a2 && b0 < b1 && a1 < b1);
    end(&b);
}

TEST(the_newest_lines_one_sandbox_and_a_time_can_be_asked_for)
{
    struct bench b;
    begin(&b);
    say(&b, 7, 0xa, 0, 10, "word");
    say(&b, 7, 0xb, 0, 10, "other");
    get(&b, (struct logs_query){.function_id = 7, .lines = 4});
    CHECK_EQ(lines_in(&b), 4);
    CHECK(has(&b, " 9\n") && !has(&b, " 0\n"));
    get(&b, (struct logs_query){.function_id = 7, .sandbox_id = 0xb});
    CHECK_EQ(lines_in(&b), 10);
    CHECK(!has(&b, "word"));
    get(&b,
        (struct logs_query){.function_id = 7, .since_ms = UINT64_C(1767323045000)}); /* 03:04:05 */
    CHECK_EQ(lines_in(&b), 10);
    CHECK(has(&b, "word 5\n") && !has(&b, "word 4\n"));
    get(&b, (struct logs_query){.function_id = 99});
    CHECK_EQ(b.ends, 1);
    CHECK_EQ(lines_in(&b), 0);
    end(&b);
}

TEST(a_follower_hears_what_comes_until_it_is_cancelled)
{
    struct bench b;
    begin(&b);
    say(&b, 7, 0xa, 0, 2, "before");
    get(&b, (struct logs_query){.function_id = 7, .follow = true});
    CHECK_EQ(lines_in(&b), 2);
    CHECK_EQ(b.ends, 0);
    say(&b, 7, 0xb, 5, 3, "later"); /* also of a sandbox that was not there yet */
    settle(&b);
    CHECK_EQ(lines_in(&b), 5);
    say(&b, 8, 0xc, 5, 3, "elsewhere");
    CHECK(!has(&b, "elsewhere"));
    logs_cancel(b.logs, 1);
    say(&b, 7, 0xd, 9, 3, "unheard");
    settle(&b);
    CHECK(!has(&b, "unheard"));
    end(&b);
}

TEST(what_is_half_written_is_told_when_it_is_whole)
{
    struct bench b;
    struct error e = {0};
    int fd = -1;
    begin(&b);
    REQUIRE(logs_open(b.logs, 7, 0xa, &fd, &e) == ERR_OK);
    settle(&b);
    get(&b, (struct logs_query){.function_id = 7, .follow = true});
    REQUIRE(write(fd, "2026-01-02T03:04:05.000000000Z stdout F ha", 42) == 42);
    settle(&b);
    CHECK_EQ(lines_in(&b), 0);
    REQUIRE(write(fd, "lf\n", 3) == 3);
    settle(&b);
    CHECK_EQ(lines_in(&b), 1);
    CHECK(has(&b, "stdout F half\n"));
    (void)close(fd);
    end(&b);
}

TEST(the_tail_is_plain_text_in_whole_lines)
{
    struct bench b;
    cleanup(buf_done) struct buf text = {0};
    begin(&b);
    say(&b, 7, 0xa, 0, 20, "a line of some words");
    logs_tail(b.logs, 7, 0xa, 100, &text);
    buf_append(&text, "", 1);
    CHECK(text.bytes <= 101);
    CHECK(strstr(text.data, "a line of some words 19\n") != NULL);
    CHECK(strncmp(text.data, "a line of some words", 20) == 0);
    CHECK(strstr(text.data, "2026") == NULL);
    end(&b);
}

TEST(of_a_function_that_is_gone_nothing_stays)
{
    struct bench b;
    begin(&b);
    say(&b, 7, 0xa, 0, 3, "gone");
    say(&b, 8, 0xb, 0, 3, "here");
    logs_function_gone(b.logs, 7);
    get(&b, (struct logs_query){.function_id = 7});
    CHECK_EQ(lines_in(&b), 0);
    get(&b, (struct logs_query){.function_id = 8});
    CHECK_EQ(lines_in(&b), 3);
    end(&b);
}

/* Whatever is in a file: an answer that ends. */
PROPERTY(damaged_files_are_survived)
{
    struct bench b;
    struct error e = {0};
    int fd = -1;
    char junk[3000];
    begin(&b);
    REQUIRE(logs_open(b.logs, 7, 0xa, &fd, &e) == ERR_OK);
    size_t bytes = rng_below(rng, sizeof(junk));
    for (size_t i = 0; i < bytes; i++)
        junk[i] = rng_below(rng, 40) == 0 ? '\n' : (char)rng_below(rng, 256);
    REQUIRE(write(fd, junk, bytes) == (ssize_t)bytes);
    (void)close(fd);
    for (int i = 0; i < 3; i++)
        loop_run_once(b.loop, 1);
    b.got.bytes = 0;
    logs_get(b.logs, &(struct logs_query){
                         .request_id = 1, .function_id = 7, .lines = (uint32_t)rng_below(rng, 10)});
    for (int i = 0; i < 3; i++)
        loop_run_once(b.loop, 1);
    CHECK_EQ(b.ends, 1);
    end(&b);
}
