/* dispatch.c - slots are counters in the endpoints' words, taken by compare-and-swap; the queue is
 * a list under a mutex.
 *
 * Why no wake-up is lost: who begins to wait first raises `waiting` and then looks at every
 * endpoint once more; who gives a slot back first lowers the endpoint's word and then looks at
 * `waiting`. All four are sequentially consistent, so at least one of the two sees the other. While
 * somebody waits each freed slot thus has a releaser on its way into the mutex, and whoever joins a
 * queue that is not empty need not look at the endpoints at all. What is owed is seen in the same
 * way: it is raised before the endpoints are looked at, and looked at after a slot was given back.
 */
#include "data_plane/dispatch.h"
#include "base/rng.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* An endpoint's word: requests in bits 0-27, slots that we hold in bits 28-55 (all ones:
 * DISPATCH_SLOTS_ALL), flags. In one word, so that none takes a slot that is just given back. */
#define WORD_SLOTS_SHIFT 28
#define WORD_SLOTS ((uint64_t)DISPATCH_REQUESTS_MAX << WORD_SLOTS_SHIFT)
#define WORD_DRAINING (UINT64_C(1) << 56)
#define WORD_REMOVED (UINT64_C(1) << 57)
#define WORD_EJECTED (UINT64_C(1) << 58)
#define WORD_CLOSED (WORD_DRAINING | WORD_REMOVED | WORD_EJECTED)
#define ENDPOINTS_FIRST 4u

/* Read by others while it changes: elements move one place down when one is removed, so a reader
 * may see one twice or miss one. That only makes it choose another, or go on under the mutex, where
 * the list is exact. */
struct endpoint_list {
    uint32_t capacity;
    _Atomic uint32_t count;
    struct endpoint_list *next_garbage;
    _Atomic(struct dispatch_endpoint *) items[];
};

/* What one thread did: written by it alone, read by dispatch_average(). `sequence` is odd while it
 * changes. */
struct thread_state {
    _Alignas(64) _Atomic uint32_t sequence;
    _Atomic uint32_t in_flight;
    _Atomic uint64_t integral_ns; /* of in_flight over time, modulo 2^64 */
    _Atomic uint64_t changed_ns;
    _Atomic uint64_t requests_total;
    /* its own: */
    uint32_t last_used, round_robin;
    uint64_t random;
};

struct dispatch {
    _Atomic(struct endpoint_list *) list;
    _Atomic uint32_t concurrency, policy, waiting;
    _Atomic uint64_t owed; /* slots; written under the mutex */
    _Atomic bool closed;
    struct dispatch_options options;
    pthread_mutex_t mutex;
    /* under the mutex: */
    struct list queue; /* oldest arrival first */
    struct dispatch_endpoint *removed;
    struct endpoint_list *outgrown;
    uint64_t demand_integral_ns, demand_ns; /* dispatch_average()'s */
    struct thread_state threads[];
};

struct dispatch_garbage {
    struct dispatch *dispatch;
    struct dispatch_endpoint *endpoints;
    struct endpoint_list *lists;
};

/* ---- numbers of one thread ---- */

static void account(struct dispatch *d, uint32_t thread, int change, uint64_t now_ns)
{
    struct thread_state *t = &d->threads[thread];
    uint32_t sequence = atomic_load_explicit(&t->sequence, memory_order_relaxed);
    uint32_t in_flight = atomic_load_explicit(&t->in_flight, memory_order_relaxed);
    uint64_t changed_ns = atomic_load_explicit(&t->changed_ns, memory_order_relaxed);
    uint64_t integral_ns = atomic_load_explicit(&t->integral_ns, memory_order_relaxed);
    if (now_ns > changed_ns)
        integral_ns += in_flight * (now_ns - changed_ns);
    atomic_store_explicit(&t->sequence, sequence + 1, memory_order_relaxed);
    atomic_store_explicit(&t->integral_ns, integral_ns, memory_order_release);
    atomic_store_explicit(&t->changed_ns, MAX(now_ns, changed_ns), memory_order_release);
    atomic_store_explicit(&t->in_flight, in_flight + (uint32_t)change, memory_order_release);
    if (change > 0)
        atomic_store_explicit(&t->requests_total,
                              atomic_load_explicit(&t->requests_total, memory_order_relaxed) + 1,
                              memory_order_release);
    atomic_store_explicit(&t->sequence, sequence + 2, memory_order_release);
}

