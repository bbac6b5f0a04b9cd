/* SPDX-License-Identifier: Apache-2.0 */
/* Registration: what does not add up is refused with words, what is equal is found again. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/layout.h"
#include "tests/unit/cache_fixture.h"
#include "tests/unit/fake_gate.h"

static struct fixture f;
static char why[160];

static struct cache_layout_spec good(void)
{
	struct cache_layout_spec s = fixture_spec("m");

	s.id.shape = (struct kv_shape){.layers = 6,
		.heads = 4,
		.tokens = 64,
		.k_dim = 16,
		.v_dim = 32,
		.dtype = KVG_DTYPE_BF16};
	s.id.revision = "r";
	return s;
}

static int reg(const struct cache_layout_spec *s, struct cache_layout **ret)
{
	struct cache_layout *l = NULL;
	int code;

	why[0] = '\0';
	code = cache_layout_register(f.tenant, s, ret ? ret : &l, why, sizeof(why));
	assert_true(code == KVG_CODE_OK || strlen(why) > 10);
	return code;
}

static void test_what_does_not_add_up(void **state)
{
	struct cache_layout_spec s;
	char endless[LAYOUT_TEXT_MAX + 2];

	(void)state;
	memset(endless, 'x', sizeof(endless) - 1);
	endless[sizeof(endless) - 1] = '\0';
#define REFUSED(expected, change)                                                                  \
	do {                                                                                       \
		s = good();                                                                        \
		change;                                                                            \
		assert_int_equal(reg(&s, NULL), expected);                                         \
	} while (0)
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.model = "");
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.rope = endless);
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.shape.layers = 0);
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.shape.heads = 1u << 31);
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.shape.tokens = 65536);
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.shape.dtype = 9);
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.shape.opaque_bytes = 5);
	REFUSED(KVG_CODE_BAD_LAYOUT, s.id.shape.tokens = 60000); /* does not fit a segment */
	REFUSED(KVG_CODE_BAD_LAYOUT, (s.id.tp_rank = 2, s.id.tp_size = 2));
	REFUSED(KVG_CODE_BAD_GATE, s.gate = "nobody");
	REFUSED(KVG_CODE_BAD_ARGUMENT, s.hidden_dtype = KVG_DTYPE_BF16);
	REFUSED(KVG_CODE_BAD_ARGUMENT, (s.id.n_edges = 1, s.id.edges[0] = .5f)); /* whose? */
	REFUSED(KVG_CODE_BAD_ARGUMENT, (s.id.gate_digest[0] = 1, s.id.n_edges = 8));
	REFUSED(KVG_CODE_BAD_ARGUMENT,
		(s.id.gate_digest[0] = 1, s.id.n_edges = 1, s.id.edges[0] = NAN));
	REFUSED(KVG_CODE_BAD_ARGUMENT,
		(s.id.gate_digest[0] = 1, s.id.n_edges = 1, s.id.edges[0] = INFINITY));
	REFUSED(KVG_CODE_BAD_ARGUMENT,
		(s.id.gate_digest[0] = 1, s.id.n_edges = 2, s.id.edges[0] = .5f,
			s.id.edges[1] = .5f));
	REFUSED(KVG_CODE_BAD_ARGUMENT, (s.n_ungated = 1, s.ungated_layers = (uint32_t[]){6}));
	REFUSED(KVG_CODE_BAD_ARGUMENT, (s.n_ungated = 2, s.ungated_layers = (uint32_t[]){3, 3}));
#undef REFUSED
	s = good();
	assert_int_equal(reg(&s, NULL), KVG_CODE_OK);
}

static void test_found_again(void **state)
{
	struct cache_layout_spec s = good();
	struct cache_layout *a, *b, *other;
	struct cache_layout_info info;
	char model[] = "m";

	(void)state;
	s.id.model = model;
	assert_int_equal(reg(&s, &a), KVG_CODE_OK);
	model[0] = 'x'; /* the cache keeps its own copy */
	s = good();
	assert_int_equal(reg(&s, &b), KVG_CODE_OK);
	assert_ptr_equal(a, b);
	s.id.tp_size = 0; /* the same as 1 */
	assert_int_equal(reg(&s, &b), KVG_CODE_OK);
	assert_ptr_equal(a, b);
	s.id.eviction = "window 4096";
	assert_int_equal(reg(&s, &other), KVG_CODE_OK);
	assert_ptr_not_equal(a, other);
	cache_layout_describe(a, &info);
	assert_string_equal(info.identity.model, "m");
	assert_true(cache_layout_get(f.tenant, info.id) == a && info.floor == 1.0f &&
		!info.foreign_keys);
	assert_null(cache_layout_get(f.tenant, 0));
	assert_null(cache_layout_get(f.tenant, 99));
}

