/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pickle is a program for a stack machine. This machine knows what torch.save writes and nothing else:
 *
 *   - a class or function is one that pickle_torch.c lists, or the file is refused; "calling" it is a case of
 *     pickle_rebuild(), which looks at the arguments and makes a value. Nothing is imported, found or run.
 *   - each instruction has at least one byte and pushes at most one value, so stack and memo have as
 *     many places as the pickle has bytes and need no further bound. Values live in an arena.
 *   - containers are lists of items. A file can make a list that holds itself; nobody walks a value but
 *     along the few steps where a gate's tensors must be, so that is harmless.
 */
#include "gates/pickle_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES     65536u
#define GLOBAL_NAME_MAX 128u /* longest module or class name; "numpy._core.multiarray" is usual */

#define bad pickle_bad

enum instruction { /* the names are pickle's own */
	MARK = '(',
	STOP = '.',
	NONE = 'N',
	BININT = 'J',
	BININT1 = 'K',
	BININT2 = 'M',
	BINFLOAT = 'G',
	BINUNICODE = 'X',
	EMPTY_TUPLE = ')',
	EMPTY_LIST = ']',
	EMPTY_DICT = '}',
	APPEND = 'a',
	APPENDS = 'e',
	SETITEM = 's',
	SETITEMS = 'u',
	TUPLE = 't',
	BINGET = 'h',
	LONG_BINGET = 'j',
	BINPUT = 'q',
	LONG_BINPUT = 'r',
	GLOBAL = 'c',
	REDUCE = 'R',
	BUILD = 'b',
	BINPERSID = 'Q',
	PROTO = 0x80,
	TUPLE1 = 0x85,
	TUPLE2 = 0x86,
	TUPLE3 = 0x87,
	NEWTRUE = 0x88,
	NEWFALSE = 0x89,
	LONG1 = 0x8a,
};

struct chunk {
	struct chunk *next;
	size_t used;
	_Alignas(16) uint8_t bytes[CHUNK_BYTES];
};

struct pickle {
	struct chunk *chunks;
	struct pickle_value *root;
};

void *pickle_allocate(struct pickle_machine *m, size_t bytes)
{
	struct chunk *c = m->p->chunks;
	void *p;

	bytes = (bytes + 15) & ~(size_t)15;
	if (!c || CHUNK_BYTES - c->used < bytes) {
		c = malloc(sizeof(*c));
		if (!c)
			return NULL;
		c->used = 0;
		c->next = m->p->chunks;
		m->p->chunks = c;
	}
	p = c->bytes + c->used;
	c->used += bytes;
	return memset(p, 0, bytes);
}

/* ---- stack ---- */

static int push(struct pickle_machine *m, struct pickle_value *v)
{
	if (!v)
		return -ENOMEM;
	m->stack[m->depth++] = v;
	return 0;
}

static int push_new(struct pickle_machine *m, enum pickle_kind kind, struct pickle_value **ret)
{
	struct pickle_value *v = pickle_allocate(m, sizeof(*v));
	int r = push(m, v);

	if (r < 0)
		return r;
	v->kind = kind;
	if (ret)
		*ret = v;
	return 0;
}

static int push_number(struct pickle_machine *m, int64_t number)
{
	struct pickle_value *v;
	int r = push_new(m, PICKLE_NUMBER, &v);

	if (r == 0)
		v->number = number;
	return r;
}

/* The `n` values on top, without taking them; all of them lie above the last mark. */
static int top(struct pickle_machine *m, size_t n, struct pickle_value ***ret)
{
	if (m->depth < n)
		return bad(m, "pickle: the stack is empty at byte %zu", m->at);
	*ret = m->stack + m->depth - n;
	for (size_t i = 0; i < n; i++)
		if ((*ret)[i]->kind == PICKLE_MARK)
			return bad(m, "pickle: a mark where a value belongs, at byte %zu", m->at);
	return 0;
}

/* The values above the last mark, without taking them: they start at stack[*ret]. */
static int above_mark(struct pickle_machine *m, size_t *ret)
{
	size_t at = m->depth;

	while (at > 0 && m->stack[at - 1]->kind != PICKLE_MARK)
		at--;
	if (at == 0)
		return bad(m, "pickle: no mark at byte %zu", m->at);
	*ret = at;
	return 0;
}