static uint64_t integral_until(const struct thread_state *t, uint64_t now_ns)
{
    for (;;) {
        uint32_t sequence = atomic_load_explicit(&t->sequence, memory_order_acquire);
        uint64_t integral_ns = atomic_load_explicit(&t->integral_ns, memory_order_acquire);
        uint64_t changed_ns = atomic_load_explicit(&t->changed_ns, memory_order_acquire);
        uint32_t in_flight = atomic_load_explicit(&t->in_flight, memory_order_acquire);
        if ((sequence & 1) != 0 ||
            atomic_load_explicit(&t->sequence, memory_order_relaxed) != sequence)
            continue;
        return integral_ns + (now_ns > changed_ns ? in_flight * (now_ns - changed_ns) : 0);
    }
}

/* ---- taking a slot ---- */

static uint32_t word_count(uint64_t word)
{
    return (uint32_t)word & DISPATCH_REQUESTS_MAX;
}

static uint32_t word_slots(uint64_t word)
{
    return (uint32_t)(word >> WORD_SLOTS_SHIFT) & DISPATCH_REQUESTS_MAX;
}

static uint64_t word_with_slots(uint64_t word, uint32_t slots)
{
    return (word & ~WORD_SLOTS) | (uint64_t)MIN(slots, DISPATCH_REQUESTS_MAX) << WORD_SLOTS_SHIFT;
}

static bool word_has_room(uint64_t word, uint32_t concurrency)
{
    return (word & WORD_CLOSED) == 0 && word_count(word) < word_slots(word) &&
           (concurrency == 0 || word_count(word) < concurrency);
}

static bool endpoint_take(struct dispatch_endpoint *endpoint, uint32_t concurrency)
{
    uint64_t word = atomic_load(&endpoint->word);
    while (word_has_room(word, concurrency))
        if (atomic_compare_exchange_weak(&endpoint->word, &word, word + 1))
            return true;
    return false;
}

/* What a policy looks at: the endpoints as they are now, and the thread that asks. */
struct choice {
    struct endpoint_list *list;
    uint32_t count, concurrency;
    struct thread_state *thread;
    bool raced; /* one had room and another thread was faster: look again */
};

static struct dispatch_endpoint *item(const struct choice *c, uint32_t index)
{
    return atomic_load_explicit(&c->list->items[index], memory_order_acquire);
}

static bool take(struct choice *c, struct dispatch_endpoint *endpoint)
{
    if (endpoint_take(endpoint, c->concurrency))
        return true;
    c->raced = true;
    return false;
}

/* xorshift64*, Vigna 2016 */
static uint32_t random_below(struct thread_state *t, uint32_t bound)
{
    t->random ^= t->random >> 12;
    t->random ^= t->random << 25;
    t->random ^= t->random >> 27;
    return (uint32_t)(((t->random * UINT64_C(0x2545F4914F6CDD1D)) >> 32) * bound >> 32);
}

/* The first with room, from `start` on and around. */
static struct dispatch_endpoint *choose_from(struct choice *c, uint32_t start)
{
    for (uint32_t i = 0, index = start; i < c->count;
         i++, index = index + 1 < c->count ? index + 1 : 0) {
        struct dispatch_endpoint *endpoint = item(c, index);
        if (word_has_room(atomic_load(&endpoint->word), c->concurrency) && take(c, endpoint)) {
            c->thread->last_used = index;
            return endpoint;
        }
    }
    return NULL;
}

/* Nothing is less loaded than an idle one: the scan ends there, and it begins where it ended last.
 */
static struct dispatch_endpoint *choose_least_loaded(struct choice *c)
{
    uint32_t index = c->thread->last_used < c->count ? c->thread->last_used : 0, best_index = 0,
             best_load = UINT32_MAX;
    struct dispatch_endpoint *best = NULL;
    for (uint32_t i = 0; i < c->count && best_load > 0;
         i++, index = index + 1 < c->count ? index + 1 : 0) {
        struct dispatch_endpoint *endpoint = item(c, index);
        uint64_t word = atomic_load(&endpoint->word);
        if (!word_has_room(word, c->concurrency) || word_count(word) >= best_load)
            continue;
        best = endpoint;
        best_load = word_count(word);
        best_index = index;
    }
    if (best == NULL || !take(c, best))
        return NULL;
    c->thread->last_used = best_index;
    return best;
}

