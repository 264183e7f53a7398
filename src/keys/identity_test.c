/* identity_test.c - a program's key and certificate on disk: loading, renewing, crashes at every
 * step. */
#include "keys/authority.h"
#include "keys/fixture.h"
#include "keys/identity.h"
#include "keys/key_file.h"
#include "test.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/x509.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- system calls that fail, or kill, at a chosen one (meson.build: --wrap) ---- */

static struct {
    long until;       /* how many calls still go well; negative: all */
    int failure;      /* an errno, or 0: the process dies */
    bool no_exchange; /* a file system without RENAME_EXCHANGE */
} fault = {.until = -1};

static bool fault_is_due(void)
{
    return fault.until >= 0 && fault.until-- == 0;
}

/* Dead before a call is dead after the one before it: all states that a crash can leave come about.
 */
static bool fault_strikes(void)
{
    if (fault.failure == 0)
        _exit(9);
    errno = fault.failure;
    return true;
}

#define CALL(type, name, parameters, arguments) \
    type __real_##name parameters;              \
    type __wrap_##name parameters;              \
    type __wrap_##name parameters               \
    {                                           \
        if (fault_is_due() && fault_strikes())  \
            return -1;                          \
        return __real_##name arguments;         \
    }
/* clang-format off */
CALL(ssize_t, write, (int fd, const void *data, size_t bytes), (fd, data, bytes))
CALL(int, fsync, (int fd), (fd))
CALL(int, rename, (const char *from, const char *to), (from, to))
CALL(int, unlink, (const char *path), (path))
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode))
CALL(int, rmdir, (const char *path), (path))
CALL(int, fchmod, (int fd, mode_t mode), (fd, mode))
int __real_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
CALL(int, exchange, (int from_fd, const char *from, int to_fd, const char *to, unsigned flags), (from_fd, from, to_fd, to, flags))
/* clang-format on */

/* what open() is with offsets of 64 bits, which Meson asks for */
int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...)
{
    va_list more;
    va_start(more, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
    va_end(more);
    if (fault_is_due() && fault_strikes())
        return -1;
    return __real_open64(path, flags, mode);
}

int __real_exchange(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    return __real_renameat2(from_fd, from, to_fd, to, flags);
}

int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags);
int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    if (fault.no_exchange) {
        errno = EINVAL;
        return -1;
    }
    return __wrap_exchange(from_fd, from, to_fd, to, flags);
}

/* ---- one node and its cluster ---- */

struct node {
    struct authority_bundle bundle;
    char *dir;
    struct subject subject;
};

static void node_done(struct node *n)
{
    fault.until = -1;
    fault.no_exchange = false;
    authority_bundle_done(&n->bundle);
    scratch_done(&n->dir);
}

static struct node node_make_in(struct authority_bundle bundle)
{
    struct node n = {.bundle = bundle, .dir = scratch_make()};
    REQUIRE(subject_make(STR("prod"), NODE_WORKER, STR("w-1"), &n.subject, NULL) == ERR_OK);
    return n;
}

static struct node node_make(void)
{
    return node_make_in(make_bundle("prod"));
}

/* Another machine of the same cluster; the cluster goes with the last one. */
static void node_next(struct node *n)
{
    struct authority_bundle bundle = n->bundle;
    n->bundle = (struct authority_bundle){0};
    node_done(n);
    *n = node_make_in(bundle);
}

/* What a control plane would answer. */
static void answer(const struct node *n, struct str csr, uint64_t now_s, struct buf *certificate,
                   struct buf *roots)
{
    struct issue_order order = {.subject = n->subject};
    REQUIRE(authority_issue(authority_bundle_signer(&n->bundle), csr, &order, now_s, certificate,
                            NULL) == ERR_OK);
    authority_bundle_roots(&n->bundle, roots);
}

static enum err renew(const struct node *n, uint64_t now_s, struct error *e)
{
    struct buf csr cleanup(buf_done) = {0}, certificate cleanup(buf_done) = {0},
                   roots cleanup(buf_done) = {0};
    enum err err = identity_request(n->dir, &csr, e);
    if (err != ERR_OK)
        return err;
    answer(n, buf_str(&csr), now_s, &certificate, &roots);
    return identity_install(n->dir, buf_str(&certificate), buf_str(&roots), &n->subject, now_s, e);
}