static int add_items(
	struct pickle_machine *m, struct pickle_value *to, struct pickle_value **values, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct pickle_item *item = pickle_allocate(m, sizeof(*item));

		if (!item)
			return -ENOMEM;
		item->value = values[i];
		if (to->items.last)
			to->items.last->next = item;
		else
			to->items.first = item;
		to->items.last = item;
		to->items.n++;
	}
	return 0;
}

/* ---- bytes that follow an instruction ---- */

static int take(struct pickle_machine *m, uint64_t n, const uint8_t **ret)
{
	if (n > m->bytes - m->at)
		return bad(m, "pickle: cut short");
	*ret = m->data + m->at;
	m->at += n;
	return 0;
}

static int take_number(struct pickle_machine *m, unsigned n, uint64_t *ret)
{
	const uint8_t *p;
	int r = take(m, n, &p);

	if (r < 0)
		return r;
	*ret = 0;
	for (unsigned i = 0; i < n; i++)
		*ret |= (uint64_t)p[i] << (8 * i);
	return 0;
}

static int take_line(struct pickle_machine *m, struct pickle_text *ret)
{
	const uint8_t *start = m->data + m->at;
	const uint8_t *end = memchr(start, '\n', m->bytes - m->at);

	if (!end || end - start > GLOBAL_NAME_MAX)
		return bad(m, "pickle: a name without an end at byte %zu", m->at);
	*ret = (struct pickle_text){(const char *)start, (uint32_t)(end - start)};
	m->at += ret->bytes + 1;
	return 0;
}

bool pickle_text_is(struct pickle_text t, const char *s)
{
	return t.bytes == strlen(s) && memcmp(t.s, s, t.bytes) == 0;
}

/* ---- instructions ---- */

static int do_integer(struct pickle_machine *m, unsigned n, bool is_signed)
{
	uint64_t number;
	unsigned unused = 64 - 8 * n;
	int r = take_number(m, n, &number);

	if (r < 0)
		return r;
	if (n == 0)
		return push_number(m, 0);
	return push_number(m, is_signed ? (int64_t)(number << unused) >> unused : (int64_t)number);
}

static int do_long(struct pickle_machine *m)
{
	uint64_t n;
	int r = take_number(m, 1, &n);

	if (r < 0)
		return r;
	if (n > 8)
		return bad(m, "pickle: a number of %u bytes", (unsigned)n);
	return do_integer(m, (unsigned)n, true);
}

static int do_text(struct pickle_machine *m)
{
	struct pickle_value *v;
	const uint8_t *s;
	uint64_t n;
	int r;

	r = take_number(m, 4, &n);
	if (r == 0)
		r = take(m, n, &s);
	if (r == 0)
		r = push_new(m, PICKLE_TEXT, &v);
	if (r == 0)
		v->text = (struct pickle_text){(const char *)s, (uint32_t)n};
	return r;
}

static int do_float(struct pickle_machine *m)
{
	const uint8_t *bits;
	int r = take(m, 8, &bits);

	return r < 0 ? r : push_new(m, PICKLE_OPAQUE, NULL);
}

static int do_global(struct pickle_machine *m)
{
	struct pickle_text module, name;
	const struct pickle_global *g;
	struct pickle_value *v;
	int r;

	r = take_line(m, &module);
	if (r == 0)
		r = take_line(m, &name);
	if (r < 0)
		return r;
	g = pickle_find_global(module, name);
	if (!g)
		return bad(m, "pickle: the file names %.*s.%.*s, which no gate needs; refused",
			(int)module.bytes, module.s, (int)name.bytes, name.s);
	r = push_new(m, PICKLE_GLOBAL, &v);
	if (r == 0)
		v->global = g;
	return r;
}

static int do_tuple(struct pickle_machine *m, size_t from, size_t n)
{
	struct pickle_value *tuple = pickle_allocate(m, sizeof(*tuple));
	int r;

	if (!tuple)
		return -ENOMEM;
	tuple->kind = PICKLE_TUPLE;
	r = add_items(m, tuple, m->stack + from, n);
	if (r < 0)
		return r;
	m->depth = from;
	return push(m, tuple);
}

static int do_small_tuple(struct pickle_machine *m, size_t n)
{
	struct pickle_value **values;
	int r = top(m, n, &values);

	return r < 0 ? r : do_tuple(m, m->depth - n, n);
}

