/* unpack_test.c - archives of every kind, made here with libarchive: what is good comes out as it
 * should, everything else is refused with a sentence that names it, alike by the check of an upload
 * and by the unpacking. */
#include "base/limits.h"
#include "base/str.h"
#include "test.h"
#include "worker/test_tree.h"
#include "worker/unpack.h"
#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <linux/openat2.h>
#include <locale.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- archives ---- */

enum kind { TAR, TAR_GZ, TAR_XZ, TAR_BZ2, TAR_ZSTD, ZIP, KIND_COUNT };

struct maker {
    struct archive *archive;
    int fd; /* of memory */
};

static struct maker maker_begin(enum kind kind)
{
    struct maker m = {archive_write_new(), memfd_create("archive", MFD_CLOEXEC)};
    REQUIRE(m.archive != NULL && m.fd >= 0);
    (void)archive_write_set_bytes_in_last_block(m.archive, 1);
    switch (kind) {
    case TAR_GZ:
        (void)archive_write_add_filter_gzip(m.archive);
        break;
    case TAR_XZ:
        (void)archive_write_add_filter_xz(m.archive);
        break;
    case TAR_BZ2:
        (void)archive_write_add_filter_bzip2(m.archive);
        break;
    case TAR_ZSTD:
        (void)archive_write_add_filter_zstd(m.archive);
        break;
    case TAR:
    case ZIP:
    case KIND_COUNT:
        break;
    }
    (void)(kind == ZIP ? archive_write_set_format_zip(m.archive)
                       : archive_write_set_format_pax_restricted(m.archive));
    REQUIRE(archive_write_open_fd(m.archive, m.fd) == ARCHIVE_OK);
    return m;
}

struct item {
    const char *path;
    mode_t mode;         /* with its type; 0: a regular file, 0644 */
    const char *content; /* of a file */
    const char *link;    /* target of a symbolic link, or of a hard link when the mode is 0 */
};

static void maker_add(struct maker *m, const struct item *item)
{
    struct archive_entry *entry = archive_entry_new();
    size_t bytes = item->content != NULL ? strlen(item->content) : 0;
    archive_entry_set_pathname(entry, item->path);
    archive_entry_set_mode(entry, item->mode != 0 ? item->mode : S_IFREG | 0644);
    archive_entry_set_mtime(entry, 1700000000, 0);
    if (item->link != NULL && item->mode == 0)
        archive_entry_set_hardlink(entry, item->link);
    else if (item->link != NULL)
        archive_entry_set_symlink(entry, item->link);
    if (S_ISCHR(item->mode) || S_ISBLK(item->mode))
        archive_entry_set_rdev(entry, makedev(1, 3));
    archive_entry_set_size(entry, (la_int64_t)bytes);
    REQUIRE(archive_write_header(m->archive, entry) >=
            ARCHIVE_WARN); /* it warns of names that are no UTF-8 */
    REQUIRE(bytes == 0 ||
            archive_write_data(m->archive, item->content, bytes) == (la_ssize_t)bytes);
    archive_entry_free(entry);
}

static int maker_end(struct maker *m)
{
    REQUIRE(archive_write_close(m->archive) == ARCHIVE_OK);
    (void)archive_write_free(m->archive);
    return m->fd;
}

static int archive_of(enum kind kind, const struct item *items, size_t count)
{
    struct maker m = maker_begin(kind);
    for (size_t i = 0; i < count; i++)
        maker_add(&m, &items[i]);
    return maker_end(&m);
}

static int archive_of_bytes(const void *data, size_t bytes)
{
    int fd = memfd_create("archive", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && fd_write_all(fd, data, bytes) == ERR_OK);
    return fd;
}

static struct buf bytes_of(int fd)
{
    struct buf b = {0};
    struct stat st;
    REQUIRE(fstat(fd, &st) == 0);
    REQUIRE(pread(fd, buf_reserve(&b, (size_t)st.st_size + 1), (size_t)st.st_size, 0) ==
            st.st_size);
    b.bytes = (size_t)st.st_size;
    return b;
}

/* ---- a directory with a directory in it: whatever is written outside is seen ---- */

struct place {
    char path[64], into[80];
    int into_fd;
};

static void place_done(struct place *p)
{
    fd_close(&p->into_fd);
    test_tree_remove(AT_FDCWD, p->path);
}