static enum err load(const struct node *n, uint64_t now_s, struct identity *ret, struct error *e)
{
    return identity_load(n->dir, &n->subject, now_s, ret, e);
}

static char *file_of(const struct node *n, const char *name)
{
    return mem_printf("%s/%s", n->dir, name);
}

TEST(a_node_that_never_joined_is_told_so)
{
    struct node n cleanup(node_done) = node_make();
    struct identity i = {0};
    struct error e = {0};
    CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_NOT_FOUND);
    CHECK(strstr(e.text, n.dir) != NULL && strstr(e.text, "has not joined a cluster yet") != NULL);
    CHECK_EQ(identity_install(n.dir, STR("x"), STR("y"), &n.subject, NOW_S, &e), ERR_CONFLICT);
    CHECK_EQ(identity_install_roots(n.dir, STR("y"), NOW_S, &e), ERR_NOT_FOUND);
}

TEST(what_was_installed_is_loaded)
{
    struct node n cleanup(node_done) = node_make();
    struct identity i cleanup(identity_done) = {0};
    struct error e = {0};
    REQUIRE(renew(&n, NOW_S, &e) == ERR_OK);
    REQUIRE(load(&n, NOW_S, &i, &e) == ERR_OK);
    CHECK(subject_equal(&i.subject, &n.subject));
    CHECK_EQ(X509_check_private_key(i.certificate, i.key), 1);
    CHECK_EQ(i.times.not_after_s, NOW_S + 24 * 3600);
    struct stat st;
    char *key cleanup(free_pointer) = file_of(&n, "tls/key.pem"),
              *next cleanup(free_pointer) = file_of(&n, "tls.next");
    REQUIRE(stat(key, &st) == 0);
    CHECK_EQ(st.st_mode & 07777, 0600);
    CHECK(access(next, F_OK) != 0);
}

TEST(renewal_is_due_before_half_of_life_and_not_for_all_at_once)
{
    struct node n cleanup(node_done) = node_make();
    uint64_t first = UINT64_MAX, last = 0;
    for (int k = 0; k < 8; k++) {
        struct identity i cleanup(identity_done) = {0};
        REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK && load(&n, NOW_S, &i, NULL) == ERR_OK);
        uint64_t due_s = identity_renew_s(&i);
        CHECK(due_s <= NOW_S + 12 * 3600 && due_s >= NOW_S + 9 * 3600);
        first = due_s < first ? due_s : first;
        last = due_s > last ? due_s : last;
    }
    CHECK(last - first > 600);
}

TEST(a_waiting_key_is_kept_until_it_is_answered_or_forgotten)
{
    struct node n cleanup(node_done) = node_make();
    struct buf a cleanup(buf_done) = {0}, b cleanup(buf_done) = {0}, c cleanup(buf_done) = {0};
    REQUIRE(identity_request(n.dir, &a, NULL) == ERR_OK &&
            identity_request(n.dir, &b, NULL) == ERR_OK);
    EVP_PKEY *first cleanup(key_free) = NULL, *again cleanup(key_free) = NULL,
                    *other cleanup(key_free) = NULL;
    REQUIRE(csr_read(buf_str(&a), &first, NULL) == ERR_OK &&
            csr_read(buf_str(&b), &again, NULL) == ERR_OK);
    CHECK_EQ(EVP_PKEY_eq(first, again), 1);
    REQUIRE(identity_forget_request(n.dir, NULL) == ERR_OK &&
            identity_forget_request(n.dir, NULL) == ERR_OK);
    REQUIRE(identity_request(n.dir, &c, NULL) == ERR_OK &&
            csr_read(buf_str(&c), &other, NULL) == ERR_OK);
    CHECK(EVP_PKEY_eq(first, other) != 1);
}