static int do_marked_tuple(struct pickle_machine *m)
{
	size_t from;
	int r = above_mark(m, &from);

	if (r < 0)
		return r;
	r = do_tuple(m, from, m->depth - from);
	if (r < 0)
		return r;
	m->depth--; /* the tuple takes the place of the mark */
	m->stack[m->depth - 1] = m->stack[m->depth];
	return 0;
}

/* Values from stack[from] on go into the container below them, or below their mark. */
static int do_fill(struct pickle_machine *m, enum pickle_kind kind, size_t from, bool marked)
{
	size_t n = m->depth - from, below = from - marked;
	int r;

	if (below == 0 || (kind == PICKLE_DICT && n % 2) ||
		(m->stack[below - 1]->kind != kind && m->stack[below - 1]->kind != PICKLE_OPAQUE))
		return bad(m, "pickle: nothing to put values into at byte %zu", m->at);
	m->depth = below;
	if (m->stack[below - 1]->kind == PICKLE_OPAQUE)
		return 0;
	r = add_items(m, m->stack[below - 1], m->stack + from, n);
	return r;
}

static int do_marked_fill(struct pickle_machine *m, enum pickle_kind kind)
{
	size_t from;
	int r = above_mark(m, &from);

	return r < 0 ? r : do_fill(m, kind, from, true);
}

static int do_single_fill(struct pickle_machine *m, enum pickle_kind kind, size_t n)
{
	struct pickle_value **values;
	int r = top(m, n, &values);

	return r < 0 ? r : do_fill(m, kind, m->depth - n, false);
}

static int do_put(struct pickle_machine *m, unsigned n)
{
	struct pickle_value **v = NULL;
	uint64_t at;
	int r;

	r = take_number(m, n, &at);
	if (r == 0)
		r = top(m, 1, &v);
	if (r < 0)
		return r;
	if (at >= m->bytes)
		return bad(m, "pickle: memo %llu in a pickle of %zu bytes", (unsigned long long)at,
			m->bytes);
	m->memo[at] = *v;
	return 0;
}

static int do_get(struct pickle_machine *m, unsigned n)
{
	uint64_t at;
	int r = take_number(m, n, &at);

	if (r < 0)
		return r;
	if (at >= m->bytes || !m->memo[at])
		return bad(m, "pickle: memo %llu was never written", (unsigned long long)at);
	return push(m, m->memo[at]);
}

/* The state of an OrderedDict (PyTorch's _metadata) or of a NumPy value is of no use here. */
static int do_build(struct pickle_machine *m)
{
	struct pickle_value **v;
	int r = top(m, 2, &v);

	if (r < 0)
		return r;
	if (v[0]->kind != PICKLE_DICT && v[0]->kind != PICKLE_OPAQUE)
		return bad(m, "pickle: state for something that has none, at byte %zu", m->at);
	m->depth--;
	return 0;
}

/* ---- what stands for Python's own values ---- */

static int do_persistent(struct pickle_machine *m)
{
	struct pickle_value **id, *storage;
	int r = top(m, 1, &id);

	if (r < 0)
		return r;
	storage = pickle_allocate(m, sizeof(*storage));
	if (!storage)
		return -ENOMEM;
	r = pickle_rebuild_storage(m, *id, storage);
	if (r < 0)
		return r;
	m->depth--;
	return push(m, storage);
}

static int do_reduce(struct pickle_machine *m)
{
	struct pickle_value **v, *result;
	int r;

	r = top(m, 2, &v);
	if (r < 0)
		return r;
	if (v[0]->kind != PICKLE_GLOBAL || v[1]->kind != PICKLE_TUPLE)
		return bad(m, "pickle: a call of nothing, at byte %zu", m->at);
	result = pickle_allocate(m, sizeof(*result));
	if (!result)
		return -ENOMEM;
	r = pickle_rebuild(m, v[0]->global, v[1], result);
	if (r < 0)
		return r;
	m->depth -= 2;
	return push(m, result);
}

/* ---- the machine ---- */

static int do_proto(struct pickle_machine *m)
{
	uint64_t version;
	int r = take_number(m, 1, &version);

	if (r == 0 && version != 2)
		r = bad(m, "pickle: protocol %u; torch.save writes 2", (unsigned)version);
	return r;
}

