/* cli_test.c - the client's pure parts: flags, amounts, tables, guesses, ignore rules, bundles. */
#include "cli/bundle.h"
#include "cli/commands.h"
#include "cli/guess.h"
#include "cli/ignore.h"
#include "cli/log_line.h"
#include "cli/output.h"
#include "cli/receipt.h"
#include "cli/spec_flags.h"
#include "cli/style.h"
#include "cli/up_cleanup.h"
#include "cli/up_settings.h"
#include "test.h"
#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- flags ---- */

struct sample_values {
    bool follow;
    const char *lines;
    struct option_list env;
};
static const struct option sample_options[] = {
    {"follow", 'f', OPTION_FLAG, "", "", offsetof(struct sample_values, follow)},
    {"lines", 'n', OPTION_TEXT, "N", "", offsetof(struct sample_values, lines)},
    {"env", 'e', OPTION_LIST, "K=V", "", offsetof(struct sample_values, env)},
};
static const struct command sample = {.name = "sample",
                                      .arguments = "NAME",
                                      .arguments_min = 1,
                                      .arguments_max = 1,
                                      .options = sample_options,
                                      .option_count = ARRAY_COUNT(sample_options),
                                      .is_client = true,
                                      .has_output = true};

struct parsed {
    struct common_values common;
    struct sample_values values;
    struct command_input in;
    struct error e;
    enum err err;
};
static struct parsed *parse(struct parsed *p, int argc, const char *const *argv)
{
    *p = (struct parsed){0};
    p->err = command_parse(&sample, argc, (char **)argv, &p->common, &p->values, &p->in, &p->e);
    return p;
}
#define PARSE(p, ...)                                                          \
    parse(p, (int)ARRAY_COUNT(((const char *const[]){"sample", __VA_ARGS__})), \
          (const char *const[]){"sample", __VA_ARGS__})
static void parsed_done(struct parsed *p)
{
    command_input_done(&p->in, &p->values);
}

TEST(flags_and_arguments_may_be_mixed)
{
    struct parsed p;
    PARSE(&p, "-f", "hello", "--lines=5", "-e", "A=1", "-eB=2", "--env", "C=3", "-o", "json");
    CHECK_EQ(p.err, ERR_OK);
    CHECK(p.values.follow);
    CHECK_STR(p.values.lines, "5");
    CHECK_EQ(p.values.env.count, 3);
    CHECK_STR(p.values.env.items[1], "B=2");
    CHECK_STR(p.common.output, "json");
    CHECK_EQ(p.in.argument_count, 1);
    CHECK_STR(p.in.arguments[0], "hello");
    parsed_done(&p);
}

TEST(letters_may_stand_together_and_the_last_takes_a_value)
{
    struct parsed p;
    PARSE(&p, "-fn7", "hello");
    CHECK_EQ(p.err, ERR_OK);
    CHECK(p.values.follow);
    CHECK_STR(p.values.lines, "7");
    parsed_done(&p);
}

TEST(after_two_dashes_everything_is_an_argument)
{
    struct parsed p;
    PARSE(&p, "--", "-f");
    CHECK_EQ(p.err, ERR_OK);
    CHECK(!p.values.follow);
    CHECK_STR(p.in.arguments[0], "-f");
    parsed_done(&p);
}

TEST(a_wrong_flag_is_refused_with_the_nearest)
{
    struct parsed p;
    PARSE(&p, "x", "--folow");
    CHECK_EQ(p.err, ERR_USAGE);
    CHECK(strstr(p.e.text, "did you mean --follow?") != NULL);
    parsed_done(&p);
    PARSE(&p, "x", "-z");
    CHECK_EQ(p.err, ERR_USAGE);
    CHECK(strstr(p.e.text, "-z") != NULL);
    parsed_done(&p);
    PARSE(&p, "x", "--entirely-other");
    CHECK_EQ(p.err, ERR_USAGE);
    CHECK(strstr(p.e.text, "did you mean") == NULL);
    parsed_done(&p);
}

