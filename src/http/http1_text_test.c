/* http1_text_test.c - lists, queries, escapes, statuses and methods. */
#include "http/http1.h"
#include "test.h"

TEST(a_list_has_whole_members_in_any_case)
{
    static const struct {
        const char *list;
        bool has;
    } cases[] = {
        {"close", true},    {"CLOSE", true},   {"a, Close ,b", true}, {"a,\tclose", true},
        {",,close,", true}, {"closed", false}, {"xclose", false},     {"close x", false},
        {"clos", false},    {"", false},       {",", false},          {"a;close", false},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        if (http_list_has(str_of(cases[i].list), STR("close")) != cases[i].has)
            test_fail(__FILE__, __LINE__, "\"%s\"", cases[i].list);
    CHECK(!http_list_has(STR_NONE, STR("close")));
}

TEST(the_first_value_of_a_query_is_found)
{
    static const struct {
        const char *query, *name, *value; /* value NULL: absent */
    } cases[] = {
        {"a=1&b=2&a=3", "a", "1"}, {"a=1&b=2&a=3", "b", "2"}, {"a=1", "b", NULL},
        {"a&b=2", "a", ""},        {"a=", "a", ""},           {"a=b=c", "a", "b=c"},
        {"&&a=1", "a", "1"},       {"aa=1", "a", NULL},       {"a=%20+", "a", "%20+"},
        {"A=1", "a", NULL},        {"", "a", NULL},           {"x=a&y", "y", ""},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct str got = http_query_get(str_of(cases[i].query), str_of(cases[i].name));
        bool right = cases[i].value == NULL
                         ? got.data == NULL
                         : got.data != NULL && str_equal(got, str_of(cases[i].value));
        if (!right)
            test_fail(__FILE__, __LINE__, "%s of \"%s\": \"%.*s\"", cases[i].name, cases[i].query,
                      STR_ARG(got));
    }
    CHECK(http_query_get(STR_NONE, STR("a")).data == NULL);
}

TEST(escapes_are_decoded_or_refused)
{
    static const struct {
        const char *text, *decoded;
        enum err err;
    } cases[] = {
        {"", "", ERR_OK},
        {"abc", "abc", ERR_OK},
        {"a%20b%2fC%2F+", "a b/C/+", ERR_OK},
        {"%41", "A", ERR_OK},
        {"%2541", "%41", ERR_OK}, /* once only */
        {"%ff", "\xff", ERR_OK},
        {"%", NULL, ERR_INVALID},
        {"%4", NULL, ERR_INVALID},
        {"a%4g", NULL, ERR_INVALID},
        {"%+1", NULL, ERR_INVALID},
        {"%%41", NULL, ERR_INVALID},
        {"a%00b", NULL, ERR_INVALID},
        {"1234567", "1234567", ERR_OK}, /* seven and the NUL: just fits */
        {"12345678", NULL, ERR_TOO_LARGE},
        {"1234567%38", NULL, ERR_TOO_LARGE},
        {"123456%37", "1234567", ERR_OK},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char text[8];
        enum err err = http_percent_decode(str_of(cases[i].text), text, sizeof(text));
        if (err != cases[i].err || (err == ERR_OK && strcmp(text, cases[i].decoded) != 0))
            test_fail(__FILE__, __LINE__, "\"%s\": %s", cases[i].text, err_name(err));
    }
    char none[1];
    CHECK_EQ(http_percent_decode(STR("\0"), none, 1), ERR_INVALID);
    CHECK_EQ(http_percent_decode(STR(""), none, 1), ERR_OK);
    CHECK_EQ(http_percent_decode(STR(""), none, 0), ERR_TOO_LARGE);
}

PROPERTY(what_is_escaped_is_decoded)
{
    char coded[200], plain[65], decoded[65];
    size_t out = 0, bytes = rng_below(rng, sizeof(plain));
    for (size_t i = 0; i < bytes; i++) {
        plain[i] = (char)(1 + rng_below(rng, 255));
        if (plain[i] == '%' || rng_below(rng, 2) == 0)
            out += (size_t)snprintf(coded + out, 4, rng_below(rng, 2) ? "%%%02x" : "%%%02X",
                                    (unsigned char)plain[i]);
        else
            coded[out++] = plain[i];
    }
    CHECK_EQ(http_percent_decode((struct str){coded, out}, decoded, sizeof(decoded)), ERR_OK);
    CHECK_EQ(strlen(decoded), bytes);
    CHECK(memcmp(decoded, plain, bytes) == 0);
}

TEST(statuses_have_their_texts)
{
    CHECK_STR(http_status_text(200), "OK");
    CHECK_STR(http_status_text(404), "Not Found");
    CHECK_STR(http_status_text(431), "Request Header Fields Too Large");
    CHECK_STR(http_status_text(507), "Insufficient Storage");
    CHECK_STR(http_status_text(299), "Unknown");
    for (unsigned status = 0; status < 1000; status++) { /* goes into a head as it is */
        const char *text = http_status_text(status);
        CHECK(text[0] != '\0' && strpbrk(text, "\r\n") == NULL);
    }
}

TEST(methods_that_may_be_sent_again)
{
    static const bool again[] = {
        [HTTP_GET] = true,    [HTTP_HEAD] = true,     [HTTP_POST] = false,   [HTTP_PUT] = true,
        [HTTP_DELETE] = true, [HTTP_CONNECT] = false, [HTTP_OPTIONS] = true, [HTTP_TRACE] = true,
        [HTTP_PATCH] = false, [HTTP_OTHER] = false,
    };
    for (size_t i = 0; i < ARRAY_COUNT(again); i++)
        CHECK_EQ(http_method_is_idempotent((enum http_method)i), again[i]);
}