static struct place place_new(void)
{
    struct place p = {0};
    REQUIRE(test_tree_new("unpack-test", p.path, sizeof(p.path)));
    (void)snprintf(p.into, sizeof(p.into), "%s/into", p.path);
    REQUIRE(mkdir(p.into, 0755) == 0);
    p.into_fd = open(p.into, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    REQUIRE(p.into_fd >= 0);
    return p;
}

/* What `find` says of the place, sorted: "TYPE MODE PATH" a line. */
static char *place_list(const struct place *p)
{
    char command[256];
    struct buf text = {0};
    (void)snprintf(command, sizeof(command),
                   "cd '%s' && find . -mindepth 1 -printf '%%y %%m %%P\\n' | LC_ALL=C sort -k3",
                   p->path);
    FILE *pipe = popen(command, "r");
    REQUIRE(pipe != NULL);
    for (size_t n; (n = fread(buf_reserve(&text, 4096), 1, 4096, pipe)) > 0;)
        text.bytes += n;
    CHECK_EQ(pclose(pipe), 0);
    return buf_take_text(&text);
}

static char *content_of(const struct place *p, const char *path)
{
    struct error e = {0};
    char *name cleanup(free_pointer) = mem_printf("%s/%s", p->into, path), *text = NULL;
    size_t bytes;
    if (file_read(name, 1 << 20, &text, &bytes, &e) != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return text;
}

/* Both readers agree, and nothing is outside. */
static enum err unpack_both(int fd, const struct place *p, struct error *e)
{
    struct error of_check = {0};
    struct unpack_counts counts;
    enum err check = unpack_verify(fd, &of_check), err = unpack_into(fd, p->into_fd, &counts, e);
    CHECK_EQ(check, err);
    CHECK_STR(of_check.text, e->text);
    CHECK_STR(of_check.field, e->field);
    CHECK_EQ(test_tree_names(p->path), 1);
    return err;
}

static void check_refused(int fd, enum err err, const char *sentence)
{
    struct place p cleanup(place_done) = place_new();
    struct error e = {0};
    CHECK_EQ(unpack_both(fd, &p, &e), err);
    CHECK_STR(e.text, sentence);
    CHECK_STR(e.field, "code");
    fd_close(&fd);
}

#define REFUSED(sentence, ...)                                                                  \
    check_refused(archive_of(TAR, (const struct item[]){__VA_ARGS__},                           \
                             sizeof((const struct item[]){__VA_ARGS__}) / sizeof(struct item)), \
                  ERR_INVALID, sentence)

/* ---- what is good ---- */

static const struct item good[] = {
    {"./", S_IFDIR | 0700, NULL, NULL},
    {"app.py", S_IFREG | 0600, "print('hello')\n", NULL},
    {"./bin/", S_IFDIR | 0700, NULL, NULL},
    {"bin/run", S_IFREG | 0700, "#!/bin/sh\n", NULL},
    {"deep//er/./data", S_IFREG | 0444, "1", NULL}, /* its directories are not named */
    {"link", S_IFLNK | 0777, NULL, "bin/run"},
    {"deep/up", S_IFLNK | 0777, NULL, "../././bin"},
    {"nowhere", S_IFLNK | 0777, NULL, "not/there"},
    {"empty", 0, "", NULL},
    {"deep/", S_IFDIR | 0755, NULL, NULL}, /* named after something in it */
    {"...", 0, "three dots are a name", NULL},
    {"set", S_IFREG | S_ISUID | S_ISGID | S_ISVTX | 0777, "x", NULL},
};

TEST(a_good_tree_comes_out_of_every_kind_of_archive)
{
    for (enum kind kind = 0; kind < KIND_COUNT; kind++) {
        struct place p cleanup(place_done) = place_new();
        struct error e = {0};
        cleanup(fd_close) int fd = archive_of(kind, good, ARRAY_COUNT(good));
        if (unpack_both(fd, &p, &e) != ERR_OK)
            test_fail(__FILE__, __LINE__, "kind %d: %s", (int)kind, e.text);
        char *list cleanup(free_pointer) = place_list(&p),
                   *app cleanup(free_pointer) = content_of(&p, "app.py");
        char *through cleanup(free_pointer) = content_of(&p, "deep/up/run");
        CHECK_STR(list, "d 755 into\n"
                        "f 644 into/...\n"
                        "f 644 into/app.py\n"
                        "d 755 into/bin\n"
                        "f 755 into/bin/run\n"
                        "d 755 into/deep\n"
                        "d 755 into/deep/er\n"
                        "f 644 into/deep/er/data\n"
                        "l 777 into/deep/up\n"
                        "f 644 into/empty\n"
                        "l 777 into/link\n"
                        "l 777 into/nowhere\n"
                        "f 755 into/set\n");
        CHECK_STR(app, "print('hello')\n");
        CHECK_STR(through, "#!/bin/sh\n");
    }
}

TEST(set_id_bits_owners_and_times_are_dropped)
{
    struct place p cleanup(place_done) = place_new();
    struct error e = {0};
    struct stat st;
    struct maker m = maker_begin(TAR);
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, "a");
    archive_entry_set_mode(entry, S_IFREG | 06755);
    archive_entry_set_uid(entry, 4711);
    archive_entry_set_gid(entry, 4712);
    archive_entry_set_mtime(entry, 1, 0);
    archive_entry_xattr_add_entry(entry, "user.note", "x", 1);
    archive_entry_xattr_add_entry(entry, "security.capability", "x", 1);
    archive_entry_set_size(entry, 0);
    REQUIRE(archive_write_header(m.archive, entry) == ARCHIVE_OK);
    archive_entry_free(entry);
    cleanup(fd_close) int fd = maker_end(&m);
    CHECK_EQ(unpack_both(fd, &p, &e), ERR_OK);
    REQUIRE(fstatat(p.into_fd, "a", &st, 0) == 0);
    CHECK_EQ(st.st_mode & 07777, 0755);
    CHECK_EQ(st.st_uid, geteuid());
    CHECK_EQ(st.st_gid, getegid());
    CHECK(st.st_mtime > 1700000000);
    char *tool cleanup(free_pointer) = mem_printf("%s/a", p.into);
    char names[64];
    CHECK_EQ(syscall(SYS_listxattr, tool, names, sizeof(names)), 0);
}

TEST(hard_links_are_one_file)
{
    static const struct item items[] = {{"a/one", S_IFREG | 0755, "same", NULL},
                                        {"two", 0, NULL, "./a//one"},
                                        {"a/three", 0, NULL, "two"}};
    struct place p cleanup(place_done) = place_new();
    struct error e = {0};
    struct stat one, three;
    cleanup(fd_close) int fd = archive_of(TAR, items, ARRAY_COUNT(items));
    CHECK_EQ(unpack_both(fd, &p, &e), ERR_OK);
    REQUIRE(fstatat(p.into_fd, "a/one", &one, 0) == 0 &&
            fstatat(p.into_fd, "a/three", &three, 0) == 0);
    CHECK_EQ(one.st_ino, three.st_ino);
    CHECK_EQ(one.st_nlink, 3);
}

/* Whether the archive says that its names are UTF-8 (zip, pax) or not (old tar). */
TEST(names_in_any_script_come_out_as_they_are)
{
    for (int way = 0; way < 3; way++) {
        struct place p cleanup(place_done) = place_new();
        struct error e = {0};
        (void)setlocale(
            LC_CTYPE, way == 0 ? "C" : "C.UTF-8"); /* of who makes the archive; ours is always C */
        struct maker m = maker_begin(way == 2 ? ZIP : TAR);
        static const char name[] = "größe/日本.py";
        for (int i = 0; i < (way == 2 ? 2 : 3); i++) {
            struct archive_entry *entry = archive_entry_new();
            archive_entry_set_mode(entry, i == 1 ? S_IFLNK | 0777 : S_IFREG | 0644);
            archive_entry_set_size(entry, 0);
            archive_entry_set_pathname(entry, i == 0 ? name : i == 1 ? "größel" : "größeh");
            if (i == 1)
                archive_entry_set_symlink(entry, name);
            if (i == 2)
                archive_entry_set_hardlink(entry, name);
            int result = archive_write_header(m.archive, entry);
            REQUIRE(result == ARCHIVE_OK || result == ARCHIVE_WARN);
            archive_entry_free(entry);
        }
        cleanup(fd_close) int fd = maker_end(&m);
        (void)setlocale(LC_CTYPE, "C");
        if (unpack_both(fd, &p, &e) != ERR_OK)
            test_fail(__FILE__, __LINE__, "way %d: %s", way, e.text);
        char target[64] = "";
        CHECK_EQ(faccessat(p.into_fd, name, R_OK, 0), 0);
        CHECK(readlinkat(p.into_fd, "größel", target, sizeof(target) - 1) > 0);
        CHECK_STR(target, name);
        CHECK(way == 2 || faccessat(p.into_fd, "größeh", R_OK, 0) == 0);
    }
}

TEST(a_sparse_file_keeps_its_holes_also_the_last)
{
    struct place p cleanup(place_done) = place_new();
    struct error e = {0};
    struct stat st;
    struct maker m = maker_begin(TAR);
    struct archive_entry *entry = archive_entry_new();
    static char block[4096], read_back[1];
    memset(block, 'x', sizeof(block));
    archive_entry_set_pathname(entry, "sparse");
    archive_entry_set_mode(entry, S_IFREG | 0644);
    archive_entry_set_size(entry, 3 << 20);
    archive_entry_sparse_add_entry(entry, 1 << 20, sizeof(block));
    REQUIRE(archive_write_header(m.archive, entry) == ARCHIVE_OK);
    static char zeros[1 << 20];
    REQUIRE(archive_write_data(m.archive, zeros, sizeof(zeros)) >= 0 &&
            archive_write_data(m.archive, block, sizeof(block)) >= 0);
    REQUIRE(archive_write_data(m.archive, zeros, sizeof(zeros)) >= 0);
    archive_entry_free(entry);
    cleanup(fd_close) int fd = maker_end(&m);
    CHECK_EQ(unpack_both(fd, &p, &e), ERR_OK);
    REQUIRE(fstatat(p.into_fd, "sparse", &st, 0) == 0);
    CHECK_EQ(st.st_size, 3 << 20);
    CHECK(st.st_blocks * 512 < 1 << 20);
    cleanup(fd_close) int file = openat(p.into_fd, "sparse", O_RDONLY);
    CHECK(pread(file, read_back, 1, (1 << 20) + 4095) == 1 && read_back[0] == 'x');
}

TEST(a_name_in_an_old_encoding_keeps_its_bytes)
{
    static const struct item items[] = {{"gr\xf6\xdf"
                                         "e",
                                         0, "x", NULL}};
    for (int zip = 0; zip < 2; zip++) {
        struct place p cleanup(place_done) = place_new();
        struct error e = {0};
        struct maker m = maker_begin(zip ? ZIP : TAR);
        struct archive_entry *entry = archive_entry_new();
        archive_entry_set_pathname(entry, items[0].path);
        archive_entry_set_mode(entry, S_IFREG | 0644);
        archive_entry_set_size(entry, 0);
        REQUIRE(archive_write_header(m.archive, entry) >= ARCHIVE_WARN);
        archive_entry_free(entry);
        cleanup(fd_close) int fd = maker_end(&m);
        CHECK_EQ(unpack_both(fd, &p, &e), ERR_OK);
        CHECK_STR(e.text, "");
        CHECK_EQ(faccessat(p.into_fd, items[0].path, R_OK, 0), 0);
    }
}

/* ---- what is refused ---- */

TEST(what_is_no_archive_is_refused)
{
    check_refused(archive_of_bytes("", 0), ERR_INVALID, "the archive is empty: 0 bytes");
    check_refused(archive_of_bytes("print('hello')\n", 15), ERR_INVALID,
                  "this is no archive: neither tar (plain, gzip, xz, bzip2, zstd) nor zip; it "
                  "looks like text");
    check_refused(archive_of_bytes("\x7f"
                                   "ELF\2\1\1\0\0\0\0\0\0\0\0\0",
                                   16),
                  ERR_INVALID,
                  "this is no archive: neither tar (plain, gzip, xz, bzip2, zstd) nor zip");
    check_refused(archive_of(TAR, NULL, 0), ERR_INVALID, "the archive has no files");
    check_refused(archive_of(TAR_GZ, (const struct item[]){{"./", S_IFDIR | 0755, NULL, NULL}}, 1),
                  ERR_INVALID, "the archive has no files");
}

TEST(what_is_larger_than_an_archive_may_be_is_refused_unread)
{
    int fd = memfd_create("archive", MFD_CLOEXEC);
    REQUIRE(ftruncate(fd, (off_t)CODE_ARCHIVE_BYTES_MAX + 1) == 0);
    check_refused(fd, ERR_TOO_LARGE, "the archive is larger than 512 MiB");
}

TEST(paths_that_lead_elsewhere_are_refused)
{
    REFUSED("archive entry '../evil': has '..' in its path", {"../evil", 0, "x", NULL});
    REFUSED("archive entry 'a/../../evil': has '..' in its path", {"a/../../evil", 0, "x", NULL});
    REFUSED("archive entry 'a/../': has '..' in its path", {"a/..", S_IFDIR | 0755, NULL, NULL});
    REFUSED("archive entry '/tmp/evil': has an absolute path", {"/tmp/evil", 0, "x", NULL});
    REFUSED("archive entry '//tmp/evil': has an absolute path", {"//tmp/evil", 0, "x", NULL});
    REFUSED("archive entry '.': is no directory", {".", 0, "x", NULL});
    check_refused(archive_of(ZIP, (const struct item[]){{"../evil", 0, "x", NULL}}, 1), ERR_INVALID,
                  "archive entry '../evil': has '..' in its path");
    check_refused(archive_of(ZIP, (const struct item[]){{"/evil", 0, "x", NULL}}, 1), ERR_INVALID,
                  "archive entry '/evil': has an absolute path");
}

TEST(links_that_lead_elsewhere_are_refused)
{
    REFUSED("archive entry 'l': is a symbolic link to an absolute path",
            {"l", S_IFLNK | 0777, NULL, "/etc/passwd"});
    REFUSED("archive entry 'l': is a symbolic link that leads out of the archive",
            {"l", S_IFLNK | 0777, NULL, ".."});
    REFUSED("archive entry 'a/b/l': is a symbolic link that leads out of the archive",
            {"a/b/l", S_IFLNK | 0777, NULL, "./.././../../x"});
    REFUSED("archive entry 'y': is a symbolic link with '..' behind a name; only at its beginning "
            "is it clear where that leads",
            {"a/up", S_IFLNK | 0777, NULL, ".."}, {"y", S_IFLNK | 0777, NULL, "a/up/.."});
    REFUSED("archive entry 'l/evil': lies below an entry that is no directory",
            {"l", S_IFLNK | 0777, NULL, "a"}, {"l/evil", 0, "x", NULL});
    REFUSED("archive entry 'l': is there twice", {"l", S_IFLNK | 0777, NULL, "a"},
            {"l", 0, "x", NULL});
    REFUSED("archive entry 'l': is there twice", {"l", S_IFLNK | 0777, NULL, "a"},
            {"l", S_IFDIR | 0755, NULL, NULL});
    REFUSED("archive entry 'h': is a hard link to something that is no file of the archive",
            {"h", 0, NULL, "etc/passwd"});
    REFUSED("archive entry '/etc/passwd': has an absolute path", {"h", 0, NULL, "/etc/passwd"});
    REFUSED("archive entry '../x': has '..' in its path", {"h", 0, NULL, "../x"});
    REFUSED("archive entry 'h': is a hard link to something that is no file of the archive",
            {"l", S_IFLNK | 0777, NULL, "a"}, {"h", 0, NULL, "l"});
    REFUSED("archive entry 'h': is a hard link to something that is no file of the archive",
            {"d", S_IFDIR | 0755, NULL, NULL}, {"h", 0, NULL, "d"});
    REFUSED("archive entry 'h': is a hard link to something that is no file of the archive",
            {"h", 0, NULL, "h"});
}

TEST(devices_and_pipes_are_refused)
{
    REFUSED("archive entry 'null': is a device, fifo or socket",
            {"null", S_IFCHR | 0666, NULL, NULL});
    REFUSED("archive entry 'sda': is a device, fifo or socket",
            {"sda", S_IFBLK | 0666, NULL, NULL});
    REFUSED("archive entry 'pipe': is a device, fifo or socket", {"a", 0, "x", NULL},
            {"pipe", S_IFIFO | 0666, NULL, NULL});
}

TEST(the_same_name_twice_is_refused)
{
    REFUSED("archive entry 'a': is there twice", {"a", 0, "x", NULL}, {"./a", 0, "y", NULL});
    REFUSED("archive entry 'a': is there twice", {"a", S_IFDIR | 0755, NULL, NULL},
            {"a", 0, "y", NULL});
    REFUSED("archive entry 'a': is there twice", {"a", 0, "x", NULL},
            {"a", S_IFDIR | 0755, NULL, NULL});
    REFUSED("archive entry 'a/b': lies below an entry that is no directory", {"a", 0, "x", NULL},
            {"a/b", 0, "y", NULL});
    REFUSED("archive entry 'a': is there twice", {"a/b", 0, "x", NULL}, {"a", 0, "y", NULL});
    REFUSED("archive entry 'a': is there twice", {"a", 0, "x", NULL}, {"b", 0, "", NULL},
            {"a", 0, NULL, "b"});
}

static char *repeated(char c, size_t bytes)
{
    char *text = mem_new(bytes + 1);
    memset(text, c, bytes);
    return text;
}

TEST(names_and_paths_are_as_long_as_the_kernel_takes_and_no_longer)
{
    struct place p cleanup(place_done) = place_new();
    struct error e = {0};
    char *name cleanup(free_pointer) = repeated('n', 256),
               *target cleanup(free_pointer) = repeated('t', 4096);
    char *sentence cleanup(free_pointer) =
        mem_printf("archive entry '%.200s': has a name longer than 255 bytes", name);
    REFUSED(sentence, {name, 0, "x", NULL});
    /* A path of 4095 bytes is good, of 4096 is not. */
    struct buf path cleanup(buf_done) = {0};
    for (int i = 0; i < 15; i++)
        buf_printf(&path, "%.255s/", name);
    buf_printf(&path, "%.255s", name);
    char *longest = buf_take_text(&path),
         *longer cleanup(free_pointer) = mem_printf("%s1", longest),
         *deep cleanup(free_pointer) = repeated('d', 129);
    CHECK_EQ(strlen(longest), 4095);
    longer[3900] = '/';
    char *long_sentence cleanup(free_pointer) =
        mem_printf("archive entry '%.200s': has a path longer than 4095 bytes", longer);
    REFUSED(long_sentence, {longer, 0, "x", NULL});
    cleanup(fd_close) int fd = archive_of(TAR, (const struct item[]){{longest, 0, "x", NULL}}, 1);
    CHECK_EQ(unpack_both(fd, &p, &e), ERR_OK);
    CHECK_STR(e.text, "");
    free(longest);
    for (int i = 1; i < 129; i += 2)
        deep[i] = '/';
    char *deep_sentence cleanup(free_pointer) =
        mem_printf("archive entry '%s': is nested more than 64 directories deep", deep);
    REFUSED(deep_sentence, {deep, 0, "x", NULL});
    REFUSED("archive entry 'l': is a symbolic link with too long a target",
            {"l", S_IFLNK | 0777, NULL, target});
}

TEST(a_sentence_shows_only_what_a_terminal_and_json_can_take)
{
    REFUSED("archive entry '../?[31mevil?': has '..' in its path",
            {"../\x1b[31mevil\n", 0, "x", NULL});
    REFUSED("archive entry '../gr??e': has '..' in its path", {"../gr\xf6\xdf"
                                                               "e",
                                                               0, "x", NULL});
    REFUSED("archive entry '../größe/日本': has '..' in its path", {"../größe/日本", 0, "x", NULL});
    REFUSED("archive entry '../?\?': has '..' in its path", {"../\xc0\xaf", 0, "x", NULL});
}

/* ---- cut off and damaged ---- */

/* Wherever it is cut: refused, or (in the padding) still the whole tree. */
TEST(an_archive_that_was_cut_is_refused_or_was_whole)
{
    for (enum kind kind = 0; kind < KIND_COUNT; kind++) {
        cleanup(fd_close) int whole = archive_of(kind, good, ARRAY_COUNT(good));
        struct buf data cleanup(buf_done) = bytes_of(whole);
        size_t step = MAX(data.bytes / 150, (size_t)1), refused = 0;
        for (size_t bytes = 1; bytes < data.bytes; bytes += step) {
            struct error e = {0};
            cleanup(fd_close) int cut = archive_of_bytes(data.data, bytes);
            if (unpack_verify(cut, &e) != ERR_OK) {
                CHECK(e.text[0] != '\0' && strcmp(e.field, "code") == 0);
                refused++;
                continue;
            }
            struct place p cleanup(place_done) = place_new(), q cleanup(place_done) = place_new();
            struct unpack_counts of_cut = {0}, of_whole = {0};
            CHECK_EQ(unpack_into(cut, p.into_fd, &of_cut, &e), ERR_OK);
            CHECK_EQ(unpack_into(whole, q.into_fd, &of_whole, &e), ERR_OK);
            CHECK_EQ(of_cut.entries, of_whole.entries);
            CHECK_EQ(of_cut.bytes, of_whole.bytes);
        }
        CHECK(refused > 50);
    }
}

TEST(a_tar_that_was_cut_between_two_entries_is_refused)
{
    static const struct item items[] = {{"a", 0, "x", NULL}, {"b", 0, "y", NULL}};
    cleanup(fd_close) int fd = archive_of(TAR, items, 2);
    struct buf data cleanup(buf_done) = bytes_of(fd);
    CHECK_EQ(data.bytes, 2 * 1024 + 1024);
    check_refused(archive_of_bytes(data.data, 1024), ERR_INVALID,
                  "the archive is incomplete: a tar must end in a block of zeros");
    check_refused(archive_of_bytes(data.data, 2048), ERR_INVALID,
                  "the archive is incomplete: a tar must end in a block of zeros");
    check_refused(archive_of_bytes(data.data, 1024 + 512), ERR_INVALID,
                  "the archive is damaged or incomplete (b: Truncated tar archive)");
}

/* One byte at a time is changed: whatever it makes of it, it ends, and writes nowhere else. */
PROPERTY(a_damaged_archive_writes_nowhere_else)
{
    static const struct item items[] = {{"a/b", S_IFREG | 0755, "content", NULL},
                                        {"l", S_IFLNK | 0777, NULL, "a/b"},
                                        {"h", 0, NULL, "a/b"}};
    static const enum kind kinds[] = {TAR, TAR, TAR_GZ,
                                      ZIP}; /* the others take their time to begin */
    enum kind kind = kinds[rng_below(rng, ARRAY_COUNT(kinds))];
    cleanup(fd_close) int fd = archive_of(kind, items, kind == ZIP ? 2 : 3);
    struct buf data cleanup(buf_done) = bytes_of(fd);
    for (int i = 0; i < 3; i++) {
        struct place p cleanup(place_done) = place_new();
        struct error e = {0};
        data.data[rng_below(rng, data.bytes)] ^= (char)(1u << rng_below(rng, 8));
        cleanup(fd_close) int changed = archive_of_bytes(data.data, data.bytes);
        (void)unpack_both(changed, &p, &e);
    }
}

/* ---- bombs ---- */

static void add_zeros(struct maker *m, const char *path, uint64_t bytes, bool sparse)
{
    static char zeros[1 << 20];
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, path);
    archive_entry_set_mode(entry, S_IFREG | 0644);
    archive_entry_set_size(entry, (la_int64_t)bytes);
    if (sparse)
        archive_entry_sparse_add_entry(entry, 0, 512);
    REQUIRE(archive_write_header(m->archive, entry) == ARCHIVE_OK);
    for (uint64_t done = 0; done < (sparse ? 512 : bytes); done += sizeof(zeros))
        REQUIRE(archive_write_data(m->archive, zeros, sizeof(zeros)) > 0);
    archive_entry_free(entry);
}

