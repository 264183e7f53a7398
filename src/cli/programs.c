/* programs.c - the commands that are programs of their own. */
#include "cli/commands.h"
#include "cli/up.h"
#include <stdio.h>

/* Until each is there: a program that is not built in says so. */
#ifdef WITH_CONTROL_PLANE
#include "control_plane/control_plane.h"
#else
#define control_plane_main not_built
#endif
#ifdef WITH_DATA_PLANE
#include "data_plane/data_plane.h"
#else
#define data_plane_main not_built
#endif
#ifdef WITH_WORKER
#include "worker/worker.h"
#else
#define worker_main not_built
#endif
#if !defined(WITH_CONTROL_PLANE) || !defined(WITH_DATA_PLANE) || !defined(WITH_WORKER)
static int not_built(int argc, char **argv)
{
    (void)argc;
    fprintf(stderr, "error: this executable was built without '%s'\n", argv[0]);
    return 1;
}
#endif

const struct command command_up = {.name = "up",
                                   .arguments = "",
                                   .group = GROUP_RUN,
                                   .program = up_main,
                                   .summary = "a whole cluster on this machine (as root)"};
const struct command command_control_plane = {
    .name = "control-plane",
    .arguments = "",
    .group = GROUP_RUN,
    .program = control_plane_main,
    .summary = "only the control plane: registrations, placement, scale, API"};
const struct command command_data_plane = {
    .name = "data-plane",
    .arguments = "",
    .group = GROUP_RUN,
    .program = data_plane_main,
    .summary = "only a data plane: takes calls and brings them to sandboxes"};
const struct command command_worker = {.name = "worker",
                                       .arguments = "",
                                       .group = GROUP_RUN,
                                       .program = worker_main,
                                       .summary =
                                           "only a worker: runs sandboxes on this host (as root)"};
