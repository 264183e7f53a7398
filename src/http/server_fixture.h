/* server_fixture.h - for the tests of server.h: a server with a handler that does what the path
 * says, and clients on plain sockets, all on one thread: each wait of a client runs the server's
 * loop.
 *
 *   /hello           answers "hello"              /echo        reads the body whole (up to
 * BODY_MAX), answers it /later           is kept in f->kept           /pieces      streams the body
 * into f->body; answers "N bytes" /large?N         whole answer of N bytes      /stream?N streamed
 * answer of N bytes, as it drains /endless         begins, and goes on          /both        begins
 * the answer, then streams the body back /early           answers, body unread         /paused as
 * /pieces, but paused after each piece, until resumed /toggle          as /pieces, but paused and
 * resumed inside of each callback */
#pragma once
#include "http/server.h"
#include "test.h"

#define BODY_MAX ((size_t)MIB)

struct fixture {
    struct loop *loop;
    struct http_server *server;
    struct http_exchange
        *kept; /* the exchange that is open, if the handler went out without an answer */
    unsigned requests, gone, body_calls, body_ends;
    enum err body_err; /* told to a body callback */
    bool pause_each, toggle_each, echo_pieces;
    struct buf body;
    size_t stream_left, stream_at, pending_most;
};
struct fixture *fixture_new(void);
void fixture_free(struct fixture *f);

struct client {
    struct fixture *f;
    int fd;
    struct buf got;
    bool ended; /* the server ended its direction */
    int error;  /* errno of a broken connection */
};
/* receive_bytes: size of the client's receive buffer; 0: the kernel's own. */
struct client client_new(struct fixture *f, int receive_bytes);
void client_done(struct client *c);
/* All of it, however long the server takes; false: the connection broke. */
bool client_send(struct client *c, struct str data);
#define client_say(c, text) CHECK(client_send(c, STR(text)))
void client_end(struct client *c); /* half-close */
/* Runs the loop until so many bytes are there, the server has ended, or the deadline of 5 s has
 * passed. */
void client_wait(struct client *c, size_t bytes);
void client_wait_end(struct client *c);
/* Runs the loop for a while, without an end in sight. */
void fixture_run(struct fixture *f, unsigned ms);
#define fixture_run_until(f, condition)                               \
    do {                                                              \
        for (int turns_ = 0; turns_ < 5000 && !(condition); turns_++) \
            loop_run_once((f)->loop, 1);                              \
        CHECK(condition);                                             \
    } while (0)

/* The next bytes are exactly these. */
void client_check(struct client *c, const char *file, int line, struct str expected);
#define CHECK_GETS(c, text) client_check(c, __FILE__, __LINE__, STR(text))
#define ANSWER(status, length, body) \
    "HTTP/1.1 " status "\r\nContent-Type: text/plain\r\nContent-Length: " length "\r\n" body
#define HELLO ANSWER("200 OK", "5", "\r\nhello")
/* The server ends now: nothing more comes, and no reset. */
#define CHECK_ENDS(c)                \
    do {                             \
        client_wait_end(c);          \
        CHECK((c)->ended);           \
        CHECK_EQ((c)->error, 0);     \
        CHECK_EQ((c)->got.bytes, 0); \
    } while (0)

/* The byte at a place of a long text. */
static inline char pattern_at(size_t at)
{
    return (char)('a' + at % 23);
}
bool is_pattern(const char *data, size_t bytes, size_t at);
char *pattern_new(size_t bytes); /* the caller's to free */
