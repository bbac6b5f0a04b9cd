/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a trace line by line; the numbers in it may be anything, inside blocks are numbered in the order they appear. */
#include "client/ctl/replay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#define REFERENCES_MAX (UINT32_MAX / 2) /* block numbers are 32 bits wide, with room for marks */

/* From a trace's number to ours: open addressing, never more than half full. */
struct numbering {
	struct numbered {
		uint64_t id;
		uint32_t block; /* 1 + number, 0 = empty */
	} * slot;
	size_t size;
};

static struct numbered *number_slot(const struct numbering *m, uint64_t id)
{
	size_t i = (id * 0x9e3779b97f4a7c15ull >> 20) & (m->size - 1);

	while (m->slot[i].block && m->slot[i].id != id)
		i = (i + 1) & (m->size - 1);
	return &m->slot[i];
}

static int number_room(struct numbering *m, uint32_t n_blocks)
{
	struct numbering bigger = {.size = m->size ? 2 * m->size : 1024};

	if (2 * (size_t)n_blocks < m->size)
		return 0;
	bigger.slot = calloc(bigger.size, sizeof(*bigger.slot));
	if (!bigger.slot)
		return -ENOMEM;
	for (size_t i = 0; i < m->size; i++)
		if (m->slot[i].block)
			*number_slot(&bigger, m->slot[i].id) = m->slot[i];
	free(m->slot);
	*m = bigger;
	return 0;
}

static int append_request(struct trace *t)
{
	if (t->n_requests + 1 >= t->start_room) {
		size_t room = t->start_room ? 2 * t->start_room : 1024;
		size_t *start = reallocarray(t->start, room, sizeof(*start));

		if (!start)
			return -ENOMEM;
		t->start = start;
		t->start_room = room;
		t->start[0] = 0;
	}
	t->start[++t->n_requests] = t->n;
	return 0;
}

static int append_block(struct trace *t, struct numbering *m, uint64_t id)
{
	struct numbered *slot;

	if (t->n == REFERENCES_MAX)
		return -EFBIG;
	if (number_room(m, t->n_blocks) < 0)
		return -ENOMEM;
	if (t->n == t->room) {
		size_t room = t->room ? 2 * t->room : 4096;
		uint32_t *block = reallocarray(t->block, room, sizeof(*block));

		if (!block)
			return -ENOMEM;
		t->block = block;
		t->room = room;
	}
	slot = number_slot(m, id);
	if (!slot->block)
		*slot = (struct numbered){id, ++t->n_blocks};
	t->block[t->n++] = slot->block - 1;
	return 0;
}

/* Hashes use all 64 bits; json-c keeps those above INT64_MAX apart. */
static uint64_t number_of(struct json_object *id)
{
	int64_t v = json_object_get_int64(id);

	return v == INT64_MAX ? json_object_get_uint64(id) : (uint64_t)v;
}

/* NULL when the request was taken, or what is wrong with it; *ret_r then is the error. */
static const char *take_line(struct trace *t, struct numbering *m, const char *line, int *ret_r)
{
	struct json_object *o = json_tokener_parse(line), *ids, *id;
	const char *why = NULL;

	*ret_r = -EINVAL;
	if (!json_object_is_type(o, json_type_object))
		why = "is no JSON object";
	else if (!json_object_object_get_ex(o, "hash_ids", &ids) ||
		!json_object_is_type(ids, json_type_array))
		why = "has no array `hash_ids`";
	for (size_t i = 0; !why && i < json_object_array_length(ids); i++) {
		id = json_object_array_get_idx(ids, i);
		if (!json_object_is_type(id, json_type_int)) {
			*ret_r = -EINVAL;
			why = "has something else than whole numbers in `hash_ids`";
			break;
		}
		*ret_r = append_block(t, m, number_of(id));
		if (*ret_r < 0)
			why = *ret_r == -EFBIG ? "is one too many" : "does not fit in memory";
	}
	if (!why) {
		*ret_r = append_request(t);
		if (*ret_r < 0)
			why = "does not fit in memory";
	}
	json_object_put(o);
	return why;
}

int trace_read(const char *path, struct trace *ret, char *ret_why, size_t why_size)
{
	struct numbering numbering = {0};
	struct trace t = {0};
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t room = 0, n = 0;
	int r = f ? 0 : -errno;

	if (!f)
		snprintf(ret_why, why_size, "%s: %s", path, strerror(errno));
	while (r == 0 && getline(&line, &room, f) > 0) {
		const char *why;

		n++;
		if (!line[strspn(line, " \t\r\n")])
			continue;
		why = take_line(&t, &numbering, line, &r);
		if (why)
			snprintf(ret_why, why_size, "%s: line %zu %s", path, n, why);
	}
	if (r == 0 && ferror(f)) {
		r = -EIO;
		snprintf(ret_why, why_size, "%s: cannot be read to its end", path);
	}
	if (r == 0 && !t.n) {
		r = -EINVAL;
		snprintf(ret_why, why_size, "%s: holds no request", path);
	}
	free(line);
	free(numbering.slot);
	if (f)
		fclose(f);
	if (r < 0) {
		trace_fini(&t);
		return r;
	}
	*ret = t;
	return 0;
}

void trace_fini(struct trace *t)
{
	free(t->block);
	free(t->start);
	*t = (struct trace){0};
}
