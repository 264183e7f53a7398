/* leases.c - the ledger of slots. Sections: entries, orders, granting, who waits and who gives,
 * asking, what data planes say, views. */
#include "control_plane/core_state.h"
#include <stdlib.h>
#include <string.h>

/* ---- entries: in each data plane's map, packed into the value ----
 *
 * One without slots says that the data plane knows the sandbox and has nothing there: it is told
 * when that is gone. */

#define SAY_AGAIN_MS 50u  /* what is wanted, while it still is */
#define ASK_AGAIN_MS 100u /* whoever has not answered */

#define ENTRY_THERE (UINT64_C(1) << 33)
#define ENTRY_RETIRED (UINT64_C(1) << 32)
static_assert(sizeof(void *) >= sizeof(uint64_t), "an entry fits a map's value");

static uint64_t entry_get(const struct data_plane *p, uint64_t sandbox_id) /* 0: none */
{
    return (uint64_t)(uintptr_t)map_get(&p->leases_held, sandbox_id);
}

static void entry_put(struct data_plane *p, uint64_t sandbox_id, uint32_t slots, uint64_t flags)
{
    map_put(&p->leases_held, sandbox_id,
            (void *)(uintptr_t)(ENTRY_THERE | (flags & ENTRY_RETIRED) | slots));
}

static uint32_t entry_slots(uint64_t entry)
{
    return (uint32_t)entry;
}

static bool is_retired(uint64_t entry)
{
    return (entry & ENTRY_RETIRED) != 0;
}

/* ---- what is said of a function that several data planes serve ---- */

struct lease_book {
    bool is_stale;                  /* `held` is to be counted anew */
    uint32_t held[DATA_PLANES_MAX]; /* slots of ready sandboxes, but for those that are retired */
    uint32_t owed[DATA_PLANES_MAX]; /* asked back, and not given yet */
    uint32_t owed_idle[DATA_PLANES_MAX];
    uint64_t owed_ms[DATA_PLANES_MAX];
    uint64_t got_ms[DATA_PLANES_MAX];  /* its newest slot */
    uint64_t told_ms[DATA_PLANES_MAX]; /* its demand */
    uint64_t ask_until_ms;             /* asked: what they say is waited for; 0: not */
    uint64_t due_ms;                   /* when a slot may be moved that has just been */
};

static uint32_t concurrency_of(const struct core_function *f)
{
    return function_policy(f)->concurrency;
}

/* What is held of it is used up to the concurrency at most. Of 0, no limit, nothing is counted. */
static uint32_t usable(const struct core_function *f, const struct data_plane *p, uint64_t entry)
{
    return p->leases ? MIN(entry_slots(entry), concurrency_of(f)) : 0;
}

