/* control_plane.h - the program: API, autoscaler, placement and health of a cluster, in one
 * process. */
#pragma once

/* argv[0] is the subcommand's name. Returns the exit code. */
int control_plane_main(int argc, char **argv);
