/* outbox_test.c - what is put in comes out at the other end of a link, once, in order. */
#include "control_plane/outbox.h"
#include "test.h"
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

struct reader {
    Dirigent__FromControlPlane *message;
    unsigned count;
};

static void on_frame(struct link *link, void *user, const uint8_t *data, size_t bytes)
{
    struct reader *r = user;
    if (r->message != NULL)
        dirigent__from_control_plane__free_unpacked(r->message, NULL);
    r->message = dirigent__from_control_plane__unpack(NULL, bytes, data);
    r->count++;
}

static void on_closed(struct link *link, void *user, enum err err, const char *why)
{
}

static const struct link_callbacks callbacks = {.on_frame = on_frame, .on_closed = on_closed};

static void fill(struct outbox *o, unsigned round)
{
    char text[64];
    for (unsigned i = 0; i < 100; i++) {
        snprintf(text, sizeof(text), "function-%u-%u", round, i);
        Dirigent__FunctionRoute *route =
            OUTBOX_ADD(o, routes, Dirigent__FunctionRoute, DIRIGENT__FUNCTION_ROUTE__INIT);
        route->function_id = i;
        route->name = arena_text(&o->arena, text);
        outbox_add_number(&o->remove_sandboxes, 1000 + i);
    }
}

TEST(an_outbox_arrives_whole_and_is_empty_afterwards)
{
    struct error e = {0};
    struct loop *loop = NULL;
    struct link *ours = NULL, *theirs = NULL;
    struct reader reader = {0};
    struct outbox outbox = {0};
    int fds[2];
    REQUIRE(loop_new(&loop, &e) == ERR_OK);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    REQUIRE(link_accept(loop, fds[0], &callbacks, &reader, &ours, &e) == ERR_OK);
    REQUIRE(link_accept(loop, fds[1], &callbacks, &reader, &theirs, &e) == ERR_OK);
    for (unsigned round = 1; round <= 3; round++) {
        char last[64];
        CHECK(outbox_is_empty(&outbox));
        fill(&outbox, round);
        outbox.snapshot = round == 2;
        outbox.snapshot_more = round < 3;
        CHECK_EQ(outbox_count(&outbox), 200);
        outbox_send(&outbox, ours, 5, round);
        while (reader.count < round)
            loop_run_once(loop, 1000);
        REQUIRE(reader.message != NULL);
        CHECK_EQ(reader.message->epoch, 5);
        CHECK_EQ(reader.message->sequence, round);
        CHECK_EQ(reader.message->snapshot, round == 2);
        CHECK_EQ(reader.message->snapshot_more, round < 3);
        REQUIRE(reader.message->n_routes == 100 && reader.message->n_remove_sandboxes == 100);
        snprintf(last, sizeof(last), "function-%u-99", round);
        CHECK_STR(reader.message->routes[99]->name, last);
        CHECK_EQ(reader.message->remove_sandboxes[99], 1099);
    }
    dirigent__from_control_plane__free_unpacked(reader.message, NULL);
    outbox_done(&outbox);
    link_close(ours, ERR_CLOSED, "done");
    link_close(theirs, ERR_CLOSED, "done");
    loop_run_once(loop, 0);
    loop_free(loop);
}

/* Blocks are aligned, zeroed, apart from each other, and used again. */
PROPERTY(an_arena_gives_memory_that_is_nobody_elses)
{
    struct arena arena = {0};
    for (int round = 0; round < 3; round++) {
        unsigned char *given[64];
        size_t sizes[64];
        for (unsigned i = 0; i < 64; i++) {
            sizes[i] = rng_below(rng, rng_below(rng, 10) == 0 ? 20000 : 300);
            given[i] = arena_take(&arena, sizes[i]);
            CHECK_EQ((uintptr_t)given[i] % _Alignof(max_align_t), 0);
            for (size_t j = 0; j < sizes[i]; j++)
                CHECK_EQ(given[i][j], 0);
            memset(given[i], (int)i + 1, sizes[i]);
        }
        for (unsigned i = 0; i < 64; i++)
            for (size_t j = 0; j < sizes[i]; j++)
                CHECK_EQ(given[i][j], i + 1);
        arena_reset(&arena);
    }
    arena_done(&arena);
}
