/* archive_fuzz.c - whatever comes as an archive: the check of an upload and the unpacking agree,
 * nothing outside the directory is made or changed, what is made is files, directories and links,
 * and from no link does the kernel get out. */
#include "base/limits.h"
#include "worker/test_tree.h"
#include "worker/unpack.h"
#include <errno.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void tree_check(int into_fd, int dir, char *path, size_t path_bytes)
{
    DIR *list = fdopendir(dir);
    assert(list != NULL);
    for (struct dirent *entry; (entry = readdir(list)) != NULL;) {
        struct stat st;
        if (test_tree_is_dots(entry->d_name))
            continue;
        size_t n = (size_t)snprintf(path + path_bytes, CODE_PATH_BYTES_MAX + 1 - path_bytes, "%s%s",
                                    path_bytes > 0 ? "/" : "", entry->d_name);
        assert(fstatat(dir, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0);
        if (S_ISLNK(st.st_mode)) {
            struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
            int fd = (int)syscall(SYS_openat2, into_fd, path, &how, sizeof(how));
            assert(fd >= 0 || errno != EXDEV);
            fd_close(&fd);
        } else if (S_ISDIR(st.st_mode)) {
            assert((st.st_mode & 07777) == 0755);
            tree_check(into_fd,
                       openat(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC),
                       path, path_bytes + n);
        } else {
            assert(S_ISREG(st.st_mode) &&
                   ((st.st_mode & 07777) == 0644 || (st.st_mode & 07777) == 0755));
        }
    }
    closedir(list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char place[64], into[80], path[CODE_PATH_BYTES_MAX + 1] = "";
    struct error of_check = {0}, of_unpack = {0};
    int fd = memfd_create("archive", MFD_CLOEXEC);
    assert(test_tree_new("archive-fuzz", place, sizeof(place)));
    (void)snprintf(into, sizeof(into), "%s/into", place);
    assert(fd >= 0 && fd_write_all(fd, data, bytes) == ERR_OK && mkdir(into, 0755) == 0);
    int into_fd = open(into, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert(into_fd >= 0);
    enum err check = unpack_verify(fd, &of_check),
             unpack = unpack_into(fd, into_fd, NULL, &of_unpack);
    assert(check == unpack && strcmp(of_check.text, of_unpack.text) == 0);
    assert((check == ERR_OK) == (of_check.text[0] == '\0'));
    assert(test_tree_names(place) == 1);
    tree_check(into_fd, openat(into_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), path, 0);
    fd_close(&into_fd);
    fd_close(&fd);
    test_tree_remove(AT_FDCWD, place);
    return 0;
}
