/* settings_test.c - precedence, checks and the nearest known name. */
#include "base/log.h"
#include "base/settings.h"
#include "test.h"
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

struct values {
    char *data_dir, *listen;
    uint64_t threads, stop_grace, memory;
    bool verbose;
};
static const struct setting table[] = {
    {"data_dir", SETTING_STRING, "/var/lib/x", "where", offsetof(struct values, data_dir)},
    {"listen", SETTING_ADDRESS, "0.0.0.0:8080", "address", offsetof(struct values, listen)},
    {"threads", SETTING_UINT, "2", "threads", offsetof(struct values, threads)},
    {"stop_grace", SETTING_MILLIS, "10s", "grace", offsetof(struct values, stop_grace)},
    {"memory", SETTING_BYTES, "0", "memory", offsetof(struct values, memory)},
    {"verbose", SETTING_BOOL, "false", "more", offsetof(struct values, verbose)},
};

static enum err load(struct values *v, struct error *e, int argc, ...)
{
    char *argv[16] = {(char *)"test"};
    __builtin_va_list args;
    __builtin_va_start(args, argc);
    for (int i = 1; i <= argc; i++)
        argv[i] = __builtin_va_arg(args, char *);
    __builtin_va_end(args);
    *v = (struct values){0};
    *e = (struct error){0};
    return settings_load("test", "A test.", table, ARRAY_COUNT(table), argc + 1, argv, v, e);
}

static void done(struct values *v)
{
    settings_done(table, ARRAY_COUNT(table), v);
}

TEST(defaults_hold_when_nothing_is_said)
{
    struct values v;
    struct error e;
    CHECK_EQ(load(&v, &e, 0), ERR_OK);
    CHECK_STR(v.data_dir, "/var/lib/x");
    CHECK_EQ(v.stop_grace, 10000);
    CHECK_EQ(v.threads, 2);
    done(&v);
}

TEST(flag_beats_environment_beats_file)
{
    char path[] = "/tmp/settings_test_XXXXXX";
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    static const char text[] = "data_dir: /file\nthreads: 3\nmemory: 256Mi\nstop-grace: 500ms\n";
    CHECK_EQ(fd_write_all(fd, text, sizeof(text) - 1), ERR_OK);
    fd_close(&fd);
    setenv("DIRIGENT_DATA_DIR", "/env", 1);
    setenv("DIRIGENT_THREADS", "4", 1);
    struct values v;
    struct error e;
    CHECK_EQ(load(&v, &e, 4, "--config", path, "--data-dir=/flag", "--verbose"), ERR_OK);
    CHECK_STR(v.data_dir, "/flag");
    CHECK_EQ(v.threads, 4);
    CHECK_EQ(v.memory, 256 * MIB);
    CHECK_EQ(v.stop_grace, 500);
    CHECK(v.verbose);
    done(&v);
    unsetenv("DIRIGENT_DATA_DIR");
    unsetenv("DIRIGENT_THREADS");
    unlink(path);
}

TEST(wrong_input_names_what_is_wrong)
{
    struct values v;
    struct error e;
    CHECK_EQ(load(&v, &e, 2, "--thread", "4"), ERR_USAGE);
    CHECK(strstr(e.text, "did you mean --threads") != NULL);
    done(&v);
    CHECK_EQ(load(&v, &e, 2, "--threads", "four"), ERR_USAGE);
    CHECK_STR(e.field, "threads");
    done(&v);
    CHECK_EQ(load(&v, &e, 1, "--threads"), ERR_USAGE);
    CHECK(strstr(e.text, "needs a value") != NULL);
    done(&v);
    CHECK_EQ(load(&v, &e, 1, "--listen=:99999"), ERR_USAGE);
    done(&v);
    CHECK_EQ(load(&v, &e, 1, "--stop-grace=10"), ERR_USAGE);
    CHECK(strstr(e.text, "10s") != NULL);
    done(&v);
    CHECK_EQ(load(&v, &e, 1, "--memory=5Xi"), ERR_USAGE);
    done(&v);
    CHECK_EQ(load(&v, &e, 1, "stray"), ERR_USAGE);
    done(&v);
    CHECK_EQ(load(&v, &e, 2, "--config", "/does/not/exist"), ERR_NOT_FOUND);
    done(&v);
}

TEST(file_errors_name_file_and_line)
{
    char path[] = "/tmp/settings_test_XXXXXX";
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    static const char text[] = "threads: 3\ndata_dri: /x\n";
    CHECK_EQ(fd_write_all(fd, text, sizeof(text) - 1), ERR_OK);
    fd_close(&fd);
    struct values v;
    struct error e;
    CHECK_EQ(load(&v, &e, 2, "--config", path), ERR_USAGE);
    CHECK(strstr(e.text, path) != NULL && strstr(e.text, "line 2") != NULL &&
          strstr(e.text, "--data-dir") != NULL);
    done(&v);
    unlink(path);
}

TEST(log_lines_cannot_be_forged)
{
    int ends[2], kept = dup(STDERR_FILENO);
    REQUIRE(pipe(ends) == 0 && kept >= 0);
    dup2(ends[1], STDERR_FILENO);
    log_init("test", LOG_LEVEL_INFO);
    log_info("user.said", LOG_STR("text", "a\nb\" c=\x01"), LOG_U64("n", 5), LOG_I64("i", -5));
    log_debug("not.shown", LOG_U64("n", 5));
    dup2(kept, STDERR_FILENO);
    close(kept);
    close(ends[1]);
    char line[512] = "";
    ssize_t n = read(ends[0], line, sizeof(line) - 1);
    close(ends[0]);
    REQUIRE(n > 0);
    CHECK(strstr(line, " info test user.said text=\"a\\nb\\\" c=\\x01\" n=5 i=-5\n") != NULL);
    CHECK(strchr(line, '\n') == line + n - 1);
}
