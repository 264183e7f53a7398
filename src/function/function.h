/* function.h - what a user deploys: a function's name, its spec, its scaling policy; parsing from
 * JSON (API) and YAML (apply files) with checks that name the field. Pure; any thread.
 *
 * Spec as JSON (all but `name` and `command` optional; unknown fields are refused):
 * { "name": "hello", "command": ["python3","app.py"] | "python3 app.py", "code": "sha256:…",
 *   "port": 8080, "env": {"K":"V"}, "memory": "256Mi" | bytes, "cpu": "500m" | 0.5, "timeout":
 * "60s", "contract": "http", "network": "internet"|"none", "load_balancing": "least-loaded",
 * "placement": "balanced", "queue": 10000, "max_body": "4Gi", "start_deadline": "60s",
 * "stop_grace": "10s", "tmp": "64Mi", "pids": 512, "scaling": { "mode": "immediate"|"windowed",
 * "min": 0, "max": 100, "concurrency": 1, "target_percentage": 100, "stable_window": "60s",
 * "panic_window": "6s", "panic_threshold_percentage": 200, "max_scale_up_rate": 1000,
 * "max_scale_down_rate": 2, "period": "2s", "scale_to_zero_delay": "0s", "method": "arithmetic" },
 *   "labels": {…} }
 * `min`, `max`, `concurrency` are also accepted at top level (as the CLI flags are named); giving a
 * field twice with different values is refused.
 *
 * Amounts: bytes are a whole number or a text ("256Mi", "64M"); cpu is a number of cores or a text
 * ("500m", "0.5"); durations are texts with their unit ("10s", "500ms", "2m", "1h"), and 0 needs
 * none. When `stable_window` is given and `panic_window` is not, the panic window becomes at most
 * the stable one; likewise `period` when a window is given. `image` and the contracts `exec` and
 * `lambda` are known words that cannot be run yet: ERR_UNSUPPORTED. */
#pragma once
#include "base/base.h"
#include "base/limits.h"
#include "base/str.h"
#include <jansson.h>

#define JSON_DEPTH_MAX 32u
#define LABEL_COUNT_MAX 64u
#define LABEL_BYTES_MAX (16u * 1024u)
#define CODE_DIGEST_BYTES 71u /* "sha256:" and 64 hex digits */

enum scaling_mode { SCALING_IMMEDIATE, SCALING_WINDOWED };
enum scaling_method { SCALING_ARITHMETIC, SCALING_EXPONENTIAL };
enum placement_policy {
    PLACEMENT_BALANCED,
    PLACEMENT_RANDOM,
    PLACEMENT_ROUND_ROBIN,
    PLACEMENT_LEAST_LOADED,
    PLACEMENT_PACK,
    PLACEMENT_LOCALITY,
    PLACEMENT_COUNT
};
enum load_balancing {
    LOAD_BALANCING_LEAST_LOADED,
    LOAD_BALANCING_RANDOM,
    LOAD_BALANCING_ROUND_ROBIN,
    LOAD_BALANCING_POWER_OF_TWO,
    LOAD_BALANCING_FIRST_FREE,
    LOAD_BALANCING_COUNT
};
enum network_mode { NETWORK_MODE_INTERNET, NETWORK_MODE_NONE };
enum contract { CONTRACT_HTTP };

/* The Knative autoscaler's settings, with the original's defaults where it has them. */
struct scaling_policy {
    enum scaling_mode mode;
    enum scaling_method method;    /* exponential: EMA of the window instead of its mean */
    uint32_t scale_min, scale_max; /* sandboxes; 0 <= min <= max, max >= 1. default 0 and 100 */
    uint32_t concurrency;          /* requests a sandbox takes at once; 0: no limit. default 1 */
    uint32_t target_percentage;    /* 1..100 of concurrency; default 100 */
    uint32_t stable_window_ms;     /* 60000 */
    uint32_t panic_window_ms;      /* 6000; <= stable */
    uint32_t panic_threshold_percentage; /* 200 */
    double max_scale_up_rate;            /* 1000; > 1 */
    double max_scale_down_rate;          /* 2; > 1 */
    uint32_t period_ms;                  /* 2000 */
    uint32_t scale_to_zero_delay_ms;     /* 0: extra wait before the last sandbox goes */
};

struct env_var {
    char *name, *value;
};