TEST(a_missing_value_or_one_too_many_is_refused)
{
    struct parsed p;
    PARSE(&p, "x", "--lines");
    CHECK_EQ(p.err, ERR_USAGE);
    parsed_done(&p);
    PARSE(&p, "x", "-n");
    CHECK_EQ(p.err, ERR_USAGE);
    parsed_done(&p);
    PARSE(&p, "x", "--follow=yes");
    CHECK_EQ(p.err, ERR_USAGE);
    parsed_done(&p);
    PARSE(&p, "-f");
    CHECK_EQ(p.err, ERR_USAGE);
    parsed_done(&p);
    PARSE(&p, "x", "y");
    CHECK_EQ(p.err, ERR_USAGE);
    CHECK(strstr(p.e.text, "'y'") != NULL);
    parsed_done(&p);
    PARSE(&p, "x", "-o", "xml");
    CHECK_EQ(p.err, ERR_USAGE);
    parsed_done(&p);
}

/* Whatever the words, reading them ends with an answer, and a refusal has a sentence. */
PROPERTY(any_words_are_read_or_refused_with_a_sentence)
{
    static const char *const words[] = {"-f",   "--",     "-",     "--lines", "--lines=", "-n",
                                        "x",    "",       "--env", "-e",      "A=1",      "-o",
                                        "json", "--help", "-h",    "--=",     "-fe"};
    const char *argv[12] = {"sample"};
    int argc = 1 + (int)rng_below(rng, 11);
    for (int i = 1; i < argc; i++)
        argv[i] = words[rng_below(rng, ARRAY_COUNT(words))];
    struct parsed p;
    parse(&p, argc, argv);
    CHECK((p.err == ERR_OK) == (p.e.text[0] == '\0'));
    CHECK(p.in.argument_count < (size_t)argc);
    parsed_done(&p);
}

TEST(distance_counts_edits)
{
    CHECK_EQ(edit_distance("deploy", "deploy"), 0);
    CHECK_EQ(edit_distance("deplyo", "deploy"), 2);
    CHECK_EQ(edit_distance("", "abc"), 3);
    CHECK_EQ(edit_distance("abc", ""), 3);
}

/* ---- amounts and times ---- */

TEST(amounts_are_short)
{
    char text[HUMAN_BYTES_MAX];
    CHECK_STR(human_bytes(0, text), "0 B");
    CHECK_STR(human_bytes(1023, text), "1023 B");
    CHECK_STR(human_bytes(1536, text), "1.5 KiB");
    CHECK_STR(human_bytes(256 * MIB, text), "256 MiB");
    CHECK_STR(human_bytes(UINT64_MAX, text), "16 EiB");
    CHECK_STR(human_duration_us(412, text), "412 µs");
    CHECK_STR(human_duration_us(1300, text), "1.3 ms");
    CHECK_STR(human_duration_us(999400, text), "999 ms");
    CHECK_STR(human_duration_us(999600, text), "1.0 s");
    CHECK_STR(human_duration_us(185000000, text), "3m 5s");
    CHECK_STR(human_age_ms(119999, text), "119s");
    CHECK_STR(human_age_ms(120000, text), "2m");
    CHECK_STR(human_age_ms(UINT64_C(200000000), text), "2d");
    CHECK_STR(human_cpu(500, text), "0.5");
    CHECK_STR(human_cpu(2000, text), "2");
}

TEST(times_of_the_api_are_read)
{
    uint64_t ms = 0;
    char text[HUMAN_BYTES_MAX];
    CHECK(time_parse("1970-01-02T00:00:00.250Z", &ms));
    CHECK_EQ(ms, 86400250);
    CHECK(time_parse("2026-01-02T03:04:05Z", &ms));
    CHECK_EQ(ms, UINT64_C(1767323045000));
    CHECK(!time_parse("", &ms));
    CHECK(!time_parse("yesterday", &ms));
    CHECK_STR(human_age_of("1970-01-01T00:00:10Z", 15000, text), "5s");
    CHECK_STR(human_age_of("1970-01-01T00:00:10Z", 5000, text), "0s");
    CHECK_STR(human_age_of("", 5000, text), "");
}

/* ---- tables ---- */

static char *printed_table(const struct table *t)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&text, &bytes);
    table_print(t, file);
    (void)fclose(file);
    return text;
}

