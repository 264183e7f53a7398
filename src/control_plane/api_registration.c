/* api_registration.c - the original's form-encoded registration (its HTTP server on port 9091):
 * what its load generator sends must work here unchanged, as far as an image can be run. */
#include "control_plane/api_internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORM_FIELDS_MAX 256u
#define UPPER_BOUND_DEFAULT INT32_MAX

struct form_field {
    char *name, *value; /* decoded, in the form's own memory */
};
struct form {
    char *text;
    struct form_field fields[FORM_FIELDS_MAX];
    size_t count;
};

/* ---- application/x-www-form-urlencoded ---- */

/* Decodes in place: '+' is a blank, %XX a byte. NUL bytes and broken escapes are refused. */
static bool decode_in_place(char *text)
{
    cleanup(free_pointer) char *copy = mem_strdup(text);
    for (char *c = copy; *c != '\0'; c++)
        if (*c == '+')
            *c = ' ';
    size_t bytes = strlen(copy) + 1; /* decoding never makes it longer */
    return http_percent_decode(str_of(copy), text, bytes) == ERR_OK;
}

static enum err form_parse(struct form *form, struct str body, struct error *e)
{
    form->text = mem_strndup(body.data != NULL ? body.data : "", body.bytes);
    char *left = form->text, *pair;
    while ((pair = strsep(&left, "&")) != NULL) {
        if (pair[0] == '\0')
            continue;
        if (form->count == FORM_FIELDS_MAX)
            return error_set(e, ERR_TOO_LARGE, "the form has more than %u fields", FORM_FIELDS_MAX);
        char *value = pair, *name = strsep(&value, "=");
        value = value != NULL ? value : name + strlen(name);
        if (!decode_in_place(name) || !decode_in_place(value))
            return error_set(e, ERR_INVALID, "the form is not encoded as it should be");
        form->fields[form->count++] = (struct form_field){name, value};
    }
    return ERR_OK;
}

/* The n-th value of a field; NULL: there is none. */
static const char *form_get(const struct form *form, const char *name, size_t index)
{
    for (size_t i = 0; i < form->count; i++)
        if (strcmp(form->fields[i].name, name) == 0 && index-- == 0)
            return form->fields[i].value;
    return NULL;
}

static enum err form_number(const struct form *form, const char *name, uint64_t standard,
                            uint64_t max, uint64_t *ret, struct error *e)
{
    const char *text = form_get(form, name, 0);
    *ret = standard;
    if (text == NULL || text[0] == '\0')
        return ERR_OK;
    if (str_to_u64(str_of(text), max, ret) != ERR_OK)
        return error_field(e, ERR_INVALID, name, "'%.64s' is no number from 0 to %" PRIu64, text,
                           max);
    return ERR_OK;
}

/* ---- form to spec ---- */

static enum err read_image(const struct form *form, json_t *spec, struct error *e)
{
    const char *image = form_get(form, "image", 0);
    if (image == NULL || image[0] == '\0')
        return error_field(e, ERR_INVALID, "image", "a registration needs an image");
    bool is_code = strncmp(image, "sha256:", 7) == 0;
    if (!is_code && strcmp(image, "host") != 0)
        return error_field(e, ERR_UNSUPPORTED, "image",
                           "container images cannot be run yet: image must be 'host' or the digest "
                           "of uploaded code, with the command in program_args");
    if (is_code)
        json_object_set_new(spec, "code", json_string(image));
    json_t *command = json_array();
    const char *word;
    for (size_t i = 0; (word = form_get(form, "program_args", i)) != NULL; i++)
        json_array_append_new(command, json_lossy(word, strlen(word)));
    json_object_set_new(spec, "command", command);
    return json_array_size(command) > 0
               ? ERR_OK
               : error_field(e, ERR_INVALID, "program_args", "a registration needs a command");
}

static enum err read_port(const struct form *form, json_t *spec, struct error *e)
{
    const char *port = form_get(form, "port_forwarding", 0);
    const char *protocol = form_get(form, "port_forwarding", 1);
    uint64_t number = 0;
    if (port == NULL || protocol == NULL)
        return error_field(e, ERR_INVALID, "port_forwarding",
                           "port_forwarding needs two values, the port and its protocol");
    if (str_to_u64(str_of(port), 65535, &number) != ERR_OK || number == 0)
        return error_field(e, ERR_INVALID, "port_forwarding", "'%.64s' is no port", port);
    if (strcmp(protocol, "tcp") != 0)
        return error_field(e, ERR_INVALID, "port_forwarding", "'%.64s' is not tcp", protocol);
    json_object_set_new(spec, "port", json_integer((json_int_t)number));
    return ERR_OK;
}

