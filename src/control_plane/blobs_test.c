#include "base/limits.h"
#include "base/str.h"
#include "control_plane/blobs.h"
#include "control_plane/test_tar.h"
#include "test.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct bench {
    char dir[64], blobs_dir[96];
    struct loop *loop;
    struct blobs *blobs;
    bool done;
    enum err err;
    char digest[CODE_DIGEST_BYTES + 1];
    struct error error;
};

static void bench_open(struct bench *b, uint64_t staged_for_ms)
{
    struct error e = {0};
    REQUIRE(loop_new(&b->loop, &e) == ERR_OK);
    if (blobs_new(b->loop, b->blobs_dir, staged_for_ms, &b->blobs, &e) != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    REQUIRE(b->blobs != NULL);
}

static void bench_close(struct bench *b)
{
    blobs_free(b->blobs);
    b->blobs = NULL;
    loop_run_once(b->loop, 0);
    loop_free(b->loop);
}

static void bench_begin(struct bench *b, uint64_t staged_for_ms)
{
    *b = (struct bench){0};
    snprintf(b->dir, sizeof(b->dir), "/tmp/blobs-test-XXXXXX");
    REQUIRE(mkdtemp(b->dir) != NULL);
    snprintf(b->blobs_dir, sizeof(b->blobs_dir), "%s/blobs", b->dir);
    bench_open(b, staged_for_ms);
}

static void bench_end(struct bench *b)
{
    char command[128];
    bench_close(b);
    snprintf(command, sizeof(command), "rm -rf '%s'", b->dir);
    CHECK_EQ(system(command), 0);
}

static unsigned files_in(const struct bench *b)
{
    unsigned count = 0;
    DIR *dir = opendir(b->blobs_dir);
    REQUIRE(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.' || strlen(entry->d_name) > 2;
    closedir(dir);
    return count;
}

static void on_done(void *user, enum err err, const char *digest, uint64_t bytes,
                    const struct error *e)
{
    struct bench *b = user;
    b->done = true;
    b->err = err;
    b->error = *e;
    snprintf(b->digest, sizeof(b->digest), "%s", digest);
}

static enum err upload(struct bench *b, const void *data, size_t bytes)
{
    struct upload *u = NULL;
    struct error e = {0};
    REQUIRE(upload_begin(b->blobs, &u, &e) == ERR_OK);
    for (size_t at = 0; at < bytes; at += 1000)
        CHECK_EQ(upload_write(u, (const char *)data + at, MIN(1000, bytes - at), &e), ERR_OK);
    b->done = false;
    upload_finish(u, on_done, b);
    while (!b->done)
        loop_run_once(b->loop, 10000);
    return b->err;
}

TEST(an_archive_is_kept_under_its_digest_once_and_survives_a_restart)
{
    struct bench b;
    struct error e = {0};
    int fd = -1;
    uint64_t bytes = 0;
    bench_begin(&b, 60000);
    struct buf tar = make_tar("app.py", "print('hello')\n");
    CHECK_EQ(upload(&b, tar.data, tar.bytes), ERR_OK);
    CHECK_EQ(upload(&b, tar.data, tar.bytes), ERR_OK);
    CHECK_EQ(files_in(&b), 1);
    CHECK_EQ(blobs_count(b.blobs), 1);
    CHECK_EQ(blobs_bytes(b.blobs), tar.bytes);
    bench_close(&b);
    bench_open(&b, 60000);
    CHECK(blobs_touch(b.blobs, b.digest));
    REQUIRE(blobs_open(b.blobs, b.digest, &fd, &bytes, &e) == ERR_OK);
    char *back = mem_new(bytes);
    CHECK(bytes == tar.bytes && read(fd, back, bytes) == (ssize_t)bytes &&
          memcmp(back, tar.data, bytes) == 0);
    free(back);
    close(fd);
    CHECK(!blobs_touch(b.blobs, "sha256:../x"));
    CHECK_EQ(blobs_open(b.blobs, "sha256:../x", &fd, &bytes, &e), ERR_NOT_FOUND);
    buf_done(&tar);
    bench_end(&b);
}

TEST(what_is_no_sound_archive_is_not_kept)
{
    struct bench b;
    bench_begin(&b, 60000);
    struct buf tar = make_tar("app.py", "print('hello')\n");
    CHECK_EQ(upload(&b, "nothing like an archive", 23), ERR_INVALID);
    CHECK_EQ(upload(&b, "", 0), ERR_INVALID);
    CHECK_EQ(upload(&b, tar.data, 700), ERR_INVALID); /* cut short */
    CHECK(strlen(b.error.text) > 10);
    buf_done(&tar);
    tar = make_tar("/etc/passwd", "x");
    CHECK_EQ(upload(&b, tar.data, tar.bytes), ERR_INVALID);
    buf_done(&tar);
    CHECK_EQ(files_in(&b), 0);
    CHECK_EQ(blobs_count(b.blobs), 0);
    bench_end(&b);
}

TEST(an_upload_can_be_dropped_at_any_time)
{
    struct bench b;
    struct error e = {0};
    struct upload *u = NULL;
    bench_begin(&b, 60000);
    struct buf tar = make_tar("app.py", "x");
    REQUIRE(upload_begin(b.blobs, &u, &e) == ERR_OK);
    CHECK_EQ(upload_write(u, tar.data, 100, &e), ERR_OK);
    upload_cancel(u); /* while it comes in */
    CHECK_EQ(files_in(&b), 0);
    REQUIRE(upload_begin(b.blobs, &u, &e) == ERR_OK);
    CHECK_EQ(upload_write(u, tar.data, tar.bytes, &e), ERR_OK);
    upload_finish(u, on_done, &b);
    upload_cancel(u); /* while it is read through */
    REQUIRE(upload_begin(b.blobs, &u, &e) == ERR_OK);
    CHECK_EQ(upload_write(u, tar.data, 100, &e), ERR_OK);
    b.done = false;
    bench_end(&b); /* with one open */
    CHECK(!b.done);
    buf_done(&tar);
}

TEST(an_upload_has_a_limit)
{
    struct bench b;
    struct error e = {0};
    struct upload *u = NULL;
    static char zeros[1 << 20];
    enum err err = ERR_OK;
    uint64_t written = 0;
    bench_begin(&b, 60000);
    REQUIRE(upload_begin(b.blobs, &u, &e) == ERR_OK);
    for (; err == ERR_OK && written <= CODE_ARCHIVE_BYTES_MAX; written += sizeof(zeros))
        err = upload_write(u, zeros, sizeof(zeros), &e);
    CHECK_EQ(err, ERR_TOO_LARGE);
    CHECK_EQ(written, CODE_ARCHIVE_BYTES_MAX + sizeof(zeros));
    upload_cancel(u);
    CHECK_EQ(files_in(&b), 0);
    bench_end(&b);
}

static bool is_used(void *user, const char *digest)
{
    return strcmp(digest, user) == 0;
}

TEST(unused_code_goes_after_its_time_and_used_code_stays)
{
    struct bench b;
    char used[CODE_DIGEST_BYTES + 1];
    bench_begin(&b, 50);
    struct buf first = make_tar("a", "1"), second = make_tar("b", "2");
    CHECK_EQ(upload(&b, first.data, first.bytes), ERR_OK);
    memcpy(used, b.digest, sizeof(used));
    CHECK_EQ(upload(&b, second.data, second.bytes), ERR_OK);
    blobs_collect(b.blobs, is_used, used);
    CHECK_EQ(blobs_count(b.blobs), 2); /* just staged */
    uint64_t until = loop_update_now(b.loop) + 60 * NS_PER_MS;
    while (loop_update_now(b.loop) < until)
        loop_run_once(b.loop, 10);
    blobs_collect(b.blobs, is_used, used);
    CHECK_EQ(blobs_count(b.blobs), 1);
    CHECK_EQ(files_in(&b), 1);
    CHECK(blobs_touch(b.blobs, used));
    CHECK(!blobs_touch(b.blobs, b.digest));
    buf_done(&first);
    buf_done(&second);
    bench_end(&b);
}

TEST(leftovers_of_a_killed_run_are_swept)
{
    struct bench b;
    char path[160];
    bench_begin(&b, 60000);
    snprintf(path, sizeof(path), "%s/.upload-7", b.blobs_dir);
    close(open(path, O_WRONLY | O_CREAT, 0600));
    CHECK_EQ(files_in(&b), 1);
    bench_close(&b);
    bench_open(&b, 60000);
    CHECK_EQ(files_in(&b), 0);
    bench_end(&b);
}
