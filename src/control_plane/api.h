/* api.h - the HTTP API: one table of routes. Loop thread only. Contract: docs/protocol.md. */
#pragma once
#include "control_plane/shell.h"

struct api;
must_check enum err api_new(struct control_plane *cp, struct api **ret_api, struct error *e);
/* We lead from now on: clients that were carried to another come back. */
void api_lead(struct api *api);
const char *api_address(const struct api *api);
/* Refuses new work and closes; what waits for the store is told by the store's stop. */
void api_free(struct api *api);

/* What the core decided about a version somebody may wait for (ORDER_VERSION_ACTIVE, _FAILED). */
void api_version_active(struct api *api, uint64_t function_id, uint32_t version);
void api_version_failed(struct api *api, uint64_t function_id, uint32_t version);
/* A function was deleted: nobody needs to wait for it. */
void api_function_deleted(struct api *api, uint64_t function_id);
/* "" when ready, else the reason why registrations should not come here yet. */
const char *api_not_ready(const struct control_plane *cp);
