/* crash_point.h - named places at which a test kills programs, to see that nothing depends on where
 * they die.
 *
 * In a build with -Dtest_hooks=true, where the environment names a directory in CRASH_POINTS, who
 * comes by CRASH_POINT("x") and finds a file "x" there renames it to "x.PID", with its own pid, and
 * stands still until that one is removed: whoever has put it there kills what it likes meanwhile,
 * this process too. So one file is met once. Any thread, any process that sees the directory. Every other build has
 * nothing of this. */
#ifndef DIRIGENT_BASE_CRASH_POINT_H
#define DIRIGENT_BASE_CRASH_POINT_H

#ifdef DIRIGENT_TEST_HOOKS
void crash_point(const char *name);
/* "CRASH_POINTS=directory" for a program that is started with an environment of its own, or NULL.
 * Lives as long as the process. */
char *crash_point_environment(void);
#define CRASH_POINT(name) crash_point(name)
#else
static inline char *crash_point_environment(void)
{
    return (char *)0;
}
#define CRASH_POINT(name) ((void)0)
#endif

#endif
