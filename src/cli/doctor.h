/* doctor.h - `dirigent doctor`: whether this host can do what a program of the cluster needs of it.
 * Only looks; changes nothing. Sources: the kernel's Documentation/admin-guide/sysctl, cgroups(7). */
#pragma once
#include "base/base.h"

enum finding_level { FINDING_GOOD, FINDING_WARN, FINDING_BAD, FINDING_LEVEL_COUNT };
struct finding {
    enum finding_level level;
    const char *subject; /* "kernel" */
    char text[256];      /* what is so */
    char advice[256];    /* what to do; "" when good */
};
struct findings {
    struct finding items[40];
    size_t count;
};
/* The whole host, for a worker (the most that is needed). `data_dir` may not exist yet. `root` is
 * "" or, in tests, a directory that holds proc/ and sys/ as the host's would. */
void doctor_look(const char *root, const char *data_dir, struct findings *ret_findings);