static struct dispatch_endpoint *choose_power_of_two(struct choice *c)
{
    uint32_t first = random_below(c->thread, c->count), second = random_below(c->thread, c->count);
    uint64_t a = atomic_load(&item(c, first)->word), b = atomic_load(&item(c, second)->word);
    bool take_second = word_has_room(b, c->concurrency) &&
                       (!word_has_room(a, c->concurrency) || word_count(b) < word_count(a));
    return choose_from(c, take_second ? second : first);
}

static struct dispatch_endpoint *choose_once(struct choice *c, enum dispatch_policy policy)
{
    switch (policy) {
    case DISPATCH_LEAST_LOADED:
        return choose_least_loaded(c);
    case DISPATCH_RANDOM:
        return choose_from(c, random_below(c->thread, c->count));
    case DISPATCH_ROUND_ROBIN:
        return choose_from(c, c->thread->round_robin++ % c->count);
    case DISPATCH_POWER_OF_TWO:
        return choose_power_of_two(c);
    case DISPATCH_FIRST_FREE:
        return choose_from(c, 0);
    case DISPATCH_POLICY_COUNT:
        break;
    }
    assert(false);
}

/* Under the mutex NULL means that each endpoint was seen full after the call began. */
static struct dispatch_endpoint *choose(struct dispatch *d, uint32_t thread)
{
    struct choice c = {.concurrency = atomic_load_explicit(&d->concurrency, memory_order_relaxed),
                       .thread = &d->threads[thread]};
    enum dispatch_policy policy = atomic_load_explicit(&d->policy, memory_order_relaxed);
    struct dispatch_endpoint *endpoint = NULL;
    do {
        c.list = atomic_load(&d->list);
        c.count = atomic_load(&c.list->count);
        c.raced = false;
        if (c.count > 0)
            endpoint = choose_once(&c, policy);
    } while (endpoint == NULL && c.raced);
    return endpoint;
}

/* ---- the queue ---- */

/* Waiters whose callback is due once the mutex is free. */
struct outcome {
    struct list granted, failed;
};

static void outcome_init(struct outcome *o)
{
    list_init(&o->granted);
    list_init(&o->failed);
}

static void outcome_tell(struct outcome *o, enum err err, void *reason)
{
    while (!list_is_empty(&o->granted)) {
        struct dispatch_waiter *w =
            list_entry(list_first(&o->granted), struct dispatch_waiter, node);
        list_remove(&w->node);
        w->on_grant(w); /* `w` may be gone now */
    }
    while (!list_is_empty(&o->failed)) {
        struct dispatch_waiter *w =
            list_entry(list_first(&o->failed), struct dispatch_waiter, node);
        list_remove(&w->node);
        w->on_failed(w, err, reason);
    }
}

static void queue_leave(struct dispatch *d, struct dispatch_waiter *w)
{
    list_remove(&w->node);
    atomic_fetch_sub(&d->waiting, 1);
}

/* By arrival: nearly always at the end. Of equal arrivals the one that was here first stays first.
 */
static void queue_join(struct dispatch *d, struct dispatch_waiter *w)
{
    struct list *place = &d->queue;
    while (place->prev != &d->queue &&
           list_entry(place->prev, struct dispatch_waiter, node)->arrived_ns > w->arrived_ns)
        place = place->prev;
    list_insert_before(place, &w->node);
    w->state = DISPATCH_QUEUED;
    atomic_fetch_add(&d->waiting, 1);
}

/* The oldest waiter whose deadline has not passed; those before it fail. */
static struct dispatch_waiter *queue_first(struct dispatch *d, uint64_t now_ns, struct outcome *o)
{
    while (!list_is_empty(&d->queue)) {
        struct dispatch_waiter *w = list_entry(list_first(&d->queue), struct dispatch_waiter, node);
        if (w->deadline_ns == 0 || now_ns < w->deadline_ns)
            return w;
        queue_leave(d, w);
        w->state = DISPATCH_FAILED;
        list_push_back(&o->failed, &w->node);
    }
    return NULL;
}

/* Gives slots to waiters: of `only` (NULL: of whichever the policy takes). */
static void queue_serve(struct dispatch *d, uint32_t thread, struct dispatch_endpoint *only,
                        uint64_t now_ns, struct outcome *o)
{
    uint32_t concurrency = atomic_load_explicit(&d->concurrency, memory_order_relaxed);
    struct dispatch_waiter *w;
    while ((w = queue_first(d, now_ns, o)) != NULL) {
        struct dispatch_endpoint *endpoint = only;
        if (only == NULL)
            endpoint = choose(d, thread);
        else if (!endpoint_take(only, concurrency))
            endpoint = NULL;
        if (endpoint == NULL)
            return;
        queue_leave(d, w);
        w->state = DISPATCH_GRANTED;
        w->granted = endpoint;
        list_push_back(&o->granted, &w->node);
    }
}

