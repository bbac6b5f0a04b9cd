/* SPDX-License-Identifier: Apache-2.0 */
/* A wrapper counts operations down to the one that fails; with a countdown of 0 it is transparent. */
#include "daemon/mem/tier.h"

#include <stddef.h>

static struct tier_fault *fault(const struct tier_ops *t)
{
	return (struct tier_fault *)(uintptr_t)
		t; /* ops is the first member; the countdown is ours to change */
}

static bool fails(const struct tier_ops *t)
{
	struct tier_fault *f = fault(t);

	return atomic_load(&f->countdown) > 0 && atomic_fetch_sub(&f->countdown, 1) == 1;
}

static int fault_open(
	const struct tier_ops *t, const struct tier_request *q, struct tier_memory *ret)
{
	const struct tier_ops *below = fault(t)->below;

	return fails(t) ? fault(t)->error : below->open(below, q, ret);
}

static int fault_adopt(
	const struct tier_ops *t, const struct tier_request *q, int fd, struct tier_memory *ret)
{
	const struct tier_ops *below = fault(t)->below;

	return fails(t) ? fault(t)->error : below->adopt(below, q, fd, ret);
}

static int fault_back(
	const struct tier_ops *t, const struct tier_memory *m, uint64_t offset, uint64_t bytes)
{
	const struct tier_ops *below = fault(t)->below;

	return fails(t) ? fault(t)->error : below->back(below, m, offset, bytes);
}

static int fault_punch(
	const struct tier_ops *t, const struct tier_memory *m, uint64_t offset, uint64_t bytes)
{
	const struct tier_ops *below = fault(t)->below;

	return fails(t) ? fault(t)->error : below->punch(below, m, offset, bytes);
}

static int fault_count(const struct tier_ops *t, const struct tier_memory *m, uint64_t *ret_bytes)
{
	const struct tier_ops *below = fault(t)->below;

	return fails(t) ? fault(t)->error : below->count(below, m, ret_bytes);
}

static void fault_unmap(const struct tier_ops *t, struct tier_memory *m)
{
	const struct tier_ops *below = fault(t)->below;

	below->unmap(below, m);
}

static void fault_close(const struct tier_ops *t, struct tier_memory *m)
{
	const struct tier_ops *below = fault(t)->below;

	below->close(below, m);
}

void tier_fault_init(struct tier_fault *f, const struct tier_ops *below, int error)
{
	*f = (struct tier_fault){
		.ops =
			{
				.name = "fault",
				.tier = below->tier,
				.open = fault_open,
				.adopt = below->adopt ? fault_adopt : NULL,
				.back = fault_back,
				.punch = fault_punch,
				.count = below->count ? fault_count : NULL,
				.unmap = fault_unmap,
				.close = fault_close,
			},
		.below = below,
		.error = error,
	};
}