TEST(columns_are_aligned_also_with_letters_of_two_bytes)
{
    struct table *t = table_new("NAME|>TIME|URL");
    table_cell(t, STYLE_PLAIN, "a");
    table_cell(t, STYLE_PLAIN, "5 µs");
    table_cell(t, STYLE_PLAIN, "x");
    table_cell(t, STYLE_PLAIN, "longer");
    table_cell(t, STYLE_PLAIN, "12 ms");
    table_cell(t, STYLE_PLAIN, "y\x1b[2J");
    CHECK_EQ(table_row_count(t), 2);
    char *text = printed_table(t);
    CHECK_STR(text, "NAME     TIME  URL\n"
                    "a        5 µs  x\n"
                    "longer  12 ms  y [2J\n");
    free(text);
    table_free(t);
}

/* ---- output ---- */

static char *printed_json(enum output_format format, const char *json_text)
{
    char *text = NULL;
    size_t bytes = 0;
    json_t *json = json_loads(json_text, JSON_DECODE_ANY, NULL);
    FILE *file = open_memstream(&text, &bytes);
    output_json(file, format, json);
    (void)fclose(file);
    json_decref(json);
    return text;
}

TEST(yaml_keeps_texts_that_look_like_other_things)
{
    char *text = printed_json(OUTPUT_YAML,
                              "{\"a\": \"yes\", \"b\": \"12\", \"c\": 12, \"d\": null, \"e\": [], "
                              "\"f\": \"plain-text\", \"g\": true, \"h\": \"a: b\", \"i\": \"\"}");
    CHECK_STR(text, "a: \"yes\"\nb: \"12\"\nc: 12\nd: null\ne: []\nf: plain-text\ng: true\nh: \"a: "
                    "b\"\ni: \"\"\n");
    free(text);
}

/* ---- specs from flags ---- */

static enum err spec_of(struct spec_flags flags, char **ret_text, struct error *e)
{
    json_t *spec = NULL;
    enum err err = spec_flags_to_json(&flags, &spec, e);
    *ret_text = err == ERR_OK ? json_dumps(spec, JSON_SORT_KEYS | JSON_COMPACT) : NULL;
    json_decref(spec);
    return err;
}

TEST(flags_become_a_spec_that_says_no_more)
{
    struct error e = {0};
    char *text;
    const char *env[] = {"A=1=2", "B=", "C-"}, *labels[] = {"team=x"};
    struct spec_flags flags = {.memory = "64Mi",
                               .min = "1",
                               .max_scale_up_rate = "2.5",
                               .env = {env, 3},
                               .labels = {labels, 1}};
    CHECK_EQ(spec_of(flags, &text, &e), ERR_OK);
    CHECK_STR(text, "{\"env\":{\"A\":\"1=2\",\"B\":\"\",\"C\":null},\"labels\":{\"team\":\"x\"},"
                    "\"memory\":\"64Mi\",\"scaling\":{\"max_scale_up_rate\":2.5,\"min\":1}}");
    free(text);
    CHECK_EQ(spec_of((struct spec_flags){0}, &text, &e), ERR_OK);
    CHECK_STR(text, "{}");
    free(text);
}

TEST(a_wrong_flag_value_is_named_by_its_flag)
{
    const char *no_name[] = {"=1"}, *absent[] = {"NO_SUCH_VARIABLE_HERE"}, *bad_label[] = {"team"};
    const struct {
        struct spec_flags flags;
        const char *says;
    } cases[] = {
        {{.memory = "lots"}, "--memory: "},
        {{.min = "few"}, "--min: "},
        {{.port = "70000"}, "--port: "},
        {{.port = "0"}, "--port: "},
        {{.cpu = "-1"}, "--cpu: "},
        {{.timeout = "soon"}, "--timeout: "},
        {{.network = "lan"}, "--network: "},
        {{.contract = "exec"}, "--contract: "},
        {{.max_scale_up_rate = "fast"}, "--max-scale-up-rate: "},
        {{.env = {no_name, 1}}, "--env '=1'"},
        {{.env = {absent, 1}}, "--env NO_SUCH"},
        {{.labels = {bad_label, 1}}, "--label team"},
        {{.placement = "best"}, "--placement: "},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct error e = {0};
        char *text;
        CHECK_EQ(spec_of(cases[i].flags, &text, &e), ERR_USAGE);
        if (strncmp(e.text, cases[i].says, strlen(cases[i].says)) != 0)
            test_fail(__FILE__, __LINE__, "case %zu: %s", i, e.text);
    }
}

