#include "function/function.h"
#include "test.h"
#include <stdlib.h>

static json_t *json_of(const char *text)
{
    struct error e = {0};
    json_t *json = NULL;
    if (json_text_parse(str_of(text), &json, &e) != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s: %s", text, e.text);
    return json;
}

/* Reads onto defaults and checks; the spec is to be done in any case. */
static enum err read_spec(const char *text, struct function_spec *s, struct error *e)
{
    json_t *json = json_of(text);
    *e = (struct error){0};
    function_spec_init(s);
    enum err err = function_spec_from_json(json, s, e);
    if (err == ERR_OK)
        err = function_spec_check(s, e);
    json_decref(json);
    return err;
}

TEST(a_spec_of_name_and_command_has_the_documented_defaults)
{
    struct function_spec s;
    struct error e;
    CHECK_EQ(read_spec("{\"name\":\"hello\",\"command\":\"python3 app.py\"}", &s, &e), ERR_OK);
    CHECK_STR(s.name, "hello");
    CHECK_EQ(s.command_count, 2);
    CHECK_STR(s.command[1], "app.py");
    CHECK(s.command[2] == NULL);
    CHECK_STR(s.code_digest, "");
    CHECK_EQ(s.port, 8080);
    CHECK_EQ(s.memory_bytes, 256 * MIB);
    CHECK_EQ(s.cpu_milli, 500);
    CHECK_EQ(s.timeout_ms, 60000);
    CHECK_EQ(s.start_deadline_ms, 60000);
    CHECK_EQ(s.stop_grace_ms, 10000);
    CHECK_EQ(s.queue_max, 10000);
    CHECK_EQ(s.pids_max, 512);
    CHECK_EQ(s.request_body_bytes_max, 4 * GIB);
    CHECK_EQ(s.tmp_bytes, 64 * MIB);
    CHECK_EQ(s.network, NETWORK_MODE_INTERNET);
    CHECK_EQ(s.load_balancing, LOAD_BALANCING_LEAST_LOADED);
    CHECK_EQ(s.placement, PLACEMENT_BALANCED);
    CHECK_EQ(s.scaling.mode, SCALING_IMMEDIATE);
    CHECK_EQ(s.scaling.scale_min, 0);
    CHECK_EQ(s.scaling.scale_max, 100);
    CHECK_EQ(s.scaling.concurrency, 1);
    CHECK_EQ(s.scaling.target_percentage, 100);
    CHECK_EQ(s.scaling.stable_window_ms, 60000);
    CHECK_EQ(s.scaling.panic_window_ms, 6000);
    CHECK_EQ(s.scaling.panic_threshold_percentage, 200);
    CHECK(s.scaling.max_scale_up_rate == 1000.0);
    CHECK(s.scaling.max_scale_down_rate == 2.0);
    CHECK_EQ(s.scaling.period_ms, 2000);
    CHECK_EQ(s.scaling.scale_to_zero_delay_ms, 0);
    function_spec_done(&s);
}

TEST(the_sweep_preset_is_the_originals)
{
    struct scaling_policy p;
    scaling_policy_cold_start_sweep(&p);
    CHECK_EQ(p.scale_max, 1);
    CHECK_EQ(p.stable_window_ms, 6000);
    CHECK_EQ(p.panic_window_ms, 2000);
    CHECK_EQ(p.period_ms, 2000);
}

struct refusal {
    const char *json, *field, *says;
    enum err err;
};
#define NC "\"name\":\"f\",\"command\":\"x\""
static const struct refusal refusals[] = {
    {"{}", "name", "needs a name", ERR_INVALID},
    {"{\"name\":\"f\"}", "command", "needs a command", ERR_INVALID},
    {"{\"name\":\"f\",\"command\":[]}", "command", "needs a command", ERR_INVALID},
    {"{\"name\":\"f\",\"command\":[\"\"]}", "command", "needs a command", ERR_INVALID},
    {"{\"name\":\"f\",\"command\":[1]}", "command", "word 1", ERR_INVALID},
    {"{\"name\":\"f\",\"command\":\"a 'b\"}", "command", "quote is not closed", ERR_INVALID},
    {"{\"name\":\"Bad\"}", "name", "'Bad' is no function name", ERR_INVALID},
    {"{\"name\":\"-a\"}", "name", "no function name", ERR_INVALID},
    {"{\"name\":\"a-\"}", "name", "no function name", ERR_INVALID},
    {"{\"name\":\"a.b\"}", "name", "no function name", ERR_INVALID},
    {"{\"name\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}", "name",
     "64 characters", ERR_INVALID},
    {"{" NC ",\"port\":0}", "port", "between 1 and 65535, and is 0", ERR_INVALID},
    {"{" NC ",\"port\":65536}", "port", "is 65536", ERR_INVALID},
    {"{" NC ",\"port\":-1}", "port", "is -1", ERR_INVALID},
    {"{" NC ",\"port\":\"80\"}", "port", "whole number, and is a text", ERR_INVALID},
    {"{" NC ",\"port\":80.5}", "port", "a fraction", ERR_INVALID},
    {"{" NC ",\"memory\":\"1Mi\"}", "memory", "between 4Mi and 1Ti, and is 1Mi", ERR_INVALID},
    {"{" NC ",\"memory\":\"lots\"}", "memory", "'lots' is no amount", ERR_INVALID},
    {"{" NC ",\"memory\":true}", "memory", "a boolean", ERR_INVALID},
    {"{" NC ",\"cpu\":\"0\"}", "cpu", "between 10m and", ERR_INVALID},
    {"{" NC ",\"cpu\":-1}", "cpu", "is -1", ERR_INVALID},
    {"{" NC ",\"cpu\":1e300}", "cpu", "is 1e+300", ERR_INVALID},
    {"{" NC ",\"timeout\":60}", "timeout", "a text with a unit", ERR_INVALID},
    {"{" NC ",\"timeout\":\"60\"}", "timeout", "its unit", ERR_INVALID},
    {"{" NC ",\"timeout\":\"0s\"}", "timeout", "between 1ms and 86400s, and is 0s", ERR_INVALID},
    {"{" NC ",\"contract\":\"exec\"}", "contract", "cannot be run yet", ERR_UNSUPPORTED},
    {"{" NC ",\"contract\":\"ftp\"}", "contract", "one of http", ERR_INVALID},
    {"{" NC ",\"image\":\"a/b\"}", "image", "cannot be run yet", ERR_UNSUPPORTED},
    {"{" NC ",\"network\":\"host\"}", "network", "one of internet, none", ERR_INVALID},
    {"{" NC ",\"memroy\":\"1Gi\"}", "memroy", "'memory' is near it", ERR_INVALID},
    {"{" NC ",\"stable_windw\":\"1s\"}", "stable_windw", "'scaling.stable_window' is near it",
     ERR_INVALID},
    {"{" NC ",\"scaling\":{\"minimum_of_all\":1}}", "scaling.minimum_of_all", "no field",
     ERR_INVALID},
    {"{" NC ",\"scaling.min\":1}", "scaling.min", "no field", ERR_INVALID},
    {"{" NC ",\"scaling\":[]}", "scaling", "an object", ERR_INVALID},
    {"{" NC ",\"min\":5,\"max\":4}", "scaling.min", "5 sandboxes is above the maximum of 4",
     ERR_INVALID},
    {"{" NC ",\"min\":1,\"scaling\":{\"min\":2}}", "min", "given twice", ERR_INVALID},
    {"{" NC ",\"max\":0}", "max", "between 1", ERR_INVALID},
    {"{" NC ",\"scaling\":{\"max_scale_down_rate\":1}}", "scaling.max_scale_down_rate", "1.001",
     ERR_INVALID},
    {"{" NC ",\"scaling\":{\"stable_window\":\"5s\",\"panic_window\":\"6s\"}}",
     "scaling.panic_window", "longer than the stable", ERR_INVALID},
    {"{" NC ",\"scaling\":{\"period\":\"7s\"}}", "scaling.period", "longer than the panic",
     ERR_INVALID},
    {"{" NC ",\"code\":\"sha256:12\"}", "code", "64 hex", ERR_INVALID},
    {"{" NC ",\"env\":{\"1A\":\"x\"}}", "env.1A", "no name of an environment", ERR_INVALID},
    {"{" NC ",\"env\":{\"A\":1}}", "env.A", "in quotes", ERR_INVALID},
    {"{" NC ",\"env\":{\"PORT\":\"1\"}}", "env.PORT", "`port`", ERR_INVALID},
    {"{" NC ",\"env\":[]}", "env", "an object", ERR_INVALID},
    {"{" NC ",\"labels\":{\"\":\"x\"}}", "labels", "empty name", ERR_INVALID},
    {"[]", "", "must be a JSON object", ERR_INVALID},
};

TEST(every_refusal_names_its_field_and_says_why)
{
    for (size_t i = 0; i < ARRAY_COUNT(refusals); i++) {
        const struct refusal *r = &refusals[i];
        struct function_spec s;
        struct error e;
        enum err err = read_spec(r->json, &s, &e);
        if (err != r->err || strcmp(e.field, r->field) != 0 || strstr(e.text, r->says) == NULL)
            test_fail(__FILE__, __LINE__, "%s: %s, field '%s': %s", r->json, err_name(err), e.field,
                      e.text);
        function_spec_done(&s);
    }
}

TEST(a_refusal_leaves_the_spec_as_it_was)
{
    struct function_spec s, before;
    struct error e;
    REQUIRE(read_spec("{" NC ",\"env\":{\"A\":\"1\"}}", &s, &e) == ERR_OK);
    function_spec_copy(&s, &before);
    json_t *json = json_of("{\"port\":9,\"env\":{},\"command\":\"y\",\"queue\":0}");
    CHECK_EQ(function_spec_from_json(json, &s, &e), ERR_INVALID);
    CHECK(function_spec_equal(&s, &before));
    CHECK_EQ(function_spec_patch(&s, json, &e), ERR_INVALID);
    CHECK(function_spec_equal(&s, &before));
    json_decref(json);
    function_spec_done(&s);
    function_spec_done(&before);
}

TEST(a_shorter_stable_window_takes_the_silent_ones_with_it)
{
    struct function_spec s;
    struct error e;
    CHECK_EQ(read_spec("{" NC ",\"scaling\":{\"stable_window\":\"1s\"}}", &s, &e), ERR_OK);
    CHECK_EQ(s.scaling.panic_window_ms, 1000);
    CHECK_EQ(s.scaling.period_ms, 1000);
    function_spec_done(&s);
}

TEST(a_patch_changes_what_it_names_and_null_is_the_default)
{
    struct function_spec s;
    struct error e;
    REQUIRE(read_spec("{" NC ",\"env\":{\"A\":\"1\",\"B\":\"2\"},\"min\":3,\"memory\":\"1Gi\"}", &s,
                      &e) == ERR_OK);
    json_t *patch = json_of("{\"max\":7,\"env\":{\"A\":null,\"C\":\"3\"},\"memory\":null,"
                            "\"scaling\":{\"min\":null,\"stable_window\":\"3s\"}}");
    CHECK_EQ(function_spec_patch(&s, patch, &e), ERR_OK);
    CHECK_EQ(s.scaling.scale_max, 7);
    CHECK_EQ(s.scaling.scale_min, 0);
    CHECK_EQ(s.scaling.panic_window_ms, 3000);
    CHECK_EQ(s.memory_bytes, 256 * MIB);
    CHECK_EQ(s.env_count, 2);
    CHECK_STR(s.env[0].name, "B");
    CHECK_STR(s.env[1].value, "3");
    CHECK_EQ(s.command_count, 1);
    json_decref(patch);
    patch = json_of("{\"min\":8}");
    CHECK_EQ(function_spec_patch(&s, patch, &e), ERR_INVALID);
    CHECK_STR(e.field, "scaling.min");
    CHECK_EQ(s.scaling.scale_min, 0);
    json_decref(patch);
    function_spec_done(&s);
}

struct change {
    const char *json;
    bool makes_version;
};

TEST(only_what_sandboxes_are_made_from_makes_a_version)
{
    static const struct change changes[] = {
        {"{\"min\":1}", false},
        {"{\"queue\":5}", false},
        {"{\"timeout\":\"5s\"}", false},
        {"{\"load_balancing\":\"random\"}", false},
        {"{\"placement\":\"pack\"}", false},
        {"{\"labels\":{\"a\":\"b\"}}", false},
        {"{\"stop_grace\":\"1s\"}", false},
        {"{\"port\":81}", true},
        {"{\"env\":{\"A\":\"\"}}", true},
        {"{\"memory\":\"1Gi\"}", true},
        {"{\"cpu\":1}", true},
        {"{\"network\":\"none\"}", true},
        {"{\"command\":\"x y\"}", true},
        {"{\"pids\":50}", true},
        {"{\"tmp\":\"1Mi\"}", true},
        {"{\"code\":\"sha256:"
         "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}",
         true},
    };
    for (size_t i = 0; i < ARRAY_COUNT(changes); i++) {
        struct function_spec a, b;
        struct error e;
        REQUIRE(read_spec("{" NC "}", &a, &e) == ERR_OK);
        function_spec_copy(&a, &b);
        json_t *patch = json_of(changes[i].json);
        CHECK_EQ(function_spec_patch(&b, patch, &e), ERR_OK);
        CHECK(!function_spec_equal(&a, &b));
        if (function_spec_needs_new_version(&a, &b) != changes[i].makes_version)
            test_fail(__FILE__, __LINE__, "%s", changes[i].json);
        json_decref(patch);
        function_spec_done(&a);
        function_spec_done(&b);
    }
}

TEST(amounts_of_bytes_are_read_exactly)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"1048576", MIB},
                {"256Mi", 256 * MIB},
                {"1.5Gi", GIB + GIB / 2},
                {"64M", 64000000},
                {"1k", 1000},
                {"2TiB", 0},
                {"4MiB", 4 * MIB},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"",
                                      "x",
                                      "-1",
                                      "1.0001Ki",
                                      "1 Mi",
                                      "1mi",
                                      "1e3",
                                      ".5Gi",
                                      "1.Gi",
                                      "0.3",
                                      "18446744073709551616",
                                      "99999999999Gi",
                                      "1Mi "};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        uint64_t bytes = 1;
        enum err err = parse_bytes(str_of(good[i].text), &bytes, NULL);
        if (strcmp(good[i].text, "2TiB") == 0)
            CHECK_EQ(err, ERR_INVALID);
        else if (err != ERR_OK || bytes != good[i].bytes)
            test_fail(__FILE__, __LINE__, "%s: %" PRIu64, good[i].text, bytes);
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        uint64_t bytes;
        if (parse_bytes(str_of(bad[i]), &bytes, NULL) != ERR_INVALID)
            test_fail(__FILE__, __LINE__, "'%s' was taken", bad[i]);
    }
}