/* ---- what is owed. Under the mutex ---- */

/* Up to `most` of its idle slots. Those above the concurrency go with them: nobody may use them. */
static uint32_t give_back(struct dispatch *d, struct dispatch_endpoint *endpoint, uint32_t most)
{
    uint32_t concurrency = atomic_load_explicit(&d->concurrency, memory_order_relaxed);
    uint64_t word = atomic_load(&endpoint->word);
    for (;;) {
        uint32_t slots = word_slots(word), used = word_count(word);
        if (concurrency == 0 || (word & (WORD_DRAINING | WORD_REMOVED)) != 0)
            return 0;
        uint32_t usable = MIN(slots, concurrency);
        uint32_t given = usable > used ? MIN(usable - used, most) : 0;
        if (given == 0)
            return 0;
        if (!atomic_compare_exchange_weak(&endpoint->word, &word,
                                          word_with_slots(word, usable - given)))
            continue;
        bool had_all = slots == DISPATCH_REQUESTS_MAX;
        d->options.on_returned(d->options.user, endpoint, had_all ? 0 : given + slots - usable,
                               usable - given);
        return given;
    }
}

/* Owed in any case: the high half; of what nobody here waits for: the low half. */
static void owed_pay(struct dispatch *d, struct dispatch_endpoint *endpoint)
{
    uint64_t owed = atomic_load(&d->owed);
    uint32_t most = (uint32_t)(owed >> 32);
    if (most > 0)
        atomic_store(&d->owed, owed - ((uint64_t)give_back(d, endpoint, most) << 32));
}

static void owed_idle_pay(struct dispatch *d, struct dispatch_endpoint *endpoint)
{
    uint64_t owed = atomic_load(&d->owed);
    uint32_t most = (uint32_t)owed;
    if (most > 0 && atomic_load(&d->waiting) == 0)
        atomic_store(&d->owed, owed - give_back(d, endpoint, most));
}

/* First of those that serve nobody: of as few as possible a part remains. */
static void owed_pay_all(struct dispatch *d,
                         void (*pay)(struct dispatch *d, struct dispatch_endpoint *endpoint))
{
    struct endpoint_list *list = atomic_load_explicit(&d->list, memory_order_relaxed);
    uint32_t count = atomic_load_explicit(&list->count, memory_order_relaxed);
    for (int idle_only = 1; idle_only >= 0 && atomic_load(&d->owed) != 0; idle_only--)
        for (uint32_t i = count; i-- > 0 && atomic_load(&d->owed) != 0;) {
            struct dispatch_endpoint *endpoint =
                atomic_load_explicit(&list->items[i], memory_order_relaxed);
            if (!idle_only || word_count(atomic_load(&endpoint->word)) == 0)
                pay(d, endpoint);
        }
}

uint64_t dispatch_owe(struct dispatch *d, uint32_t slots, uint32_t idle)
{
    assert(d->options.on_returned != NULL);
    pthread_mutex_lock(&d->mutex);
    atomic_store(&d->owed, (uint64_t)slots << 32 | idle);
    owed_pay_all(d, owed_pay);
    owed_pay_all(d, owed_idle_pay);
    uint64_t left = atomic_load(&d->owed);
    pthread_mutex_unlock(&d->mutex);
    return (left >> 32) + (uint32_t)left;
}

static void serve_all(struct dispatch *d, uint32_t thread, uint64_t now_ns)
{
    struct outcome o;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    owed_pay_all(d, owed_pay);
    queue_serve(d, thread, NULL, now_ns, &o);
    owed_pay_all(d, owed_idle_pay);
    pthread_mutex_unlock(&d->mutex);
    outcome_tell(&o, ERR_TIMEOUT, NULL);
}

/* ---- requests ---- */