TEST(env_copies_from_here)
{
    const char *env[] = {"CLI_TEST_COPIED"};
    struct error e = {0};
    char *text;
    (void)setenv("CLI_TEST_COPIED", "value", 1);
    CHECK_EQ(spec_of((struct spec_flags){.env = {env, 1}}, &text, &e), ERR_OK);
    CHECK_STR(text, "{\"env\":{\"CLI_TEST_COPIED\":\"value\"}}");
    free(text);
}

TEST(env_files_are_read_line_by_line)
{
    json_t *env = json_object();
    struct error e = {0};
    CHECK_EQ(
        env_file_parse("# one\n\nA=1\r\nexport B = \"two words\"\nC='x'\nD=\nE=a#b=c", env, &e),
        ERR_OK);
    char *text = json_dumps(env, JSON_COMPACT | JSON_SORT_KEYS);
    CHECK_STR(text, "{\"A\":\"1\",\"B\":\"two words\",\"C\":\"x\",\"D\":\"\",\"E\":\"a#b=c\"}");
    free(text);
    CHECK_EQ(env_file_parse("A=1\nnonsense\n", env, &e), ERR_USAGE);
    CHECK(strncmp(e.text, "line 2:", 7) == 0);
    json_decref(env);
}

/* ---- ignore rules ---- */

static bool ignored(const char *rules_text, const char *path, bool is_directory)
{
    struct ignore_rules *rules = ignore_rules_new(str_of(rules_text));
    bool result = ignore_rules_match(rules, path, is_directory);
    ignore_rules_free(rules);
    return result;
}

TEST(ignore_rules_match_as_in_git)
{
    CHECK(ignored("", ".git", true));
    CHECK(ignored("", "a/__pycache__", true));
    CHECK(!ignored("!__pycache__", "a/__pycache__", true));
    CHECK(!ignored("", "node_modules", true));
    CHECK(!ignored("", ".gitignore", false));
    CHECK(ignored("*.log", "a/b/x.log", false));
    CHECK(!ignored("*.log", "a/b/x.logs", false));
    CHECK(ignored("/build", "build", true));
    CHECK(!ignored("/build", "a/build", true));
    CHECK(ignored("build/", "a/build", true));
    CHECK(!ignored("build/", "a/build", false));
    CHECK(ignored("docs/*.md", "docs/x.md", false));
    CHECK(!ignored("docs/*.md", "docs/a/x.md", false));
    CHECK(!ignored("docs/*.md", "other/docs/x.md", false));
    CHECK(ignored("**/x/y", "a/b/x/y", false));
    CHECK(ignored("logs/**", "logs/a/b", false));
    CHECK(!ignored("logs/**", "logs", true));
    CHECK(ignored("# c\n*.txt\r\n!keep.txt\n", "a.txt", false));
    CHECK(!ignored("# c\n*.txt\r\n!keep.txt\n", "keep.txt", false));
    CHECK(ignored("\\#odd", "#odd", false));
    CHECK(!ignored("!\n/\n   \n", "a", false));
}

/* ---- bundles ---- */

static char *make_directory(void)
{
    char *path = mem_strdup("/tmp/cli-test-XXXXXX");
    REQUIRE(mkdtemp(path) != NULL);
    return path;
}

static void put_file(const char *directory, const char *name, const char *text, mode_t mode)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
    REQUIRE(fd >= 0);
    CHECK_EQ(fd_write_all(fd, text, strlen(text)), ERR_OK);
    CHECK_EQ(fchmod(fd, mode), 0);
    fd_close(&fd);
}

static void put_directory(const char *directory, const char *name)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    REQUIRE(mkdir(path, 0700) == 0);
}

static void remove_directory(char *path)
{
    char parent[512];
    char *slash = strrchr(path, '/');
    snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path), path);
    run_directory_remove(parent, slash + 1);
    CHECK(access(path, F_OK) < 0);
    free(path);
}

/* The whole archive, read in pieces of `piece` bytes. */
static struct buf bundle_all(const char *directory, size_t piece)
{
    struct bundle *b = NULL;
    struct error e = {0};
    struct buf all = {0};
    ssize_t n;
    if (bundle_open(directory, &b, &e) != ERR_OK) {
        test_fail(__FILE__, __LINE__, "%s", e.text);
        return all;
    }
    while ((n = bundle_read(b, buf_reserve(&all, piece), piece)) > 0)
        all.bytes += (size_t)n;
    CHECK_EQ(n, 0);
    CHECK_EQ(bundle_bytes_read(b), bundle_bytes(b));
    bundle_free(b);
    return all;
}

