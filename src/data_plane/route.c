/* route.c - what is shared about a function, apart from its dispatch. */
#include "data_plane/route.h"
#include <stdlib.h>

const uint64_t histogram_bounds_us[HISTOGRAM_BOUNDS] = {
    50,    100,    250,    500,    1000,    2500,    5000,    10000,    25000,
    50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 60000000};

void histogram_add(struct histogram *h, uint64_t ns)
{
    uint32_t i = 0;
    while (i < HISTOGRAM_BOUNDS && ns > histogram_bounds_us[i] * NS_PER_US)
        i++;
    stat_add(&h->buckets[i], 1);
    stat_add(&h->sum_ns, ns);
}

struct failure *failure_new(unsigned status, const char *code, const char *message,
                            struct str last_output, unsigned retry_after_s)
{
    struct failure *f = mem_new(sizeof(*f));
    f->references = 1;
    f->status = status;
    f->retry_after_s = retry_after_s;
    f->code = mem_strdup(code);
    f->message = mem_strdup(message);
    buf_append_str(&f->last_output, last_output);
    return f;
}

void failure_hold(struct failure *f)
{
    atomic_fetch_add_explicit(&f->references, 1, memory_order_relaxed);
}

void failure_drop(struct failure *f)
{
    if (f == NULL || atomic_fetch_sub_explicit(&f->references, 1, memory_order_acq_rel) > 1)
        return;
    free(f->code);
    free(f->message);
    buf_done(&f->last_output);
    free(f);
}