TEST(what_is_compressed_beyond_any_honest_ratio_is_refused)
{
    static const char sentence[] = "archive entry 'zeros': is compressed beyond any honest ratio";
    struct maker m = maker_begin(TAR_ZSTD);
    add_zeros(&m, "zeros", 17 * MIB, false);
    check_refused(maker_end(&m), ERR_INVALID, sentence);
    m = maker_begin(TAR); /* a hole is no content either */
    add_zeros(&m, "zeros", 1 * GIB, true);
    check_refused(maker_end(&m), ERR_INVALID, sentence);
    m = maker_begin(TAR_ZSTD); /* in several files */
    add_zeros(&m, "a", 9 * MIB, false);
    add_zeros(&m, "zeros", 9 * MIB, false);
    check_refused(maker_end(&m), ERR_INVALID, sentence);
}

TEST(zeros_up_to_what_deflate_can_do_are_honest)
{
    struct place p cleanup(place_done) = place_new();
    struct error e = {0};
    struct maker m = maker_begin(TAR_GZ);
    add_zeros(&m, "zeros", 20 * MIB, false);
    cleanup(fd_close) int fd = maker_end(&m);
    CHECK_EQ(unpack_both(fd, &p, &e), ERR_OK);
    CHECK_STR(e.text, "");
}

