/* fields.c - the table of a spec's plain fields, and what is done with one of them. */
#include "function/fields.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const contract_words[] = {"http", NULL};
static const char *const network_words[] = {"internet", "none", NULL};
static const char *const load_balancing_words[] = {"least-loaded", "random",     "round-robin",
                                                   "power-of-two", "first-free", NULL};
static const char *const placement_words[] = {"balanced", "random",   "round-robin", "least-loaded",
                                              "pack",     "locality", NULL};
static const char *const mode_words[] = {"immediate", "windowed", NULL};
static const char *const method_words[] = {"arithmetic", "exponential", NULL};
static_assert(ARRAY_COUNT(load_balancing_words) == LOAD_BALANCING_COUNT + 1, "a word for each");
static_assert(ARRAY_COUNT(placement_words) == PLACEMENT_COUNT + 1, "a word for each");
static_assert(sizeof(enum contract) == sizeof(unsigned), "words are read as unsigned");

#define MINUTE_MS (60u * 1000u)
#define HOUR_MS (60u * MINUTE_MS)
#define AT(member) offsetof(struct function_spec, member)

/* clang-format off */
const struct spec_field spec_fields[] = {
    /* path, alias, kind, place, least, most, default, words, needs new sandboxes */
    {"port",           NULL, SPEC_U16,      AT(port),                   1, 65535, 8080, NULL, true},
    {"memory",         NULL, SPEC_BYTES,    AT(memory_bytes),           4 * MIB, 1024 * GIB, 256 * MIB, NULL, true},
    {"cpu",            NULL, SPEC_CPU,      AT(cpu_milli),              10, 1024000, 500, NULL, true},
    {"timeout",        NULL, SPEC_DURATION, AT(timeout_ms),             1, 24 * HOUR_MS, 60000, NULL, false},
    {"contract",       NULL, SPEC_WORD,     AT(contract),               0, CONTRACT_HTTP, CONTRACT_HTTP, contract_words, true},
    {"network",        NULL, SPEC_WORD,     AT(network),                0, NETWORK_MODE_NONE, NETWORK_MODE_INTERNET, network_words, true},
    {"load_balancing", NULL, SPEC_WORD,     AT(load_balancing),         0, LOAD_BALANCING_COUNT - 1, LOAD_BALANCING_LEAST_LOADED, load_balancing_words, false},
    {"placement",      NULL, SPEC_WORD,     AT(placement),              0, PLACEMENT_COUNT - 1, PLACEMENT_BALANCED, placement_words, false},
    {"queue",          NULL, SPEC_U32,      AT(queue_max),              1, 1000000, QUEUE_PER_FUNCTION_DEFAULT, NULL, false},
    {"max_body",       NULL, SPEC_BYTES,    AT(request_body_bytes_max), 0, 1024 * GIB, REQUEST_BODY_BYTES_DEFAULT, NULL, false},
    {"start_deadline", NULL, SPEC_DURATION, AT(start_deadline_ms),      100, HOUR_MS, START_DEADLINE_MS_DEFAULT, NULL, true},
    {"stop_grace",     NULL, SPEC_DURATION, AT(stop_grace_ms),          0, HOUR_MS, STOP_GRACE_MS_DEFAULT, NULL, false},
    /* 0 would be no limit to tmpfs(5) */
    {"tmp",            NULL, SPEC_BYTES,    AT(tmp_bytes),              64 * KIB, 1024 * GIB, 64 * MIB, NULL, true},
    {"pids",           NULL, SPEC_U32,      AT(pids_max),               4, 32768, 512, NULL, true},
    {"scaling.mode",   NULL, SPEC_WORD,     AT(scaling.mode),           0, SCALING_WINDOWED, SCALING_IMMEDIATE, mode_words, false},
    {"scaling.method", NULL, SPEC_WORD,     AT(scaling.method),         0, SCALING_EXPONENTIAL, SCALING_ARITHMETIC, method_words, false},
    {"scaling.min",    "min", SPEC_U32,     AT(scaling.scale_min),      0, 1000000, 0, NULL, false},
    {"scaling.max",    "max", SPEC_U32,     AT(scaling.scale_max),      1, INT32_MAX, 100, NULL, false},
    {"scaling.concurrency", "concurrency", SPEC_U32, AT(scaling.concurrency), 0, 100000, 1, NULL, false},
    {"scaling.target_percentage", NULL, SPEC_U32, AT(scaling.target_percentage), 1, 100, 100, NULL, false},
    {"scaling.stable_window", NULL, SPEC_DURATION, AT(scaling.stable_window_ms), 100, HOUR_MS, 60000, NULL, false},
    {"scaling.panic_window", NULL, SPEC_DURATION, AT(scaling.panic_window_ms), 100, HOUR_MS, 6000, NULL, false},
    {"scaling.panic_threshold_percentage", NULL, SPEC_U32, AT(scaling.panic_threshold_percentage), 100, 100000, 200, NULL, false},
    {"scaling.max_scale_up_rate", NULL, SPEC_RATE, AT(scaling.max_scale_up_rate), 1001, UINT64_C(1000000000), 1000000, NULL, false},
    {"scaling.max_scale_down_rate", NULL, SPEC_RATE, AT(scaling.max_scale_down_rate), 1001, UINT64_C(1000000000), 2000, NULL, false},
    {"scaling.period", NULL, SPEC_DURATION, AT(scaling.period_ms),      10, MINUTE_MS, 2000, NULL, false},
    {"scaling.scale_to_zero_delay", NULL, SPEC_DURATION, AT(scaling.scale_to_zero_delay_ms), 0, 24 * HOUR_MS, 0, NULL, false},
};
/* clang-format on */
const size_t spec_field_count = ARRAY_COUNT(spec_fields);

