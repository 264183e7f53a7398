/* autoscaler.h - how many sandboxes a function should have: the Knative pod autoscaler (KPA) on
 * concurrency. Pure; one thread.
 *
 * Once a period the caller pushes the mean concurrency of that period (requests in flight and
 * waiting). The mean over the stable window gives the wanted scale; the mean over the panic window
 * can raise it at once when it asks for panic_threshold times what there is, and while panic lasts
 * the scale never falls. Rates bound one step. The original's algorithm with its defects mended:
 * both windows index one ring, a pause clears it, bounds hold from the first moment, the metric is
 * no point sample, and `exponential` weighs newer periods more (it was always 0). See
 * docs/decisions/0004-autoscaling.md. */
#pragma once
#include "base/base.h"
#include "function/function.h"

#define AUTOSCALER_BUCKETS_MAX 600u

struct autoscaler {                   /* zeroed is empty; autoscaler_done() */
    float *buckets;                   /* ring, allocated with the first push */
    uint32_t bucket_count, period_ms; /* what the ring was made for */
    uint32_t next, filled;
    uint64_t last_push_ms, panic_since_ms;
    uint32_t panic_max;
    bool in_panic;
};
void autoscaler_done(struct autoscaler *a);
/* Forgets all samples; the next push begins anew. */
void autoscaler_reset(struct autoscaler *a);
/* Between two pushes: the policy's period, or longer when the window has too many of them. */
uint32_t autoscaler_period_ms(const struct scaling_policy *p);
void autoscaler_push(struct autoscaler *a, const struct scaling_policy *p, double concurrency,
                     uint64_t now_ms);
/* Demand of the moment raised the scale from `have` to `wanted` between two periods: a panic when
 * the windows would call it one, so that it is held for a stable window and a burst that comes
 * again finds its sandboxes. */
void autoscaler_raised(struct autoscaler *a, const struct scaling_policy *p, uint32_t wanted,
                       uint32_t have, uint64_t now_ms);
/* The wanted scale within the policy's bounds. `have`: sandboxes there are, starting ones too. */
uint32_t autoscaler_desired(struct autoscaler *a, const struct scaling_policy *p, uint32_t have,
                            uint64_t now_ms);
/* Sandboxes that so many requests need at once: ceil(requests / concurrency); one when there is no
 * limit. */
uint32_t autoscaler_needed_now(const struct scaling_policy *p, uint64_t requests);
/* True when there is no sample, or every one of a whole stable window is 0. */
bool autoscaler_is_quiet(const struct autoscaler *a);

/* Mean of a level over time: what happens between two periods is not missed. */
struct meter {
    double level, area;
    uint64_t since_ms;
};
void meter_begin(struct meter *m, double level, uint64_t now_ms);
void meter_set(struct meter *m, double level, uint64_t now_ms);
double meter_take(struct meter *m, uint64_t begin_ms, uint64_t now_ms); /* mean since begin_ms */