/* "path mode size" of each entry, in order. */
static char *listing_of(const struct buf *archive_bytes)
{
    struct buf out = {0};
    struct archive *a = archive_read_new();
    struct archive_entry *entry;
    archive_read_support_format_tar(a);
    archive_read_support_filter_gzip(a);
    REQUIRE(archive_read_open_memory(a, archive_bytes->data, archive_bytes->bytes) == ARCHIVE_OK);
    while (archive_read_next_header(a, &entry) == ARCHIVE_OK) {
        buf_printf(&out, "%s %o %lld %lld", archive_entry_pathname(entry),
                   archive_entry_mode(entry), (long long)archive_entry_size(entry),
                   (long long)archive_entry_mtime(entry));
        if (archive_entry_symlink(entry) != NULL)
            buf_printf(&out, " -> %s", archive_entry_symlink(entry));
        buf_printf(&out, "\n");
    }
    archive_read_free(a);
    return buf_take_text(&out);
}

TEST(a_bundle_holds_the_files_in_order_without_what_is_ignored)
{
    char *directory = make_directory(), link[512];
    put_file(directory, "b.py", "print()\n", 0600);
    put_file(directory, "a-program", "#!/bin/sh\n", 0700);
    put_directory(directory, "sub");
    put_file(directory, "sub/data", "", 0644);
    put_directory(directory, "__pycache__");
    put_file(directory, "__pycache__/b.pyc", "x", 0644);
    put_file(directory, ".dirigentignore", "*.tmp\n", 0644);
    put_file(directory, "c.tmp", "x", 0644);
    snprintf(link, sizeof(link), "%s/l", directory);
    REQUIRE(symlink("sub/data", link) == 0);
    struct buf all = bundle_all(directory, 4096);
    char *listing = listing_of(&all);
    CHECK_STR(listing,
              "a-program 100755 10 0\nb.py 100644 8 0\nl 120755 0 0 -> sub/data\nsub/ 40755 0 0\n"
              "sub/data 100644 0 0\n");
    free(listing);
    buf_done(&all);
    remove_directory(directory);
}

/* What packs it and when makes no difference: the same files are the same bytes. */
TEST(the_same_files_give_the_same_bytes)
{
    char *one = make_directory(), *two = make_directory();
    char *large = mem_new(300001);
    for (size_t i = 0; i < 300000; i++)
        large[i] = (char)('a' + i * i % 23);
    put_file(one, "large", large, 0644);
    put_file(one, "small", "s", 0644);
    put_file(two, "small", "s", 0600);
    put_file(two, "large", large, 0640);
    char path[512];
    snprintf(path, sizeof(path), "%s/small", one);
    const struct timespec past[2] = {{1000, 0}, {1000, 0}};
    CHECK_EQ(utimensat(AT_FDCWD, path, past, 0), 0);
    struct buf a = bundle_all(one, 7), b = bundle_all(two, 65536);
    CHECK_EQ(a.bytes, b.bytes);
    CHECK(a.bytes == b.bytes && memcmp(a.data, b.data, a.bytes) == 0);
    CHECK(a.bytes < 300000);
    buf_done(&a);
    buf_done(&b);
    free(large);
    remove_directory(one);
    remove_directory(two);
}

TEST(directories_that_cannot_be_deployed_are_refused_by_name)
{
    struct bundle *b;
    struct error e = {0};
    char *directory = make_directory(), path[512];
    CHECK_EQ(bundle_open("/tmp/there-is-no-such-directory", &b, &e), ERR_NOT_FOUND);
    CHECK(strstr(e.text, "/tmp/there-is-no-such-directory") != NULL);
    put_directory(directory, "empty");
    CHECK_EQ(bundle_open(directory, &b, &e), ERR_USAGE);
    CHECK(strstr(e.text, "has no files") != NULL);
    snprintf(path, sizeof(path), "%s/pipe", directory);
    REQUIRE(mkfifo(path, 0600) == 0);
    CHECK_EQ(bundle_open(directory, &b, &e), ERR_USAGE);
    CHECK(strstr(e.text, "pipe") != NULL);
    REQUIRE(unlink(path) == 0);
    put_file(directory, "file", "x", 0644);
    snprintf(path, sizeof(path), "%s/file", directory);
    CHECK_EQ(bundle_open(path, &b, &e), ERR_USAGE);
    CHECK(strstr(e.text, "is not a directory") != NULL);
    remove_directory(directory);
}