TEST(what_unpacks_to_more_than_the_limit_is_refused)
{
    struct maker m = maker_begin(TAR);
    add_zeros(&m, "ballast", 3 * MIB, false); /* for the ratio */
    add_zeros(&m, "holes", CODE_UNPACKED_BYTES_MAX - 2 * MIB, true);
    check_refused(maker_end(&m), ERR_INVALID,
                  "archive entry 'holes': makes the unpacked code larger than 2 GiB");
}

TEST(files_and_directories_are_counted_also_those_that_are_not_named)
{
    char path[200], *at = path + 8;
    for (int i = 0; i < 63; i++)
        *at++ = '/', *at++ = 'd';
    *at = '\0';
    for (unsigned more = 0; more < 2;
         more++) { /* an entry of 64 deep is 63 directories and itself */
        struct error e = {0};
        struct maker m = maker_begin(TAR);
        for (unsigned i = 0; i < CODE_ENTRIES_MAX / 64 + more; i++) {
            (void)snprintf(path, 9, "%08u", i);
            path[8] = '/';
            maker_add(&m, &(struct item){path, 0, "", NULL});
        }
        cleanup(fd_close) int fd = maker_end(&m);
        CHECK_EQ(unpack_verify(fd, &e), more == 0 ? ERR_OK : ERR_INVALID);
        CHECK_STR(e.text,
                  more == 0 ? "" : "the archive has more than 200000 files and directories");
    }
}

