/* programs.c - the commands that are programs of their own. */
#include "cli/commands.h"
#include "cli/up.h"
#include "control_plane/control_plane.h"
#include "data_plane/data_plane.h"
#include "simulate/simulate.h"
#include "worker/worker.h"

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
const struct command command_simulate = {
    .name = "simulate",
    .arguments = "",
    .group = GROUP_RUN,
    .program = simulate_main,
    .summary = "measures a control plane with simulated workers and data planes"};
