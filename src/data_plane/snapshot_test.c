/* snapshot_test.c - what was written is read, and nothing else. */
#include "data_plane/snapshot.h"
#include "test.h"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *directory(void)
{
    static char path[64];
    (void)snprintf(path, sizeof(path), "/tmp/snapshot-test-XXXXXX");
    REQUIRE(mkdtemp(path) != NULL);
    return path;
}

static void directory_remove(const char *path)
{
    cleanup(free_pointer) char *file = mem_printf("%s/snapshot", path);
    (void)unlink(file);
    CHECK(rmdir(path) == 0); /* nothing else is left there */
}

static enum err read_back(const char *path, uint64_t now_ms, struct buf *payload)
{
    struct error e = {0};
    enum err err = snapshot_read(path, now_ms, payload, &e);
    CHECK((err == ERR_OK) == (e.text[0] == '\0'));
    if (err != ERR_OK)
        CHECK(strstr(e.text, path) != NULL);
    return err;
}

PROPERTY(what_was_written_last_is_read)
{
    const char *path = directory();
    char data[2000];
    for (int i = 0; i < 2; i++) {
        cleanup(buf_done) struct buf back = {0};
        struct error e = {0};
        size_t bytes = rng_below(rng, sizeof(data));
        for (size_t j = 0; j < bytes; j++)
            data[j] = (char)rng_below(rng, 256);
        CHECK_EQ(snapshot_write(path, (struct str){data, bytes}, &e), ERR_OK);
        CHECK_EQ(read_back(path, clock_real_ms(), &back), ERR_OK);
        CHECK(back.bytes == bytes && (bytes == 0 || memcmp(back.data, data, bytes) == 0));
    }
    directory_remove(path);
}

TEST(one_that_is_not_there_is_no_other_error)
{
    cleanup(buf_done) struct buf back = {0};
    const char *path = directory();
    CHECK_EQ(read_back(path, clock_real_ms(), &back), ERR_NOT_FOUND);
    directory_remove(path);
}

TEST(every_changed_or_missing_byte_is_found)
{
    const char *path = directory();
    struct error e = {0};
    cleanup(free_pointer) char *file = mem_printf("%s/snapshot", path);
    char *text = NULL;
    size_t bytes = 0;
    CHECK_EQ(snapshot_write(path, STR("routes and endpoints"), &e), ERR_OK);
    REQUIRE(file_read(file, 4096, &text, &bytes, &e) == ERR_OK);
    for (size_t i = 0; i < bytes; i++) {
        cleanup(buf_done) struct buf back = {0};
        int fd = open(file, O_WRONLY | O_TRUNC);
        char bad = (char)(text[i] ^ 1);
        CHECK(pwrite(fd, text, bytes, 0) == (ssize_t)bytes && pwrite(fd, &bad, 1, (off_t)i) == 1);
        enum err err = read_back(path, clock_real_ms(), &back);
        CHECK(err == ERR_CORRUPT || err == ERR_STALE);
        CHECK(ftruncate(fd, (off_t)i) == 0);
        err = read_back(path, clock_real_ms(), &back);
        CHECK(err == ERR_CORRUPT || err == ERR_STALE);
        CHECK_EQ(back.bytes, 0);
        (void)close(fd);
    }
    free(text);
    directory_remove(path);
}

TEST(an_old_one_is_refused_until_it_is_touched)
{
    cleanup(buf_done) struct buf back = {0};
    const char *path = directory();
    struct error e = {0};
    cleanup(free_pointer) char *file = mem_printf("%s/snapshot", path);
    CHECK_EQ(snapshot_write(path, STR("x"), &e), ERR_OK);
    struct timespec old[2] = {{.tv_sec = (time_t)(clock_real_ms() / 1000) - 60},
                              {.tv_sec = (time_t)(clock_real_ms() / 1000) - 60}};
    CHECK(utimensat(AT_FDCWD, file, old, 0) == 0);
    CHECK_EQ(read_back(path, clock_real_ms(), &back), ERR_STALE);
    snapshot_touch(path);
    CHECK_EQ(read_back(path, clock_real_ms(), &back), ERR_OK);
    CHECK_EQ(read_back(path, clock_real_ms() - SNAPSHOT_AGE_MS_MAX - 5000, &back),
             ERR_STALE); /* the clock was set back */
    directory_remove(path);
}

TEST(what_was_given_back_is_noted_until_the_next_snapshot)
{
    const char *path = directory();
    struct error e = {0};
    size_t count = 7;
    const struct snapshot_slots notes[] = {{1, 1, 4}, {2, 3, 0}, {1, 2, 2}};
    CHECK_EQ(snapshot_write(path, STR("x"), &e), ERR_OK);
    CHECK(snapshot_noted(path, &count) == NULL);
    CHECK_EQ(count, 0);
    snapshot_note(path, notes, 2);
    snapshot_note(path, &notes[2], 1);
    cleanup(free_pointer) struct snapshot_slots *back = snapshot_noted(path, &count);
    REQUIRE(count == 3);
    for (size_t i = 0; i < count; i++)
        CHECK(back[i].sandbox_id == notes[i].sandbox_id && back[i].left == notes[i].left);
    CHECK_EQ(snapshot_write(path, STR("y"), &e), ERR_OK);
    CHECK(snapshot_noted(path, &count) == NULL);
    snapshot_note(path, notes, 1);
    snapshot_remove(path);
    CHECK(rmdir(path) == 0); /* nothing is left */
}

TEST(a_directory_that_cannot_be_written_is_named)
{
    struct error e = {0};
    CHECK(snapshot_write("/nonexistent", STR("x"), &e) != ERR_OK);
    CHECK(strstr(e.text, "/nonexistent") != NULL);
}