static enum err acquire_or_wait(struct dispatch *d, uint32_t thread, struct dispatch_waiter *w,
                                uint64_t now_ns, struct outcome *o)
{
    if (atomic_load(&d->closed))
        return ERR_NOT_FOUND;
    bool others_wait = !list_is_empty(&d->queue);
    queue_join(d, w);
    if (!others_wait)
        queue_serve(d, thread, NULL, now_ns, o);
    if (w->state == DISPATCH_QUEUED && atomic_load(&d->waiting) > d->options.queue_max) {
        queue_leave(d, w);
        w->state = DISPATCH_IDLE;
        return ERR_BUSY;
    }
    if (w->state == DISPATCH_QUEUED)
        return ERR_MORE;
    list_remove(&w->node); /* its own outcome is told by our result */
    return w->state == DISPATCH_GRANTED ? ERR_OK : ERR_TIMEOUT;
}

enum err dispatch_acquire(struct dispatch *d, uint32_t thread, struct dispatch_waiter *w,
                          uint64_t now_ns, struct dispatch_endpoint **ret_endpoint)
{
    if (atomic_load(&d->waiting) == 0 && !atomic_load_explicit(&d->closed, memory_order_relaxed)) {
        struct dispatch_endpoint *endpoint = choose(d, thread);
        if (endpoint != NULL) {
            account(d, thread, +1, now_ns);
            *ret_endpoint = endpoint;
            return ERR_OK;
        }
    }
    struct outcome o;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    enum err err = acquire_or_wait(d, thread, w, now_ns, &o);
    struct dispatch_endpoint *granted = w->granted;
    if (err == ERR_OK || err == ERR_TIMEOUT)
        w->state = DISPATCH_IDLE;
    pthread_mutex_unlock(&d->mutex);
    if (err == ERR_OK) {
        account(d, thread, +1, now_ns);
        *ret_endpoint = granted;
    }
    outcome_tell(&o, ERR_TIMEOUT, NULL);
    return err;
}

struct dispatch_endpoint *dispatch_take_grant(struct dispatch *d, uint32_t thread,
                                              struct dispatch_waiter *w, uint64_t now_ns)
{
    assert(w->state == DISPATCH_GRANTED);
    w->state = DISPATCH_IDLE;
    account(d, thread, +1, now_ns);
    return w->granted;
}

void dispatch_release(struct dispatch *d, uint32_t thread, struct dispatch_endpoint *endpoint,
                      uint64_t now_ns)
{
    account(d, thread, -1, now_ns);
    uint64_t before = atomic_fetch_sub(&endpoint->word, 1);
    assert(word_count(before) > 0);
    if ((before & (WORD_DRAINING | WORD_REMOVED)) == WORD_DRAINING && word_count(before) == 1 &&
        d->options.on_idle != NULL)
        d->options.on_idle(d->options.user, endpoint);
    if (atomic_load(&d->waiting) == 0 && atomic_load(&d->owed) == 0)
        return;
    struct outcome o;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    owed_pay(d, endpoint);
    queue_serve(d, thread, endpoint, now_ns, &o);
    owed_idle_pay(d, endpoint);
    pthread_mutex_unlock(&d->mutex);
    outcome_tell(&o, ERR_TIMEOUT, NULL);
}

bool dispatch_cancel(struct dispatch *d, struct dispatch_waiter *w)
{
    pthread_mutex_lock(&d->mutex);
    bool waits = w->state == DISPATCH_QUEUED;
    if (waits) {
        queue_leave(d, w);
        w->state = DISPATCH_IDLE;
    }
    pthread_mutex_unlock(&d->mutex);
    return waits;
}

static size_t fail_all(struct dispatch *d, enum err err, void *reason, bool close)
{
    struct outcome o;
    size_t count = 0;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    if (close)
        atomic_store(&d->closed, true);
    while (!list_is_empty(&d->queue)) {
        struct dispatch_waiter *w = list_entry(list_first(&d->queue), struct dispatch_waiter, node);
        queue_leave(d, w);
        w->state = DISPATCH_FAILED;
        list_push_back(&o.failed, &w->node);
        count++;
    }
    pthread_mutex_unlock(&d->mutex);
    outcome_tell(&o, err, reason);
    return count;
}

size_t dispatch_fail_waiting(struct dispatch *d, enum err err, void *reason)
{
    return fail_all(d, err, reason, false);
}

size_t dispatch_close(struct dispatch *d, enum err err, void *reason)
{
    return fail_all(d, err, reason, true);
}

/* ---- endpoints ---- */

static struct endpoint_list *list_new(uint32_t capacity)
{
    struct endpoint_list *list = mem_new(sizeof(*list) + capacity * sizeof(list->items[0]));
    list->capacity = capacity;
    return list;
}