/* The original takes 1 milli-CPU and 1 MiB when nothing is said: that is "no wish", and gets our
 * defaults. */
static enum err read_resources(const struct form *form, json_t *spec, struct error *e)
{
    uint64_t milli = 0, mib = 0;
    enum err err = form_number(form, "requested_cpu", 0, 1024000, &milli, e);
    if (err == ERR_OK)
        err = form_number(form, "requested_memory", 0, 1024 * 1024, &mib, e);
    if (err == ERR_OK && milli > 0)
        json_object_set_new(spec, "cpu", json_real((double)MAX(milli, 10) / 1000));
    if (err == ERR_OK && mib > 0)
        json_object_set_new(spec, "memory", json_integer((json_int_t)(MAX(mib, 4) * MIB)));
    return err;
}

static enum err read_scaling(const struct form *form, json_t *spec, struct error *e)
{
    const char *sweep = form_get(form, "cold_start_sweep", 0);
    bool is_sweep = sweep != NULL && (strcmp(sweep, "true") == 0 || strcmp(sweep, "1") == 0);
    bool is_plain =
        sweep == NULL || sweep[0] == '\0' || strcmp(sweep, "false") == 0 || strcmp(sweep, "0") == 0;
    uint64_t min = 0, max = 0;
    if (!is_sweep && !is_plain)
        return error_field(e, ERR_INVALID, "cold_start_sweep", "'%.64s' is no boolean", sweep);
    enum err err = form_number(form, "scaling_lower_bound", 0, INT32_MAX, &min, e);
    if (err == ERR_OK)
        err = form_number(form, "scaling_upper_bound", is_sweep ? 1 : UPPER_BOUND_DEFAULT,
                          INT32_MAX, &max, e);
    if (err != ERR_OK)
        return err;
    json_t *scaling = json_pack("{s:I, s:I}", "min", (json_int_t)min, "max", (json_int_t)max);
    if (is_sweep) {
        struct scaling_policy preset;
        char stable[AMOUNT_TEXT_BYTES_MAX], panic[AMOUNT_TEXT_BYTES_MAX];
        scaling_policy_cold_start_sweep(&preset);
        format_duration_ms(preset.stable_window_ms, stable);
        format_duration_ms(preset.panic_window_ms, panic);
        json_object_set_new(scaling, "stable_window", json_string(stable));
        json_object_set_new(scaling, "panic_window", json_string(panic));
    }
    json_object_set_new(spec, "scaling", scaling);
    return ERR_OK;
}

static enum err read_env(const struct form *form, json_t *spec, struct error *e)
{
    static const struct {
        const char *field, *variable;
    } named[] = {{"iteration_multiplier", "ITERATIONS_MULTIPLIER"},
                 {"cold_start_busy_loop_ms", "COLD_START_BUSY_LOOP_MS"}};
    json_t *env = json_object();
    json_object_set_new(spec, "env", env);
    for (size_t i = 0; i < ARRAY_COUNT(named); i++) {
        const char *value = form_get(form, named[i].field, 0);
        if (value != NULL && value[0] != '\0')
            json_object_set_new(env, named[i].variable, json_lossy(value, strlen(value)));
    }
    const char *pair;
    for (size_t i = 0; (pair = form_get(form, "env_vars", i)) != NULL; i++) {
        const char *equals = strchr(pair, '=');
        if (pair[0] == '\0')
            continue;
        if (equals == NULL)
            return error_field(e, ERR_INVALID, "env_vars", "'%.64s' is no NAME=VALUE", pair);
        cleanup(free_pointer) char *name = mem_strndup(pair, (size_t)(equals - pair));
        if (json_object_set_new(env, name, json_lossy(equals + 1, strlen(equals + 1))) != 0)
            return error_field(e, ERR_INVALID, "env_vars", "a name is not valid");
    }
    return ERR_OK;
}