static size_t kind_bytes(enum spec_field_kind kind)
{
    switch (kind) {
    case SPEC_U16:
        return sizeof(uint16_t);
    case SPEC_U32:
    case SPEC_CPU:
    case SPEC_DURATION:
    case SPEC_WORD:
        return sizeof(uint32_t);
    case SPEC_BYTES:
        return sizeof(uint64_t);
    case SPEC_RATE:
        return sizeof(double);
    }
    assert(false);
}

static void *place_of(const struct spec_field *f, const struct function_spec *s)
{
    return (char *)s + f->offset;
}

/* All kinds but rates. */
static uint64_t get_value(const struct spec_field *f, const struct function_spec *s)
{
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    switch (kind_bytes(f->kind)) {
    case sizeof(u16):
        memcpy(&u16, place_of(f, s), sizeof(u16));
        return u16;
    case sizeof(u32):
        memcpy(&u32, place_of(f, s), sizeof(u32));
        return u32;
    default:
        memcpy(&u64, place_of(f, s), sizeof(u64));
        return u64;
    }
}

static void set_value(const struct spec_field *f, struct function_spec *s, uint64_t value)
{
    uint16_t u16 = (uint16_t)value;
    uint32_t u32 = (uint32_t)value;
    switch (kind_bytes(f->kind)) {
    case sizeof(u16):
        memcpy(place_of(f, s), &u16, sizeof(u16));
        break;
    case sizeof(u32):
        memcpy(place_of(f, s), &u32, sizeof(u32));
        break;
    default:
        memcpy(place_of(f, s), &value, sizeof(value));
        break;
    }
}

static double get_rate(const struct spec_field *f, const struct function_spec *s)
{
    double rate;
    memcpy(&rate, place_of(f, s), sizeof(rate));
    return rate;
}

void spec_field_set_default(const struct spec_field *f, struct function_spec *s)
{
    double rate = (double)f->standard / 1000;
    if (f->kind == SPEC_RATE)
        memcpy(place_of(f, s), &rate, sizeof(rate));
    else
        set_value(f, s, f->standard);
}

bool spec_field_equal(const struct spec_field *f, const struct function_spec *a,
                      const struct function_spec *b)
{
    return memcmp(place_of(f, a), place_of(f, b), kind_bytes(f->kind)) == 0;
}

/* As a person writes it. */
static void format_value(const struct spec_field *f, uint64_t value, char *ret_text)
{
    switch (f->kind) {
    case SPEC_BYTES:
        format_bytes(value, ret_text);
        return;
    case SPEC_CPU:
        format_cpu_milli((uint32_t)value, ret_text);
        return;
    case SPEC_DURATION:
        format_duration_ms(value, ret_text);
        return;
    case SPEC_RATE:
        snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%g", (double)value / 1000);
        return;
    case SPEC_U16:
    case SPEC_U32:
    case SPEC_WORD:
        break;
    }
    snprintf(ret_text, AMOUNT_TEXT_BYTES_MAX, "%" PRIu64, value);
}