/* Under the mutex, as all that follow. */
static struct endpoint_list *list_now(struct dispatch *d)
{
    return atomic_load_explicit(&d->list, memory_order_relaxed);
}

static uint32_t find_index(struct dispatch *d, uint64_t sandbox_id)
{
    struct endpoint_list *list = list_now(d);
    uint32_t count = atomic_load_explicit(&list->count, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++)
        if (atomic_load_explicit(&list->items[i], memory_order_relaxed)->sandbox_id == sandbox_id)
            return i;
    return UINT32_MAX;
}

static struct dispatch_endpoint *find(struct dispatch *d, uint64_t sandbox_id)
{
    uint32_t index = find_index(d, sandbox_id);
    return index == UINT32_MAX
               ? NULL
               : atomic_load_explicit(&list_now(d)->items[index], memory_order_relaxed);
}

static void list_append(struct dispatch *d, struct dispatch_endpoint *endpoint)
{
    struct endpoint_list *list = list_now(d);
    uint32_t count = atomic_load_explicit(&list->count, memory_order_relaxed);
    if (count == list->capacity) {
        struct endpoint_list *larger = list_new(list->capacity * 2);
        for (uint32_t i = 0; i < count; i++)
            atomic_store_explicit(&larger->items[i],
                                  atomic_load_explicit(&list->items[i], memory_order_relaxed),
                                  memory_order_relaxed);
        atomic_store_explicit(&larger->count, count, memory_order_relaxed);
        list->next_garbage = d->outgrown;
        d->outgrown = list;
        atomic_store(&d->list, larger);
        list = larger;
    }
    atomic_store(&list->items[count], endpoint);
    atomic_store(&list->count, count + 1);
}

/* Readers load the count first: the places behind the new end keep a valid pointer. */
static void list_drop(struct dispatch *d, uint32_t index)
{
    struct endpoint_list *list = list_now(d);
    uint32_t count = atomic_load_explicit(&list->count, memory_order_relaxed);
    for (uint32_t i = index; i + 1 < count; i++)
        atomic_store(&list->items[i],
                     atomic_load_explicit(&list->items[i + 1], memory_order_relaxed));
    atomic_store(&list->count, count - 1);
}

bool dispatch_endpoint_add(struct dispatch *d, uint64_t sandbox_id, uint32_t slots, void *user,
                           uint32_t thread, uint64_t now_ns)
{
    struct outcome o;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    bool added = find(d, sandbox_id) == NULL;
    if (added) {
        struct dispatch_endpoint *endpoint =
            mem_new(sizeof(*endpoint) + d->options.threads * sizeof(endpoint->thread_user[0]));
        endpoint->sandbox_id = sandbox_id;
        endpoint->user = user;
        endpoint->word = word_with_slots(0, slots);
        list_append(d, endpoint);
        owed_pay(d, endpoint);
        queue_serve(d, thread, endpoint, now_ns, &o);
        owed_idle_pay(d, endpoint);
    }
    pthread_mutex_unlock(&d->mutex);
    outcome_tell(&o, ERR_TIMEOUT, NULL);
    return added;
}

static void slots_add(struct dispatch_endpoint *endpoint, uint32_t slots)
{
    uint64_t word = atomic_load(&endpoint->word), next;
    do {
        uint64_t sum = (uint64_t)word_slots(word) + slots;
        next = word_with_slots(word, (uint32_t)MIN(sum, (uint64_t)DISPATCH_REQUESTS_MAX));
    } while (!atomic_compare_exchange_weak(&endpoint->word, &word, next));
}

bool dispatch_endpoint_lease(struct dispatch *d, uint64_t sandbox_id, uint32_t slots,
                             uint32_t thread, uint64_t now_ns)
{
    struct outcome o;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    struct dispatch_endpoint *endpoint = find(d, sandbox_id);
    if (endpoint != NULL) {
        slots_add(endpoint, slots);
        owed_pay(d, endpoint);
        queue_serve(d, thread, endpoint, now_ns, &o);
        owed_idle_pay(d, endpoint);
    }
    pthread_mutex_unlock(&d->mutex);
    outcome_tell(&o, ERR_TIMEOUT, NULL);
    return endpoint != NULL;
}

