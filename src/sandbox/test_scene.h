/* test_scene.h - for tests: acts that need namespaces of their own play in a child, as root. */
#pragma once
#include "test.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

struct scene {
    struct error e;
    int host_ns; /* the network namespace of its beginning */
    char complaint[1600];
};
/* In an act, which returns nothing: the first thing that is not so ends it. */
#define WANT(s, condition)                                                                      \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            (void)snprintf((s)->complaint, sizeof((s)->complaint), "line %d: %s: %s", __LINE__, \
                           #condition, (s)->e.text);                                            \
            return;                                                                             \
        }                                                                                       \
    } while (0)

/* `namespaces`: CLONE_NEW…, made before the act. Skips the running test without root. */
static inline void scene_play(int namespaces, void (*act)(struct scene *))
{
    int ends[2], status;
    if (geteuid() != 0) {
        test_skip("needs root");
        return;
    }
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        static struct scene s = {.complaint = "the namespaces cannot be made"};
        if (unshare(namespaces) == 0) {
            s.complaint[0] = '\0';
            s.host_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
            act(&s);
        }
        (void)!write(ends[1], s.complaint, strlen(s.complaint));
        _exit(0);
    }
    (void)close(ends[1]);
    char complaint[sizeof(((struct scene *)0)->complaint)] = "";
    CHECK(read(ends[0], complaint, sizeof(complaint) - 1) >= 0);
    (void)close(ends[0]);
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK_EQ(status, 0);
    CHECK_STR(complaint, "");
}
