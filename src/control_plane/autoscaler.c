/* autoscaler.c - the KPA on one ring of samples. */
#include "control_plane/autoscaler.h"
#include <math.h>
#include <stdlib.h>

#define TARGET_UNLIMITED 100.0 /* as Knative: what no limit of concurrency counts as */
#define EXPONENTIAL_WEIGHT 0.8 /* of a period, against the one after it */

void autoscaler_done(struct autoscaler *a)
{
    free(a->buckets);
    *a = (struct autoscaler){0};
}

static void ring_clear(struct autoscaler *a)
{
    a->filled = a->next = 0;
}

void autoscaler_reset(struct autoscaler *a)
{
    ring_clear(a);
    a->in_panic = false;
    a->panic_max = 0;
}

uint32_t autoscaler_period_ms(const struct scaling_policy *p)
{
    uint32_t shortest = (p->stable_window_ms - 1) / AUTOSCALER_BUCKETS_MAX + 1;
    return MAX(MAX(p->period_ms, shortest), 1u);
}

static uint32_t buckets_of(const struct scaling_policy *p, uint32_t window_ms)
{
    uint32_t period_ms = autoscaler_period_ms(p);
    return MAX((window_ms + period_ms - 1) / period_ms, 1u);
}

void autoscaler_push(struct autoscaler *a, const struct scaling_policy *p, double concurrency,
                     uint64_t now_ms)
{
    uint32_t count = buckets_of(p, p->stable_window_ms), period_ms = autoscaler_period_ms(p);
    if (count != a->bucket_count || period_ms != a->period_ms) {
        a->buckets = mem_resize(a->buckets, count, sizeof(*a->buckets));
        a->bucket_count = count;
        a->period_ms = period_ms;
        ring_clear(a);
    }
    if (a->filled > 0 && now_ms - a->last_push_ms > p->stable_window_ms)
        ring_clear(a); /* what was before the pause says nothing any more */
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
            weight *= EXPONENTIAL_WEIGHT;
    }
    return sum / weights;
}

static double target_of(const struct scaling_policy *p)
{
    double concurrency = p->concurrency == 0 ? TARGET_UNLIMITED : p->concurrency;
    return MAX(concurrency * p->target_percentage / 100, 0.01);
}

static double clamp(double x, double low, double high)
{
    return x < low ? low : x > high ? high : x;
}

static void panic_update(struct autoscaler *a, const struct scaling_policy *p, double wanted,
                         double have, uint64_t now_ms)
{
    if (wanted / have >= p->panic_threshold_percentage / 100.0) {
        a->in_panic = true;
        a->panic_since_ms = now_ms;
    } else if (a->in_panic && now_ms - a->panic_since_ms >= p->stable_window_ms) {
        a->in_panic = false;
        a->panic_max = 0;
    }
}

void autoscaler_raised(struct autoscaler *a, const struct scaling_policy *p, uint32_t wanted,
                       uint32_t have, uint64_t now_ms)
{
    if ((double)wanted / MAX(have, 1u) < p->panic_threshold_percentage / 100.0)
        return;
    a->in_panic = true;
    a->panic_since_ms = now_ms;
    a->panic_max = MAX(a->panic_max, wanted);
}

uint32_t autoscaler_desired(struct autoscaler *a, const struct scaling_policy *p, uint32_t have,
                            uint64_t now_ms)
{
    double there = MAX(have, 1u), target = target_of(p);
    double most = ceil(p->max_scale_up_rate * there), least = floor(there / p->max_scale_down_rate);
    double stable = ceil(window_average(a, a->bucket_count, p->method) / target);
    uint32_t panic_count = buckets_of(p, p->panic_window_ms);
    double panic = ceil(window_average(a, panic_count, p->method) / target);
    panic_update(a, p, panic, there, now_ms);
    double desired = clamp(stable, least, most);
    if (a->in_panic) {
        desired = MAX(MAX(desired, clamp(panic, least, most)), (double)a->panic_max);
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

/* ---- the metric ---- */

void meter_begin(struct meter *m, double level, uint64_t now_ms)
{
    *m = (struct meter){.level = level, .since_ms = now_ms};
}

void meter_set(struct meter *m, double level, uint64_t now_ms)
{
    m->area += m->level * (double)(now_ms - m->since_ms);
    m->level = level;
    m->since_ms = now_ms;
}

double meter_take(struct meter *m, uint64_t begin_ms, uint64_t now_ms)
{
    meter_set(m, m->level, now_ms);
    double mean = now_ms > begin_ms ? m->area / (double)(now_ms - begin_ms) : m->level;
    m->area = 0;
    return mean;
}
