/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An id is generation << 32 | slot + 1. Slots are used again, generations are not, so an id never names a second
 * stage of the same session; free slots form a list through `next_free`.
 *
 * A client that writes a little outside its stages - most likely it wrote to one after its commit - is put right some
 * times; one that does so all the time, or has more there than can be taken away in passing, is not worth it.
 */
#include "daemon/serve/stages.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/serve/sweeper.h"

#define SIZE_MIN    32u
#define NONE        UINT32_MAX
#define STRIKES_MAX 8
#define STRIKES_NS  60000000000u /* forgotten after that */
#define EXCESS_MAX  (16u << 20)  /* a millisecond or two of punching */

struct stages_slot {
	struct stage stage;
	uint32_t gen, next_free;
};

void stages_init(struct stages *s, struct sweeper *sweeper)
{
	*s = (struct stages){.sweeper = sweeper, .first_free = NONE};
}

void stages_fini(struct stages *s)
{
	if (s->staging) /* no holes are punched: the memory goes as a whole */
		sweeper_unref(s->sweeper, s->staging, s->charge.amount, &s->charge);
	charge_fini(&s->charge);
	free(s->slots);
	stages_init(s, s->sweeper);
}

int stages_open(struct stages *s, uint64_t bytes)
{
	return s->staging ? 0 : staging_new(bytes, &s->staging);
}

static int grow(struct stages *s)
{
	uint32_t size = s->size ? s->size * 2 : SIZE_MIN;
	struct stages_slot *slots = realloc(s->slots, size * sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	for (uint32_t i = size; i-- > s->size;) {
		slots[i] = (struct stages_slot){.next_free = s->first_free};
		s->first_free = i;
	}
	s->slots = slots;
	s->size = size;
	return 0;
}

int stages_reserve(struct stages *s, struct account *a, struct cache_layout *l,
	enum stage_input input, uint64_t bytes, uint64_t *ret_id, uint64_t *ret_offset)
{
	struct stage st = {.layout = l, .input = input, .bytes = bytes};
	struct stages_slot *slot;
	int r = 0;

	if (s->first_free == NONE)
		r = grow(s);
	if (r == 0)
		r = charge_add(&s->charge, a, ACCOUNT_STAGING, bytes);
	if (r == 0) {
		r = staging_alloc(s->staging, bytes, &st.offset);
		if (r < 0)
			charge_sub(&s->charge, bytes);
	}
	if (r < 0)
		return r;
	slot = &s->slots[s->first_free];
	*ret_id = (uint64_t)++slot->gen << 32 | (s->first_free + 1);
	*ret_offset = st.offset;
	s->first_free = slot->next_free;
	slot->stage = st;
	s->used++;
	return 0;
}

uint64_t stages_watch(struct stages *s, uint64_t now_ns, bool *ret_enough)
{
	const uint64_t excess = s->staging ? staging_excess(s->staging) : 0;

	*ret_enough = false;
	if (!excess)
		return 0;
	if (!s->strikes || now_ns - s->struck_ns > STRIKES_NS) {
		s->strikes = 0;
		s->struck_ns = now_ns;
	}
	*ret_enough = ++s->strikes > STRIKES_MAX || excess > EXCESS_MAX;
	if (!*ret_enough) /* else all of it goes with the session */
		staging_sweep(s->staging);
	return excess;
}

bool stages_take(struct stages *s, uint64_t id, struct stage *ret, struct charge *ret_charge)
{
	uint32_t i = (uint32_t)id - 1; /* 0 wraps to NONE */
	struct stages_slot *slot;

	if (i >= s->size)
		return false;
	slot = &s->slots[i];
	if (!slot->stage.layout || slot->gen != (uint32_t)(id >> 32))
		return false;
	*ret = slot->stage;
	charge_take(&s->charge, slot->stage.bytes, ret_charge);
	slot->stage = (struct stage){0};
	slot->next_free = s->first_free;
	s->first_free = i;
	s->used--;
	return true;
}

void stage_fini(struct stage *st, struct charge *c, struct staging *from, struct sweeper *sweeper)
{
	if (st->layout)
		sweeper_release(sweeper, from, st->offset, st->bytes);
	charge_fini(c);
	*st = (struct stage){0};
}
