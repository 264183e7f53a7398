/* up_fake.c - for tests of `up`: the same `up`, but its three programs are actors that do what the
 * environment tells them: FAKE_CONTROL_PLANE, FAKE_WORKER, FAKE_DATA_PLANE hold words such as
 *
 *   exit=3      ends at once with that code          ignore-term  does not end at SIGTERM
 *   orphan      leaves a child behind when it ends   silent       never says that it is alive
 *   slow-stop   needs a second to end
 *
 * The control plane answers /healthz, /readyz and the two lists on --api. */
#include "base/log.h"
#include "cli/up.h"
#include "http/server.h"
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *words_of(const char *program)
{
    char name[64];
    (void)snprintf(name, sizeof(name), "FAKE_%s", program);
    for (char *c = name; *c != '\0'; c++)
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    const char *words = getenv(name);
    return words != NULL ? words : "";
}

static bool told(const char *program, const char *word)
{
    return strstr(words_of(program), word) != NULL;
}

/* One that ends at once or says nothing has never joined. */
static bool joins(const char *program)
{
    return !told(program, "silent") && !told(program, "exit=");
}

static void on_request(struct http_exchange *x, void *user)
{
    const struct http_request *request = http_exchange_request(x);
    const char *alive = "{\"items\":[{\"state\":\"alive\"}]}", *none = "{\"items\":[]}";
    const char *answer = "{}";
    if (str_equal(request->path, STR("/v1/workers")))
        answer = joins("worker") ? alive : none;
    if (str_equal(request->path, STR("/v1/data-planes")))
        answer = joins("data-plane") ? alive : none;
    (void)user;
    http_exchange_answer(x, 200, "application/json", str_of(answer), NULL);
}

struct actor {
    const char *program;
    struct loop *loop;
    struct loop_signals signals;
    struct loop_timer timer;
};

static void on_timer(struct loop_timer *timer)
{
    loop_stop(container_of(timer, struct actor, timer)->loop);
}

static void on_signal(struct loop_signals *s, int signo)
{
    struct actor *a = container_of(s, struct actor, signals);
    log_info("fake.signal", LOG_I64("signal", signo));
    if (told(a->program, "ignore-term"))
        return;
    uint64_t delay_ns = told(a->program, "slow-stop") ? NS_PER_S : 0;
    loop_timer_start(a->loop, &a->timer, loop_now_ns(a->loop) + delay_ns);
}

static void leave_orphan(void)
{
    if (fork() != 0)
        return;
    (void)setsid();
    for (;;)
        (void)pause();
}

static int act(int argc, char **argv)
{
    static const int signos[] = {SIGTERM, SIGINT};
    static const struct http_server_callbacks callbacks = {.on_request = on_request};
    struct actor a = {.program = argv[0]};
    struct http_server *server = NULL;
    struct error e = {0};
    log_init(argv[0], LOG_LEVEL_INFO);
    const char *code = strstr(words_of(argv[0]), "exit=");
    if (code != NULL) {
        fprintf(stderr, "error: these are the last words of the %s\n", argv[0]);
        return atoi(code + strlen("exit="));
    }
    if (told(argv[0], "orphan"))
        leave_orphan();
    a.signals.on_signal = on_signal;
    loop_timer_init(&a.timer, on_timer);
    if (loop_new(&a.loop, &e) != ERR_OK ||
        loop_signals_start(a.loop, &a.signals, signos, 2, &e) != ERR_OK)
        return 1;
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--api") == 0 && strcmp(argv[0], "control-plane") == 0 &&
            http_server_new(a.loop, argv[i + 1], &callbacks, NULL, &server, &e) != ERR_OK) {
            fprintf(stderr, "error: %s\n", e.text);
            return 1;
        }
    loop_run(a.loop);
    _exit(0); /* a stand-in ends as it stands: nothing of it is freed */
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    return strcmp(argv[1], "up") == 0 ? up_main(argc - 1, argv + 1) : act(argc - 1, argv + 1);
}
