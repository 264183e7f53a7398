/* copies.c - offers, fetches, and what lacks. */
#include "control_plane/copies.h"
#include "base/log.h"
#include "control_plane/blobs.h"
#include "control_plane/registry.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_MS 1000u
#define LOOK_FUNCTIONS_MAX 5000u /* in one round */
#define FETCHES_MAX 8u
#define SILENT_MS 5000u /* of a fetch: another member is asked */

struct fetch {
    struct copies *copies;
    struct list node;
    char digest[CODE_DIGEST_BYTES + 1];
    uint32_t member;
    struct upload *upload;
    uint64_t offset, heard_ns;
    bool finishing;
};
struct copies {
    struct control_plane *cp;
    struct list spreads, fetches;
    size_t fetch_count;
    struct loop_timer look;
    size_t look_cursor; /* among the functions */
    uint32_t next_member; /* that is asked for what lacks */
};

/* ---- spreading ---- */

static void spread_end(struct copies_spread *s, enum err err)
{
    struct error e = {0};
    copies_spread_cancel(s);
    if (err != ERR_OK)
        (void)error_set(&e, err,
                        "the code could not be copied to a majority of the control planes within "
                        "%u s: too few are reached",
                        COPIES_SPREAD_MS / 1000);
    s->on_done(s, err, &e);
}

static bool is_enough(const struct copies *c, uint32_t mask)
{
    return (uint32_t)__builtin_popcount(mask) > members_count(c->cp->members) / 2;
}

static void on_spread_timeout(struct loop_timer *timer)
{
    spread_end(container_of(timer, struct copies_spread, timer), ERR_EMPTY);
}

static void offer(struct copies *c, uint32_t member, const char *digest)
{
    char *offered[] = {(char *)digest};
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    beat.n_code_offered = 1;
    beat.code_offered = offered;
    members_send(c->cp->members, member, &beat, NULL);
}

/* Again and again, since what is said to a member that is not connected is lost. */
static void offer_all(struct copies *c, const struct copies_spread *s)
{
    for (uint32_t i = 0; i < members_count(c->cp->members); i++)
        if ((s->kept_mask & 1u << i) == 0)
            offer(c, i, s->digest);
}

void copies_spread(struct copies *c, const char *digest, struct copies_spread *s)
{
    if (c->cp->members == NULL) {
        struct error none = {0};
        s->on_done(s, ERR_OK, &none);
        return;
    }
    s->copies = c;
    s->kept_mask = 1u << members_self(c->cp->members);
    (void)snprintf(s->digest, sizeof(s->digest), "%s", digest);
    list_push_back(&c->spreads, &s->node);
    loop_timer_init(&s->timer, on_spread_timeout);
    loop_timer_start(c->cp->loop, &s->timer,
                     loop_now_ns(c->cp->loop) + COPIES_SPREAD_MS * NS_PER_MS);
    offer_all(c, s);
}

void copies_spread_cancel(struct copies_spread *s)
{
    if (s->copies == NULL)
        return;
    list_remove(&s->node);
    loop_timer_stop(s->copies->cp->loop, &s->timer);
    s->copies = NULL;
}

static void take_kept(struct copies *c, uint32_t member, const char *digest)
{
    list_for_each(s, &c->spreads, struct copies_spread, node)
    {
        if (strcmp(s->digest, digest) != 0)
            continue;
        s->kept_mask |= 1u << member;
        if (is_enough(c, s->kept_mask))
            spread_end(s, ERR_OK);
    }
}

/* ---- fetching ---- */

static void tell_kept(struct copies *c, uint32_t member, const char *digest)
{
    char *kept[] = {(char *)digest};
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    beat.n_code_kept = 1;
    beat.code_kept = kept;
    members_send(c->cp->members, member, &beat, NULL);
}

static void fetch_end(struct fetch *f)
{
    if (f->upload != NULL)
        upload_cancel(f->upload);
    f->copies->fetch_count--;
    list_remove(&f->node);
    free(f);
}

static void on_fetched(void *user, enum err err, const char *digest, uint64_t bytes,
                       const struct error *e)
{
    struct fetch *f = user;
    f->upload = NULL;
    if (err != ERR_OK)
        log_warn("code.not_copied", LOG_STR("digest", f->digest), LOG_STR("why", e->text));
    else if (strcmp(digest, f->digest) != 0)
        log_warn("code.not_copied", LOG_STR("digest", f->digest),
                 LOG_STR("why", "what came has another digest"));
    else {
        log_info("code.copied", LOG_STR("digest", digest), LOG_U64("bytes", bytes));
        tell_kept(f->copies, f->member, digest);
    }
    fetch_end(f);
}

static struct fetch *fetch_find(const struct copies *c, const char *digest)
{
    list_for_each(f, (struct list *)&c->fetches, struct fetch, node)
    {
        if (strcmp(f->digest, digest) == 0)
            return f;
    }
    return NULL;
}