/* ---- the kernel judges ---- */

static void path_random(struct rng *rng, unsigned parts_max, bool up, char *ret_path)
{
    static const char *const parts[] = {"a", "b", "..", "..", "."};
    unsigned count = 1 + (unsigned)rng_below(rng, parts_max);
    ret_path[0] = '\0';
    for (unsigned i = 0; i < count; i++)
        (void)sprintf(ret_path + strlen(ret_path), "%s%s", i > 0 ? "/" : "",
                      parts[rng_below(rng, up ? ARRAY_COUNT(parts) : 2)]);
}

/* Whatever links an archive has and whatever they pass through: from no link that was made does the
 * kernel get out of the tree. */
PROPERTY(no_link_leads_out_whatever_lies_on_its_way)
{
    struct place p cleanup(place_done) = place_new();
    struct item items[8];
    char paths[8][64], links[8][64];
    size_t count = 0;
    for (int tries = 0; tries < 24 && count < ARRAY_COUNT(items); tries++) {
        path_random(rng, 3, false, paths[count]);
        path_random(rng, 4, true, links[count]);
        unsigned kind = (unsigned)rng_below(rng, 8);
        items[count] = (struct item){paths[count],
                                     kind < 5    ? S_IFLNK | 0777
                                     : kind == 5 ? S_IFDIR | 0755
                                                 : 0,
                                     NULL, kind < 5 || kind == 6 ? links[count] : NULL};
        cleanup(fd_close) int fd = archive_of(TAR, items, count + 1);
        count += unpack_verify(fd, NULL) ==
                 ERR_OK; /* what is refused is left out, so that others are tried */
    }
    struct error e = {0};
    cleanup(fd_close) int fd = archive_of(TAR, items, count);
    CHECK_EQ(count > 0 ? unpack_both(fd, &p, &e) : ERR_OK, ERR_OK);
    for (size_t i = 0; i < count; i++) {
        struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
        cleanup(fd_close) int opened =
            (int)syscall(SYS_openat2, p.into_fd, paths[i], &how, sizeof(how));
        CHECK(opened >= 0 || errno != EXDEV);
    }
}

