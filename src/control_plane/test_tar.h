/* test_tar.h - for tests: a tar archive with one file. The caller frees the buffer. */
#pragma once
#include "base/str.h"
#include <stdio.h>

static inline struct buf make_tar(const char *name, const char *content)
{
    struct buf tar = {0};
    char head[512] = {0};
    unsigned sum = 0;
    size_t bytes = strlen(content);
    snprintf(head, 100, "%s", name);
    memcpy(head + 100, "0000644\0000000000\0000000000\0", 24);
    snprintf(head + 124, 12, "%011o", (unsigned)bytes);
    memcpy(head + 136, "00000000000", 12);
    memset(head + 148, ' ', 8);
    head[156] = '0';
    memcpy(head + 257, "ustar\00000", 8);
    for (size_t i = 0; i < sizeof(head); i++)
        sum += (unsigned char)head[i];
    snprintf(head + 148, 8, "%06o", sum);
    buf_append(&tar, head, sizeof(head));
    buf_append(&tar, content, bytes);
    char zeros[1536] = {0};
    buf_append(&tar, zeros, 512 - bytes % 512 + 1024);
    return tar;
}
