/* base_test.c - text, numbers, maps, random numbers, errors. */
#include "base/hash.h"
#include "base/list.h"
#include "base/str.h"
#include "test.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

TEST(numbers_are_digits_within_bounds)
{
    uint64_t v = 7;
    CHECK_EQ(str_to_u64(STR("18446744073709551615"), UINT64_MAX, &v), ERR_OK);
    CHECK(v == UINT64_MAX);
    CHECK_EQ(str_to_u64(STR("18446744073709551616"), UINT64_MAX, &v), ERR_INVALID);
    CHECK_EQ(str_to_u64(STR("65535"), 65535, &v), ERR_OK);
    CHECK_EQ(str_to_u64(STR("65536"), 65535, &v), ERR_INVALID);
    CHECK_EQ(str_to_u64(STR("9"), 5, &v), ERR_INVALID);
    CHECK_EQ(str_to_u64(STR(""), 10, &v), ERR_INVALID);
    CHECK_EQ(str_to_u64(STR("+1"), 10, &v), ERR_INVALID);
    CHECK_EQ(str_to_u64(STR("1 "), 10, &v), ERR_INVALID);
    CHECK_EQ(v, 65535); /* a refusal writes nothing */
}

PROPERTY(numbers_read_back)
{
    uint64_t x = rng_next(rng) >> rng_below(rng, 64), back = 0;
    char text[32];
    snprintf(text, sizeof(text), "%" PRIu64, x);
    CHECK_EQ(str_to_u64(str_of(text), UINT64_MAX, &back), ERR_OK);
    CHECK(back == x);
    if (x > 0)
        CHECK_EQ(str_to_u64(str_of(text), x - 1, &back), ERR_INVALID);
}

TEST(split_and_trim)
{
    struct str rest;
    struct str first = str_split(STR("a=b=c"), '=', &rest);
    CHECK(str_equal(first, STR("a")) && str_equal(rest, STR("b=c")));
    first = str_split(STR("abc"), '=', &rest);
    CHECK(str_equal(first, STR("abc")) && rest.data == NULL);
    first = str_split(STR("abc="), '=', &rest);
    CHECK(rest.data != NULL && rest.bytes == 0);
    CHECK(str_equal(str_trim(STR(" \t x y\t")), STR("x y")));
    CHECK(str_equal_nocase(STR("Content-LENGTH"), STR("content-length")));
    CHECK(!str_equal_nocase(STR("a["), STR("A{"))); /* only letters fold */
}

TEST(buffer_grows_and_gives_its_text)
{
    struct buf b = {0};
    for (int i = 0; i < 1000; i++)
        buf_printf(&b, "%d,", i);
    CHECK_EQ(b.bytes, 3890);
    buf_consume(&b, 3886);
    char *text = buf_take_text(&b);
    CHECK_STR(text, "999,");
    free(text);
    CHECK(b.data == NULL && b.bytes == 0);
}

TEST(error_tells_field_cause_and_context)
{
    struct error e = {0};
    CHECK_EQ(error_field(&e, ERR_INVALID, "scaling.min", "is above max (%d)", 3), ERR_INVALID);
    CHECK_STR(e.field, "scaling.min");
    errno = ENOENT;
    CHECK_EQ(error_errno(&e, "open '%s'", "x"), ERR_NOT_FOUND);
    CHECK_STR(e.text, "open 'x': No such file or directory");
    CHECK_STR(e.field, "");
    CHECK_EQ(error_prefix(&e, "start"), ERR_NOT_FOUND);
    CHECK_STR(e.text, "start: open 'x': No such file or directory");
    CHECK_EQ(error_set(NULL, ERR_BUSY, "nobody listens"), ERR_BUSY);
    CHECK_EQ(err_http_status(ERR_TIMEOUT), 504);
    CHECK_EQ(err_exit_code(ERR_UNREACHABLE), 3);
    for (int i = 0; i < ERR_COUNT; i++)
        CHECK(err_name((enum err)i)[0] >= 'a' && err_text((enum err)i)[0] != '\0');
}

