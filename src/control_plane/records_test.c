#include "control_plane/records.h"
#include "test.h"
#include <stdlib.h>

static struct function_record sample(bool on_trial)
{
    struct function_record r = {.id = 7,
                                .latest_version = 3,
                                .active_version = on_trial ? 2 : 3,
                                .has_active = on_trial,
                                .versions_used = on_trial ? 0 : 1003,
                                .created_at_ms = 1700000000000,
                                .updated_at_ms = 1700000000001};
    json_t *json = json_pack("{s:s, s:[s,s], s:{s:s}, s:i}", "name", "hello", "command", "python3",
                             "ü \"quoted\"", "env", "A", "b", "min", 2);
    struct error e = {0};
    function_spec_init(&r.latest);
    REQUIRE(function_spec_from_json(json, &r.latest, &e) == ERR_OK);
    if (on_trial) {
        function_spec_copy(&r.latest, &r.active);
        r.active.port = 99;
    }
    json_decref(json);
    return r;
}

static void check_round_trip(bool on_trial)
{
    struct function_record r = sample(on_trial), back = {0};
    struct error e = {0};
    cleanup(free_pointer) char *text = function_record_write(&r);
    if (function_record_read(7, text, &back, &e) != ERR_OK)
        test_fail(__FILE__, __LINE__, "%s: %s", e.field, e.text);
    CHECK_EQ(back.id, 7);
    CHECK_EQ(back.latest_version, 3);
    CHECK_EQ(back.active_version, r.active_version);
    CHECK_EQ(back.has_active, on_trial);
    CHECK_EQ(back.versions_used, on_trial ? 0 : 1003);
    CHECK_EQ(back.created_at_ms, r.created_at_ms);
    CHECK_EQ(back.updated_at_ms, r.updated_at_ms);
    CHECK(function_spec_equal(&r.latest, &back.latest));
    if (on_trial)
        CHECK(function_spec_equal(&r.active, &back.active));
    function_record_done(&r);
    function_record_done(&back);
}

TEST(a_function_record_reads_back_as_it_was)
{
    check_round_trip(false);
    check_round_trip(true);
}

TEST(records_that_make_no_sense_are_damage)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"version\":1}",
        "{\"version\":0,\"active_version\":0,\"created_at_ms\":0,\"updated_at_ms\":0,"
        "\"spec\":{\"name\":\"a\",\"command\":\"b\"}}",
        "{\"version\":1,\"active_version\":2,\"created_at_ms\":0,\"updated_at_ms\":0,"
        "\"spec\":{\"name\":\"a\",\"command\":\"b\"}}",
        "{\"version\":1,\"active_version\":1,\"created_at_ms\":0,\"updated_at_ms\":0,"
        "\"spec\":{\"name\":\"a\"}}",
        "{\"version\":2,\"active_version\":1,\"created_at_ms\":0,\"updated_at_ms\":0,"
        "\"spec\":{\"name\":\"a\",\"command\":\"b\"}}",
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct function_record r;
        struct error e = {0};
        if (function_record_read(7, bad[i], &r, &e) == ERR_OK ||
            strstr(e.text, "function 7") == NULL)
            test_fail(__FILE__, __LINE__, "'%s': %s", bad[i], e.text);
    }
}

TEST(a_peer_record_reads_back_as_it_was)
{
    struct peer_record r = {.id = 3,
                            .name = "worker-1",
                            .address = "10.0.0.1",
                            .use = WORKER_USE_DRAINING},
                       back = {0};
    struct error e = {0};
    cleanup(free_pointer) char *text = peer_record_write(&r);
    CHECK_EQ(peer_record_read(3, text, &back, &e), ERR_OK);
    CHECK_STR(back.name, r.name);
    CHECK_STR(back.address, r.address);
    CHECK_EQ(back.id, 3);
    CHECK_EQ(back.use, WORKER_USE_DRAINING);
    CHECK_EQ(peer_record_read(3, "{\"name\":\"x\",\"address\":\"y\",\"use\":\"no\"}", &back, &e),
             ERR_CORRUPT);
    CHECK_EQ(peer_record_read(3, "{\"name\":5}", &back, &e), ERR_CORRUPT);
    CHECK_EQ(peer_record_read(3, "{\"name\":\"x\"}", &back, &e), ERR_CORRUPT);
}