bool dispatch_endpoint_drain(struct dispatch *d, uint64_t sandbox_id)
{
    pthread_mutex_lock(&d->mutex);
    struct dispatch_endpoint *endpoint = find(d, sandbox_id);
    uint64_t before = endpoint != NULL ? atomic_fetch_or(&endpoint->word, WORD_DRAINING) : 0;
    pthread_mutex_unlock(&d->mutex);
    if (endpoint != NULL && (before & WORD_DRAINING) == 0 && word_count(before) == 0 &&
        d->options.on_idle != NULL)
        d->options.on_idle(d->options.user, endpoint);
    return endpoint != NULL;
}

bool dispatch_endpoint_remove(struct dispatch *d, uint64_t sandbox_id)
{
    pthread_mutex_lock(&d->mutex);
    uint32_t index = find_index(d, sandbox_id);
    if (index != UINT32_MAX) {
        struct dispatch_endpoint *endpoint =
            atomic_load_explicit(&list_now(d)->items[index], memory_order_relaxed);
        atomic_fetch_or(&endpoint->word, WORD_REMOVED);
        list_drop(d, index);
        endpoint->next_garbage = d->removed;
        d->removed = endpoint;
    }
    pthread_mutex_unlock(&d->mutex);
    return index != UINT32_MAX;
}

bool dispatch_endpoint_eject(struct dispatch *d, uint64_t sandbox_id)
{
    pthread_mutex_lock(&d->mutex);
    struct dispatch_endpoint *endpoint = find(d, sandbox_id);
    if (endpoint != NULL)
        atomic_fetch_or(&endpoint->word, WORD_EJECTED);
    pthread_mutex_unlock(&d->mutex);
    return endpoint != NULL;
}

bool dispatch_endpoint_admit(struct dispatch *d, uint64_t sandbox_id, uint32_t thread,
                             uint64_t now_ns)
{
    struct outcome o;
    outcome_init(&o);
    pthread_mutex_lock(&d->mutex);
    struct dispatch_endpoint *endpoint = find(d, sandbox_id);
    if (endpoint != NULL) {
        atomic_fetch_and(&endpoint->word, ~WORD_EJECTED);
        owed_pay(d, endpoint);
        queue_serve(d, thread, endpoint, now_ns, &o);
        owed_idle_pay(d, endpoint);
    }
    pthread_mutex_unlock(&d->mutex);
    outcome_tell(&o, ERR_TIMEOUT, NULL);
    return endpoint != NULL;
}

struct dispatch_endpoint *dispatch_endpoint_find(struct dispatch *d, uint64_t sandbox_id)
{
    pthread_mutex_lock(&d->mutex);
    struct dispatch_endpoint *endpoint = find(d, sandbox_id);
    pthread_mutex_unlock(&d->mutex);
    return endpoint;
}

size_t dispatch_endpoints(struct dispatch *d, struct dispatch_endpoint **ret_endpoints,
                          size_t count_max)
{
    pthread_mutex_lock(&d->mutex);
    struct endpoint_list *list = list_now(d);
    uint32_t count = atomic_load_explicit(&list->count, memory_order_relaxed);
    for (uint32_t i = 0; i < count && i < count_max; i++)
        ret_endpoints[i] = atomic_load_explicit(&list->items[i], memory_order_relaxed);
    pthread_mutex_unlock(&d->mutex);
    return count;
}

bool dispatch_endpoint_is_gone(const struct dispatch_endpoint *endpoint)
{
    return (atomic_load(&endpoint->word) & WORD_REMOVED) != 0;
}

bool dispatch_endpoint_is_ending(const struct dispatch_endpoint *endpoint)
{
    return (atomic_load(&endpoint->word) & (WORD_DRAINING | WORD_REMOVED)) != 0;
}

/* ---- numbers ---- */

void dispatch_demand(struct dispatch *d, struct dispatch_demand *ret)
{
    *ret = (struct dispatch_demand){0};
    pthread_mutex_lock(&d->mutex);
    struct endpoint_list *list = list_now(d);
    uint32_t count = atomic_load_explicit(&list->count, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t word =
            atomic_load(&atomic_load_explicit(&list->items[i], memory_order_relaxed)->word);
        ret->in_flight += word_count(word);
        ret->in_flight_ending += (word & WORD_DRAINING) != 0 ? word_count(word) : 0;
        ret->endpoints_ready += (word & WORD_CLOSED) == 0;
    }
    for (struct dispatch_endpoint *e = d->removed; e != NULL; e = e->next_garbage) {
        ret->in_flight += word_count(atomic_load(&e->word));
        ret->in_flight_ending += word_count(atomic_load(&e->word));
    }
    ret->waiting = atomic_load(&d->waiting);
    pthread_mutex_unlock(&d->mutex);
    for (uint32_t i = 0; i < d->options.threads; i++)
        ret->requests_total +=
            atomic_load_explicit(&d->threads[i].requests_total, memory_order_relaxed);
}

