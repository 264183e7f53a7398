/* function.c - the function that the benchmarks run: an HTTP/1.1 keep-alive server without libc, so
 * that what is measured is the platform and not a program's start. Linux x86-64 system calls,
 * epoll, one thread. Listens on $PORT (8080). With an argument it writes "ready" to stdout once it
 * listens and exits: that is how runtimes that give no network are measured. Built with -static
 * -nostdlib. */
#include <linux/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#define EPOLLIN 1u
#define EPOLL_CTL_ADD 1
#define SOCK_STREAM 1
#define SOCK_NONBLOCK 04000
#define SOL_SOCKET 1
#define SO_REUSEADDR 2

static long call6(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define CALL(n, a, b, c) call6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL4(n, a, b, c, d) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define CALL5(n, a, b, c, d, e) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

struct event {
    uint32_t events;
    uint64_t data;
} __attribute__((packed));

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                             "Content-Length: 13\r\n\r\nhello, world\n";

static _Noreturn void leave(int code)
{
    for (;;)
        CALL(SYS_exit_group, code, 0, 0);
}

static unsigned port_from(char **environment)
{
    for (char **e = environment; *e != NULL; e++) {
        const char *s = *e;
        if (s[0] != 'P' || s[1] != 'O' || s[2] != 'R' || s[3] != 'T' || s[4] != '=')
            continue;
        unsigned port = 0;
        for (s += 5; *s >= '0' && *s <= '9'; s++)
            port = port * 10 + (unsigned)(*s - '0');
        return port;
    }
    return 8080;
}

/* The number of request heads that end in these bytes; requests have no bodies here. */
static unsigned count_requests(const char *data, long bytes)
{
    unsigned count = 0;
    for (long i = 3; i < bytes; i++)
        count +=
            data[i] == '\n' && data[i - 1] == '\r' && data[i - 2] == '\n' && data[i - 3] == '\r';
    return count;
}

__attribute__((used)) void run(long *stack); /* called from _start */
__attribute__((used)) void run(long *stack)
{
    long argc = stack[0];
    char **environment = (char **)(stack + 1 + argc + 1);
    unsigned port = port_from(environment);
    struct sockaddr_in address = {.sin_family = 2,
                                  .sin_port = (uint16_t)((port & 0xff) << 8 | port >> 8)};
    long fd = CALL(SYS_socket, 2, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int one = 1;
    CALL5(SYS_setsockopt, fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (CALL(SYS_bind, fd, &address, sizeof(address)) < 0 || CALL(SYS_listen, fd, 1024, 0) < 0)
        leave(1);
    if (argc > 1) {
        CALL(SYS_write, 1, "ready\n", 6);
        leave(0);
    }
    long epoll = CALL(SYS_epoll_create1, 0, 0, 0);
    struct event event = {EPOLLIN, (uint64_t)fd};
    CALL4(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, fd, &event);
    static struct event events[64];
    static char data[16384];
    for (;;) {
        long ready = CALL4(SYS_epoll_wait, epoll, events, 64, -1);
        for (long i = 0; i < ready; i++) {
            long client = (long)events[i].data;
            if (client == fd) {
                client = CALL4(SYS_accept4, fd, 0, 0, SOCK_NONBLOCK);
                if (client < 0)
                    continue;
                event = (struct event){EPOLLIN, (uint64_t)client};
                CALL4(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, client, &event);
                continue;
            }
            long bytes = call6(SYS_recvfrom, client, (long)data, sizeof(data), 0, 0, 0);
            if (bytes <= 0) {
                CALL(SYS_close, client, 0, 0);
                continue;
            }
            for (unsigned n = count_requests(data, bytes); n > 0; n--)
                call6(SYS_sendto, client, (long)answer, sizeof(answer) - 1, 0x4000, 0, 0);
        }
    }
}

__asm__(
    ".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call run\n hlt\n");
