/* crash_point.c - only in builds for tests. */
#include "base/crash_point.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES_MAX 4096

void crash_point(const char *name)
{
    const char *directory = getenv("CRASH_POINTS");
    char armed[PATH_BYTES_MAX], hit[PATH_BYTES_MAX];
    if (directory == NULL)
        return;
    int n = snprintf(armed, sizeof(armed), "%s/%s", directory, name);
    int m = snprintf(hit, sizeof(hit), "%s/%s.%d", directory, name, (int)getpid());
    if (n >= (int)sizeof(armed) || m >= (int)sizeof(hit) || rename(armed, hit) < 0)
        return;
    while (access(hit, F_OK) == 0)
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

char *crash_point_environment(void)
{
    static char text[PATH_BYTES_MAX];
    const char *directory = getenv("CRASH_POINTS");
    if (directory == NULL ||
        snprintf(text, sizeof(text), "CRASH_POINTS=%s", directory) >= (int)sizeof(text))
        return NULL;
    return text;
}
