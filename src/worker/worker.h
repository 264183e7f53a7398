/* worker.h - the worker daemon: `dirigent worker`. Starts as root to attach to (or start) its
 * launcher, then drops to an unprivileged user. argv[0] is the subcommand's name. Returns the exit
 * code. */
#pragma once
int worker_main(int argc, char **argv);
