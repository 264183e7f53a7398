/* launcher_client.c - the worker's side: starting or finding the launcher, orders, events. */
#include "launcher/state.h"
#include "base/crash_point.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_PATIENCE_MS 30000

/* The launcher's executable, part of ours (embed.S). */
extern const char dirigent_launcher_begin[], dirigent_launcher_end[];

static enum err socket_connect(const char *run_dir, int *ret_fd, struct error *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/launcher.sock", run_dir);
    if (n < 0 || (size_t)n >= sizeof(address.sun_path))
        return error_field(e, ERR_USAGE, "run_dir",
                           "the run directory '%s' has too long a path for a socket", run_dir);
    cleanup(fd_close) int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return error_errno(e, "connect to '%s'", address.sun_path);
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    *ret_fd = fd_take(&fd);
    return ERR_OK;
}

/* A sealed copy in memory: nothing can change what runs as root, and no path leads to it. */
static enum err executable_seal(int *ret_fd, struct error *e)
{
    size_t bytes = (size_t)(dirigent_launcher_end - dirigent_launcher_begin);
    cleanup(fd_close) int fd =
        memfd_create("dirigent-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING | 0x10u /* MFD_EXEC */);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create("dirigent-launcher", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fd_write_all(fd, dirigent_launcher_begin, bytes) != ERR_OK ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return error_errno(e, "put the launcher into memory");
    *ret_fd = fd_take(&fd);
    return ERR_OK;
}

static _Noreturn void launcher_exec(const struct launcher_config *c, int exe_fd, int outcome_fd)
{
    char text[16][300], *argv[17];
    int n = 0;
    (void)snprintf(text[n++], 300, "dirigent-launcher");
    (void)snprintf(text[n++], 300, "run_dir=%s", c->run_dir);
    (void)snprintf(text[n++], 300, "instance=%s", c->instance);
    (void)snprintf(text[n++], 300, "pool_ip=%u", c->pool_ip);
    (void)snprintf(text[n++], 300, "host_port_base=%u", c->host_port_base);
    (void)snprintf(text[n++], 300, "slots_max=%u", c->slots_max);
    (void)snprintf(text[n++], 300, "blanks_min=%u", c->blanks_min);
    (void)snprintf(text[n++], 300, "quarantine_ms=%u", c->quarantine_ms);
    (void)snprintf(text[n++], 300, "orphan_ms=%u", c->orphan_ms);
    (void)snprintf(text[n++], 300, "userns_base=%u", c->userns_base);
    (void)snprintf(text[n++], 300, "worker_uid=%u", c->worker_uid);
    (void)snprintf(text[n++], 300, "cgroup_version=%d", c->cgroup_version);
    (void)snprintf(text[n++], 300, "probe=%u", c->probe);
    for (int i = 0; i < n; i++)
        argv[i] = text[i];
    argv[n] = NULL;
    char *environment[] = {crash_point_environment(), NULL};
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    /* The executable first, out of the way of descriptor 3 */
    int exe = fcntl(exe_fd, F_DUPFD_CLOEXEC, 10), null = open("/dev/null", O_RDWR);
    (void)dup2(outcome_fd, 3);
    (void)dup2(null, 0);
    (void)dup2(2, 1);
    (void)syscall(SYS_close_range, 4, 9, 0);
    (void)syscall(SYS_close_range, exe + 1, ~0u, 0);
    (void)syscall(SYS_execveat, exe, "", argv, environment, AT_EMPTY_PATH);
    static const char text_failed[] = "the launcher could not be executed";
    (void)!write(3, text_failed, sizeof(text_failed) - 1);
    _exit(127);
}

static enum err launcher_start(const struct launcher_config *c, struct error *e)
{
    cleanup(fd_close) int exe = -1;
    enum err err = executable_seal(&exe, e);
    if (err != ERR_OK)
        return err;
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_errno(e, "make a pipe");
    pid_t pid = fork();
    if (pid == 0) {
        /* Its parent is process 1 or the nearest subreaper: it is not the worker's child, whose
         * death it survives. */
        pid_t second = fork();
        if (second != 0)
            _exit(second < 0 ? 1 : 0);
        launcher_exec(c, exe, ends[1]);
    }
    (void)close(ends[1]);
    if (pid > 0)
        (void)waitpid(pid, NULL, 0);
    char outcome[ERROR_TEXT_BYTES_MAX] = "";
    struct pollfd wait = {.fd = ends[0], .events = POLLIN};
    ssize_t n = 0;
    if (pid < 0)
        err = error_errno(e, "start the launcher");
    else if (poll(&wait, 1, START_PATIENCE_MS) <= 0)
        err = error_set(e, ERR_TIMEOUT, "the launcher did not get ready within %d s",
                        START_PATIENCE_MS / 1000);
    else if ((n = read(ends[0], outcome, sizeof(outcome) - 1)) <= 0 || strcmp(outcome, "ok") != 0)
        err = error_set(e, ERR_FAILED, "the launcher cannot work on this host: %s",
                        n > 0 ? outcome : "it died at start");
    (void)close(ends[0]);
    return err;
}

enum err launcher_open(const struct launcher_config *config, int *ret_fd, bool *ret_started,
                       struct error *e)
{
    *ret_started = false;
    if (socket_connect(config->run_dir, ret_fd, NULL) == ERR_OK)
        return ERR_OK;
    enum err err = launcher_start(config, e);
    if (err != ERR_OK)
        return err;
    *ret_started = true;
    return socket_connect(config->run_dir, ret_fd, e);
}

/* ---- orders and events ---- */

struct waiting { /* a packet that the socket did not take */
    struct list node;
    char *data;
    size_t bytes;
    int fds[2];
    size_t fd_count;
};

struct launcher_client {
    struct loop_poll poll;
    const struct launcher_callbacks *callbacks;
    void *user;
    struct list waiting;
    bool in_callback, freed; /* freed inside a callback: on_ready() ends it */
};

static void waiting_free(struct waiting *w)
{
    list_remove(&w->node);
    for (size_t i = 0; i < w->fd_count; i++)
        fd_close(&w->fds[i]);
    free(w->data);
    free(w);
}

static void flush(struct launcher_client *c)
{
    while (!list_is_empty(&c->waiting)) {
        struct waiting *w = list_entry(c->waiting.next, struct waiting, node);
        if (packet_send(c->poll.fd, w->data, w->bytes, w->fds, w->fd_count) == ERR_MORE)
            return;
        waiting_free(w); /* sent, or the socket is broken, which its descriptor tells */
    }
    loop_poll_change(&c->poll, EPOLLIN);
}

static void client_end(struct launcher_client *c)
{
    while (!list_is_empty(&c->waiting))
        waiting_free(list_entry(c->waiting.next, struct waiting, node));
    free(c);
}

static void on_ready(struct loop_poll *poll, uint32_t epoll_events)
{
    struct launcher_client *c = container_of(poll, struct launcher_client, poll);
    if (epoll_events & EPOLLOUT)
        flush(c);
    c->in_callback = true;
    for (int i = 0; i < 64 && !c->freed; i++) {
        struct launcher_event event;
        size_t fd_count;
        ssize_t n = packet_recv(poll->fd, &event, sizeof(event), NULL, 0, &fd_count);
        if (n < 0)
            break;
        if (n != (ssize_t)sizeof(event)) {
            loop_poll_stop(poll);
            c->callbacks->on_closed(c, c->user,
                                    n == 0 ? "the launcher has gone"
                                           : "the launcher is of another version");
            break;
        }
        event.text[sizeof(event.text) - 1] = '\0';
        c->callbacks->on_event(c, c->user, &event);
    }
    c->in_callback = false;
    if (c->freed)
        client_end(c);
}

enum err launcher_client_new(struct loop *loop, int fd, const struct launcher_callbacks *callbacks,
                             void *user, struct launcher_client **ret_client, struct error *e)
{
    struct launcher_client *c = mem_new(sizeof(*c));
    c->callbacks = callbacks;
    c->user = user;
    c->poll.on_ready = on_ready;
    list_init(&c->waiting);
    enum err err = loop_poll_start(loop, &c->poll, fd, EPOLLIN, e);
    if (err != ERR_OK) {
        free(c);
        return err;
    }
    *ret_client = c;
    return ERR_OK;
}

void launcher_client_free(struct launcher_client *c)
{
    if (c == NULL)
        return;
    loop_poll_stop(&c->poll);
    fd_close(&c->poll.fd);
    c->freed = true;
    if (!c->in_callback)
        client_end(c);
}

void launcher_client_send(struct launcher_client *c, const struct launcher_command *command,
                          const char *strings, const int *fds, size_t fd_count)
{
    size_t bytes = sizeof(*command) +
                   (command->kind == LAUNCHER_TEMPLATE ? command->template.strings_bytes : 0);
    assert(bytes <= LAUNCHER_PACKET_BYTES_MAX && fd_count <= 2);
    char *packet = mem_new(bytes);
    memcpy(packet, command, sizeof(*command));
    if (bytes > sizeof(*command))
        memcpy(packet + sizeof(*command), strings, bytes - sizeof(*command));
    if (list_is_empty(&c->waiting) &&
        packet_send(c->poll.fd, packet, bytes, fds, fd_count) != ERR_MORE) {
        free(packet);
        return;
    }
    struct waiting *w = mem_new(sizeof(*w));
    *w = (struct waiting){.data = packet, .bytes = bytes, .fd_count = fd_count};
    for (size_t i = 0; i < fd_count; i++)
        w->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
    list_push_back(&c->waiting, &w->node);
    if (c->poll.active)
        loop_poll_change(&c->poll, EPOLLIN | EPOLLOUT);
}
