/* persisted.h - for measurements only (setting `persist_sandboxes`): what it would cost to keep
 * sandboxes durably. Each start and stop of one is a record written or deleted in the store, and
 * the order leaves when that is on disk. Nothing reads the records: workers say what they have.
 * Those of an earlier leadership are removed at the start, with the setting or without; those of
 * sandboxes that ended by themselves stay until then. Loop thread only. */
#pragma once
#include "control_plane/shell.h"

struct persisted;
struct persisted *persisted_new(struct control_plane *cp);
/* While the store is loaded: a record that an earlier leadership left. */
void persisted_load(struct persisted *p, uint64_t sandbox_id);
/* After the store has started: removes those. */
void persisted_begin(struct persisted *p);
/* An ORDER_START or ORDER_STOP: given to links_order() later. A start that cannot be stored is a
 * failed one for the core. */
void persisted_order(struct persisted *p, const struct control_order *order);
void persisted_free(
    struct persisted *p); /* the store has stopped and told the end of every write */
