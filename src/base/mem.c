/* mem.c - memory that must exist. */
#include "base/base.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *must(void *memory)
{
    if (memory == NULL) {
        static const char text[] = "out of memory\n";
        (void)fwrite(text, 1, sizeof(text) - 1, stderr);
        abort();
    }
    return memory;
}

void *mem_new(size_t bytes)
{
    return must(calloc(1, bytes > 0 ? bytes : 1));
}

void *mem_new_array(size_t count, size_t item_bytes)
{
    return must(calloc(count > 0 ? count : 1, item_bytes > 0 ? item_bytes : 1));
}

void *mem_resize(void *old, size_t count, size_t item_bytes)
{
    return must(reallocarray(old, count > 0 ? count : 1, item_bytes > 0 ? item_bytes : 1));
}

char *mem_strdup(const char *text)
{
    return must(strdup(text));
}

char *mem_strndup(const char *text, size_t bytes)
{
    return must(strndup(text, bytes));
}

char *mem_printf(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int bytes = vasprintf(&text, format, args);
    va_end(args);
    return must(bytes < 0 ? NULL : text);
}

void free_pointer(void *pointer_to_pointer)
{
    free(*(void **)pointer_to_pointer);
}