static int step(struct pickle_machine *m, uint8_t instruction)
{
	switch (instruction) {
	case PROTO:
		return do_proto(m);
	case MARK:
		return push_new(m, PICKLE_MARK, NULL);
	case NONE:
		return push_new(m, PICKLE_NONE, NULL);
	case NEWTRUE:
	case NEWFALSE:
		return push_number(m, instruction == NEWTRUE);
	case BININT1:
		return do_integer(m, 1, false);
	case BININT2:
		return do_integer(m, 2, false);
	case BININT:
		return do_integer(m, 4, true);
	case LONG1:
		return do_long(m);
	case BINFLOAT:
		return do_float(m);
	case BINUNICODE:
		return do_text(m);
	case EMPTY_TUPLE:
		return push_new(m, PICKLE_TUPLE, NULL);
	case EMPTY_LIST:
		return push_new(m, PICKLE_LIST, NULL);
	case EMPTY_DICT:
		return push_new(m, PICKLE_DICT, NULL);
	case TUPLE1:
	case TUPLE2:
	case TUPLE3:
		return do_small_tuple(m, instruction - TUPLE1 + 1u);
	case TUPLE:
		return do_marked_tuple(m);
	case APPEND:
		return do_single_fill(m, PICKLE_LIST, 1);
	case APPENDS:
		return do_marked_fill(m, PICKLE_LIST);
	case SETITEM:
		return do_single_fill(m, PICKLE_DICT, 2);
	case SETITEMS:
		return do_marked_fill(m, PICKLE_DICT);
	case BINPUT:
		return do_put(m, 1);
	case LONG_BINPUT:
		return do_put(m, 4);
	case BINGET:
		return do_get(m, 1);
	case LONG_BINGET:
		return do_get(m, 4);
	case GLOBAL:
		return do_global(m);
	case REDUCE:
		return do_reduce(m);
	case BUILD:
		return do_build(m);
	case BINPERSID:
		return do_persistent(m);
	}
	return bad(m, "pickle: instruction 0x%02x at byte %zu is not one that torch.save writes",
		instruction, m->at - 1);
}

static int run(struct pickle_machine *m)
{
	int r;

	while (m->at < m->bytes) {
		uint8_t instruction = m->data[m->at++];

		if (instruction == STOP) {
			if (m->depth != 1 || m->stack[0]->kind == PICKLE_MARK)
				return bad(m, "pickle: it ends with %zu values", m->depth);
			m->p->root = m->stack[0];
			return 0;
		}
		r = step(m, instruction);
		if (r < 0)
			return r;
	}
	return bad(m, "pickle: cut short");
}

int pickle_parse(
	const void *data, size_t bytes, struct pickle **ret, char *ret_why, size_t why_size)
{
	struct pickle_machine m = {
		.data = data, .bytes = bytes, .why = ret_why, .why_size = why_size};
	int r = -ENOMEM;

	if (bytes == 0 || bytes > PICKLE_BYTES_MAX)
		return bad(&m, "pickle: %zu bytes, at most %u are read", bytes, PICKLE_BYTES_MAX);
	m.p = calloc(1, sizeof(*m.p));
	m.stack = calloc(bytes, sizeof(*m.stack));
	m.memo = calloc(bytes, sizeof(*m.memo));
	if (m.p && m.stack && m.memo)
		r = run(&m);
	free(m.stack);
	free(m.memo);
	if (r < 0) {
		if (r == -ENOMEM)
			why_print(ret_why, why_size, "out of memory");
		pickle_free(m.p);
		return r;
	}
	*ret = m.p;
	return 0;
}

struct pickle *pickle_free(struct pickle *p)
{
	struct chunk *c, *next;

	if (!p)
		return NULL;
	for (c = p->chunks; c; c = next) {
		next = c->next;
		free(c);
	}
	free(p);
	return NULL;
}

const struct pickle_value *pickle_root(const struct pickle *p)
{
	return p->root;
}

const struct pickle_value *pickle_lookup(const struct pickle_value *dict, const char *key)
{
	const struct pickle_item *item;
	const struct pickle_value *found = NULL;

	if (dict->kind != PICKLE_DICT)
		return NULL;
	for (item = dict->items.first; item; item = item->next->next)
		if (item->value->kind == PICKLE_TEXT && pickle_text_is(item->value->text, key))
			found = item->next->value;
	return found;
}
