#include "function/function_yaml.h"
#include "test.h"
#include <stdlib.h>

static enum err parse(const char *text, struct function_file *file, struct error *e)
{
    *e = (struct error){0};
    return function_yaml_parse(str_of(text), file, e);
}

static void check_json(const struct function_document *document, const char *expected)
{
    json_t *json = json_loads(expected, 0, NULL);
    REQUIRE(json != NULL);
    if (!json_equal(json, document->json)) {
        cleanup(free_pointer) char *got = json_dumps(document->json, JSON_COMPACT);
        test_fail(__FILE__, __LINE__, "%s instead of %s", got, expected);
    }
    json_decref(json);
}

TEST(yaml_scalars_are_read_as_the_core_schema_says)
{
    struct function_file file;
    struct error e;
    REQUIRE(parse("a: 1\nb: -2.5e1\nc: true\nd: yes\ne: ~\nf: \"1\"\ng: 'x'\nh: !!str 7\n"
                  "i: |\n  two\n  lines\nj: 256Mi\nk: 1.\nl: '~'\nm: 0.5\nn:\n",
                  &file, &e) == ERR_OK);
    CHECK_EQ(file.count, 1);
    check_json(
        &file.items[0],
        "{\"a\":1,\"b\":-25.0,\"c\":true,\"d\":\"yes\",\"e\":null,\"f\":\"1\",\"g\":\"x\","
        "\"h\":\"7\",\"i\":\"two\\nlines\\n\",\"j\":\"256Mi\",\"k\":1.0,\"l\":\"~\",\"m\":0.5,"
        "\"n\":null}");
    function_file_done(&file);
}

TEST(a_file_holds_documents_or_lists_or_functions)
{
    struct function_file file;
    struct error e;
    REQUIRE(parse("# first\nname: a\n---\nname: b\n---\n# nothing\n---\n- name: c\n- name: d\n",
                  &file, &e) == ERR_OK);
    REQUIRE(file.count == 4);
    check_json(&file.items[1], "{\"name\":\"b\"}");
    check_json(&file.items[3], "{\"name\":\"d\"}");
    CHECK_EQ(file.items[0].line, 2);
    CHECK_EQ(file.items[3].line, 9);
    function_file_done(&file);

    REQUIRE(parse("functions:\n- name: a\n  scaling:\n    min: 1\n- name: b\n  port: 1\n", &file,
                  &e) == ERR_OK);
    REQUIRE(file.count == 2);
    check_json(&file.items[0], "{\"name\":\"a\",\"scaling\":{\"min\":1}}");
    CHECK_EQ(file.items[1].line, 5);
    CHECK_EQ(function_yaml_line(&file.items[0], "scaling.min"), 4);
    CHECK_EQ(function_yaml_line(&file.items[0], "scaling.max"), 3);
    CHECK_EQ(function_yaml_line(&file.items[1], "port"), 6);
    CHECK_EQ(function_yaml_line(&file.items[1], "memory"), 5);
    function_file_done(&file);
}

TEST(anchors_and_aliases_are_expanded)
{
    struct function_file file;
    struct error e;
    REQUIRE(
        parse("functions:\n- &a\n  name: a\n  command: &c [x, y]\n- name: b\n  command: *c\n- *a\n",
              &file, &e) == ERR_OK);
    REQUIRE(file.count == 3);
    check_json(&file.items[1], "{\"name\":\"b\",\"command\":[\"x\",\"y\"]}");
    check_json(&file.items[2], "{\"name\":\"a\",\"command\":[\"x\",\"y\"]}");
    function_file_done(&file);
}

TEST(what_is_wrong_is_told_with_its_line)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "no function in the file"},
        {"# only a comment\n", "no function in the file"},
        {"functions: []\n", "no function in the file"},
        {"name: a\nport: [1, 2\n", "line 3: not valid YAML"},
        {"name: a\nname: b\n", "line 2: 'name' is given twice"},
        {"just text\n", "line 1: a function must be a mapping"},
        {"- a\n", "line 1: a function must be a mapping"},
        {"name: a\n---\n- - b\n", "line 3: a function must be a mapping"},
        {"name: a\nx: *nowhere\n", "line 2: there is no anchor 'nowhere'"},
        {"x: &x\n  y: *x\n", "line 2: there is no anchor 'x'"},
        {"name: a\n<<: {b: c}\n", "line 2: merge keys"},
        {"name: !secret a\n", "line 1: the tag '!secret'"},
        {"name: a\nport: 99999999999999999999\n",
         "line 2: the number 99999999999999999999 is too large"},
        {"name: a\nx: 1e999\n", "too large"},
        {"name: \"a\\0b\"\n", "NUL byte"},
        {"? [a]\n: b\n", "line 1: a name must be a text"},
        {"functions:\n- name: a\nport: 1\n", "nothing may stand beside `functions`"},
        {"functions: a\n", "must be a list"},
        {"functions:\n- name: a\n- b\n", "item 2 of `functions`"},
        {"a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n",
         "deeper than 32"},
        {"name: a\n\tport: 1\n", "line 2: not valid YAML"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct function_file file;
        struct error e;
        enum err err = parse(bad[i].text, &file, &e);
        if (err == ERR_OK)
            function_file_done(&file);
        if (err == ERR_OK || strstr(e.text, bad[i].says) == NULL)
            test_fail(__FILE__, __LINE__, "'%s': %s", bad[i].text, e.text);
    }
}

TEST(aliases_cannot_make_a_small_file_large)
{
    cleanup(buf_done) struct buf text = {0};
    struct function_file file;
    struct error e;
    buf_printf(&text, "a0: &a0 x\n");
    for (int i = 1; i < 12; i++) {
        buf_printf(&text, "a%d: &a%d [", i, i);
        for (int j = 0; j < 10; j++)
            buf_printf(&text, "%s*a%d", j > 0 ? "," : "", i - 1);
        buf_printf(&text, "]\n");
    }
    CHECK_EQ(function_yaml_parse(buf_str(&text), &file, &e), ERR_INVALID);
    CHECK(strstr(e.text, "aliases make the file too large") != NULL);
}