double dispatch_average(struct dispatch *d, uint64_t now_ns)
{
    uint64_t integral_ns = 0;
    double average = 0;
    for (uint32_t i = 0; i < d->options.threads; i++)
        integral_ns += integral_until(&d->threads[i], now_ns);
    int64_t grown_ns =
        (int64_t)(integral_ns - d->demand_integral_ns); /* threads' clocks may be a turn apart */
    if (now_ns > d->demand_ns && grown_ns > 0)
        average = (double)grown_ns / (double)(now_ns - d->demand_ns);
    d->demand_integral_ns = integral_ns;
    d->demand_ns = now_ns;
    return average;
}

uint32_t dispatch_waiting(const struct dispatch *d)
{
    return atomic_load_explicit(&d->waiting, memory_order_relaxed);
}

/* ---- life ---- */

struct dispatch *dispatch_new(const struct dispatch_options *options)
{
    assert(options->threads >= 1 && options->threads <= DISPATCH_THREADS_MAX);
    size_t bytes = sizeof(struct dispatch) + options->threads * sizeof(struct thread_state);
    struct dispatch *d = aligned_alloc(_Alignof(struct dispatch), bytes);
    if (d == NULL)
        abort();
    memset(d, 0, bytes);
    d->options = *options;
    d->concurrency = options->concurrency;
    d->policy = options->policy;
    d->list = list_new(ENDPOINTS_FIRST);
    list_init(&d->queue);
    pthread_mutex_init(&d->mutex, NULL);
    struct rng rng;
    rng_init(&rng, options->seed);
    for (uint32_t i = 0; i < options->threads; i++)
        d->threads[i].random = rng_next(&rng) | 1;
    return d;
}

void dispatch_configure(struct dispatch *d, uint32_t concurrency, uint32_t queue_max,
                        enum dispatch_policy policy, uint32_t thread, uint64_t now_ns)
{
    pthread_mutex_lock(&d->mutex);
    d->options.queue_max = queue_max;
    atomic_store(&d->policy, policy);
    atomic_store(&d->concurrency, concurrency);
    pthread_mutex_unlock(&d->mutex);
    serve_all(d, thread, now_ns);
}

static void endpoint_free(struct dispatch *d, struct dispatch_endpoint *endpoint)
{
    if (d->options.on_free != NULL)
        d->options.on_free(d->options.user, endpoint);
    free(endpoint);
}

struct dispatch_garbage *dispatch_collect(struct dispatch *d)
{
    struct dispatch_garbage found = {.dispatch = d};
    pthread_mutex_lock(&d->mutex);
    found.lists = d->outgrown;
    d->outgrown = NULL;
    for (struct dispatch_endpoint **at = &d->removed; *at != NULL;) {
        struct dispatch_endpoint *endpoint = *at;
        if (word_count(atomic_load(&endpoint->word)) > 0) {
            at = &endpoint->next_garbage;
            continue;
        }
        *at = endpoint->next_garbage;
        endpoint->next_garbage = found.endpoints;
        found.endpoints = endpoint;
    }
    pthread_mutex_unlock(&d->mutex);
    if (found.lists == NULL && found.endpoints == NULL)
        return NULL;
    struct dispatch_garbage *garbage = mem_new(sizeof(*garbage));
    *garbage = found;
    return garbage;
}

void dispatch_garbage_free(struct dispatch_garbage *g)
{
    if (g == NULL)
        return;
    for (struct dispatch_endpoint *e = g->endpoints, *next; e != NULL; e = next) {
        next = e->next_garbage;
        endpoint_free(g->dispatch, e);
    }
    for (struct endpoint_list *l = g->lists, *next; l != NULL; l = next) {
        next = l->next_garbage;
        free(l);
    }
    free(g);
}

void dispatch_free(struct dispatch *d)
{
    if (d == NULL)
        return;
    assert(list_is_empty(&d->queue));
    struct endpoint_list *list = list_now(d);
    for (uint32_t i = 0; i < list->count; i++) {
        assert(word_count(list->items[i]->word) == 0);
        endpoint_free(d, list->items[i]);
    }
    free(list);
    dispatch_garbage_free(dispatch_collect(d));
    assert(d->removed == NULL);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}