/* Whatever is put and removed, the map agrees with a plain array. */
PROPERTY(map_agrees_with_model)
{
    struct map m = {0};
    char *model[64] = {NULL};
    static char values[64];
    for (int step = 0; step < 500; step++) {
        uint64_t key = rng_below(rng, 64);
        if (rng_below(rng, 2) == 0) {
            map_put(&m, key * 1024, &values[key]);
            model[key] = &values[key];
        } else {
            CHECK(map_remove(&m, key * 1024) == model[key]);
            model[key] = NULL;
        }
        size_t count = 0, cursor = 0, seen = 0;
        for (size_t i = 0; i < 64; i++) {
            CHECK(map_get(&m, i * 1024) == model[i]);
            count += model[i] != NULL;
        }
        while (map_next(&m, &cursor) != NULL)
            seen++;
        CHECK_EQ(m.count, count);
        CHECK_EQ(seen, count);
    }
    map_done(&m);
}

PROPERTY(strmap_agrees_with_model)
{
    struct strmap m = {0};
    bool model[32] = {false};
    for (int step = 0; step < 300; step++) {
        unsigned i = (unsigned)rng_below(rng, 32);
        char key[16];
        snprintf(key, sizeof(key), "f%u", i);
        if (rng_below(rng, 2) == 0)
            strmap_put(&m, str_of(key), &model[i]);
        else
            CHECK((strmap_remove(&m, str_of(key)) != NULL) == model[i]);
        model[i] = strmap_get(&m, str_of(key)) != NULL;
        size_t count = 0;
        for (unsigned j = 0; j < 32; j++)
            count += model[j];
        CHECK_EQ(m.count, count);
    }
    strmap_done(&m);
}

PROPERTY(random_numbers_stay_below_their_bound_and_vary)
{
    uint64_t bound = 1 + rng_below(rng, 1000), sum = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t x = rng_below(rng, bound);
        CHECK(x < bound);
        sum += x;
        double d = rng_double(rng);
        CHECK(d >= 0 && d < 1);
    }
    if (bound > 100)
        CHECK(sum / 1000 > bound / 4 && sum / 1000 < bound * 3 / 4);
}

struct item {
    struct list node;
    int value;
};

TEST(list_allows_removal_while_walking)
{
    struct list head;
    struct item items[5];
    list_init(&head);
    for (int i = 0; i < 5; i++) {
        items[i] = (struct item){.value = i};
        list_push_back(&head, &items[i].node);
    }
    int sum = 0;
    list_for_each(it, &head, struct item, node)
    {
        if (it->value % 2 == 0)
            list_remove(&it->node);
        sum += it->value;
    }
    CHECK_EQ(sum, 10);
    CHECK_EQ(list_entry(list_first(&head), struct item, node)->value, 1);
    CHECK(!list_is_linked(&items[0].node));
    list_remove(&items[0].node); /* again: nothing */
}

TEST(files_are_read_whole_or_refused)
{
    char path[] = "/tmp/base_test_XXXXXX";
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    char data[10000];
    memset(data, 'x', sizeof(data));
    CHECK_EQ(fd_write_all(fd, data, sizeof(data)), ERR_OK);
    fd_close(&fd);
    CHECK_EQ(fd, -1);
    char *text = NULL;
    size_t bytes = 0;
    struct error e = {0};
    CHECK_EQ(file_read(path, 10000, &text, &bytes, &e), ERR_OK);
    CHECK_EQ(bytes, 10000);
    CHECK_EQ(strlen(text), 10000);
    free(text);
    CHECK_EQ(file_read(path, 9999, &text, &bytes, &e), ERR_TOO_LARGE);
    unlink(path);
    CHECK_EQ(file_read(path, 9999, &text, &bytes, &e), ERR_NOT_FOUND);
    CHECK(strstr(e.text, path) != NULL);
}
