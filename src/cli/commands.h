/* commands.h - the commands, one file each; main.c has the table. */
#pragma once
#include "cli/command.h"

extern const struct command command_up, command_control_plane, command_data_plane, command_worker,
    command_simulate;
extern const struct command command_deploy, command_apply, command_scale, command_delete;
extern const struct command command_invoke, command_list, command_describe, command_logs,
    command_sandboxes, command_workers, command_data_planes, command_status;
extern const struct command command_worker_cordon, command_worker_uncordon, command_worker_drain,
    command_worker_remove, command_data_plane_remove, command_worker_join, command_data_plane_join,
    command_token_create, command_token_list, command_token_remove, command_ca_show,
    command_ca_rotate;
extern const struct command command_api_key_create, command_api_key_list, command_api_key_remove;
extern const struct command command_store_backup, command_store_restore, command_store_migrate;
extern const struct command command_doctor;
extern const struct command command_completion;
