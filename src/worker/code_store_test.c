/* code_store_test.c - fetch, verify, unpack, keep, forget; the control plane is played. */
#include "base/limits.h"
#include "test.h"
#include "test_tree.h"
#include "worker/code_store.h"
#include <archive.h>
#include <archive_entry.h>
#include <openssl/sha.h>
#include <sys/stat.h>

struct bench {
    struct loop *loop;
    struct code_store *store;
    char path[64];
    unsigned wanted, told;
    enum err err; /* as told last */
    int dir_fd;
    char why[256];
    const char *used; /* digest; NULL: none is */
};

static void on_want(void *user, const char *digest)
{
    struct bench *b = user;
    b->wanted++;
}
static void on_ready(void *user, const char *digest, enum err err, int dir_fd, const char *why)
{
    struct bench *b = user;
    b->told++;
    b->err = err;
    b->dir_fd = dir_fd;
    (void)snprintf(b->why, sizeof(b->why), "%s", why != NULL ? why : "");
}
static bool is_used(void *user, const char *digest)
{
    struct bench *b = user;
    return b->used != NULL && strcmp(b->used, digest) == 0;
}
static const struct code_store_callbacks callbacks = {on_want, on_ready, is_used};

static void open_store(struct bench *b)
{
    struct error e = {0};
    REQUIRE(code_store_new(b->loop, b->path, &callbacks, b, &b->store, &e) == ERR_OK);
}

static void begin(struct bench *b)
{
    struct error e = {0};
    *b = (struct bench){0};
    REQUIRE(test_tree_new("code-store-test", b->path, sizeof(b->path)));
    REQUIRE(loop_new(&b->loop, &e) == ERR_OK);
    open_store(b);
}

static void end(struct bench *b)
{
    code_store_free(b->store);
    loop_free(b->loop);
    test_tree_remove(AT_FDCWD, b->path);
}

static void settle(struct bench *b)
{
    for (int i = 0; i < 30; i++)
        loop_run_once(b->loop, 10);
}

static void wait_told(struct bench *b, unsigned count)
{
    for (int i = 0; i < 500 && b->told < count; i++)
        loop_run_once(b->loop, 10);
    REQUIRE(b->told == count);
}

struct code { /* an archive with one file that says `text` */
    char data[4096], digest[72];
    size_t bytes;
};

static struct code code_of(const char *text)
{
    struct code c = {0};
    unsigned char hash[SHA256_DIGEST_LENGTH];
    struct archive *a = archive_write_new();
    struct archive_entry *entry = archive_entry_new();
    archive_write_set_format_pax_restricted(a);
    REQUIRE(archive_write_open_memory(a, c.data, sizeof(c.data), &c.bytes) == ARCHIVE_OK);
    archive_entry_set_pathname(entry, "app.txt");
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_size(entry, (la_int64_t)strlen(text));
    REQUIRE(archive_write_header(a, entry) == ARCHIVE_OK);
    REQUIRE(archive_write_data(a, text, strlen(text)) == (la_ssize_t)strlen(text));
    archive_entry_free(entry);
    (void)archive_write_close(a);
    archive_write_free(a);
    (void)SHA256((unsigned char *)c.data, c.bytes, hash);
    (void)snprintf(c.digest, sizeof(c.digest), "sha256:");
    for (size_t i = 0; i < sizeof(hash); i++)
        (void)snprintf(c.digest + 7 + 2 * i, 3, "%02x", hash[i]);
    return c;
}

static void give(struct bench *b, const struct code *c, size_t piece)
{
    for (size_t at = 0; at < c->bytes; at += piece) {
        size_t n = MIN(piece, c->bytes - at);
        code_store_chunk(b->store, c->digest, at, c->bytes, (struct str){c->data + at, n}, "");
    }
}

static void check_content(const struct bench *b, int dir_fd, const char *text)
{
    char content[64] = "";
    cleanup(fd_close) int fd = openat(dir_fd, "app.txt", O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0 && read(fd, content, sizeof(content) - 1) == (ssize_t)strlen(text));
    CHECK_STR(content, text);
}

static void fetch(struct bench *b, const struct code *c)
{
    int dir_fd = -1;
    unsigned told = b->told;
    REQUIRE(code_store_need(b->store, c->digest, &dir_fd) == ERR_MORE);
    give(b, c, 1000);
    wait_told(b, told + 1);
    CHECK_EQ(b->err, ERR_OK);
}

TEST(code_comes_in_pieces_and_is_there_from_then_on)
{
    struct bench b;
    struct code c = code_of("hello");
    int dir_fd = -1;
    begin(&b);
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_MORE);
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_MORE);
    CHECK_EQ(b.wanted, 1); /* however many ask */
    give(&b, &c, 700);
    wait_told(&b, 1);
    CHECK_EQ(b.err, ERR_OK);
    check_content(&b, b.dir_fd, "hello");
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_OK);
    check_content(&b, dir_fd, "hello");
    end(&b);
}

TEST(after_a_restart_what_was_whole_is_there_and_the_rest_is_swept)
{
    struct bench b;
    struct code whole = code_of("whole"), cut = code_of("cut");
    int dir_fd = -1;
    begin(&b);
    fetch(&b, &whole);
    CHECK_EQ(code_store_need(b.store, cut.digest, &dir_fd), ERR_MORE);
    code_store_chunk(b.store, cut.digest, 0, cut.bytes, (struct str){cut.data, 100}, "");
    code_store_free(b.store);
    CHECK(test_tree_names(b.path) > 1);
    open_store(&b);
    settle(&b);
    CHECK_EQ(test_tree_names(b.path), 1);
    CHECK_EQ(code_store_need(b.store, whole.digest, &dir_fd), ERR_OK);
    check_content(&b, dir_fd, "whole");
    end(&b);
}

