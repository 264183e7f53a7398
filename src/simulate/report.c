/* report.c - what was measured, for people or as one line of JSON. */
#include "simulate/sim.h"
#include <stdio.h>

#define US(ns) ((double)(ns) / NS_PER_US)
#define MS(ns) ((double)(ns) / NS_PER_MS)

static double seconds_of(uint64_t after_ns, uint64_t before_ns)
{
    return (double)(after_ns - before_ns) / NS_PER_S;
}

static double per_start_us(const struct sim *s, double cpu_s)
{
    uint64_t count = s->load.counts.scheduled_in_time;
    return count > 0 ? cpu_s * 1e6 / (double)count : 0;
}

static void print_times(const char *what, struct samples *t)
{
    printf("  %-44s p50 %8.3f ms   p99 %8.3f ms   max %8.3f ms\n", what,
           MS(samples_percentile(t, 50)), MS(samples_percentile(t, 99)),
           MS(samples_percentile(t, 100)));
}

static void print_usage(const struct sim *s, const char *who, const struct usage *before,
                        const struct usage *after)
{
    double wall_s = seconds_of(after->at_ns, before->at_ns),
           cpu_s = seconds_of(after->cpu_ns, before->cpu_ns);
    double main_s = seconds_of(after->main_cpu_ns, before->main_cpu_ns);
    printf("  %-14s %6.2f s of processor time (%.0f %% of a core, its first thread %.0f %%; %.2f s "
           "waited for one), %.1f us per cold "
           "start, %.0f MiB\n",
           who, cpu_s, cpu_s / wall_s * 100, main_s / wall_s * 100,
           seconds_of(after->wait_ns, before->wait_ns), per_start_us(s, cpu_s),
           (double)after->rss_bytes / MIB);
}

static void print_text(struct sim *s, const struct results *r)
{
    const struct load_counts *c = &s->load.counts;
    const struct simulate_settings *o = &s->settings;
    uint64_t unanswered = c->asked - c->published - c->failed - c->timed_out;
    printf("%" PRIu64 " functions registered in %.1f s, %" PRIu64 " data planes, %" PRIu64
           " workers connected in %.1f s\n",
           o->functions, r->registered_s, o->data_planes, o->workers, r->joined_s);
    printf("%" PRIu64
           " cold starts a second asked for over %.1f s (%s arrivals, start delay %" PRIu64
           " ms, held %" PRIu64 " ms)\n",
           o->rate, r->measured_s, o->arrivals, o->start_delay, o->exec);
    printf("  asked %" PRIu64 ", scheduled %" PRIu64 " (%.0f/s), published %" PRIu64 " (%.0f/s)\n",
           c->asked, c->scheduled, (double)c->scheduled_in_time / r->measured_s, c->published,
           (double)c->published_in_time / r->measured_s);
    printf("  failed %" PRIu64 ", timed out %" PRIu64 ", unanswered %" PRIu64
           ", cut off while held %" PRIu64 "\n",
           c->failed, c->timed_out, unanswered, c->cut);
    print_times("demand to start order at the worker", &s->load.order_ns);
    print_times("demand to endpoint, without the start itself", &s->load.publish_ns);
    print_times("demand sent late, by this program (included)", &s->load.late_ns);
    if (c->held_up + c->unasked > 0)
        printf("  %" PRIu64 " calls came late and %" PRIu64
               " not at all, as no function was cold: the control plane is behind, or "
               "--functions is too small\n",
               c->held_up, c->unasked);
    if (c->worker_losses + c->plane_losses + c->unprepared > 0)
        printf("  connections lost: %" PRIu64 " of workers, %" PRIu64
               " of data planes; starts of versions never described: %" PRIu64 "\n",
               c->worker_losses, c->plane_losses, c->unprepared);
    if (r->has_control_plane)
        print_usage(s, "control plane", &r->before, &r->after);
    else
        printf(
            "  control plane  not on this host, or not ours to look at: --pid names its process\n");
    print_usage(s, "simulation", &r->own_before, &r->own_after);
}

static void print_json_times(const char *name, struct samples *t)
{
    printf(",\"%s_us\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f}", name,
           US(samples_percentile(t, 50)), US(samples_percentile(t, 90)),
           US(samples_percentile(t, 99)), US(samples_percentile(t, 99.9)),
           US(samples_percentile(t, 100)));
}

static void print_json_usage(const struct sim *s, const char *name, const struct usage *before,
                             const struct usage *after)
{
    double cpu_s = seconds_of(after->cpu_ns, before->cpu_ns);
    printf(",\"%s\":{\"cpu_s\":%.3f,\"main_cpu_s\":%.3f,\"wait_s\":%.3f,\"wall_s\":%.3f,\"cpu_us_"
           "per_start\":%.2f,\"rss_bytes\":%" PRIu64 "}",
           name, cpu_s, seconds_of(after->main_cpu_ns, before->main_cpu_ns),
           seconds_of(after->wait_ns, before->wait_ns), seconds_of(after->at_ns, before->at_ns),
           per_start_us(s, cpu_s), after->rss_bytes);
}

static void print_json(struct sim *s, const struct results *r)
{
    const struct load_counts *c = &s->load.counts;
    const struct simulate_settings *o = &s->settings;
#define NUMBER(name, value) printf(",\"" name "\":%" PRIu64, (uint64_t)(value))
    printf("{\"workers\":%" PRIu64, o->workers);
    NUMBER("data_planes", o->data_planes);
    NUMBER("functions", o->functions);
    NUMBER("rate", o->rate);
    NUMBER("start_delay_ms", o->start_delay);
    NUMBER("exec_ms", o->exec);
    printf(",\"registered_s\":%.3f,\"joined_s\":%.3f,\"measured_s\":%.3f", r->registered_s,
           r->joined_s, r->measured_s);
    NUMBER("asked", c->asked);
    NUMBER("scheduled", c->scheduled);
    NUMBER("published", c->published);
    NUMBER("failed", c->failed);
    NUMBER("timed_out", c->timed_out);
    NUMBER("unanswered", c->asked - c->published - c->failed - c->timed_out);
    NUMBER("cut", c->cut);
    NUMBER("held_up", c->held_up);
    NUMBER("unasked", c->unasked);
    printf(",\"scheduled_per_s\":%.1f,\"published_per_s\":%.1f",
           (double)c->scheduled_in_time / r->measured_s,
           (double)c->published_in_time / r->measured_s);
    print_json_times("order", &s->load.order_ns);
    print_json_times("publish", &s->load.publish_ns);
    print_json_times("late", &s->load.late_ns);
    NUMBER("starts", c->starts);
    NUMBER("readies", c->readies);
    NUMBER("stops", c->stops);
    NUMBER("unprepared", c->unprepared);
    NUMBER("worker_losses", c->worker_losses);
    NUMBER("plane_losses", c->plane_losses);
#undef NUMBER
    if (r->has_control_plane)
        print_json_usage(s, "control_plane", &r->before, &r->after);
    print_json_usage(s, "simulation", &r->own_before, &r->own_after);
    printf("}\n");
}

void report_print(struct sim *s, const struct results *r)
{
    if (s->settings.json)
        print_json(s, r);
    else
        print_text(s, r);
    fflush(stdout);
}