struct function_spec { /* owns all it points to; function_spec_done() */
    char name[FUNCTION_NAME_BYTES_MAX + 1];
    char code_digest[72]; /* "sha256:" + 64 hex, or "" */
    char **command;       /* argv, command_count items and a NULL */
    uint32_t command_count;
    struct env_var *env; /* sorted by name, no name twice */
    uint32_t env_count;
    struct env_var *labels; /* for people: kept and shown, nothing reads them. Sorted */
    uint32_t label_count;
    uint16_t port;         /* 8080 */
    uint64_t memory_bytes; /* 256 MiB */
    uint32_t cpu_milli;    /* 500 */
    uint32_t timeout_ms;   /* 60000 */
    uint32_t start_deadline_ms, stop_grace_ms;
    uint32_t queue_max;
    uint32_t pids_max;
    uint64_t request_body_bytes_max, tmp_bytes;
    enum contract contract;
    enum network_mode network;
    enum load_balancing load_balancing;
    enum placement_policy placement;
    struct scaling_policy scaling;
};

void scaling_policy_default(struct scaling_policy *p);
/* The original's `cold_start_sweep` preset. */
void scaling_policy_cold_start_sweep(struct scaling_policy *p);
void function_spec_init(struct function_spec *s); /* defaults; no name, no command */
void function_spec_done(struct function_spec *s);
void function_spec_copy(const struct function_spec *from, struct function_spec *ret_to);
bool function_spec_equal(const struct function_spec *a, const struct function_spec *b);
/* True when going from a to b needs new sandboxes (code, command, env, port, limits, network),
 * false when only scaling, routing or placement differ. */
bool function_spec_needs_new_version(const struct function_spec *a, const struct function_spec *b);

/* One DNS label, RFC 1123 2.1: a-z, 0-9, '-' inside, 1..63. */
must_check enum err function_name_check(struct str name, struct error *e);
/* Reads onto `s` (defaults or an existing spec stay where the JSON is silent; `command`, `env` and
 * `labels` are replaced whole). Every refusal names the field (dotted path: "scaling.min"), and
 * leaves `s` as it was. Cross-field checks are function_spec_check()'s. */
must_check enum err function_spec_from_json(const json_t *json, struct function_spec *s,
                                            struct error *e);
/* Cross-field checks of a complete spec: name, command, min <= max, windows, … */
must_check enum err function_spec_check(const struct function_spec *s, struct error *e);
/* A partial change, as RFC 7396 (JSON merge patch) has it: what is absent stays, null goes back to
 * the default, `env` and `labels` are merged name by name. Also checks the result. A refusal leaves
 * `s`. */
must_check enum err function_spec_patch(struct function_spec *s, const json_t *patch,
                                        struct error *e);
/* The caller owns the result. */
json_t *function_spec_to_json(const struct function_spec *s); /* canonical; reads back equal */

/* JSON text from outside: at most SPEC_JSON_BYTES_MAX, at most JSON_DEPTH_MAX deep, no name twice,
 * valid UTF-8, no NUL, nothing after the value. Errors say line and column. */
must_check enum err json_text_parse(struct str text, json_t **ret_json, struct error *e);

/* Texts people write. "256Mi", "1Gi", "64M", "1048576"; "500m", "0.5", "2"; "10s", "500ms", "2m",
 * "1h". */
must_check enum err parse_bytes(struct str text, uint64_t *ret_bytes, struct error *e);
must_check enum err parse_cpu_milli(struct str text, uint32_t *ret_milli, struct error *e);
must_check enum err parse_duration_ms(struct str text, uint32_t *ret_ms, struct error *e);
/* Splits a command line as a POSIX shell does words: blanks, single and double quotes, backslash;
 * no expansion. Caller frees each and the array (NULL-terminated). */
must_check enum err parse_command_line(struct str text, char ***ret_argv, uint32_t *ret_count,
                                       struct error *e);
/* As a person writes it, exact: "256Mi", "500m", "60s"; into at least AMOUNT_TEXT_BYTES_MAX bytes.
 */
#define AMOUNT_TEXT_BYTES_MAX 32
void format_bytes(uint64_t bytes, char *ret_text);
void format_cpu_milli(uint32_t milli, char *ret_text);
void format_duration_ms(uint64_t ms, char *ret_text);
const char *placement_policy_name(enum placement_policy p);
const char *load_balancing_name(enum load_balancing p);
const char *scaling_mode_name(enum scaling_mode m);
