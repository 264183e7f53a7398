/* simulate.h - simulated workers and data planes on real connections: `dirigent simulate`. argv[0]
 * is the subcommand's name. Returns the exit code. */
#pragma once
int simulate_main(int argc, char **argv);