/* ---- the disk and the restriction ---- */

/* In a process and a mount namespace of its own. */
static void on_small_disk(struct error *ret_error)
{
    struct place p cleanup(place_done) = place_new();
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct error e = {0};
        struct maker m = maker_begin(TAR);
        add_zeros(&m, "large", 2 * MIB, false);
        int fd = maker_end(&m);
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
            mount("none", p.into, "tmpfs", 0, "size=1m") < 0)
            (void)error_errno(&e, "mount");
        else
            (void)!unpack_into(fd, open(p.into, O_RDONLY | O_DIRECTORY), NULL, &e);
        (void)!write(ends[1], &e, sizeof(e));
        _exit(0);
    }
    (void)close(ends[1]);
    CHECK_EQ(read(ends[0], ret_error, sizeof(*ret_error)), (ssize_t)sizeof(*ret_error));
    (void)close(ends[0]);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
}

TEST(a_full_disk_is_named)
{
    struct error e = {0};
    if (geteuid() != 0) {
        test_skip("needs root");
        return;
    }
    on_small_disk(&e);
    CHECK_EQ(e.code, ERR_NO_SPACE);
    CHECK_STR(e.text, "write 'large': No space left on device");
}

/* What the child that parses is left with: it can unpack below its directory, names in all scripts
 * too, and open nothing else. */
TEST(a_restricted_process_can_unpack_and_no_more)
{
    struct place p cleanup(place_done) = place_new();
    cleanup(fd_close) int fd = archive_of(TAR_GZ, good, ARRAY_COUNT(good));
    pid_t pid = fork();
    if (pid == 0) {
        struct error e = {0};
        unpack_restrict(p.into_fd);
        bool unpacked = unpack_into(fd, p.into_fd, NULL, &e) == ERR_OK;
        bool escaped = open(p.path, O_RDONLY) >= 0 || open("/etc/passwd", O_RDONLY) >= 0 ||
                       mkdirat(p.into_fd, "../other", 0755) == 0;
        _exit(!unpacked ? 1 : escaped ? 2 : 0);
    }
    int status = 0;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2 &&
        syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) < 0)
        test_skip("no Landlock in this kernel");
    else
        CHECK_EQ(status, 0);
    CHECK_EQ(test_tree_names(p.path), 1);
    CHECK(test_tree_names(p.into) >= 8);
}
