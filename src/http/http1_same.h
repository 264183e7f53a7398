/* http1_same.h - for tests and fuzz targets: do the spans of a parsed head lie in it, and do two
 * parses agree? */
#pragma once
#include "http/http1.h"

/* Inside `in`, or absent, or one of the two static paths. */
static inline bool span_is_inside(struct str span, struct str in)
{
    if (span.data == NULL)
        return span.bytes == 0;
    if (span.data >= in.data && span.data <= in.data + in.bytes)
        return span.bytes <= (size_t)(in.data + in.bytes - span.data);
    return str_equal(span, STR("/")) || str_equal(span, STR("*"));
}

static inline bool spans_are_same(struct str a, struct str in_a, struct str b, struct str in_b)
{
    if (a.data == NULL || b.data == NULL)
        return a.data == b.data && a.bytes == b.bytes;
    bool inside_a = a.data >= in_a.data && a.data <= in_a.data + in_a.bytes;
    bool inside_b = b.data >= in_b.data && b.data <= in_b.data + in_b.bytes;
    return str_equal(a, b) && inside_a == inside_b &&
           (!inside_a || a.data - in_a.data == b.data - in_b.data);
}

static inline bool headers_are_inside(const struct http_header *headers, uint32_t count,
                                      struct str head)
{
    for (uint32_t i = 0; i < count; i++)
        if (headers[i].name.bytes == 0 || !span_is_inside(headers[i].name, head) ||
            headers[i].value.data == NULL || !span_is_inside(headers[i].value, head))
            return false;
    return count <= HTTP_HEADER_COUNT_MAX;
}

static inline bool headers_are_same(const struct http_header *a, struct str in_a,
                                    const struct http_header *b, struct str in_b, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (a[i].field != b[i].field || !spans_are_same(a[i].name, in_a, b[i].name, in_b) ||
            !spans_are_same(a[i].value, in_a, b[i].value, in_b))
            return false;
    return true;
}

static inline bool request_is_inside(const struct http_request *r, struct str in)
{
    struct str head = {in.data, r->head_bytes};
    return r->head_bytes > 0 && r->head_bytes <= in.bytes && r->head_bytes <= HTTP_HEAD_BYTES_MAX &&
           span_is_inside(r->method_text, head) && span_is_inside(r->target, head) &&
           span_is_inside(r->path, head) && span_is_inside(r->query, head) &&
           span_is_inside(r->host, head) && span_is_inside(r->host_name, head) &&
           headers_are_inside(r->headers, r->header_count, head);
}

static inline bool requests_are_same(const struct http_request *a, struct str in_a,
                                     const struct http_request *b, struct str in_b)
{
    return a->method == b->method && spans_are_same(a->method_text, in_a, b->method_text, in_b) &&
           spans_are_same(a->target, in_a, b->target, in_b) &&
           spans_are_same(a->path, in_a, b->path, in_b) &&
           spans_are_same(a->query, in_a, b->query, in_b) &&
           spans_are_same(a->host, in_a, b->host, in_b) &&
           spans_are_same(a->host_name, in_a, b->host_name, in_b) &&
           a->minor_version == b->minor_version && a->keep_alive == b->keep_alive &&
           a->expect_continue == b->expect_continue &&
           a->upgrade_websocket == b->upgrade_websocket &&
           a->trailers_accepted == b->trailers_accepted && a->body == b->body &&
           a->content_length == b->content_length && a->head_bytes == b->head_bytes &&
           a->header_count == b->header_count &&
           headers_are_same(a->headers, in_a, b->headers, in_b, a->header_count);
}

static inline bool response_is_inside(const struct http_response *r, struct str in)
{
    struct str head = {in.data, r->head_bytes};
    return r->head_bytes > 0 && r->head_bytes <= in.bytes && r->head_bytes <= HTTP_HEAD_BYTES_MAX &&
           span_is_inside(r->reason, head) && headers_are_inside(r->headers, r->header_count, head);
}

static inline bool responses_are_same(const struct http_response *a, struct str in_a,
                                      const struct http_response *b, struct str in_b)
{
    return a->status == b->status && spans_are_same(a->reason, in_a, b->reason, in_b) &&
           a->minor_version == b->minor_version && a->keep_alive == b->keep_alive &&
           a->body == b->body && a->content_length == b->content_length &&
           a->has_content_length == b->has_content_length && a->head_bytes == b->head_bytes &&
           a->header_count == b->header_count &&
           headers_are_same(a->headers, in_a, b->headers, in_b, a->header_count);
}
