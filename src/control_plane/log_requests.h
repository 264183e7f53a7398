/* log_requests.h - GET …/logs: asks the workers, passes on what they answer. Loop thread only. */
#pragma once
#include "control_plane/links.h"

struct log_requests;
struct log_requests *log_requests_new(struct control_plane *cp);
void log_requests_free(struct log_requests *r);
/* Takes over the exchange and answers it. */
void log_requests_begin(struct log_requests *r, struct http_exchange *x,
                        const struct log_query *query);
/* From a worker. `error` is "" when there is none. */
void log_requests_chunk(struct log_requests *r, uint64_t request_id, uint64_t worker_id,
                        struct str data, bool end, const char *error);
void log_requests_worker_closed(struct log_requests *r, uint64_t worker_id);
/* Who follows hears a worker that came, or came back, from where it was. */
void log_requests_worker_up(struct log_requests *r, uint64_t worker_id);
void log_requests_function_deleted(struct log_requests *r, uint64_t function_id);