static enum err refuse_range(const struct spec_field *f, const char *called, const char *given,
                             struct error *e)
{
    char least[AMOUNT_TEXT_BYTES_MAX], most[AMOUNT_TEXT_BYTES_MAX];
    format_value(f, f->min, least);
    format_value(f, f->max, most);
    return error_field(e, ERR_INVALID, called, "%s must be between %s and %s, and is %s", called,
                       least, most, given);
}

static enum err check_value(const struct spec_field *f, const char *called, uint64_t value,
                            struct error *e)
{
    char given[AMOUNT_TEXT_BYTES_MAX];
    if (value >= f->min && value <= f->max)
        return ERR_OK;
    format_value(f, value, given);
    return refuse_range(f, called, given, e);
}

static enum err check_rate(const struct spec_field *f, const char *called, double rate,
                           struct error *e)
{
    char given[AMOUNT_TEXT_BYTES_MAX];
    if (isfinite(rate) && rate * 1000 >= (double)f->min && rate * 1000 <= (double)f->max)
        return ERR_OK;
    snprintf(given, sizeof(given), "%g", rate);
    return refuse_range(f, called, given, e);
}

enum err spec_field_check(const struct spec_field *f, const struct function_spec *s,
                          struct error *e)
{
    if (f->kind == SPEC_RATE)
        return check_rate(f, f->path, get_rate(f, s), e);
    return check_value(f, f->path, get_value(f, s), e);
}

static const char *type_name(const json_t *json)
{
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a text";
    case JSON_INTEGER:
        return "a whole number";
    case JSON_REAL:
        return "a fraction";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    assert(false);
}

static enum err refuse_type(const char *called, const char *expected, const json_t *json,
                            struct error *e)
{
    return error_field(e, ERR_INVALID, called, "%s must be %s, and is %s", called, expected,
                       type_name(json));
}

static enum err read_integer(const struct spec_field *f, const char *called, const json_t *json,
                             uint64_t *ret, struct error *e)
{
    char given[AMOUNT_TEXT_BYTES_MAX];
    if (!json_is_integer(json))
        return refuse_type(called, "a whole number", json, e);
    json_int_t number = json_integer_value(json);
    if (number < 0) {
        snprintf(given, sizeof(given), "%" JSON_INTEGER_FORMAT, number);
        return refuse_range(f, called, given, e);
    }
    *ret = (uint64_t)number;
    return ERR_OK;
}

/* A text in which the parser of amounts found fault: its sentence, with the field's name. */
static enum err name_field(const char *called, struct error *e)
{
    if (e == NULL)
        return ERR_INVALID;
    struct error inner = *e;
    return error_field(e, inner.code, called, "%s: %s", called, inner.text);
}

static struct str json_str(const json_t *json)
{
    return (struct str){json_string_value(json), json_string_length(json)};
}

static enum err read_bytes(const struct spec_field *f, const char *called, const json_t *json,
                           uint64_t *ret, struct error *e)
{
    if (json_is_integer(json))
        return read_integer(f, called, json, ret, e);
    if (!json_is_string(json))
        return refuse_type(called, "a number of bytes or a text like \"256Mi\"", json, e);
    return parse_bytes(json_str(json), ret, e) == ERR_OK ? ERR_OK : name_field(called, e);
}

static enum err read_cpu(const struct spec_field *f, const char *called, const json_t *json,
                         uint64_t *ret, struct error *e)
{
    if (json_is_number(json)) {
        double milli = json_number_value(json) * 1000;
        char given[AMOUNT_TEXT_BYTES_MAX];
        snprintf(given, sizeof(given), "%g", json_number_value(json));
        if (!(milli >= 0 && milli <= UINT32_MAX))
            return refuse_range(f, called, given, e);
        *ret = (uint64_t)llround(milli);
        return ERR_OK;
    }
    if (!json_is_string(json))
        return refuse_type(called, "a number of cores or a text like \"500m\"", json, e);
    uint32_t milli = 0;
    if (parse_cpu_milli(json_str(json), &milli, e) != ERR_OK)
        return name_field(called, e);
    *ret = milli;
    return ERR_OK;
}

