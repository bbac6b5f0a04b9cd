/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Read from the end, as the format wants it:
 *
 *     [local header | name | extra | data] ... [central header | name | extra | comment] ... [end record]
 *
 * The central headers are the truth; a local header only says how far its data is away, and must carry
 * the same name. Local sizes are not looked at: PyTorch leaves them 0. Everything lies before the
 * central directory, so nothing is read twice with two meanings. What zip64 needs (4 GiB and more) is refused.
 */
#include "gates/zip.h"

#include <errno.h>
#include <isa-l/crc.h>
#include <stdlib.h>
#include <string.h>

#include "gates/why.h"

#define LOCAL_BYTES   30u
#define CENTRAL_BYTES 46u
#define END_BYTES     22u
#define COMMENT_MAX   65535u
#define SEE_ZIP64     0xffffffffu

#define LOCAL_MAGIC   0x04034b50u
#define CENTRAL_MAGIC 0x02014b50u
#define END_MAGIC     0x06054b50u

#define FLAG_ENCRYPTED 1u

struct zip {
	const uint8_t *data;
	size_t bytes;
	size_t directory; /* where the central headers begin */
	struct zip_member *members;
	uint32_t n_members;
};

struct reading {
	char *why;
	size_t why_size;
};

#define bad(rd, ...) why((rd)->why, (rd)->why_size, -EBADMSG, __VA_ARGS__)

static uint32_t get16(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
	return get16(p) | get16(p + 2) << 16;
}

static const uint8_t *find_end(const struct zip *z)
{
	size_t least = z->bytes > END_BYTES + COMMENT_MAX ? z->bytes - END_BYTES - COMMENT_MAX : 0;

	if (z->bytes < END_BYTES)
		return NULL;
	for (size_t at = z->bytes - END_BYTES + 1; at-- > least;)
		if (get32(z->data + at) == END_MAGIC)
			return z->data + at;
	return NULL;
}

static int find_data(struct reading *rd, const struct zip *z, uint32_t local, struct zip_member *m)
{
	const uint8_t *h = z->data + local;
	size_t start;

	if (local > z->directory || z->directory - local < LOCAL_BYTES || get32(h) != LOCAL_MAGIC)
		return bad(rd, "zip: a member is not where the directory says");
	if (get16(h + 26) != m->name_bytes)
		return bad(rd, "zip: a member has two names");
	start = (size_t)local + LOCAL_BYTES + m->name_bytes + get16(h + 28);
	if (start > z->directory || m->bytes > z->directory - start)
		return bad(rd, "zip: a member reaches into the directory");
	if (memcmp(h + LOCAL_BYTES, m->name, m->name_bytes) != 0)
		return bad(rd, "zip: a member has two names");
	m->data = z->data + start;
	return 0;
}

/* One central header at *at, which moves on to the next one. */
static int read_member(
	struct reading *rd, const struct zip *z, size_t *at, size_t end, struct zip_member *m)
{
	const uint8_t *h = z->data + *at;
	size_t rest;

	if (end - *at < CENTRAL_BYTES || get32(h) != CENTRAL_MAGIC)
		return bad(rd, "zip: the directory is damaged");
	m->name = (const char *)h + CENTRAL_BYTES;
	m->name_bytes = get16(h + 28);
	rest = m->name_bytes + get16(h + 30) + get16(h + 32);
	if (end - *at - CENTRAL_BYTES < rest)
		return bad(rd, "zip: the directory is damaged");
	*at += CENTRAL_BYTES + rest;
	if (get16(h + 8) & FLAG_ENCRYPTED)
		return bad(rd, "zip: a member is encrypted");
	if (get16(h + 10) != 0 || get32(h + 20) != get32(h + 24))
		return bad(rd, "zip: a member is compressed; torch.save stores them as they are");
	m->bytes = get32(h + 24);
	m->crc = get32(h + 16);
	if (m->bytes == SEE_ZIP64 || get32(h + 42) == SEE_ZIP64)
		return bad(rd, "zip: a member of 4 GiB or more; no gate is that large");
	return find_data(rd, z, get32(h + 42), m);
}

static int compare_names(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
	int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);

	return order ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

static int by_name(const void *a, const void *b)
{
	const struct zip_member *x = a, *y = b;

	return compare_names(x->name, x->name_bytes, y->name, y->name_bytes);
}

static int read_directory(struct reading *rd, struct zip *z)
{
	const uint8_t *end = find_end(z);
	uint32_t n, size, offset;
	size_t at, stop;
	int r;

	if (!end)
		return bad(rd, "zip: no end record: the file was cut short");
	n = get16(end + 10);
	size = get32(end + 12);
	offset = get32(end + 16);
	if (get16(end + 4) != 0 || get16(end + 6) != 0 || get16(end + 8) != n)
		return bad(rd, "zip: the archive is spread over several files");
	if (offset > (size_t)(end - z->data) || size > (size_t)(end - z->data) - offset ||
		(uint64_t)n * CENTRAL_BYTES > size)
		return bad(rd, "zip: the end record points outside of the file");
	z->directory = offset;
	z->members = calloc(n ? n : 1, sizeof(*z->members));
	if (!z->members)
		return -ENOMEM;
	at = offset;
	stop = (size_t)offset + size;
	for (; z->n_members < n; z->n_members++) {
		r = read_member(rd, z, &at, stop, &z->members[z->n_members]);
		if (r < 0)
			return r;
	}
	qsort(z->members, n, sizeof(*z->members), by_name);
	for (uint32_t i = 1; i < n; i++)
		if (by_name(&z->members[i - 1], &z->members[i]) == 0)
			return bad(rd, "zip: a name stands twice");
	return 0;
}

int zip_open(const void *data, size_t bytes, struct zip **ret, char *ret_why, size_t why_size)
{
	struct reading rd = {.why = ret_why, .why_size = why_size};
	struct zip *z;
	int r;

	z = calloc(1, sizeof(*z));
	if (!z)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	z->data = data;
	z->bytes = bytes;
	r = read_directory(&rd, z);
	if (r < 0) {
		if (r == -ENOMEM)
			why_print(ret_why, why_size, "out of memory");
		zip_close(z);
		return r;
	}
	*ret = z;
	return 0;
}

struct zip *zip_close(struct zip *z)
{
	if (!z)
		return NULL;
	free(z->members);
	free(z);
	return NULL;
}

uint32_t zip_count(const struct zip *z)
{
	return z->n_members;
}

const struct zip_member *zip_at(const struct zip *z, uint32_t i)
{
	return &z->members[i];
}

int zip_read(struct zip *z, const char *name, size_t name_bytes, const struct zip_member **ret,
	char *ret_why, size_t why_size)
{
	struct zip_member key = {.name = name, .name_bytes = name_bytes}, *m;

	m = bsearch(&key, z->members, z->n_members, sizeof(*m), by_name);
	if (!m)
		return -ENOENT;
	if (!m->verified && crc32_gzip_refl(0, m->data, m->bytes) != m->crc)
		return why(ret_why, why_size, -EBADMSG, "zip: %.*s is damaged, its CRC is wrong",
			(int)name_bytes, name);
	m->verified = true;
	*ret = m;
	return 0;
}