TEST(a_file_that_shrinks_while_it_is_packed_is_told)
{
    char *directory = make_directory(), path[512], data[4096];
    struct bundle *b = NULL;
    struct error e = {0};
    ssize_t n;
    put_file(directory, "file", "some text", 0644);
    snprintf(path, sizeof(path), "%s/file", directory);
    REQUIRE(bundle_open(directory, &b, &e) == ERR_OK);
    CHECK_EQ(truncate(path, 2), 0);
    while ((n = bundle_read(b, data, sizeof(data))) > 0)
        ;
    CHECK_EQ(n, -1);
    CHECK(strstr(bundle_error(b)->text, "became shorter") != NULL);
    bundle_free(b);
    remove_directory(directory);
}

/* ---- guesses ---- */

struct files {
    const char *const *names; /* an executable one begins with '*' */
};
static bool files_has(void *user, const char *path, bool *ret_executable)
{
    const struct files *f = user;
    for (size_t i = 0; f->names[i] != NULL; i++) {
        const char *name = f->names[i];
        *ret_executable = name[0] == '*';
        if (strcmp(name + (name[0] == '*'), path) == 0)
            return true;
    }
    return false;
}
static void check_guess(const char *procfile, const char *wanted, const char *const *names)
{
    struct files f = {names};
    const char *because = NULL;
    char *command = guess_command(files_has, &f, procfile, &because);
    if (wanted == NULL)
        CHECK(command == NULL);
    else
        CHECK_STR(command, wanted);
    free(command);
}
#define GUESS(procfile, wanted, ...) \
    check_guess(procfile, wanted, (const char *const[]){__VA_ARGS__, NULL})

TEST(commands_are_guessed_from_files)
{
    GUESS(NULL, "python3 app.py", "app.py", "README");
    GUESS(NULL, "node server.js", "index.js", "server.js");
    GUESS(NULL, "./server", "*server", "app.py");
    GUESS(NULL, "python3 app.py", "server", "app.py");
    GUESS(NULL, NULL, "server", "README");
    GUESS("release: x\nweb: python3 main.py --fast\n", "python3 main.py --fast", "app.py");
    GUESS("worker: x\n", "python3 app.py", "app.py");
    GUESS("web: gunicorn -b :$PORT 'a b'\r\n", "sh -c 'exec gunicorn -b :$PORT '\\''a b'\\'''",
          "app.py");
}

/* ---- log lines ---- */

TEST(log_lines_are_read)
{
    struct log_line l;
    CHECK_EQ(log_line_parse(STR("2026-01-02T03:04:05.678901234Z stdout F some text"), &l), ERR_OK);
    CHECK(str_equal(l.text, STR("some text")) && l.sandbox.bytes == 0 && !l.is_partial);
    CHECK_EQ(log_line_parse(STR("00000001000000ff 2026-01-02T03:04:05.6Z stderr P "), &l), ERR_OK);
    CHECK(str_equal(l.sandbox, STR("00000001000000ff")) && l.text.bytes == 0 && l.is_partial);
    CHECK(str_equal(l.stream, STR("stderr")));
}

/* Every shorter prefix of a line is refused, or read as a line with less text. */
TEST(cut_log_lines_do_not_confuse)
{
    static const char line[] = "00000001000000ff 2026-01-02T03:04:05.678901234Z stdout F text";
    struct log_line l;
    size_t text_at = sizeof(line) - 1 - strlen("text");
    for (size_t bytes = 0; bytes < sizeof(line) - 1; bytes++) {
        bool read = log_line_parse((struct str){line, bytes}, &l) == ERR_OK;
        CHECK_EQ(read, bytes + 1 >= text_at);
    }
}

/* ---- receipts ---- */

TEST(receipts_are_read)
{
    struct receipt r = {0};
    receipt_parse(STR("queue;dur=0.5, create;dur=1.25;desc=\"a, b; c\", cold"), &r);
    receipt_parse(STR(" ,;, total ; DUR=\"2\""), &r);
    CHECK_EQ(r.count, 4);
    CHECK_STR(r.parts[0].name, "queue");
    CHECK(r.parts[0].ms > 0.49 && r.parts[0].ms < 0.51);
    CHECK_STR(r.parts[1].text, "a, b; c");
    CHECK(!r.parts[2].has_duration);
    CHECK(r.parts[3].ms > 1.99 && r.parts[3].has_duration);
}

