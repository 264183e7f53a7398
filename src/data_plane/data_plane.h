/* data_plane.h - the data plane: `dirigent data-plane`. argv[0] is the subcommand's name. Returns
 * the exit code. */
#pragma once
int data_plane_main(int argc, char **argv);
