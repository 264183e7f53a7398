/* autoscaler.h - how many sandboxes a function should have: the Knative pod autoscaler (KPA) on concurrency. Pure; one thread.
 *
 * Every period the caller pushes the concurrency (requests in flight and waiting). The mean over the stable window gives the wanted
 * scale; the mean over the panic window can raise it at once when it asks for panic_threshold times what is ready, and while panic lasts the
 * scale never falls. Rates bound one step. Source: original.md 4.2, with its defects mended: both windows index one ring, a window is
 * cleared after a pause, bounds hold from the first moment, `exponential` weighs newer periods more. */
#pragma once
#include "base/base.h"
#include "function/function.h"

#define AUTOSCALER_BUCKETS_MAX 600u

struct autoscaler {
    float *buckets;           /* ring, allocated with the first push */
    uint32_t bucket_count;    /* of the stable window */
    uint32_t next, filled;
    uint64_t last_push_ms, panic_since_ms;
    uint32_t panic_max;
    bool in_panic;
};
void autoscaler_done(struct autoscaler *a);
/* Forgets all samples; the next push begins anew. */
void autoscaler_reset(struct autoscaler *a);
void autoscaler_push(struct autoscaler *a, const struct scaling_policy *p, double concurrency, uint64_t now_ms);
/* The wanted scale within the policy's bounds. `ready`: sandboxes ready now. */
uint32_t autoscaler_desired(struct autoscaler *a, const struct scaling_policy *p, uint32_t ready, uint64_t now_ms);
/* Sandboxes that so many requests need at once: ceil(requests / concurrency); one when there is no limit. */
uint32_t autoscaler_needed_now(const struct scaling_policy *p, uint64_t requests);
/* True when every sample of a whole stable window is 0. */
bool autoscaler_is_quiet(const struct autoscaler *a);