static enum err read_duration(const char *called, const json_t *json, uint64_t *ret,
                              struct error *e)
{
    uint32_t ms = 0;
    if (json_is_integer(json) && json_integer_value(json) == 0) {
        *ret = 0;
        return ERR_OK;
    }
    if (!json_is_string(json))
        return refuse_type(called, "a text with a unit like \"10s\" or \"500ms\"", json, e);
    if (parse_duration_ms(json_str(json), &ms, e) != ERR_OK)
        return name_field(called, e);
    *ret = ms;
    return ERR_OK;
}

static enum err refuse_word(const struct spec_field *f, const char *called, struct str given,
                            struct error *e)
{
    cleanup(buf_done) struct buf list = {0};
    for (size_t i = 0; f->words[i] != NULL; i++)
        buf_printf(&list, "%s%s", i > 0 ? ", " : "", f->words[i]);
    bool planned = f->offset == AT(contract) &&
                   (str_equal(given, STR("exec")) || str_equal(given, STR("lambda")));
    if (planned)
        return error_field(e, ERR_UNSUPPORTED, called,
                           "the contract '%.*s' cannot be run yet: use %.*s", STR_ARG(given),
                           STR_ARG(buf_str(&list)));
    return error_field(e, ERR_INVALID, called, "%s must be one of %.*s, and is '%.*s'", called,
                       STR_ARG(buf_str(&list)), (int)MIN(given.bytes, 64), given.data);
}

static enum err read_word(const struct spec_field *f, const char *called, const json_t *json,
                          uint64_t *ret, struct error *e)
{
    if (!json_is_string(json))
        return refuse_type(called, "a text", json, e);
    for (size_t i = 0; f->words[i] != NULL; i++) {
        if (str_equal(json_str(json), str_of(f->words[i]))) {
            *ret = i;
            return ERR_OK;
        }
    }
    return refuse_word(f, called, json_str(json), e);
}

static enum err read_rate(const struct spec_field *f, const char *called, const json_t *json,
                          struct function_spec *s, struct error *e)
{
    if (!json_is_number(json))
        return refuse_type(called, "a number", json, e);
    double rate = json_number_value(json);
    enum err err = check_rate(f, called, rate, e);
    if (err == ERR_OK)
        memcpy(place_of(f, s), &rate, sizeof(rate));
    return err;
}

enum err spec_field_from_json(const struct spec_field *f, const char *called, const json_t *json,
                              struct function_spec *s, struct error *e)
{
    uint64_t value = 0;
    enum err err = ERR_OK;
    switch (f->kind) {
    case SPEC_U16:
    case SPEC_U32:
        err = read_integer(f, called, json, &value, e);
        break;
    case SPEC_BYTES:
        err = read_bytes(f, called, json, &value, e);
        break;
    case SPEC_CPU:
        err = read_cpu(f, called, json, &value, e);
        break;
    case SPEC_DURATION:
        err = read_duration(called, json, &value, e);
        break;
    case SPEC_WORD:
        err = read_word(f, called, json, &value, e);
        break;
    case SPEC_RATE:
        return read_rate(f, called, json, s, e);
    }
    if (err == ERR_OK)
        err = check_value(f, called, value, e);
    if (err == ERR_OK)
        set_value(f, s, value);
    return err;
}

json_t *spec_field_to_json(const struct spec_field *f, const struct function_spec *s)
{
    char text[AMOUNT_TEXT_BYTES_MAX];
    switch (f->kind) {
    case SPEC_U16:
    case SPEC_U32:
        return json_integer((json_int_t)get_value(f, s));
    case SPEC_BYTES:
    case SPEC_CPU:
    case SPEC_DURATION:
        format_value(f, get_value(f, s), text);
        return json_string(text);
    case SPEC_WORD:
        return json_string(f->words[get_value(f, s)]);
    case SPEC_RATE:
        return json_real(get_rate(f, s));
    }
    assert(false);
}

const char *placement_policy_name(enum placement_policy p)
{
    assert(p < PLACEMENT_COUNT);
    return placement_words[p];
}

const char *load_balancing_name(enum load_balancing p)
{
    assert(p < LOAD_BALANCING_COUNT);
    return load_balancing_words[p];
}

const char *scaling_mode_name(enum scaling_mode m)
{
    assert(m <= SCALING_WINDOWED);
    return mode_words[m];
}
