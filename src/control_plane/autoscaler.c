/* autoscaler.c - the KPA on one ring of samples. */
#include "control_plane/autoscaler.h"
#include <math.h>
#include <stdlib.h>

#define CONCURRENCY_TARGET_UNLIMITED 100.0 /* as Knative: what no limit counts as */

void autoscaler_done(struct autoscaler *a)
{
    free(a->buckets);
    *a = (struct autoscaler){0};
}

void autoscaler_reset(struct autoscaler *a)
{
    a->filled = a->next = 0;
    a->in_panic = false;
    a->panic_max = 0;
}

static uint32_t buckets_of(uint32_t window_ms, uint32_t period_ms)
{
    uint32_t count = (window_ms + period_ms - 1) / period_ms;
    return MIN(MAX(count, 1u), AUTOSCALER_BUCKETS_MAX);
}

void autoscaler_push(struct autoscaler *a, const struct scaling_policy *p, double concurrency, uint64_t now_ms)
{
    uint32_t count = buckets_of(p->stable_window_ms, p->period_ms);
    if (count != a->bucket_count) {
        a->buckets = mem_resize(a->buckets, count, sizeof(*a->buckets));
        a->bucket_count = count;
        autoscaler_reset(a);
    }
    if (a->filled > 0 && now_ms - a->last_push_ms > p->stable_window_ms)
        autoscaler_reset(a); /* what was before the pause says nothing any more */
    a->buckets[a->next] = (float)concurrency;
    a->next = (a->next + 1) % count;
    a->filled = MIN(a->filled + 1, count);
    a->last_push_ms = now_ms;
}

/* Over the newest `count` samples. */
static double window_average(const struct autoscaler *a, uint32_t count, enum scaling_method method)
{
    count = MIN(count, a->filled);
    if (count == 0)
        return 0;
    double sum = 0, weights = 0, weight = 1;
    for (uint32_t i = 1; i <= count; i++) {
        sum += weight * (double)a->buckets[(a->next + a->bucket_count - i) % a->bucket_count];
        weights += weight;
        if (method == SCALING_EXPONENTIAL)
            weight *= 0.8;
    }
    return sum / weights;
}

static double target_of(const struct scaling_policy *p)
{
    double concurrency = p->concurrency == 0 ? CONCURRENCY_TARGET_UNLIMITED : p->concurrency;
    return MAX(concurrency * p->target_percentage / 100, 0.01);
}

static double clamp(double x, double low, double high)
{
    return x < low ? low : x > high ? high : x;
}

uint32_t autoscaler_desired(struct autoscaler *a, const struct scaling_policy *p, uint32_t ready_count, uint64_t now_ms)
{
    double ready = MAX(ready_count, 1u), target = target_of(p);
    double most = ceil(p->max_scale_up_rate * ready), least = floor(ready / p->max_scale_down_rate);
    double stable = clamp(ceil(window_average(a, a->bucket_count, p->method) / target), least, most);
    double panic_raw = ceil(window_average(a, buckets_of(p->panic_window_ms, p->period_ms), p->method) / target);
    double panic = clamp(panic_raw, least, most);
    if (panic_raw / ready >= p->panic_threshold_percentage / 100.0) {
        a->in_panic = true;
        a->panic_since_ms = now_ms;
    } else if (a->in_panic && now_ms - a->panic_since_ms >= p->stable_window_ms) {
        a->in_panic = false;
        a->panic_max = 0;
    }
    double desired = stable;
    if (a->in_panic) {
        desired = MAX(MAX(stable, panic), (double)a->panic_max);
        a->panic_max = (uint32_t)MIN(desired, (double)p->scale_max);
    }
    return (uint32_t)clamp(desired, p->scale_min, p->scale_max);
}

uint32_t autoscaler_needed_now(const struct scaling_policy *p, uint64_t requests)
{
    if (requests == 0)
        return 0;
    uint64_t needed = p->concurrency == 0 ? 1 : (requests + p->concurrency - 1) / p->concurrency;
    return (uint32_t)MIN(needed, (uint64_t)UINT32_MAX);
}

bool autoscaler_is_quiet(const struct autoscaler *a)
{
    if (a->filled < a->bucket_count || a->bucket_count == 0)
        return a->filled == 0;
    for (uint32_t i = 0; i < a->filled; i++)
        if (a->buckets[i] > 0)
            return false;
    return true;
}
