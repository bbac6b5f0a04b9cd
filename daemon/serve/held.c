/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hash table with linear probing, at most half full. Removal moves later entries of the run back into the hole, so
 * that there are no tombstones. Generation 0 is never given out, so a packed handle of a pin is never 0.
 */
#include "daemon/serve/held.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define SIZE_MIN 64u

static uint32_t home(const struct held *h, uint64_t handle)
{
	return (uint32_t)(handle * 0x9e3779b97f4a7c15ull >> 32) & (h->size - 1);
}

void held_fini(struct held *h)
{
	free(h->slots);
	*h = (struct held){0};
}

/* The handle's slot, or the empty one where it belongs. */
static struct held_slot *find(const struct held *h, uint64_t handle)
{
	uint32_t i = home(h, handle);

	while (h->slots[i].handle && h->slots[i].handle != handle)
		i = (i + 1) & (h->size - 1);
	return &h->slots[i];
}

int held_reserve(struct held *h)
{
	struct held bigger = {.size = h->size ? h->size * 2 : SIZE_MIN, .used = h->used};

	if (h->used + 1 <= h->size / 2)
		return 0;
	bigger.slots = calloc(bigger.size, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < h->size; i++)
		if (h->slots[i].handle)
			*find(&bigger, h->slots[i].handle) = h->slots[i];
	free(h->slots);
	*h = bigger;
	return 0;
}

void held_add(struct held *h, struct kvg_handle handle)
{
	uint64_t packed = kvg_handle_pack(handle);
	struct held_slot *s = find(h, packed);

	assert(handle.gen && h->used < h->size);
	h->used += !s->count;
	s->handle = packed;
	s->count++;
}

static void remove_slot(struct held *h, uint32_t hole)
{
	const uint32_t mask = h->size - 1;

	for (uint32_t i = (hole + 1) & mask; h->slots[i].handle; i = (i + 1) & mask) {
		uint32_t from = home(h, h->slots[i].handle);

		/* its probe passes the hole on the way from home to i */
		if (((i - from) & mask) >= ((i - hole) & mask)) {
			h->slots[hole] = h->slots[i];
			hole = i;
		}
	}
	h->slots[hole] = (struct held_slot){0};
	h->used--;
}

bool held_remove(struct held *h, struct kvg_handle handle)
{
	struct held_slot *s;

	if (!h->used || !handle.gen)
		return false;
	s = find(h, kvg_handle_pack(handle));
	if (!s->handle)
		return false;
	if (--s->count == 0)
		remove_slot(h, (uint32_t)(s - h->slots));
	return true;
}

bool held_has(const struct held *h, struct kvg_handle handle)
{
	return h->used && handle.gen && find(h, kvg_handle_pack(handle))->handle;
}

bool held_take_any(struct held *h, uint32_t *cursor, struct kvg_handle *ret, uint32_t *ret_count)
{
	for (; *cursor < h->size; ++*cursor) {
		struct held_slot *s = &h->slots[*cursor];

		if (!s->handle)
			continue;
		*ret = kvg_handle_unpack(s->handle);
		*ret_count = s->count;
		*s = (struct held_slot){
			0}; /* probes are broken from here on: only more of these calls may follow */
		h->used--;
		return true;
	}
	return false;
}
