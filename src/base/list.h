/* list.h - intrusive doubly linked list, circular with a head. O(1) insert and remove. A node that
 * is in no list is zeroed or self-linked (list_init); list_remove() of such a node does nothing.
 * No state; the thread of the list's owner. */
#pragma once
#include "base/base.h"

struct list {
    struct list *next, *prev;
};
static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}
static inline bool list_is_empty(const struct list *head)
{
    return head->next == head;
}
static inline bool list_is_linked(const struct list *node)
{
    return node->next != NULL && node->next != node;
}
static inline void list_insert_before(struct list *place, struct list *node)
{
    node->next = place;
    node->prev = place->prev;
    place->prev->next = node;
    place->prev = node;
}
static inline void list_push_back(struct list *head, struct list *node)
{
    list_insert_before(head, node);
}
static inline void list_push_front(struct list *head, struct list *node)
{
    list_insert_before(head->next, node);
}
static inline void list_remove(struct list *node)
{
    if (node->next == NULL)
        return;
    node->next->prev = node->prev;
    node->prev->next = node->next;
    list_init(node);
}
static inline struct list *list_first(struct list *head)
{
    return list_is_empty(head) ? NULL : head->next;
}
#define list_entry(node, type, member) container_of(node, type, member)
/* The body may remove the current item. */
#define list_for_each(item, head, type, member)                           \
    for (type *item = list_entry((head)->next, type, member),             \
              *item##_next = list_entry(item->member.next, type, member); \
         &item->member != (head);                                         \
         item = item##_next, item##_next = list_entry(item->member.next, type, member))
