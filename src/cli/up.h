/* up.h - `dirigent up`: a cluster on one machine, as a person or an init system starts it. */
#pragma once

/* argv[0] is the subcommand's name. Returns the exit code. */
int up_main(int argc, char **argv);