TEST(cpu_and_durations_are_read_exactly)
{
    uint32_t value = 0;
    CHECK_EQ(parse_cpu_milli(STR("500m"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 500);
    CHECK_EQ(parse_cpu_milli(STR("0.25"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 250);
    CHECK_EQ(parse_cpu_milli(STR("2"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 2000);
    CHECK_EQ(parse_cpu_milli(STR("0.0001"), &value, NULL), ERR_INVALID);
    CHECK_EQ(parse_cpu_milli(STR("2c"), &value, NULL), ERR_INVALID);
    CHECK_EQ(parse_duration_ms(STR("10s"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 10000);
    CHECK_EQ(parse_duration_ms(STR("1m30.5s"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 90500);
    CHECK_EQ(parse_duration_ms(STR("1h"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 3600000);
    CHECK_EQ(parse_duration_ms(STR("0"), &value, NULL), ERR_OK);
    CHECK_EQ(value, 0);
    CHECK_EQ(parse_duration_ms(STR("10"), &value, NULL), ERR_INVALID);
    CHECK_EQ(parse_duration_ms(STR(""), &value, NULL), ERR_INVALID);
    CHECK_EQ(parse_duration_ms(STR("5000h"), &value, NULL), ERR_INVALID);
    CHECK_EQ(parse_duration_ms(STR("1s x"), &value, NULL), ERR_INVALID);
}

static void check_command(const char *text, uint32_t count, const char *const *words)
{
    char **argv = NULL;
    uint32_t got = 0;
    struct error e = {0};
    if (parse_command_line(str_of(text), &argv, &got, &e) != ERR_OK || got != count) {
        test_fail(__FILE__, __LINE__, "%s: %u words: %s", text, got, e.text);
    } else {
        for (uint32_t i = 0; i < count; i++)
            CHECK_STR(argv[i], words[i]);
        CHECK(argv[count] == NULL);
    }
    for (uint32_t i = 0; i < got; i++)
        free(argv[i]);
    free(argv);
}

TEST(command_lines_are_split_as_a_shell_does)
{
    check_command("  python3\tapp.py \n", 2, (const char *[]){"python3", "app.py"});
    check_command("sh -c 'a  \"b\" \\c'", 3, (const char *[]){"sh", "-c", "a  \"b\" \\c"});
    check_command("a\"b c\"d'e f'\\ g", 1, (const char *[]){"ab cde f g"});
    check_command("x \"\" ''", 3, (const char *[]){"x", "", ""});
    check_command("\"\\$ \\n \\\\ \\\"\"", 1, (const char *[]){"$ \\n \\ \""});
    check_command("$HOME *", 2, (const char *[]){"$HOME", "*"});
    char **argv;
    uint32_t count;
    CHECK_EQ(parse_command_line(STR(" "), &argv, &count, NULL), ERR_INVALID);
    CHECK_EQ(parse_command_line(STR("a 'b"), &argv, &count, NULL), ERR_INVALID);
    CHECK_EQ(parse_command_line(STR("a \"b\\\""), &argv, &count, NULL), ERR_INVALID);
    CHECK_EQ(parse_command_line(STR("a\\"), &argv, &count, NULL), ERR_INVALID);
    CHECK_EQ(parse_command_line(STR("a\0b"), &argv, &count, NULL), ERR_INVALID);
}

TEST(json_from_outside_is_bounded)
{
    struct error e = {0};
    json_t *json = NULL;
    CHECK_EQ(json_text_parse(STR(""), &json, &e), ERR_INVALID);
    CHECK_EQ(json_text_parse(STR("{\"a\":1,\"a\":2}"), &json, &e), ERR_INVALID);
    CHECK(strstr(e.text, "duplicate") != NULL);
    CHECK_EQ(json_text_parse(STR("{\"a\":1} x"), &json, &e), ERR_INVALID);
    CHECK_EQ(json_text_parse(STR("{\"a\":\n\n\"\xff\"}"), &json, &e), ERR_INVALID);
    CHECK(strstr(e.text, "line 3") != NULL);
    char deep[80] = {0};
    memset(deep, '[', 33);
    memset(deep + 33, ']', 33);
    CHECK_EQ(json_text_parse(str_of(deep), &json, &e), ERR_INVALID);
    CHECK(strstr(e.text, "deeper than 32") != NULL);
    CHECK_EQ(json_text_parse((struct str){deep + 1, 64}, &json, &e), ERR_OK);
    json_decref(json);
    CHECK_EQ(json_text_parse(STR("[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[\"]"), &json, &e),
             ERR_OK);
    json_decref(json);
    char *big = mem_new(SPEC_JSON_BYTES_MAX + 2);
    memset(big, ' ', SPEC_JSON_BYTES_MAX + 1);
    CHECK_EQ(json_text_parse(str_of(big), &json, &e), ERR_TOO_LARGE);
    free(big);
}

/* ---- whatever can be deployed reads back equal ---- */

static char *random_text(struct rng *rng, unsigned bytes_max)
{
    static const char *const pieces[] = {"a", "Z",  "0", " ",    "\"", "\\",
                                         "'", "\n", "ü", "\x7f", "{",  "€"};
    struct buf text = {0};
    for (uint64_t n = rng_below(rng, bytes_max); n > 0; n--)
        buf_append_str(&text, str_of(pieces[rng_below(rng, ARRAY_COUNT(pieces))]));
    return buf_take_text(&text);
}

static json_t *random_pairs(struct rng *rng)
{
    json_t *pairs = json_object();
    for (uint64_t n = rng_below(rng, 6); n > 0; n--) {
        char name[16];
        cleanup(free_pointer) char *value = random_text(rng, 20);
        snprintf(name, sizeof(name), "K%u", (unsigned)rng_below(rng, 100));
        json_object_set_new(pairs, name, json_string(value));
    }
    return pairs;
}

static json_t *random_command(struct rng *rng)
{
    json_t *command = json_array();
    json_array_append_new(command, json_string("program"));
    for (uint64_t n = rng_below(rng, 5); n > 0; n--) {
        cleanup(free_pointer) char *word = random_text(rng, 10);
        json_array_append_new(command, json_string(word));
    }
    return command;
}

static json_t *random_spec(struct rng *rng)
{
    static const char *const networks[] = {"internet", "none"};
    static const char *const placements[] = {"balanced",     "random", "round-robin",
                                             "least-loaded", "pack",   "locality"};
    uint32_t stable = 1000 + (uint32_t)rng_below(rng, 3600000 - 1000);
    uint32_t panic = 100 + (uint32_t)rng_below(rng, stable - 100);
    char stable_text[AMOUNT_TEXT_BYTES_MAX], panic_text[AMOUNT_TEXT_BYTES_MAX];
    format_duration_ms(stable, stable_text);
    format_duration_ms(panic, panic_text);
    uint32_t max = 1 + (uint32_t)rng_below(rng, 1000000);
    return json_pack("{s:s, s:o, s:o, s:o, s:i, s:I, s:f, s:s, s:s, s:{s:i, s:i, s:s, s:s, s:f}}",
                     "name", "random", "command", random_command(rng), "env", random_pairs(rng),
                     "labels", random_pairs(rng), "port", 1 + (int)rng_below(rng, 65535), "memory",
                     (json_int_t)(4 * MIB + rng_below(rng, 1023 * GIB)), "cpu",
                     (double)(10 + rng_below(rng, 1000000)) / 1000, "network",
                     networks[rng_below(rng, 2)], "placement", placements[rng_below(rng, 6)],
                     "scaling", "min", (int)rng_below(rng, max + UINT64_C(1)), "max", max,
                     "stable_window", stable_text, "panic_window", panic_text, "max_scale_up_rate",
                     1.01 + rng_double(rng) * 1000);
}

/* Read, written as text, read again: nothing has changed; and copies are equal. */
PROPERTY(specs_survive_the_round_trip)
{
    struct function_spec s, back, copy;
    struct error e = {0};
    function_spec_init(&s);
    function_spec_init(&back);
    json_t *json = random_spec(rng);
    REQUIRE(json != NULL);
    if (function_spec_from_json(json, &s, &e) != ERR_OK || function_spec_check(&s, &e) != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s: %s", e.field, e.text);
    json_decref(json);

    json = function_spec_to_json(&s);
    cleanup(free_pointer) char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    json = json_of(text);
    CHECK_EQ(function_spec_from_json(json, &back, &e), ERR_OK);
    CHECK(function_spec_equal(&s, &back));
    CHECK(!function_spec_needs_new_version(&s, &back));
    json_decref(json);

    function_spec_copy(&s, &copy);
    CHECK(function_spec_equal(&s, &copy));
    function_spec_done(&s);
    function_spec_done(&back);
    function_spec_done(&copy);
}

/* What is formatted is read back as the same amount. */
PROPERTY(amounts_survive_the_round_trip)
{
    char text[AMOUNT_TEXT_BYTES_MAX];
    uint64_t bytes = rng_next(rng) >> rng_below(rng, 64), back = 0;
    uint32_t ms = (uint32_t)rng_next(rng) >> rng_below(rng, 32), ms_back = 0;
    format_bytes(bytes, text);
    CHECK(parse_bytes(str_of(text), &back, NULL) == ERR_OK && back == bytes);
    format_duration_ms(ms, text);
    CHECK(parse_duration_ms(str_of(text), &ms_back, NULL) == ERR_OK && ms_back == ms);
    format_cpu_milli(ms, text);
    CHECK(parse_cpu_milli(str_of(text), &ms_back, NULL) == ERR_OK && ms_back == ms);
}
