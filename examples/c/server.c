/* A function in C without libc: some 10 KB, no start-up work, so what is left of a cold start is
 * the platform's. It shows the smallest thing that is a function: GET answers a greeting, POST
 * gives the body back (64 KiB at most).
 *
 *     make -C examples/c && dirigent deploy hello-c --dir examples/c --concurrency 100
 *     dirigent invoke hello-c -d 'an echo'
 *
 * Linux on x86-64; system calls, epoll, one thread, keep-alive. */
#include <linux/eventpoll.h>
#include <linux/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

enum { CONNECTIONS = 512, BUFFER = 72 * 1024, BODY_MAX = 64 * 1024 };
enum {
    SOCK_STREAM_ = 1,
    SOL_SOCKET_ = 1,
    SO_REUSEADDR_ = 2,
    MSG_DONTWAIT_ = 0x40,
    MSG_NOSIGNAL_ = 0x4000
};
enum { ERROR_INTERRUPTED = -4, ERROR_AGAIN = -11 };

struct connection {
    long bytes;
    char data[BUFFER];
};
static struct connection connections[CONNECTIONS]; /* by descriptor; untouched ones cost nothing */

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* The compiler may ask for these also where there is no libc. */
void *memcpy(void *to, const void *from, size_t bytes)
{
    void *kept = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return kept;
}

static void leave(int code)
{
    for (;;)
        call(SYS_exit_group, code, 0, 0, 0, 0, 0);
}

static long length_of(const char *text)
{
    long n = 0;
    while (text[n] != '\0')
        n++;
    return n;
}

static void say(const char *text)
{
    call(SYS_write, 2, (long)text, length_of(text), 0, 0, 0);
}

static int send_all(long fd, const char *data, long bytes)
{
    while (bytes > 0) {
        long n = call(SYS_sendto, fd, (long)data, bytes, MSG_NOSIGNAL_, 0, 0);
        if (n == ERROR_INTERRUPTED)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        bytes -= n;
    }
    return 0;
}

static unsigned number_at(const char *text)
{
    unsigned value = 0;
    while (*text == ' ')
        text++;
    for (; *text >= '0' && *text <= '9' && value < 100000000; text++)
        value = value * 10 + (unsigned)(*text - '0');
    return value;
}

static int same_letter(char a, char b)
{
    return a == b || (a >= 'A' && a <= 'Z' && a + 32 == b);
}

/* The bytes of the head with its empty line, or 0: not all of it is there. */
static long head_bytes(const char *data, long bytes)
{
    for (long i = 3; i < bytes; i++)
        if (data[i] == '\n' && data[i - 1] == '\r' && data[i - 2] == '\n' && data[i - 3] == '\r')
            return i + 1;
    return 0;
}

/* The value of a header, whose name is given in lower case with its colon; or NULL. */
static const char *header(const char *head, long bytes, const char *name)
{
    for (long i = 0; i < bytes; i++) {
        long j = 0;
        if (head[i] != '\n')
            continue;
        while (name[j] != '\0' && i + 1 + j < bytes && same_letter(head[i + 1 + j], name[j]))
            j++;
        if (name[j] == '\0')
            return head + i + 1 + j;
    }
    return NULL;
}

static int answer(long fd, const char *status, const char *body, long bytes, int with_body)
{
    char head[256], digits[24];
    long n = 0, d = 0, left = bytes;
    const char *parts[] = {"HTTP/1.1 ", status, "\r\nContent-Type: text/plain\r\nContent-Length: "};
    for (int i = 0; i < 3; i++)
        for (const char *c = parts[i]; *c != '\0'; c++)
            head[n++] = *c;
    do
        digits[d++] = (char)('0' + left % 10);
    while ((left /= 10) > 0);
    while (d > 0)
        head[n++] = digits[--d];
    for (const char *c = "\r\n\r\n"; *c != '\0'; c++)
        head[n++] = *c;
    if (bytes == 0 || !with_body || bytes > 128)
        return send_all(fd, head, n) < 0 || (with_body && send_all(fd, body, bytes) < 0) ? -1 : 0;
    char whole[384];
    memcpy(whole, head, (size_t)n);
    memcpy(whole + n, body, (size_t)bytes);
    return send_all(fd, whole, n + bytes);
}