static void fetch_begin(struct copies *c, uint32_t member, const char *digest)
{
    struct error e = {0};
    if (strlen(digest) > CODE_DIGEST_BYTES || fetch_find(c, digest) != NULL ||
        c->fetch_count >= FETCHES_MAX)
        return; /* offered or looked for again */
    struct fetch *f = mem_new(sizeof(*f));
    f->copies = c;
    f->member = member;
    f->heard_ns = loop_now_ns(c->cp->loop);
    (void)snprintf(f->digest, sizeof(f->digest), "%s", digest);
    list_push_back(&c->fetches, &f->node);
    c->fetch_count++;
    if (upload_begin(c->cp->blobs, &f->upload, &e) != ERR_OK) {
        log_warn("code.not_copied", LOG_STR("digest", digest), LOG_STR("why", e.text));
        fetch_end(f);
        return;
    }
    Dirigent__MemberBeat beat = DIRIGENT__MEMBER_BEAT__INIT;
    members_send(c->cp->members, member, &beat, digest);
}

void copies_chunk(struct copies *c, uint32_t member, const Dirigent__BlobChunk *chunk)
{
    struct fetch *f = fetch_find(c, chunk->digest);
    struct error e = {0};
    if (f == NULL || f->member != member || f->finishing)
        return;
    f->heard_ns = loop_now_ns(c->cp->loop);
    enum err err = chunk->error[0] != '\0' ? error_set(&e, ERR_NOT_FOUND, "%s", chunk->error)
                   : chunk->offset != f->offset
                       ? error_set(&e, ERR_PROTOCOL, "a piece came out of order")
                       : upload_write(f->upload, chunk->data.data, chunk->data.len, &e);
    if (err != ERR_OK) {
        log_warn("code.not_copied", LOG_STR("digest", f->digest), LOG_STR("why", e.text));
        fetch_end(f);
        return;
    }
    f->offset += chunk->data.len;
    if (f->offset < chunk->total_bytes)
        return;
    f->finishing = true;
    upload_finish(f->upload, on_fetched, f);
}

void copies_beat(struct copies *c, uint32_t member, const Dirigent__MemberBeat *beat)
{
    for (size_t i = 0; i < beat->n_code_offered; i++) {
        if (blobs_touch(c->cp->blobs, beat->code_offered[i]))
            tell_kept(c, member, beat->code_offered[i]);
        else
            fetch_begin(c, member, beat->code_offered[i]);
    }
    for (size_t i = 0; i < beat->n_code_kept; i++)
        take_kept(c, member, beat->code_kept[i]);
}

void copies_member_down(struct copies *c, uint32_t member)
{
    list_for_each(f, &c->fetches, struct fetch, node)
    {
        if (f->member == member && !f->finishing)
            fetch_end(f);
    }
}

/* ---- what lacks ---- */

static void want(struct copies *c, const char *digest)
{
    if (digest[0] == '\0' || blobs_has(c->cp->blobs, digest) || fetch_find(c, digest) != NULL)
        return;
    uint32_t count = members_count(c->cp->members);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t member = c->next_member++ % count;
        if (member != members_self(c->cp->members) && members_is_up(c->cp->members, member)) {
            fetch_begin(c, member, digest);
            return;
        }
    }
}

/* Of very many functions some in each round: whoever is added or goes meanwhile may be passed over,
 * until the next time round. */
static void look_at_some(struct copies *c)
{
    for (unsigned i = 0; i < LOOK_FUNCTIONS_MAX && c->fetch_count < FETCHES_MAX; i++) {
        struct function *f = registry_next(c->cp->registry, &c->look_cursor);
        if (f == NULL) {
            c->look_cursor = 0;
            return;
        }
        want(c, f->record.latest.code_digest);
        if (f->record.has_active)
            want(c, f->record.active.code_digest);
    }
}

static void on_look(struct loop_timer *timer)
{
    struct copies *c = container_of(timer, struct copies, look);
    uint64_t now_ns = loop_now_ns(c->cp->loop);
    list_for_each(f, &c->fetches, struct fetch, node)
    {
        if (!f->finishing && now_ns - f->heard_ns > SILENT_MS * NS_PER_MS)
            fetch_end(f);
    }
    list_for_each(s, &c->spreads, struct copies_spread, node)
    {
        offer_all(c, s);
    }
    if (c->cp->members != NULL)
        look_at_some(c);
    loop_timer_start(c->cp->loop, timer, now_ns + LOOK_MS * NS_PER_MS);
}

struct copies *copies_new(struct control_plane *cp)
{
    struct copies *c = mem_new(sizeof(*c));
    c->cp = cp;
    list_init(&c->spreads);
    list_init(&c->fetches);
    loop_timer_init(&c->look, on_look);
    if (cp->settings.peers[0] != '\0')
        loop_timer_start(cp->loop, &c->look, loop_now_ns(cp->loop) + LOOK_MS * NS_PER_MS);
    return c;
}

void copies_free(struct copies *c)
{
    if (c == NULL)
        return;
    loop_timer_stop(c->cp->loop, &c->look);
    list_for_each(f, &c->fetches, struct fetch, node)
    {
        fetch_end(f);
    }
    assert(list_is_empty(&c->spreads));
    free(c);
}