static void test_limit(void **state)
{
	struct cache_layout_spec s = good();
	struct cache_layout *l[LAYOUTS_MAX];
	char model[16];
	int n = 1;
	uint32_t id;

	(void)state;
	s.id.model = model;
	l[0] = f.layout;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, NULL), KVG_CODE_OK); /* holds it */
	for (; n < LAYOUTS_MAX; n++) {
		snprintf(model, sizeof(model), "model %d", n);
		assert_int_equal(reg(&s, &l[n]), KVG_CODE_OK);
		cache_layout_hold(l[n]);
	}
	strcpy(model, "another");
	assert_int_equal(reg(&s, NULL), KVG_CODE_QUOTA);
	strcpy(model, "model 3");
	assert_int_equal(reg(&s, NULL), KVG_CODE_OK);

	id = l[7]->id;
	cache_layout_drop(l[7]);
	assert_ptr_equal(cache_layout_get(f.tenant, id), l[7]); /* nobody wants its place */
	strcpy(model, "another");
	assert_int_equal(reg(&s, &l[7]), KVG_CODE_OK);
	cache_layout_hold(l[7]);
	assert_int_not_equal(l[7]->id, id);
	assert_null(cache_layout_get(f.tenant, id));
	assert_ptr_equal(cache_layout_get(f.tenant, l[7]->id), l[7]);
	assert_null(cache_layout_get(f.tenant, 0));
	strcpy(model, "model 7");
	assert_int_equal(reg(&s, NULL), KVG_CODE_QUOTA);

	cache_purge(f.tenant, 0, NULL, 0, &(struct cache_purge_result){0});
	assert_int_equal(reg(&s, &l[0]), KVG_CODE_OK); /* where the fixture's was */
	assert_int_equal(l[0]->id, 1 + LAYOUTS_MAX);
}

static void test_gates(void **state)
{
	const uint32_t two[] = {1, 4};
	struct cache_layout_spec s = good();
	struct cache_layout *a, *b, *c;
	struct cache_layout_info info;
	struct stage_geometry g;

	(void)state;
	assert_int_equal(cache_add_gate(f.cache, "g", fake_gate_new(4, 4, 100)), 0);
	s.gate = "g";
	assert_int_equal(reg(&s, &a), KVG_CODE_BAD_GATE); /* 6 layers */
	s.n_ungated = 2;
	s.ungated_layers = two;
	s.id.shape.heads = 2;
	assert_int_equal(reg(&s, &a), KVG_CODE_BAD_GATE);
	s.id.shape.heads = 4;
	s.id.gate_digest[5] = 1;
	assert_int_equal(reg(&s, &a), KVG_CODE_BAD_GATE);
	s.id.gate_digest[5] = 0;
	assert_int_equal(reg(&s, &a), KVG_CODE_OK);
	cache_layout_describe(a, &info);
	assert_string_equal(info.gate, "g");
	assert_true(info.gate_info->hidden == 100 && info.gated_layers == 4);
	assert_int_equal(info.identity.gate_digest[0], 4);
	assert_true(a->layer_gate[0] == 0 && a->layer_gate[1] == UINT32_MAX &&
		a->layer_gate[2] == 1 && a->layer_gate[4] == UINT32_MAX && a->layer_gate[5] == 3);

	/* the same digest from a client that scores by itself is the same layout; so is a writer of hidden states */
	memcpy(s.id.gate_digest, info.identity.gate_digest, 32);
	s.gate = "";
	assert_int_equal(reg(&s, &b), KVG_CODE_OK);
	assert_ptr_equal(a, b);
	s.gate = "g";
	s.hidden_dtype = KVG_DTYPE_BF16;
	assert_int_equal(reg(&s, &b), KVG_CODE_OK);
	assert_ptr_equal(a, b);
	cache_layout_stage(b, STAGE_INPUT_HIDDEN, 64, &g);
	assert_int_equal(g.aux_bytes, 4 * 64 * 100 * 2);
	s.hidden_dtype = KVG_DTYPE_F32; /* contradicts: a layout of its own */
	assert_int_equal(reg(&s, &c), KVG_CODE_OK);
	assert_ptr_not_equal(a, c);
	s.hidden_dtype = KVG_DTYPE_FP8_E4M3;
	assert_int_equal(reg(&s, NULL), KVG_CODE_BAD_ARGUMENT);

	cache_retire_gates(f.cache);
	s.hidden_dtype = 0;
	assert_int_equal(reg(&s, NULL), KVG_CODE_BAD_GATE); /* takes no new one */
	cache_layout_describe(a, &info);
	assert_true(info.gate_info->hidden == 100); /* but stays for its own */
	assert_int_equal(cache_add_gate(f.cache, "g", fake_gate_new(4, 4, 100)), 0);
	struct gate *twice = fake_gate_new(1, 1, 1);
	assert_int_equal(cache_add_gate(f.cache, "g", twice), -EEXIST);
	gate_free(twice);
	assert_int_equal(reg(&s, &b), KVG_CODE_OK);
	assert_ptr_equal(a, b);
}

static void test_opaque(void **state)
{
	struct cache_layout_spec s = good();
	struct cache_layout *l;

	(void)state;
	s.id.shape = (struct kv_shape){.tokens = 16, .opaque_bytes = 12345};
	assert_int_equal(reg(&s, &l), KVG_CODE_OK);
	assert_true(l->gated_layers == 0 && !l->layer_gate && layout_planes(l) == 1);
	assert_int_equal(cache_add_gate(f.cache, "g", fake_gate_new(4, 4, 100)), 0);
	s.gate = "g";
	assert_int_equal(reg(&s, &l), KVG_CODE_BAD_GATE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FIXTURE_TEST(test_what_does_not_add_up),
		FIXTURE_TEST(test_found_again),
		FIXTURE_TEST(test_limit),
		FIXTURE_TEST(test_gates),
		FIXTURE_TEST(test_opaque),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