#define FOR_EACH_PLANE(c, p, mask)                                                  \
    for (uint64_t p##_left = (mask); p##_left != 0; p##_left &= p##_left - 1)       \
        for (struct data_plane *p =                                                 \
                 (struct data_plane *)&(c)->data_planes[__builtin_ctzll(p##_left)]; \
             p != NULL; p = NULL)

static uint64_t used_mask(const struct control *c)
{
    return c->alive_mask | c->away_mask;
}

static uint64_t counted_alive(const struct control *c)
{
    uint64_t mask = 0;
    FOR_EACH_PLANE(c, p, c->alive_mask)
    mask |= p->leases ? plane_bit(c, p) : 0;
    return mask;
}

static bool serves(const struct core_sandbox *s)
{
    return s->state == SANDBOX_READY;
}

static void held_count(struct control *c, struct core_function *f)
{
    struct lease_book *b = f->book;
    b->is_stale = false;
    memset(b->held, 0, sizeof(b->held));
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        if (!serves(s))
            continue;
        FOR_EACH_PLANE(c, p, used_mask(c))
        {
            uint64_t entry = entry_get(p, s->id);
            if (entry != 0 && !is_retired(entry))
                b->held[plane_index(c, p)] += usable(f, p, entry);
        }
    }
}

static struct lease_book *book_of(struct control *c, struct core_function *f)
{
    if (f->book == NULL) {
        f->book = mem_new(sizeof(*f->book));
        f->book->is_stale = true;
    }
    if (f->book->is_stale)
        held_count(c, f);
    return f->book;
}

static void book_spoil(struct core_function *f)
{
    if (f->book != NULL)
        f->book->is_stale = true;
}

void leases_function_done(struct core_function *f)
{
    free(f->book);
    f->book = NULL;
}

/* ---- granting ---- */

static void grant(struct control *c, struct core_sandbox *s, struct data_plane *p, uint32_t slots)
{
    struct core_function *f = s->function;
    struct lease_book *b = f->book;
    uint64_t entry = entry_get(p, s->id);
    uint32_t before = entry_slots(entry);
    uint32_t after = slots == SLOTS_ALL ? SLOTS_ALL : before + slots;
    entry_put(p, s->id, after, 0);
    if (b != NULL) {
        unsigned i = plane_index(c, p);
        b->held[i] += usable(f, p, ENTRY_THERE | after) - usable(f, p, ENTRY_THERE | before);
        b->got_ms[i] = c->now_ms;
    }
    sandbox_endpoint_tell(c, s, p->id, slots);
}

struct taken {         /* of one sandbox, over all data planes */
    uint32_t slots;    /* used, at most */
    uint32_t standing; /* and of them without the retired */
};

static struct taken taken_of(const struct control *c, const struct core_sandbox *s)
{
    struct taken t = {0};
    FOR_EACH_PLANE(c, p, used_mask(c))
    {
        uint64_t entry = entry_get(p, s->id);
        uint64_t slots = entry == 0          ? 0
                         : is_retired(entry) ? (p->leases ? entry_slots(entry) : 0)
                                             : usable(s->function, p, entry);
        t.slots = (uint32_t)MIN(t.slots + slots, (uint64_t)UINT32_MAX);
        t.standing =
            (uint32_t)MIN(t.standing + (is_retired(entry) ? 0 : slots), (uint64_t)UINT32_MAX);
    }
    return t;
}

static uint32_t free_slots(const struct control *c, const struct core_sandbox *s)
{
    uint32_t concurrency = concurrency_of(s->function), taken = taken_of(c, s).slots;
    return concurrency > taken ? concurrency - taken : 0;
}

/* Who has not come yet may hold slots of what was there before us. */
static bool is_unsure(const struct control *c, const struct core_sandbox *s)
{
    return core_awaits_planes(c) && s->id >> 32 != c->options.epoch;
}

/* More is held than there is: c was lowered, or one came back that we gave up. The one that came
 * last ends there and says drained. One that is away cannot be told. */
static void surplus_retire(struct control *c, struct core_sandbox *s)
{
    uint32_t concurrency = concurrency_of(s->function);
    while (concurrency > 0 && taken_of(c, s).standing > concurrency) {
        struct data_plane *last = NULL;
        FOR_EACH_PLANE(c, p, c->alive_mask)
        {
            uint64_t entry = entry_get(p, s->id);
            if (entry != 0 && !is_retired(entry) && p->leases &&
                (last == NULL || p->up_ms >= last->up_ms))
                last = p;
        }
        if (last == NULL)
            return;
        entry_put(last, s->id, entry_slots(entry_get(last, s->id)), ENTRY_RETIRED);
        book_spoil(s->function);
        struct control_order *o = core_order(c, ORDER_DRAIN, last->id);
        o->function_id = s->function->id;
        o->sandbox_id = s->id;
    }
}

/* To whom nothing is counted. */
static void unlimited_grant(struct control *c, struct core_sandbox *s)
{
    FOR_EACH_PLANE(c, p, c->alive_mask)
    {
        uint64_t entry = entry_get(p, s->id);
        bool has = entry != 0 && (is_retired(entry) || entry_slots(entry) == SLOTS_ALL);
        if ((concurrency_of(s->function) == 0 || !p->leases) && !has)
            grant(c, s, p, SLOTS_ALL);
    }
}

/* Slots. */
static uint32_t need_of(const struct core_function *f, unsigned i)
{
    const struct demand *d = &f->demands[i];
    uint64_t need = (uint64_t)d->in_flight - d->ending + d->waiting;
    return (uint32_t)MIN(need, (uint64_t)UINT32_MAX);
}

/* Slots that it lacks for what waits with it. */
static uint32_t lack_of(const struct core_function *f, unsigned i)
{
    uint32_t need = need_of(f, i), held = f->book->held[i];
    return need > held ? MIN(f->demands[i].waiting, need - held) : 0;
}

/* Whether `a` comes before `b`: it got a slot longer ago, or when nobody waits it has fewer. */
static bool comes_before(const struct core_function *f, unsigned a, unsigned b, bool by_time)
{
    const struct lease_book *k = f->book;
    if (by_time && k->got_ms[a] != k->got_ms[b])
        return k->got_ms[a] < k->got_ms[b];
    return k->held[a] < k->held[b];
}

struct shares {
    uint64_t weight[DATA_PLANES_MAX], sum;
};

static void shares_weigh(struct control *c, const struct core_function *f, uint64_t planes,
                         struct shares *s)
{
    *s = (struct shares){0};
    for (int by = 0; by < 3 && s->sum == 0; by++)
        FOR_EACH_PLANE(c, p, planes)
        {
            unsigned i = plane_index(c, p);
            s->weight[i] = by == 0 ? lack_of(f, i) : by == 1 ? need_of(f, i) : 1;
            s->sum += s->weight[i];
        }
}

/* In proportion to what lacks, else to what is needed, else equally; what cannot be divided goes
 * one by one. */
static void slots_divide(struct control *c, struct core_sandbox *s, uint64_t planes, uint32_t slots)
{
    struct core_function *f = s->function;
    uint32_t share[DATA_PLANES_MAX] = {0}, left = slots;
    struct shares shares;
    (void)book_of(c, f);
    shares_weigh(c, f, planes, &shares);
    bool by_time = f->waiting > 0;
    FOR_EACH_PLANE(c, p, planes)
    {
        unsigned i = plane_index(c, p);
        share[i] = (uint32_t)(slots * shares.weight[i] / shares.sum);
        left -= share[i];
    }
    for (uint64_t rest = planes; left > 0 && rest != 0; left--) {
        unsigned best = DATA_PLANES_MAX;
        FOR_EACH_PLANE(c, p, rest)
        {
            unsigned i = plane_index(c, p);
            if (shares.weight[i] > 0 &&
                (best == DATA_PLANES_MAX || comes_before(f, i, best, by_time)))
                best = i;
        }
        share[best]++; /* fewer are left than have a weight */
        rest &= ~(UINT64_C(1) << best);
    }
    FOR_EACH_PLANE(c, p, planes)
    if (share[plane_index(c, p)] > 0)
        grant(c, s, p, share[plane_index(c, p)]);
}

/* Of a sandbox that is new, the only data plane has all, and there is nothing to count: so it is on
 * most cold starts. */
static bool whole_grant(struct control *c, struct core_sandbox *s)
{
    uint64_t used = used_mask(c);
    if (used == 0 || (used & (used - 1)) != 0 || used != c->alive_mask || is_unsure(c, s))
        return false;
    struct data_plane *only = &c->data_planes[__builtin_ctzll(used)];
    if (entry_get(only, s->id) != 0)
        return false;
    grant(c, s, only, SLOTS_ALL);
    return true;
}

/* False: it has free slots that nobody can be given now. */
static bool sandbox_grant(struct control *c, struct core_sandbox *s)
{
    uint64_t planes = 0;
    if (whole_grant(c, s))
        return true;
    unlimited_grant(c, s);
    if (concurrency_of(s->function) == 0)
        return c->alive_mask != 0;
    surplus_retire(c, s);
    uint32_t slots = free_slots(c, s);
    if (slots == 0)
        return true; /* offered again when some come back */
    if (is_unsure(c, s))
        return false;
    FOR_EACH_PLANE(c, p, counted_alive(c))
    planes |= is_retired(entry_get(p, s->id)) ? 0 : plane_bit(c, p);
    if (planes == 0)
        return false;
    bool is_alone = (planes & (planes - 1)) == 0;
    struct data_plane *only = &c->data_planes[__builtin_ctzll(planes)];
    if (is_alone && slots == concurrency_of(s->function))
        grant(c, s, only, SLOTS_ALL);
    else if (is_alone)
        grant(c, s, only, slots);
    else
        slots_divide(c, s, planes, slots);
    return true;
}

void leases_offer(struct core_sandbox *s)
{
    if (serves(s) && !list_is_linked(&s->offered))
        list_push_back(&s->function->offered, &s->offered);
}

void leases_offer_serving(struct core_function *f)
{
    uint32_t serving = function_serving(f)->number;
    book_spoil(f);
    list_for_each(s, &f->sandboxes, struct core_sandbox, of_function)
    {
        if (s->version == serving)
            leases_offer(s);
    }
}

void leases_grant(struct control *c, struct core_function *f)
{
    list_for_each(s, &f->offered, struct core_sandbox, offered)
    {
        if (sandbox_grant(c, s))
            list_remove(&s->offered);
    }
}

/* ---- who waits, and who gives ---- */

struct balance {
    uint64_t planes; /* that take part: alive, and counted */
    uint32_t fair[DATA_PLANES_MAX];
    uint32_t take[DATA_PLANES_MAX]; /* in any case */
    uint32_t idle[DATA_PLANES_MAX]; /* if nobody there waits for it */
    uint64_t lack;                  /* of all who wait, not met yet */
};

static bool holds_on(const struct control *c, const struct lease_book *b, unsigned i)
{
    return b->got_ms[i] != 0 && c->now_ms < b->got_ms[i] + LEASE_HOLD_MS;
}

/* Idle slots are taken from whoever has most; half of what is idle moves ahead of demand. */
static void take_idle(struct control *c, const struct core_function *f, struct balance *x)
{
    while (x->lack > 0) {
        unsigned most = DATA_PLANES_MAX;
        uint32_t most_idle = 0;
        FOR_EACH_PLANE(c, p, x->planes)
        {
            unsigned i = plane_index(c, p);
            uint32_t need = need_of(f, i), held = f->book->held[i];
            uint32_t idle = held > need ? held - need : 0;
            if (x->idle[i] == 0 && idle > most_idle) {
                most = i;
                most_idle = idle;
            }
        }
        if (most == DATA_PLANES_MAX)
            return;
        uint32_t taken = (uint32_t)MIN((uint64_t)most_idle, x->lack);
        x->lack -= taken;
        x->idle[most] = MAX(taken, most_idle / 2);
    }
}

/* Who may keep, or gets, what cannot be divided: those who got it just now; those without, the
 * longest first; those who have had it. */
static unsigned next_in_turn(struct control *c, const struct core_function *f,
                             const struct balance *x, uint64_t planes)
{
    const struct lease_book *b = f->book;
    unsigned best = DATA_PLANES_MAX, best_class = 0;
    FOR_EACH_PLANE(c, p, planes)
    {
        unsigned i = plane_index(c, p);
        bool has = b->held[i] > x->fair[i];
        unsigned class = !has ? 1 : holds_on(c, b, i) ? 0 : 2;
        bool is_earlier = best == DATA_PLANES_MAX || class < best_class ||
                          (class == best_class && b->got_ms[i] < b->got_ms[best]);
        best = is_earlier ? i : best;
        best_class = is_earlier ? class : best_class;
    }
    return best;
}

/* Slots for which it has requests at this moment. Where nobody waits, what was said of the rest is
 * old: it has given slots back since. */
static uint32_t claim_of(const struct core_function *f, unsigned i)
{
    uint32_t need = need_of(f, i);
    return f->demands[i].waiting > 0 ? need : MIN(need, f->book->held[i]);
}

/* Each gets what it claims, up to an equal share of what is left by those who claim less. */
static void fair_shares(struct control *c, const struct core_function *f, struct balance *x)
{
    uint64_t slots = 0, open = 0;
    FOR_EACH_PLANE(c, p, x->planes)
    {
        unsigned i = plane_index(c, p);
        slots += f->book->held[i];
        open |= claim_of(f, i) > 0 ? plane_bit(c, p) : 0;
    }
    while (slots > 0 && open != 0) {
        uint64_t each = slots / (unsigned)__builtin_popcountll(open);
        if (each == 0) {
            unsigned next = next_in_turn(c, f, x, open);
            x->fair[next]++;
            slots--;
            open &= ~(UINT64_C(1) << next);
            continue;
        }
        FOR_EACH_PLANE(c, p, open)
        {
            unsigned i = plane_index(c, p);
            uint64_t more = MIN(each, (uint64_t)claim_of(f, i) - x->fair[i]);
            x->fair[i] += (uint32_t)more;
            slots -= more;
            if (x->fair[i] == claim_of(f, i))
                open &= ~plane_bit(c, p);
        }
    }
}

/* What is in use, from those that have more than their share. */
static void take_share(struct control *c, struct core_function *f, struct balance *x)
{
    struct lease_book *b = f->book;
    fair_shares(c, f, x);
    FOR_EACH_PLANE(c, p, x->planes)
    {
        unsigned i = plane_index(c, p);
        uint32_t held = b->held[i] - x->idle[i];
        if (held == 0 || need_of(f, i) == 0)
            continue;
        if (holds_on(c, b, i)) {
            b->due_ms = MIN(b->due_ms, b->got_ms[i] + LEASE_HOLD_MS);
            continue;
        }
        uint32_t taken = held > x->fair[i] ? held - x->fair[i] : 0;
        taken = (uint32_t)MIN((uint64_t)taken, x->lack);
        x->take[i] += taken;
        x->lack -= taken;
    }
}

/* Whatever else becomes idle, anywhere. */
static void take_whatever(struct control *c, const struct core_function *f, struct balance *x)
{
    FOR_EACH_PLANE(c, p, x->planes)
    {
        unsigned i = plane_index(c, p);
        uint32_t held = f->book->held[i] - x->take[i];
        x->idle[i] = (uint32_t)MIN(x->idle[i] + x->lack, (uint64_t)held);
    }
}

/* More idle ones than are lacked now may stay wanted: the lack changes with every request. It is
 * said again after a while: what was given may have been counted differently there. */
static bool is_told(const struct control *c, const struct lease_book *b, const struct balance *x,
                    unsigned i)
{
    bool is_same = x->take[i] == b->owed[i] && x->idle[i] <= b->owed_idle[i] &&
                   (x->idle[i] > 0) == (b->owed_idle[i] > 0);
    bool is_old = x->take[i] + x->idle[i] > 0 && c->now_ms > b->owed_ms[i] + SAY_AGAIN_MS;
    return is_same && !is_old;
}

static void owed_tell(struct control *c, struct core_function *f, const struct balance *x)
{
    struct lease_book *b = f->book;
    FOR_EACH_PLANE(c, p, x->planes)
    {
        unsigned i = plane_index(c, p);
        if (is_told(c, b, x, i))
            continue;
        b->owed[i] = x->take[i];
        b->owed_idle[i] = x->idle[i];
        b->owed_ms[i] = c->now_ms;
        struct control_order *o = core_order(c, ORDER_SLOTS_WANTED, p->id);
        o->function_id = f->id;
        o->slots = x->take[i];
        o->idle = x->idle[i];
    }
}

/* Idle slots first; then what is in use above the share of who has it; and what becomes idle. */
static void balance(struct control *c, struct core_function *f)
{
    struct balance x = {.planes = counted_alive(c)};
    struct lease_book *b = book_of(c, f);
    b->due_ms = UINT64_MAX;
    FOR_EACH_PLANE(c, p, x.planes)
    x.lack += lack_of(f, plane_index(c, p));
    if (x.lack > 0)
        take_idle(c, f, &x);
    if (x.lack > 0) {
        take_share(c, f, &x);
        take_whatever(c, f, &x);
    }
    owed_tell(c, f, &x);
}

void leases_settle(struct control *c, struct core_function *f)
{
    leases_grant(c, f);
    uint64_t planes = counted_alive(c);
    bool is_shared = (planes & (planes - 1)) != 0 && f->waiting > 0;
    if (concurrency_of(f) == 0)
        leases_function_done(f);
    else if (is_shared || f->book != NULL)
        balance(c, f);
    if (list_is_empty(&f->sandboxes) && f->demand_mask == 0)
        leases_function_done(f); /* at rest nothing is kept */
}

uint64_t leases_due_ms(const struct control *c, const struct core_function *f)
{
    const struct lease_book *b = f->book;
    if (b == NULL)
        return UINT64_MAX;
    return b->ask_until_ms > c->now_ms ? MIN(b->due_ms, b->ask_until_ms) : b->due_ms;
}

/* ---- what was said is old ---- */

void leases_told(struct control *c, struct core_function *f, unsigned data_plane)
{
    uint64_t planes = counted_alive(c);
    if ((f->book == NULL && (planes & (planes - 1)) == 0) || concurrency_of(f) == 0)
        return;
    struct lease_book *b = book_of(c, f);
    b->told_ms[data_plane] = c->now_ms;
    if (leases_stale_requests(c, f) == 0)
        b->ask_until_ms = 0;
}

static bool is_old(const struct control *c, const struct core_function *f, unsigned i)
{
    return need_of(f, i) > 0 && c->now_ms > f->book->told_ms[i] + LEASE_FRESH_MS;
}

uint64_t leases_stale_requests(const struct control *c, const struct core_function *f)
{
    uint64_t sum = 0;
    if (f->book == NULL || concurrency_of(f) == 0)
        return 0;
    FOR_EACH_PLANE(c, p, counted_alive(c))
    {
        unsigned i = plane_index(c, p);
        sum += is_old(c, f, i) ? need_of(f, i) : 0;
    }
    return sum;
}

bool leases_ask(struct control *c, struct core_function *f)
{
    struct lease_book *b = book_of(c, f);
    if (b->ask_until_ms != 0 && c->now_ms < b->ask_until_ms + ASK_AGAIN_MS)
        return c->now_ms < b->ask_until_ms;
    b->ask_until_ms = 0;
    FOR_EACH_PLANE(c, p, counted_alive(c))
    {
        if (!is_old(c, f, plane_index(c, p)))
            continue;
        struct control_order *o = core_order(c, ORDER_WANT_DEMAND, p->id);
        o->function_id = f->id;
        b->ask_until_ms = c->now_ms + LEASE_ASK_MS;
    }
    return b->ask_until_ms != 0;
}

/* Of those that are away, and of data planes that end there. */
uint64_t leases_locked_slots(struct control *c, struct core_function *f)
{
    uint64_t sum = 0;
    if (c->away_mask == 0 || concurrency_of(f) == 0)
        return 0;
    struct lease_book *b = book_of(c, f);
    FOR_EACH_PLANE(c, p, c->away_mask & ~c->alive_mask)
    sum += b->held[plane_index(c, p)];
    return sum;
}

/* ---- what data planes say ---- */

/* Its slots are free, or it is to be named again. */
static void sandbox_look(struct control *c, uint64_t sandbox_id)
{
    struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    if (s == NULL || !serves(s))
        return;
    book_spoil(s->function);
    leases_offer(s);
    function_touch(c, s->function);
}

static void held_forget(struct control *c, struct data_plane *p)
{
    struct map held = p->leases_held;
    p->leases_held = (struct map){0};
    for (size_t i = 0; i < held.capacity; i++)
        if (held.entries[i].value != NULL)
            sandbox_look(c, held.entries[i].key);
    map_done(&held);
}

static void owed_forget(struct control *c, unsigned data_plane)
{
    size_t cursor = 0;
    for (struct core_function *f; (f = map_next(&c->functions, &cursor)) != NULL;) {
        if (f->book == NULL)
            continue;
        f->book->owed[data_plane] = f->book->owed_idle[data_plane] = 0;
        f->book->told_ms[data_plane] = f->book->got_ms[data_plane] = 0;
        f->book->is_stale = true;
    }
}

void leases_hello(struct control *c, struct data_plane *p, const struct control_event *e)
{
    held_forget(c, p);
    owed_forget(c, plane_index(c, p));
    p->leases = e->data_plane.leases;
    p->up_ms = c->now_ms;
    for (size_t i = 0; p->leases && i < e->data_plane.known_count; i++) {
        const struct known_sandbox *known = &e->data_plane.known[i];
        bool is_ending = known->is_ending && known->slots > 0;
        entry_put(p, known->sandbox_id, known->slots, is_ending ? ENTRY_RETIRED : 0);
        sandbox_look(c, known->sandbox_id);
    }
}

/* Of what nobody else can have, a data plane that comes is told in its snapshot. */
void leases_restate(struct control *c, struct core_sandbox *s, struct data_plane *p)
{
    uint64_t entry = entry_get(p, s->id);
    if (entry_slots(entry) > 0 && !is_retired(entry))
        sandbox_endpoint_tell(c, s, p->id, p->leases ? 0 : SLOTS_ALL);
    else if (c->alive_mask == plane_bit(c, p) || !p->leases || concurrency_of(s->function) == 0)
        (void)sandbox_grant(c, s);
    leases_offer(s);
}

static bool is_named(struct control *c, uint64_t sandbox_id)
{
    struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    return s != NULL && serves(s) && !s->function->deleted &&
           s->version == function_serving(s->function)->number;
}

void leases_retire_unnamed(struct control *c, struct data_plane *p)
{
    for (size_t i = 0; i < p->leases_held.capacity; i++) {
        const struct map_entry *at = &p->leases_held.entries[i];
        uint32_t slots = entry_slots((uintptr_t)at->value);
        if (slots > 0 && !is_named(c, at->key))
            entry_put(p, at->key, slots, ENTRY_RETIRED);
    }
}

static void returned_take(struct control *c, struct data_plane *p, const struct returned_slots *r)
{
    uint64_t entry = entry_get(p, r->sandbox_id);
    if (entry == 0)
        return;
    uint32_t before = entry_slots(entry);
    if (before == SLOTS_ALL && r->slots > 0)
        return; /* it has been given all since */
    uint32_t after = before == SLOTS_ALL ? r->left : before - MIN(before, r->slots);
    struct core_sandbox *s = map_get(&c->sandboxes, r->sandbox_id);
    if (after > 0)
        entry_put(p, r->sandbox_id, after, entry);
    else
        (void)map_remove(&p->leases_held, r->sandbox_id);
    if (s == NULL)
        return;
    leases_offer(s);
    function_touch(c, s->function);
    struct lease_book *b = s->function->book;
    unsigned i = plane_index(c, p);
    if (b == NULL)
        return;
    uint32_t given = usable(s->function, p, entry) - usable(s->function, p, after);
    uint32_t owed = MIN(b->owed[i], given);
    b->owed[i] -= owed;
    b->owed_idle[i] -= MIN(b->owed_idle[i], given - owed);
    if (!b->is_stale && serves(s) && !is_retired(entry))
        b->held[i] -= given;
}

void leases_returned(struct control *c, struct data_plane *p, const struct control_event *e)
{
    for (size_t i = 0; i < e->returned.count; i++)
        returned_take(c, p, &e->returned.items[i]);
}

/* It has nothing there any more; it may know it still. */
void leases_drained(struct control *c, struct data_plane *p, uint64_t sandbox_id)
{
    if (map_get(&c->sandboxes, sandbox_id) == NULL)
        (void)map_remove(&p->leases_held, sandbox_id);
    else if (entry_get(p, sandbox_id) != 0)
        entry_put(p, sandbox_id, 0, 0);
    sandbox_look(c, sandbox_id);
}

void leases_plane_end(struct control *c, struct data_plane *p)
{
    held_forget(c, p);
    owed_forget(c, plane_index(c, p));
}

/* ---- the life of a sandbox ---- */

void leases_sandbox_ready(struct control *c, struct core_sandbox *s)
{
    if (leases_holders(c, s->id) != 0)
        book_spoil(s->function);
}

void leases_sandbox_leaves(struct control *c, struct core_sandbox *s)
{
    struct lease_book *b = s->function->book;
    list_remove(&s->offered);
    if (b == NULL || b->is_stale)
        return;
    FOR_EACH_PLANE(c, p, used_mask(c))
    {
        uint64_t entry = entry_get(p, s->id);
        unsigned i = plane_index(c, p);
        if (entry == 0 || is_retired(entry))
            continue;
        assert(b->held[i] >= usable(s->function, p, entry));
        b->held[i] -= usable(s->function, p, entry);
    }
}

void leases_sandbox_gone(struct control *c, const struct core_sandbox *s, bool may_come_back)
{
    FOR_EACH_PLANE(c, p, c->alive_mask)
    {
        uint32_t slots = entry_slots((uintptr_t)map_remove(&p->leases_held, s->id));
        if (!may_come_back || slots == 0)
            continue;
        entry_put(p, s->id, slots, ENTRY_RETIRED);
        struct control_order *o = core_order(c, ORDER_DRAIN, p->id);
        o->function_id = s->function->id;
        o->sandbox_id = s->id;
    }
}

uint64_t leases_holders(const struct control *c, uint64_t sandbox_id)
{
    uint64_t mask = 0;
    FOR_EACH_PLANE(c, p, used_mask(c))
    mask |= entry_slots(entry_get(p, sandbox_id)) > 0 ? plane_bit(c, p) : 0;
    return mask;
}

bool leases_is_retired(const struct data_plane *p, uint64_t sandbox_id)
{
    return is_retired(entry_get(p, sandbox_id));
}

uint64_t leases_knowers(const struct control *c, uint64_t sandbox_id)
{
    uint64_t mask = 0;
    FOR_EACH_PLANE(c, p, c->alive_mask)
    mask |= entry_get(p, sandbox_id) != 0 ? plane_bit(c, p) : 0;
    return mask;
}

/* ---- views ---- */

uint32_t control_lease(const struct control *c, uint64_t data_plane_id, uint64_t sandbox_id)
{
    const struct core_sandbox *s = map_get(&c->sandboxes, sandbox_id);
    for (unsigned i = 0; s != NULL && i < DATA_PLANES_MAX; i++) {
        const struct data_plane *p = &c->data_planes[i];
        if (!p->used || p->id != data_plane_id)
            continue;
        uint64_t entry = entry_get(p, sandbox_id);
        uint32_t concurrency = concurrency_of(s->function);
        if (entry_slots(entry) == 0)
            return 0;
        return concurrency == 0 ? SLOTS_ALL : MIN(entry_slots(entry), concurrency);
    }
    return 0;
}
