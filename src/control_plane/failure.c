/* failure.c - why a sandbox failed: status, code and sentence for those who wait for it. */
#include "control_plane/core_state.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *code;
    uint32_t status;
} answers[GONE_REASON_COUNT] = {
    [GONE_UNKNOWN] = {"sandbox_failed", 502},
    [GONE_STOPPED] = {"sandbox_stopped", 503},
    [GONE_EXITED] = {"sandbox_exited", 502},
    [GONE_SIGNALED] = {"sandbox_killed", 502},
    [GONE_OUT_OF_MEMORY] = {"out_of_memory", 502},
    [GONE_START_TIMEOUT] = {"start_timeout", 504},
    [GONE_WRONG_PORT] = {"wrong_port", 502},
    [GONE_EXEC_FAILED] = {"command_failed", 502},
    [GONE_CODE_UNAVAILABLE] = {"code_unavailable", 502},
    [GONE_NO_ROOM] = {"no_room", 503},
    [GONE_WORKER_LOST] = {"worker_lost", 503},
    [GONE_INTERNAL] = {"sandbox_failed", 502},
};

const char *failure_code(enum gone_reason reason)
{
    return answers[reason].code;
}

uint32_t failure_status(enum gone_reason reason)
{
    return answers[reason].status;
}

void failure_clear(struct failure_text *failure)
{
    if (failure != NULL)
        failure->stands = false;
}

static struct failure_text *begin(struct failure_text **failure, enum gone_reason reason)
{
    if (*failure == NULL)
        *failure = mem_new(sizeof(**failure));
    (*failure)->stands = true;
    (*failure)->reason = reason;
    (*failure)->has_served = false;
    (*failure)->output_bytes = 0;
    return *failure;
}

#define SAY(...) (void)snprintf(f->text, sizeof(f->text), __VA_ARGS__)

/* A detail that is told with what was tried, when the worker did not name it. */
static void say_command(struct failure_text *f, const struct function_spec *spec,
                        const char *detail)
{
    const char *command = spec->command_count > 0 ? spec->command[0] : "";
    if (detail[0] == '\0')
        SAY("the command '%s' could not be run", command);
    else if (strstr(detail, command) != NULL)
        SAY("%s", detail);
    else
        SAY("the command '%s' could not be run: %s", command, detail);
}

void failure_tell(struct failure_text **failure, const struct function_spec *spec,
                  enum sandbox_state was, const struct sandbox_report *r)
{
    struct failure_text *f = begin(failure, r->reason);
    const char *when =
        was == SANDBOX_STARTING ? "before it listened on port" : "while it served on port";
    char detail[300];
    (void)snprintf(detail, sizeof(detail), "%.*s", STR_ARG(r->detail));
    f->has_served = was != SANDBOX_STARTING;
    f->output_bytes = MIN(r->last_output.bytes, sizeof(f->output));
    if (f->output_bytes > 0) /* its end says most */
        memcpy(f->output, r->last_output.data + r->last_output.bytes - f->output_bytes,
               f->output_bytes);
    switch (r->reason) {
    case GONE_EXITED:
        SAY("the program exited with code %d %s %u", r->exit_code, when, spec->port);
        break;
    case GONE_SIGNALED:
        SAY("the program was killed by signal %d (%s) %s %u", r->signal, strsignal(r->signal), when,
            spec->port);
        break;
    case GONE_OUT_OF_MEMORY:
        SAY("the program used more than its %" PRIu64 " MiB of memory", spec->memory_bytes / MIB);
        break;
    case GONE_START_TIMEOUT:
        SAY("the program did not listen on port %u within %u s", spec->port,
            spec->start_deadline_ms / 1000);
        break;
    case GONE_WRONG_PORT:
        SAY("the program listens on port %u, not on port %u ($PORT)", r->wrong_port, spec->port);
        break;
    case GONE_EXEC_FAILED:
        say_command(f, spec, detail);
        break;
    case GONE_CODE_UNAVAILABLE:
        SAY("the code %s could not be brought to the worker: %s", spec->code_digest,
            detail[0] != '\0' ? detail : "no cause is known");
        break;
    case GONE_NO_ROOM:
        SAY("the worker had no room%s%s", detail[0] != '\0' ? ": " : "", detail);
        break;
    case GONE_WORKER_LOST:
        SAY("the worker of the sandbox is lost");
        break;
    case GONE_UNKNOWN:
    case GONE_STOPPED:
    case GONE_INTERNAL:
    case GONE_REASON_COUNT:
        SAY("%s", detail[0] != '\0' ? detail : "the sandbox could not be started");
        break;
    }
}

void failure_no_room(struct failure_text **failure, const struct control *c,
                     const struct function_spec *spec)
{
    struct failure_text *f = begin(failure, GONE_NO_ROOM);
    if (placement_count(c->placement) == 0)
        SAY("no worker takes sandboxes now");
    else
        SAY("no worker has room for %u milli-CPU and %" PRIu64 " MiB", spec->cpu_milli,
            spec->memory_bytes / MIB);
}
