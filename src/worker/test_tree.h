/* test_tree.h - for tests: a directory of their own, its removal and what is in it. */
#pragma once
#include "base/base.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline bool test_tree_is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Links are not followed; paths may be longer than the kernel takes at once. */
static inline void test_tree_remove(int dir, const char *name)
{
    if (unlinkat(dir, name, 0) == 0)
        return;
    DIR *list = fdopendir(openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;)
        if (!test_tree_is_dots(entry->d_name))
            test_tree_remove(dirfd(list), entry->d_name);
    if (list != NULL)
        closedir(list);
    (void)unlinkat(dir, name, AT_REMOVEDIR);
}

/* In memory where there is a place for it: what is tested syncs its files. */
static inline bool test_tree_new(const char *name, char *ret_path, size_t bytes)
{
    (void)snprintf(ret_path, bytes, "%s/%s-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", name);
    return mkdtemp(ret_path) != NULL;
}

/* How many names a directory has; -1: it is not there. */
static inline int test_tree_names(const char *path)
{
    int count = 0;
    DIR *list = opendir(path);
    for (struct dirent *entry; list != NULL && (entry = readdir(list)) != NULL;)
        count += !test_tree_is_dots(entry->d_name);
    if (list == NULL)
        return -1;
    closedir(list);
    return count;
}