TEST(each_file_is_checked_and_named)
{
    struct node n cleanup(node_done) = node_make(), m cleanup(node_done) = node_make();
    REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK && renew(&m, NOW_S, NULL) == ERR_OK);
    static const char *const files[] = {"tls/key.pem", "tls/cert.pem", "tls/roots.pem"};
    for (size_t k = 0; k < ARRAY_COUNT(files); k++) {
        struct identity i = {0};
        struct error e = {0};
        char *path cleanup(free_pointer) = file_of(&n, files[k]),
                   *other cleanup(free_pointer) = file_of(&m, files[k]);
        char *own cleanup(free_pointer) = file_text(path),
                  *foreign cleanup(free_pointer) = file_text(other);
        /* another cluster's */
        REQUIRE(key_file_write(path, 0600, str_of(foreign), NULL) == ERR_OK);
        enum err err = load(&n, NOW_S, &i, &e);
        CHECK(err == ERR_INVALID || err == ERR_PERMISSION);
        CHECK(strstr(e.text, n.dir) != NULL && strstr(e.text, ".pem") != NULL);
        CHECK(strstr(e.text, k < 2 ? "does not belong to the key" : "not trusted here") != NULL);
        /* empty, cut off, gone */
        REQUIRE(key_file_write(path, 0600, STR_NONE, NULL) == ERR_OK);
        CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_INVALID);
        CHECK(strstr(e.text, path) != NULL && strstr(e.text, "empty") != NULL);
        REQUIRE(key_file_write(path, 0600, (struct str){own, strlen(own) / 2}, NULL) == ERR_OK);
        CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_INVALID);
        CHECK(strstr(e.text, path) != NULL && strstr(e.text, "cut off") != NULL);
        REQUIRE(unlink(path) == 0);
        CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_CORRUPT);
        CHECK(strstr(e.text, path) != NULL && strstr(e.text, "missing") != NULL);
        REQUIRE(key_file_write(path, 0600, str_of(own), NULL) == ERR_OK);
    }
    struct identity i cleanup(identity_done) = {0};
    struct error e = {0};
    CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_OK);
    identity_done(&i);
    char *key cleanup(free_pointer) = file_of(&n, "tls/key.pem");
    REQUIRE(chmod(key, 0644) == 0);
    CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, key) != NULL && strstr(e.text, "0644") != NULL);
}

TEST(time_and_role_are_checked_at_load)
{
    struct node n cleanup(node_done) = node_make();
    struct identity i cleanup(identity_done) = {0};
    struct error e = {0};
    REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK);
    CHECK_EQ(load(&n, NOW_S + 25 * 3600, &i, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "tls/cert.pem") != NULL &&
          strstr(e.text, "join again with a new token") != NULL);
    CHECK_EQ(load(&n, NOW_S - 3600, &i, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "is one of the clocks wrong?") != NULL);
    CHECK_EQ(load(&n, NOW_S + 3600, &i, &e), ERR_OK);
    identity_done(&i);
    struct subject data_plane = {.role = NODE_DATA_PLANE};
    CHECK_EQ(identity_load(n.dir, &data_plane, NOW_S, &i, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "that of worker 'w-1'") != NULL &&
          strstr(e.text, "not of data-plane") != NULL);
}

TEST(a_wrong_answer_leaves_what_was_there)
{
    struct node n cleanup(node_done) = node_make(), m cleanup(node_done) = node_make();
    struct buf csr cleanup(buf_done) = {0}, certificate cleanup(buf_done) = {0},
                   roots cleanup(buf_done) = {0};
    struct identity i cleanup(identity_done) = {0};
    struct error e = {0};
    REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK && renew(&m, NOW_S, NULL) == ERR_OK);
    REQUIRE(identity_request(n.dir, &csr, NULL) == ERR_OK);
    char *own_path cleanup(free_pointer) = file_of(&n, "tls/cert.pem"),
                   *own cleanup(free_pointer) = file_text(own_path);
    answer(&m, buf_str(&csr), NOW_S, &certificate, &roots);
    struct buf right cleanup(buf_done) = {0};
    authority_bundle_roots(&n.bundle, &right);
    CHECK_EQ(identity_install(n.dir, buf_str(&certificate), buf_str(&right), &n.subject, NOW_S, &e),
             ERR_PERMISSION);
    CHECK_EQ(identity_install(n.dir, str_of(own), buf_str(&right), &n.subject, NOW_S, &e),
             ERR_INVALID); /* other key */
    CHECK_EQ(identity_install(n.dir, STR("x"), buf_str(&right), &n.subject, NOW_S, &e),
             ERR_INVALID);
    CHECK_EQ(identity_install(n.dir, buf_str(&certificate), STR("x"), &n.subject, NOW_S, &e),
             ERR_INVALID);
    CHECK(strstr(e.text, "is not installed") != NULL);
    CHECK_EQ(load(&n, NOW_S, &i, &e), ERR_OK);
    char *after cleanup(free_pointer) = file_text(own_path);
    CHECK_STR(after, own);
}