/* No header can break it: at most so many parts, whatever the bytes. */
PROPERTY(any_header_is_read_as_some_receipt)
{
    char text[256];
    size_t bytes = rng_below(rng, sizeof(text));
    static const char letters[] = "a;=,\" durdesc1.9e-\\\t";
    for (size_t i = 0; i < bytes; i++)
        text[i] = letters[rng_below(rng, sizeof(letters) - 1)];
    struct receipt r = {0};
    receipt_parse((struct str){text, bytes}, &r);
    CHECK(r.count <= RECEIPT_PARTS_MAX);
    for (size_t i = 0; i < r.count; i++)
        CHECK(r.parts[i].name[0] != '\0' && r.parts[i].ms >= 0 && r.parts[i].ms < 1e12);
}

/* ---- up ---- */

static const char *argument_after(char **arguments, const char *flag)
{
    for (size_t i = 0; arguments[i] != NULL; i++)
        if (strcmp(arguments[i], flag) == 0)
            return arguments[i + 1];
    return NULL;
}

TEST(up_tells_each_program_what_it_knows)
{
    const char *argv[] = {"up",          "--api", "127.0.0.1:1",       "--cluster=0.0.0.0:2",
                          "--data-dir",  "/d",    "--peer-dead-after", "1500ms",
                          "--log-level", "warn",  "--worker-name",     "w",
                          "--blanks",    "3"};
    struct up_settings s;
    struct error e = {0};
    REQUIRE(up_settings_load((int)ARRAY_COUNT(argv), (char **)argv, &s, &e) == ERR_OK);
    char **control = up_part_arguments(&s, UP_CONTROL_PLANE);
    CHECK_STR(control[0], "dirigent");
    CHECK_STR(control[1], "control-plane");
    CHECK_STR(argument_after(control, "--api"), "127.0.0.1:1");
    CHECK_STR(argument_after(control, "--cluster"), "0.0.0.0:2");
    CHECK_STR(argument_after(control, "--data-dir"), "/d");
    CHECK_STR(argument_after(control, "--run-dir"), "/run/dirigent");
    CHECK_STR(argument_after(control, "--peer-dead-after"), "1500ms");
    CHECK_STR(argument_after(control, "--log-level"), "warn");
    CHECK(argument_after(control, "--listen") == NULL);
    CHECK(argument_after(control, "--reconnect-grace") == NULL); /* its default */
    arguments_free(control);
    char **worker = up_part_arguments(&s, UP_WORKER);
    CHECK_STR(worker[1], "worker");
    CHECK_STR(argument_after(worker, "--control-plane"), "127.0.0.1:2");
    CHECK_STR(argument_after(worker, "--name"), "w");
    CHECK_STR(argument_after(worker, "--blanks"), "3");
    CHECK_STR(argument_after(worker, "--log-level"), "warn");
    CHECK(argument_after(worker, "--api") == NULL && argument_after(worker, "--slots") == NULL);
    arguments_free(worker);
    up_settings_done(&s);
}

TEST(up_refuses_what_no_program_knows)
{
    const char *argv[] = {"up", "--listn", "127.0.0.1:1"};
    struct up_settings s;
    struct error e = {0};
    CHECK_EQ(up_settings_load((int)ARRAY_COUNT(argv), (char **)argv, &s, &e), ERR_USAGE);
    CHECK(strstr(e.text, "did you mean --listen") != NULL);
    up_settings_done(&s);
}

TEST(a_free_lock_is_not_waited_for_and_a_held_one_is_named)
{
    char *directory = make_directory(), path[512];
    struct error e = {0};
    CHECK_EQ(lock_wait_free(directory, 0, &e), ERR_OK);
    put_file(directory, "lock", "4711", 0644);
    CHECK_EQ(lock_wait_free(directory, 0, &e), ERR_OK);
    snprintf(path, sizeof(path), "%s/lock", directory);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0 && flock(fd, LOCK_EX) == 0);
    CHECK_EQ(lock_wait_free(directory, 60, &e), ERR_BUSY);
    CHECK(strstr(e.text, directory) != NULL && strstr(e.text, "4711") != NULL);
    fd_close(&fd);
    remove_directory(directory);
}