/* Answers the first whole request; how many bytes it had, 0: more are needed, -1: close. */
static long serve(long fd, const char *data, long bytes)
{
    static const char greeting[] = "Hello from C\n",
                      too_large[] = "64 KiB at most, with Content-Length\n";
    long head = head_bytes(data, bytes), body;
    if (head == 0)
        return bytes > 8192 ? -1 : 0;
    const char *length = header(data, head, "content-length:");
    body = length != NULL ? number_at(length) : 0;
    if (body > BODY_MAX || header(data, head, "transfer-encoding:") != NULL) {
        answer(fd, "413 Content Too Large", too_large, sizeof(too_large) - 1, 1);
        return -1;
    }
    if (bytes < head + body)
        return 0;
    int failed = body > 0 ? answer(fd, "200 OK", data + head, body, 1)
                          : answer(fd, "200 OK", greeting, sizeof(greeting) - 1, data[0] != 'H');
    return failed ? -1 : head + body;
}

static void on_readable(long fd)
{
    struct connection *c = &connections[fd];
    long n =
        call(SYS_recvfrom, fd, (long)(c->data + c->bytes), BUFFER - c->bytes, MSG_DONTWAIT_, 0, 0);
    long used = 0;
    if (n == ERROR_AGAIN || n == ERROR_INTERRUPTED)
        return;
    if (n > 0) {
        c->bytes += n;
        while (c->bytes > 0 && (used = serve(fd, c->data, c->bytes)) > 0) {
            memcpy(c->data, c->data + used, (size_t)(c->bytes - used)); /* forwards: may overlap */
            c->bytes -= used;
        }
    }
    if (n <= 0 || used < 0)
        call(SYS_close, fd, 0, 0, 0, 0, 0);
}

static long listen_on(unsigned port)
{
    int one = 1;
    struct sockaddr_in address = {.sin_family = 2,
                                  .sin_port = (uint16_t)((port & 255) << 8 | port >> 8)};
    long fd = call(SYS_socket, 2, SOCK_STREAM_, 0, 0, 0, 0);
    call(SYS_setsockopt, fd, SOL_SOCKET_, SO_REUSEADDR_, (long)&one, sizeof(one), 0);
    if (call(SYS_bind, fd, (long)&address, sizeof(address), 0, 0, 0) < 0 ||
        call(SYS_listen, fd, 128, 0, 0, 0, 0) < 0) {
        say("cannot listen\n");
        leave(1);
    }
    return fd;
}

__attribute__((used)) void run(long *stack)
{
    char **environment = (char **)(stack + 1 + stack[0] + 1);
    unsigned port = 8080;
    for (char **e = environment; *e != NULL; e++)
        if ((*e)[0] == 'P' && (*e)[1] == 'O' && (*e)[2] == 'R' && (*e)[3] == 'T' && (*e)[4] == '=')
            port = number_at(*e + 5);
    long listener = listen_on(port), epoll = call(SYS_epoll_create1, 0, 0, 0, 0, 0, 0);
    struct epoll_event event = {EPOLLIN, (uint64_t)listener}, events[64];
    call(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, listener, (long)&event, 0, 0);
    say("listening\n");
    for (;;) {
        long ready = call(SYS_epoll_wait, epoll, (long)events, 64, -1, 0, 0);
        for (long i = 0; i < ready; i++) {
            long fd = (long)events[i].data;
            if (fd != listener) {
                on_readable(fd);
                continue;
            }
            fd = call(SYS_accept4, listener, 0, 0, 0, 0, 0);
            if (fd >= CONNECTIONS)
                call(SYS_close, fd, 0, 0, 0, 0, 0);
            if (fd < 0 || fd >= CONNECTIONS)
                continue;
            connections[fd].bytes = 0;
            event = (struct epoll_event){EPOLLIN, (uint64_t)fd};
            call(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, fd, (long)&event, 0, 0);
        }
    }
}

__asm__(
    ".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call run\n hlt\n");
