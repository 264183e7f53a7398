/* persisted.c - one write for each order; the store carries them out, and tells their ends, in the
 * order in which they came. */
#include "control_plane/persisted.h"
#include "base/log.h"
#include "control_plane/links.h"
#include <stdlib.h>

struct persisted {
    struct control_plane *cp;
    uint64_t *left; /* ids of an earlier leadership */
    size_t left_count, left_capacity, writes;
};
struct persisting {
    struct persisted *persisted;
    struct store_write write;
    struct control_order order; /* its texts are not used */
    bool has_order;
};

struct persisted *persisted_new(struct control_plane *cp)
{
    struct persisted *p = mem_new(sizeof(*p));
    p->cp = cp;
    return p;
}

void persisted_free(struct persisted *p)
{
    if (p == NULL)
        return;
    assert(p->writes == 0);
    free(p->left);
    free(p);
}

static void start_failed(struct control_plane *cp, const struct control_order *order,
                         const struct error *e)
{
    struct control_event event = {.kind = EVENT_SANDBOX};
    event.sandbox.worker_id = order->target_id;
    event.sandbox.report = (struct sandbox_report){
        .sandbox_id = order->sandbox_id,
        .function_id = order->function_id,
        .version = order->version,
        .state = SANDBOX_GONE,
        .reason = GONE_INTERNAL,
        .detail = str_of(e->text),
    };
    shell_step(cp, &event);
}

static void on_stored(struct store_write *write, enum err err, const struct error *e)
{
    struct persisting *w = container_of(write, struct persisting, write);
    struct control_plane *cp = w->persisted->cp;
    w->persisted->writes--;
    if (w->has_order && (err == ERR_OK || w->order.kind == ORDER_STOP))
        links_order(cp->links, &w->order); /* a stop that is not stored is one all the same */
    else if (w->has_order && err != ERR_CLOSED)
        start_failed(cp, &w->order, e);
    if (err != ERR_OK && err != ERR_CLOSED)
        log_warn("sandbox.not_stored", LOG_U64("sandbox", write->id), LOG_STR("why", e->text));
    free(write->value);
    free(w);
}

/* `value`: taken; NULL deletes. */
static void submit(struct persisted *p, uint64_t sandbox_id, char *value,
                   const struct control_order *order)
{
    struct persisting *w = mem_new(sizeof(*w));
    w->persisted = p;
    w->has_order = order != NULL;
    if (order != NULL)
        w->order = *order;
    w->write = (struct store_write){.kind = STORE_SANDBOX,
                                    .id = sandbox_id,
                                    .value = value,
                                    .next_id = p->cp->next_id,
                                    .on_done = on_stored};
    p->writes++;
    store_submit(p->cp->store, &w->write);
}

void persisted_order(struct persisted *p, const struct control_order *order)
{
    assert(order->kind == ORDER_START || order->kind == ORDER_STOP);
    char *value = NULL;
    if (order->kind == ORDER_START)
        value = mem_printf("{\"function\":%" PRIu64 ",\"version\":%u,\"worker\":%" PRIu64 "}",
                           order->function_id, order->version, order->target_id);
    submit(p, order->sandbox_id, value, order);
}

void persisted_load(struct persisted *p, uint64_t sandbox_id)
{
    if (p->left_count == p->left_capacity) {
        p->left_capacity = MAX(p->left_capacity * 2, (size_t)256);
        p->left = mem_resize(p->left, p->left_capacity, sizeof(*p->left));
    }
    p->left[p->left_count++] = sandbox_id;
}

void persisted_begin(struct persisted *p)
{
    if (p->left_count > 0)
        log_info("sandboxes.forgotten", LOG_U64("records", p->left_count));
    for (size_t i = 0; i < p->left_count; i++)
        submit(p, p->left[i], NULL, NULL);
    free(p->left);
    p->left = NULL;
    p->left_count = p->left_capacity = 0;
}