/* *ret_spec is the caller's, also on failure. */
static enum err spec_from_form(const struct form *form, json_t **ret_spec, struct error *e)
{
    const char *name = form_get(form, "name", 0);
    json_t *spec = *ret_spec = json_object();
    enum err err = function_name_check(str_of(name != NULL ? name : ""), e);
    if (err != ERR_OK)
        return err;
    json_object_set_new(spec, "name", json_string(name));
    err = read_port(form, spec, e);
    if (err == ERR_OK)
        err = read_resources(form, spec, e);
    if (err == ERR_OK)
        err = read_scaling(form, spec, e);
    if (err == ERR_OK)
        err = read_env(form, spec, e);
    return err == ERR_OK ? read_image(form, spec, e) : err;
}

/* ---- answers: plain text, the body is read as addresses by the original's clients ---- */

static void list_addresses(const struct control_plane *cp, struct buf *out)
{
    size_t cursor = 0;
    struct peer_view peer;
    if (cp->settings.load_balancer[0] != '\0') {
        buf_append_str(out, str_of(cp->settings.load_balancer));
        return;
    }
    while (links_peer_next(cp->links, &cursor, &peer)) {
        char address[128];
        if (peer.is_worker || !peer.connected)
            continue;
        links_public_address(&peer, address, sizeof(address));
        buf_printf(out, "%s%s", out->bytes > 0 ? ";" : "", address);
    }
}

static void answer_plain_error(struct http_exchange *x, enum err err, const struct error *e)
{
    cleanup(buf_done) struct buf text = {0};
    if (e->field[0] != '\0')
        buf_printf(&text, "%s: ", e->field);
    buf_printf(&text, "%s\n", e->text[0] != '\0' ? e->text : err_text(err));
    http_exchange_answer(x, err_http_status(err), "text/plain; charset=utf-8", buf_str(&text),
                         NULL);
}

static void on_registered(struct change *change, enum err err, const struct error *e)
{
    struct call *call = container_of(change, struct call, change);
    cleanup(buf_done) struct buf addresses = {0};
    call->changing = false;
    list_addresses(call->cp, &addresses);
    if (call->x != NULL && err != ERR_OK)
        answer_plain_error(call->x, err, e);
    else if (call->x != NULL)
        http_exchange_answer(call->x, 200, "text/plain; charset=utf-8", buf_str(&addresses), NULL);
    call_free(call);
}

static enum err begin_registration(struct call *call, struct str body, struct error *e)
{
    struct form *form = mem_new(sizeof(*form));
    cleanup(buf_done) struct buf addresses = {0};
    enum err err = form_parse(form, body, e);
    if (err == ERR_OK)
        err = spec_from_form(form, &call->json, e);
    free(form->text);
    free(form);
    list_addresses(call->cp, &addresses);
    if (err == ERR_OK && addresses.bytes == 0)
        err = error_set(e, ERR_EMPTY, "no data plane is connected: there is no address to answer");
    if (err != ERR_OK)
        return err;
    snprintf(call->change.name, sizeof(call->change.name), "%s",
             json_string_value(json_object_get(call->json, "name")));
    call->change.kind = CHANGE_CREATE;
    call->change.json = call->json;
    call->change.on_done = on_registered;
    call->changing = true;
    store_await(call->x);
    registry_change(call->cp->registry, &call->change);
    return ERR_OK;
}

static void on_form(struct http_exchange *x, void *user, enum err err, char *data, size_t bytes)
{
    struct call *call = user;
    struct error e = {0};
    if (err != ERR_OK)
        return; /* on_gone comes */
    err = begin_registration(call, (struct str){data, bytes}, &e);
    if (err == ERR_OK)
        return;
    answer_plain_error(x, err, &e);
    call_free(call);
}

void handle_registration(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    http_exchange_read_body(x, SPEC_JSON_BYTES_MAX, on_form, call_new(cp, x, ""));
}

void handle_check(struct control_plane *cp, struct http_exchange *x, const char *name)
{
    char wanted[FUNCTION_NAME_BYTES_MAX + 1];
    struct error e = {0};
    enum err err = query_get(x, "name", wanted, sizeof(wanted), &e);
    if (err == ERR_OK && wanted[0] == '\0')
        err = error_field(&e, ERR_INVALID, "name", "say which: /check?name=NAME");
    if (err == ERR_OK && registry_find(cp->registry, str_of(wanted)) == NULL)
        err = error_set(&e, ERR_NOT_FOUND, "there is no function '%s'", wanted);
    if (err != ERR_OK)
        answer_plain_error(x, err, &e);
    else
        answer_text(x, 200, "registered\n");
}