/* Each is told with a sentence, leaves nothing, and the next try is a new one. */
static void check_refused(struct bench *b, const struct code *c, enum err expected,
                          const char *says)
{
    wait_told(b, 1);
    if (b->err != expected || strstr(b->why, says) == NULL)
        test_fail(__FILE__, __LINE__, "%s: %s", err_name(b->err), b->why);
    settle(b);
    CHECK_EQ(test_tree_names(b->path), 0);
    int dir_fd;
    CHECK_EQ(code_store_need(b->store, c->digest, &dir_fd), ERR_MORE);
    CHECK_EQ(b->wanted, 2);
    end(b);
}

TEST(other_bytes_than_the_digest_says_are_refused)
{
    struct bench b;
    struct code c = code_of("hello"), other = code_of("other");
    int dir_fd;
    begin(&b);
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_MORE);
    memcpy(other.digest, c.digest, sizeof(c.digest));
    give(&b, &other, 1000);
    check_refused(&b, &c, ERR_CORRUPT, "");
}

TEST(what_is_no_archive_is_refused_by_the_child_that_unpacks)
{
    struct bench b;
    struct code c = code_of("hello");
    int dir_fd;
    unsigned char hash[SHA256_DIGEST_LENGTH];
    memset(c.data, 'x', c.bytes);
    (void)SHA256((unsigned char *)c.data, c.bytes, hash);
    for (size_t i = 0; i < sizeof(hash); i++)
        (void)snprintf(c.digest + 7 + 2 * i, 3, "%02x", hash[i]);
    begin(&b);
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_MORE);
    give(&b, &c, 1000);
    check_refused(&b, &c, ERR_INVALID, "archive");
}

TEST(the_control_planes_refusal_is_passed_on)
{
    struct bench b;
    struct code c = code_of("hello");
    int dir_fd;
    begin(&b);
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_MORE);
    code_store_chunk(b.store, c.digest, 0, 0, STR_NONE, "there is no such code");
    check_refused(&b, &c, b.err, "no such code");
}

TEST(a_lost_connection_begins_the_fetch_anew)
{
    struct bench b;
    struct code c = code_of("hello");
    int dir_fd;
    begin(&b);
    CHECK_EQ(code_store_need(b.store, c.digest, &dir_fd), ERR_MORE);
    code_store_chunk(b.store, c.digest, 0, c.bytes, (struct str){c.data, 100}, "");
    code_store_connected(b.store);
    CHECK_EQ(b.wanted, 2);
    give(&b, &c, 1000);
    wait_told(&b, 1);
    CHECK_EQ(b.err, ERR_OK);
    check_content(&b, b.dir_fd, "hello");
    end(&b);
}

TEST(what_is_no_digest_is_refused)
{
    static const char *const bad[] = {
        "", "sha256:", "md5:1234", "sha256:../../../../etc/passwd",
        "sha256:ZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZZ"};
    struct bench b;
    int dir_fd;
    begin(&b);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        CHECK_EQ(code_store_need(b.store, bad[i], &dir_fd), ERR_INVALID);
    CHECK_EQ(b.wanted, 0);
    code_store_chunk(b.store, "sha256:nobody asked", 0, 1, STR("x"), ""); /* passed over */
    CHECK_EQ(test_tree_names(b.path), 0);
    end(&b);
}

TEST(what_nothing_uses_goes_after_its_time_and_what_is_used_stays)
{
    struct bench b;
    struct code used = code_of("used"), idle = code_of("idle");
    const uint64_t hour_ns = 3600 * NS_PER_S;
    begin(&b);
    fetch(&b, &used);
    fetch(&b, &idle);
    b.used = used.digest;
    code_store_collect(b.store, 1 * hour_ns, hour_ns);
    code_store_collect(b.store, 2 * hour_ns - 1, hour_ns);
    settle(&b);
    CHECK_EQ(test_tree_names(b.path), 2);
    b.used = idle.digest; /* in use again: its time begins anew; the other's begins */
    code_store_collect(b.store, 2 * hour_ns, hour_ns);
    b.used = NULL;
    code_store_collect(b.store, 3 * hour_ns, hour_ns);
    settle(&b);
    CHECK_EQ(test_tree_names(b.path), 1);
    code_store_collect(b.store, 4 * hour_ns, hour_ns);
    settle(&b);
    CHECK_EQ(test_tree_names(b.path), 0);
    end(&b);
}

TEST(no_more_unused_trees_than_the_bound_are_kept_and_all_go_when_asked)
{
    struct bench b;
    begin(&b);
    for (unsigned i = 0; i < CODE_UNUSED_COUNT_MAX + 4; i++) {
        char text[16];
        (void)snprintf(text, sizeof(text), "%u", i);
        struct code c = code_of(text);
        fetch(&b, &c);
    }
    code_store_collect(b.store, NS_PER_S, 3600 * NS_PER_S);
    settle(&b);
    CHECK_EQ(test_tree_names(b.path), (int)CODE_UNUSED_COUNT_MAX);
    code_store_collect(b.store, 2 * NS_PER_S, 0);
    settle(&b);
    CHECK_EQ(test_tree_names(b.path), 0);
    size_t cursor = 0;
    CHECK(code_store_next(b.store, &cursor) == NULL);
    end(&b);
}