TEST(roots_of_a_rotation_come_between_renewals)
{
    struct node n cleanup(node_done) = node_make();
    struct identity i cleanup(identity_done) = {0};
    struct buf roots cleanup(buf_done) = {0};
    struct error e = {0};
    REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK &&
            authority_bundle_begin(&n.bundle, NOW_S, NULL) == ERR_OK);
    authority_bundle_roots(&n.bundle, &roots);
    REQUIRE(identity_install_roots(n.dir, buf_str(&roots), NOW_S, &e) == ERR_OK);
    REQUIRE(load(&n, NOW_S, &i, &e) == ERR_OK);
    CHECK_EQ(i.roots.count, 2);
    REQUIRE(authority_bundle_switch(&n.bundle, NOW_S, 0, true, NULL) == ERR_OK);
    REQUIRE(authority_bundle_finish(&n.bundle, NOW_S, 0, true, NULL) == ERR_OK);
    roots.bytes = 0;
    authority_bundle_roots(&n.bundle, &roots); /* they would leave this node out */
    CHECK_EQ(identity_install_roots(n.dir, buf_str(&roots), NOW_S, &e), ERR_PERMISSION);
    CHECK(strstr(e.text, "not installed") != NULL);
    REQUIRE(renew(&n, NOW_S, &e) == ERR_OK);
    identity_done(&i);
    REQUIRE(load(&n, NOW_S, &i, &e) == ERR_OK);
    CHECK_EQ(i.roots.count, 1);
}

/* ---- crashes ---- */

/* Asks and installs in a process of its own that dies at its k-th call. Whether it came to its end.
 */
static bool renew_and_die(const struct node *n, long k)
{
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        fault.until = k;
        fault.failure = 0;
        _exit(renew(n, NOW_S + 60, NULL) == ERR_OK ? 0 : 1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 9);
    return WEXITSTATUS(status) == 0;
}

static void check_after_crash(struct node *n, bool had_one, long k)
{
    struct identity i cleanup(identity_done) = {0};
    struct error e = {0};
    enum err err = load(n, NOW_S + 60, &i, &e);
    if (err != ERR_OK && (had_one || err != ERR_NOT_FOUND))
        test_fail(__FILE__, __LINE__, "dead before call %ld: %s", k, e.text);
    if (renew(n, NOW_S + 120, &e) != ERR_OK)
        test_fail(__FILE__, __LINE__, "dead before call %ld, then: %s", k, e.text);
    identity_done(&i);
    CHECK_EQ(load(n, NOW_S + 120, &i, &e), ERR_OK);
    CHECK_EQ(i.times.not_before_s, NOW_S + 120 - 300);
    char *left cleanup(free_pointer) = mem_printf("%s/tls.next", n->dir),
               *old cleanup(free_pointer) = file_of(n, "tls.old");
    CHECK(access(left, F_OK) != 0 && access(old, F_OK) != 0);
}

static void die_at_every_call(bool had_one, bool no_exchange)
{
    struct node n cleanup(node_done) = node_make();
    long k = 0;
    for (bool finished = false; !finished; k++) {
        node_next(&n);
        fault.no_exchange = no_exchange;
        if (had_one)
            REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK);
        finished = renew_and_die(&n, k);
        check_after_crash(&n, had_one, k);
    }
    CHECK(k > 10); /* it did die on the way */
}

TEST(killed_at_any_call_a_first_join_is_whole_or_not_there)
{
    die_at_every_call(false, false);
}

TEST(killed_at_any_call_a_renewal_leaves_old_or_new)
{
    die_at_every_call(true, false);
}

TEST(killed_at_any_call_also_without_an_exchange_of_directories)
{
    die_at_every_call(true, true);
}

/* Each call fails in turn: a sentence, the old identity in force, and the next try goes well. */
TEST(a_call_that_fails_is_told_and_breaks_nothing)
{
    struct node n cleanup(node_done) = node_make();
    long k = 0, told = 0;
    for (bool reached = true; reached; k++) {
        struct error e = {0};
        node_next(&n);
        REQUIRE(renew(&n, NOW_S, NULL) == ERR_OK);
        fault.failure = EIO;
        fault.until = k;
        enum err err = renew(&n, NOW_S + 60, &e);
        reached = fault.until < 0;
        fault.until = -1;
        told += err != ERR_OK;
        CHECK(err == ERR_OK || strstr(e.text, n.dir) != NULL);
        check_after_crash(&n, true, k);
    }
    CHECK(told > 10);
}
