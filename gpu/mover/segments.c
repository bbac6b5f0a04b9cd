/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host segment is mapped read-only. To register it with the device pins all of its pages, which is fine for memory
 * that was set aside and never leaves the file; elsewhere it would make the kernel give memory to every hole, and, worse, a page
 * that is punched and written anew is another page, while the device went on reading the old one. So such a segment is
 * read by the processor, and what is read goes to the device through memory that is pinned for good.
 */
#include "gpu/mover/segments.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gates/why.h"
#include "proto/map.h"

const struct mover_segment *segments_find(const struct segments *s, uint8_t tier, uint32_t id)
{
	for (uint32_t i = 0; i < s->n; i++)
		if (s->at[i].id == id && s->at[i].tier == tier)
			return &s->at[i];
	return NULL;
}

static int map_host(
	struct segments *s, struct mover_segment *m, const struct mover_import *i, int fd)
{
	char text[GPU_WHY_BYTES];
	void *at;
	int r = map_shared(fd, m->bytes, PROT_READ, &at);

	if (r < 0)
		return r;
	m->host = at;
	if (i->whole &&
		gpu_host_map(s->device, at, m->bytes, false, &m->device, text, sizeof(text)) < 0)
		m->device = 0; /* then through the stage */
	return 0;
}

int segments_import(
	struct segments *s, const struct mover_import *m, int fd, char *ret_why, size_t why_size)
{
	struct mover_segment new = {.id = m->segment, .tier = m->tier, .bytes = m->bytes}, *at;
	int r;

	if (!m->segment || segments_find(s, m->tier, m->segment))
		return why(ret_why, why_size, -EEXIST, "segment %u is there", m->segment);
	at = reallocarray(s->at, s->n + 1, sizeof(*at));
	if (!at)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	s->at = at;
	if (m->tier == KVG_TIER_GPU) {
		r = gpu_vmm_map(s->device, fd, m->bytes, true, &new.device, ret_why, why_size);
	} else {
		r = map_host(s, &new, m, fd);
		if (r < 0)
			r = why(ret_why, why_size, r, "segment %u: %s", m->segment, strerror(-r));
	}
	new.error = r;
	s->at[s->n++] = new;
	return r;
}

void segments_forget(struct segments *s, uint8_t tier, uint32_t id)
{
	struct mover_segment *m = (struct mover_segment *)(uintptr_t)segments_find(s, tier, id);
	char text[GPU_WHY_BYTES];

	if (!m)
		return;
	if (m->host) {
		if (m->device)
			gpu_host_unmap(s->device, (void *)(uintptr_t)m->host, text, sizeof(text));
		munmap((void *)(uintptr_t)m->host, m->bytes);
	} else if (m->device) {
		gpu_vmm_unmap(s->device, m->device, m->bytes, text, sizeof(text));
	}
	*m = s->at[--s->n];
}
