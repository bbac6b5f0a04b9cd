/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Containers: the same gate is the same in each, what is saved is loaded again, and what does not fit together or is
 * no gate is refused with a reason. Damaged and hostile archives are in test_gate_archive.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/gate_fixture.h"

/* Of the lab's gate. It is part of layouts' identity: were it computed otherwise, caches would forget. */
#define LAB_DIGEST "90a744da663f82e38f472bbfb6b5c2ab56ae51d1287165a165099a56407bddcc"

static char folder[] = "/tmp/test_gate_load.XXXXXX";

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	char command[100];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command);
}

static const char *in_folder(const char *name)
{
	static char path[2][256];
	static unsigned next;
	char *p = path[next++ % 2];

	snprintf(p, sizeof(path[0]), "%s/%s", folder, name);
	return p;
}

static const char *lab(const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), KVG_SOURCE_DIR "/client/demo/lab/%s", name);
	return path;
}

static void write_all(const char *path, const void *p, size_t n)
{
	FILE *f = fopen(path, "wb");

	assert_true(f && fwrite(p, 1, n, f) == n && fclose(f) == 0);
}

static struct gate *load(const char *path)
{
	char why[300] = "";
	struct gate *g = NULL;

	if (gate_load(path, &g, why, sizeof(why)) != 0)
		fail_msg("%s: %s", path, why);
	return g;
}

static void refused(const char *path, int error, const char *reason)
{
	char why[300] = "";
	struct gate *g = NULL;

	if (gate_load(path, &g, why, sizeof(why)) != error || g || !strstr(why, reason))
		fail_msg("%s: '%s' does not say '%s'", path, why, reason);
}

static void hex(const uint8_t digest[32], char ret[65])
{
	for (unsigned i = 0; i < 32; i++)
		sprintf(ret + 2 * i, "%02x", digest[i]);
}

/* ---- the lab's files ---- */

static void test_lab_containers(void **state)
{
	static const char *const names[] = {
		"gate.pt", "gate_t211.pt", "gate.safetensors", "gate_calibrated.safetensors"};
	char digest[65];

	(void)state;
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct gate *g = load(lab(names[i]));
		const struct gate_info *info = gate_info(g);

		hex(info->digest, digest);
		assert_string_equal(digest, LAB_DIGEST);
		assert_int_equal(info->kind, GATE_FAST_KVZIP);
		assert_true(info->layers == 8 && info->heads == 4 && info->groups == 2);
		assert_true(info->hidden == 256 && info->dim == 16 && info->sinks == 16);
		assert_int_equal(info->n_edges, i == 3 ? 6 : 0);
		gate_free(g);
	}
	for (unsigned i = 0; i < 2; i++) {
		struct gate *g =
			load(lab(i == 0 ? "gate_text.pt" : "gate_text_calibrated.safetensors"));

		hex(gate_info(g)->digest, digest);
		assert_string_not_equal(digest, LAB_DIGEST);
		assert_int_equal(gate_info(g)->n_edges, i == 0 ? 0 : 6);
		gate_free(g);
	}
	refused(lab("model.safetensors"), -EINVAL, "not a gate");
	refused(lab("config.json"), -EBADMSG, "not a safetensors file");
	refused(lab("nothing"), -ENOENT, "No such file");
}

/* ---- our own files ---- */

#define FAST_KVZIP(type)                                                                           \
	{                                                                                          \
		.kind = GATE_FAST_KVZIP, .dtype = type, .layers = 3, .heads = 2, .groups = 3,      \
		.hidden = 50, .dim = 12, .sinks = 5                                                \
	}

static const struct gate_info shapes[] = {
	FAST_KVZIP(KVG_DTYPE_BF16),
	{.kind = GATE_KVZAP_LINEAR, .layers = 2, .heads = 5, .hidden = 33},
	{.kind = GATE_KVZAP_MLP, .layers = 2, .heads = 3, .hidden = 70, .mlp = 17},
	FAST_KVZIP(KVG_DTYPE_F16),
	FAST_KVZIP(KVG_DTYPE_F32),
	{.kind = GATE_KVZAP_LINEAR, .dtype = KVG_DTYPE_F16, .layers = 2, .heads = 5, .hidden = 33},
	{.kind = GATE_KVZAP_MLP,
		.dtype = KVG_DTYPE_F32,
		.layers = 2,
		.heads = 3,
		.hidden = 70,
		.mlp = 17},
};
#define PART_BYTES 16384 /* of the largest */

static void check_same(const struct gate *a, const struct gate *b)
{
	const struct gate_info *x = gate_info(a), *y = gate_info(b);
	uint8_t left[PART_BYTES], right[PART_BYTES];
	struct gate_part parts[GATE_PARTS_MAX];
	unsigned n = gate_parts(x, parts);

	assert_true(x->kind == y->kind && x->dtype == y->dtype && x->layers == y->layers &&
		x->heads == y->heads && x->groups == y->groups && x->hidden == y->hidden &&
		x->dim == y->dim && x->sinks == y->sinks && x->mlp == y->mlp);
	assert_memory_equal(x->digest, y->digest, 32);
	for (uint32_t l = 0; l < x->layers; l++) {
		for (unsigned i = 0; i < n; i++) {
			assert_true(gate_part_bytes(&parts[i]) <= sizeof(left));
			gate_part_data(a, l, i, left);
			gate_part_data(b, l, i, right);
			assert_memory_equal(left, right, gate_part_bytes(&parts[i]));
		}
	}
}

static void test_save(void **state)
{
	const float edges[3] = {.9f, .1f, 1e-9f}, retained[3] = {.05f, .3f, 1 / 3.0f};
	char why[300] = "";

	(void)state;
	for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		struct fixture f = {.info = shapes[i]};
		struct gate *g, *loaded, *again;
		const char *path = in_folder("saved.safetensors");

		fixture_init(&f, 30 + i);
		g = fixture_gate(&f);
		assert_int_equal(
			gate_save(g, path, 3, edges, retained, "some model", why, sizeof(why)), 0);
		loaded = load(path);
		check_same(g, loaded);
		assert_int_equal(gate_info(loaded)->n_edges, 3);
		assert_memory_equal(gate_info(loaded)->edges, edges, sizeof(edges));
		assert_memory_equal(gate_info(loaded)->quantiles, retained, sizeof(retained));
		assert_string_equal(gate_info(loaded)->model, "some model");
		/* as loaded, calibration included */
		assert_int_equal(gate_save(loaded, path, 0, NULL, NULL, NULL, why, sizeof(why)), 0);
		again = load(path);
		assert_memory_equal(gate_info(again)->edges, edges, sizeof(edges));
		assert_string_equal(gate_info(again)->model, "some model");
		gate_free(again);
		gate_free(loaded);
		gate_free(g);
		fixture_fini(&f);
	}
}

/* What a part says is what its tensor said: the digest covers the weights and nothing else. */
static void test_parts(void **state)
{
	(void)state;
	for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
		struct fixture f = {.info = shapes[i]};
		struct gate_part parts[GATE_PARTS_MAX];
		uint8_t data[PART_BYTES];
		struct gate *g;
		unsigned n;

		fixture_init(&f, 40 + i);
		g = fixture_gate(&f);
		n = gate_parts(gate_info(g), parts);
		for (uint32_t t = 0; t < f.n; t++) {
			gate_part_data(g, t / n, t % n, data);
			assert_memory_equal(data, f.tensors[t].data, f.tensors[t].bytes);
		}
		for (uint32_t t = 0; t < f.n;
			t++) { /* one number changed anywhere, another digest */
			struct gate *other;
			uint64_t last = fixture_count(&f.tensors[t]) - 1;
			float was = fixture_get(&f.tensors[t], last);

			fixture_set(&f.tensors[t], last, was + 1);
			other = fixture_gate(&f);
			assert_memory_not_equal(gate_info(other)->digest, gate_info(g)->digest, 32);
			gate_free(other);
			fixture_set(&f.tensors[t], last, was);
		}
		gate_free(g);
		fixture_fini(&f);
	}
}

static int save_with(
	const struct gate *g, const struct safetensors_pair *pairs, uint32_t n, const char *path)
{
	struct safetensors *st = NULL;
	struct safetensors_tensor t[64];
	char why[300] = "";
	int r;

	assert_int_equal(gate_save(g, path, 0, NULL, NULL, NULL, why, sizeof(why)), 0);
	assert_int_equal(safetensors_open(path, &st, why, sizeof(why)), 0);
	for (uint32_t i = 0; i < safetensors_count(st); i++)
		t[i] = *safetensors_at(st, i);
	r = safetensors_write(path, t, safetensors_count(st), pairs, n, why, sizeof(why));
	safetensors_close(st);
	return r;
}

static void test_metadata(void **state)
{
	static const struct {
		struct safetensors_pair pair[2];
		int error;
		const char *reason;
	} bad[] = {
		{{{"kind", "kvzap-mlp"}, {"x", ""}}, -EBADMSG, "the tensors are fast-kvzip"},
		{{{"digest", LAB_DIGEST}, {"x", ""}}, -EBADMSG, "damaged"},
		{{{"edges", "[1]"}, {"x", ""}}, -EBADMSG, "edges and retained"},
		{{{"edges", "[1]"}, {"retained", "[0.1,0.2]"}}, -EBADMSG, "edges and retained"},
		{{{"edges", "1"}, {"retained", "1"}}, -EBADMSG, "edges and retained"},
		{{{"edges", "[1,2,3,4,5,6,7,8]"}, {"retained", "[1,2,3,4,5,6,7,8]"}}, -EBADMSG,
			"up to 7"},
		{{{"edges", "[\"1\"]"}, {"retained", "[0.1]"}}, -EBADMSG, "edges and retained"},
		{{{"edges", "[1,2]"}, {"retained", "[0.1,0.2]"}}, -EINVAL, "does not descend"},
		{{{"edges", "[2,1]"}, {"retained", "[0.2,0.1]"}}, -EINVAL, "does not descend"},
		{{{"edges", "[2,2]"}, {"retained", "[0.1,0.2]"}}, -EINVAL, "does not descend"},
		{{{"edges", "[2,1]"}, {"retained", "[0.1,1.2]"}}, -EINVAL, "not a calibration"},
		{{{"edges", "[1e99]"}, {"retained", "[0.1]"}}, -EINVAL, "not a calibration"},
	};
	const struct safetensors_pair training[] = {{"training", "5000 steps"}};
	struct fixture f = {.info = shapes[0]};
	const char *path = in_folder("metadata.safetensors");
	char why[300] = "";
	struct gate *g, *h;

	(void)state;
	fixture_init(&f, 50);
	g = fixture_gate(&f);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(save_with(g, bad[i].pair, 2, path), 0);
		refused(path, bad[i].error, bad[i].reason);
	}
	/* the recipe of training goes along */
	assert_int_equal(save_with(g, training, 1, path), 0);
	h = load(path);
	assert_string_equal(h->training, "5000 steps");
	assert_int_equal(gate_save(h, path, 0, NULL, NULL, NULL, why, sizeof(why)), 0);
	gate_free(h);
	h = load(path);
	assert_string_equal(h->training, "5000 steps");
	gate_free(h);
	gate_free(g);
	fixture_fini(&f);
}

/* ---- shapes that do not fit together ---- */

static void unfit(struct fixture *f, const char *reason)
{
	char why[300] = "";
	struct gate *g = NULL;

	assert_int_equal(fixture_try(f, &g, why, sizeof(why)), -EINVAL);
	if (!strstr(why, reason))
		fail_msg("'%s' does not say '%s'", why, reason);
	fixture_fini(f);
	fixture_init(f, 60);
}

static void test_unfit(void **state)
{
	struct fixture f = {.info = shapes[0]};

	(void)state;
	fixture_init(&f, 60);
	fixture_set(fixture_tensor(&f, 2, "q_norm.weight"), 3, NAN);
	unfit(&f, "layers.2.q_norm.weight holds NaN");
	fixture_set(fixture_tensor(&f, 1, "k_proj.weight"), 3, INFINITY);
	unfit(&f, "layers.1.k_proj.weight holds NaN");
	fixture_tensor(&f, 1, "k_base")->shape[0] = 3;
	unfit(&f, "layers.1.k_base has not the shape");
	fixture_tensor(&f, 0, "k_base")->shape[1] = 2;
	unfit(&f, "[H, 1, S, d']");
	fixture_tensor(&f, 0, "k_base")->shape[0] = 3; /* H; then q's rows are too few */
	unfit(&f, "has not the shape");
	fixture_tensor(&f, 0, "b")->ndim = 2;
	unfit(&f, "[H, 1, G]");
	fixture_tensor(&f, 0, "q_proj.weight")->ndim = 1;
	unfit(&f, "[H G d', D]");
	fixture_tensor(&f, 0, "q_proj.weight")->shape[1] = 0;
	unfit(&f, "size of zero");
	fixture_tensor(&f, 0, "k_base")->shape[3] = 1ull << 40;
	unfit(&f, "larger than any model");
	fixture_tensor(&f, 0, "k_base")->shape[0] = 1024;
	fixture_tensor(&f, 0, "b")->shape[2] = 256;
	unfit(&f, "larger than any model: H 1024, G 256");
	fixture_tensor(&f, 2, "q_proj.bias")->dtype = SAFETENSORS_I16;
	unfit(&f, "gates are BF16");
	fixture_tensor(&f, 0, "q_proj.weight")->dtype = SAFETENSORS_I16;
	unfit(&f, "layers.0.q_proj.weight is I16; gates are BF16");
	f.n--;
	unfit(&f, "7 in each layer");
	f.n -= 7;
	f.tensors[13].name = "layers.5.b";
	unfit(&f, "is missing");
	f.tensors[5].name = "something";
	unfit(&f, "is missing");
	fixture_fini(&f);
}

/* Nobody looks at the weights of a gate that is refused for its size: here they are not even there. */
static void test_memory(void **state)
{
	struct fixture f = {.info = shapes[0]};

	(void)state;
	fixture_init(&f, 60);
	fixture_tensor(&f, 0, "k_base")->shape[0] = 1024;
	fixture_tensor(&f, 0, "b")->shape[2] = 20;
	fixture_tensor(&f, 0, "q_proj.weight")->shape[1] = 65536;
	unfit(&f, "would take 96768 MB of memory, at most 8192");
	fixture_fini(&f);
}

/* ---- dtypes ---- */

static void to_f32(struct safetensors_tensor *t)
{
	uint64_t n = fixture_count(t);
	float *values = malloc(n * sizeof(*values));

	for (uint64_t i = 0; i < n; i++)
		values[i] = fixture_get(t, i);
	free((void *)t->data);
	t->dtype = SAFETENSORS_F32;
	t->bytes = n * sizeof(*values);
	t->data = values;
}

/* A tensor may come in another dtype than the projections, as long as that rounds nothing. */
static void test_mixed(void **state)
{
	static const char *const names[] = {"b", "q_proj.bias", "k_proj.weight"};
	char why[300] = "";

	(void)state;
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct fixture f = {.info = shapes[i % 2 ? 3 : 0]};
		struct gate *same, *mixed, *none = NULL;
		struct safetensors_tensor *t;

		fixture_init(&f, 70);
		same = fixture_gate(&f);
		t = fixture_tensor(&f, 1, names[i]);
		to_f32(t);
		mixed = fixture_gate(&f);
		check_same(same, mixed);
		fixture_set(t, 1, nextafterf(fixture_get(t, 1), 2));
		assert_int_equal(fixture_try(&f, &none, why, sizeof(why)), -EINVAL);
		assert_non_null(strstr(why, "F32 and would be rounded"));
		assert_non_null(strstr(why, names[i]));
		assert_null(none);
		gate_free(same);
		gate_free(mixed);
		fixture_fini(&f);
	}
}

/* The same bytes, or the same values, in another dtype are another gate: it rounds elsewhere. */
static void test_dtype_is_identity(void **state)
{
	struct fixture f = {.info = shapes[1]};
	struct gate *bf16, *f16, *f32;

	(void)state;
	fixture_init(&f, 71);
	bf16 = fixture_gate(&f);
	for (uint32_t i = 0; i < f.n; i++)
		f.tensors[i].dtype = SAFETENSORS_F16;
	f16 = fixture_gate(&f);
	for (uint32_t i = 0; i < f.n; i++)
		to_f32(&f.tensors[i]);
	f32 = fixture_gate(&f);
	assert_int_equal(gate_info(bf16)->dtype, KVG_DTYPE_BF16);
	assert_int_equal(gate_info(f16)->dtype, KVG_DTYPE_F16);
	assert_int_equal(gate_info(f32)->dtype, KVG_DTYPE_F32);
	assert_memory_not_equal(gate_info(bf16)->digest, gate_info(f16)->digest, 32);
	assert_memory_not_equal(gate_info(f16)->digest, gate_info(f32)->digest, 32);
	gate_free(bf16);
	gate_free(f16);
	gate_free(f32);
	fixture_fini(&f);
}

/* ---- KVzap's folder ---- */

static void write_config(unsigned in, unsigned out, const char *hidden, unsigned n)
{
	char text[200];

	snprintf(text, sizeof(text),
		"{\"input_dim\": %u, \"output_dim\": %u, \"hidden_dim\": %s, \"n_modules\": %u}",
		in, out, hidden, n);
	write_all(in_folder("config.json"), text, strlen(text));
}

static void test_kvzap_folder(void **state)
{
	char why[300] = "";

	(void)state;
	for (unsigned i = 1; i < 3; i++) {
		struct fixture f = {.info = shapes[i]};
		const char *hidden = i == 1 ? "null" : "17";
		struct gate *g, *loaded;

		fixture_init(&f, 80);
		g = fixture_gate(&f);
		assert_int_equal(safetensors_write(in_folder("model.safetensors"), f.tensors, f.n,
					 NULL, 0, why, sizeof(why)),
			0);
		unlink(in_folder("config.json"));
		refused(folder, -ENOENT, "config.json");
		write_config(f.info.hidden, f.info.heads, hidden, f.info.layers);
		loaded = load(folder);
		check_same(g, loaded);
		gate_free(loaded);
		write_config(f.info.hidden + 1, f.info.heads, hidden, f.info.layers);
		refused(folder, -EINVAL, "input_dim");
		write_config(f.info.hidden, 1, hidden, f.info.layers);
		refused(folder, -EINVAL, "output_dim");
		write_config(f.info.hidden, f.info.heads, "18", f.info.layers);
		refused(folder, -EINVAL, "hidden_dim");
		write_config(f.info.hidden, f.info.heads, hidden, 9);
		refused(folder, -EINVAL, "n_modules");
		write_config(f.info.hidden, f.info.heads, "\"17\"", f.info.layers);
		refused(folder, -EBADMSG, "hidden_dim is not a whole number");
		write_config(f.info.hidden, f.info.heads, "17.5", f.info.layers);
		refused(folder, -EBADMSG, "hidden_dim is not a whole number");
		write_all(in_folder("config.json"), "[]", 2);
		refused(folder, -EBADMSG, "not a JSON object");
		gate_free(g);
		fixture_fini(&f);
	}
	unlink(in_folder("model.safetensors"));
	refused(folder, -ENOENT, "model.safetensors");
	refused("/dev/null", -EBADMSG, "not a regular file");
}

/* ---- calibration ---- */

static void test_quantiles(void **state)
{
	float scores[1000], edges[3];
	const float retained[3] = {.05f, .3f, .999f}, wrong[2] = {.3f, .3f}, one = 1;

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		scores[i] = (float)((i * 617 + 3) % 1000);
	assert_int_equal(gate_quantiles(scores, 1000, retained, 3, edges), 0);
	assert_true(edges[0] == 950 && edges[1] == 700 && edges[2] == 1);
	for (unsigned e = 0; e < 3; e++) {
		unsigned n = 0;

		for (unsigned i = 0; i < 1000; i++)
			n += scores[i] >= edges[e];
		assert_int_equal(n, lround((double)retained[e] * 1000));
	}
	assert_int_equal(gate_quantiles(scores, 0, retained, 3, edges), -EINVAL);
	assert_int_equal(gate_quantiles(scores, 1000, wrong, 2, edges), -EINVAL);
	assert_int_equal(gate_quantiles(scores, 1000, &one, 1, edges), -EINVAL);
	scores[500] = NAN;
	assert_int_equal(gate_quantiles(scores, 1000, retained, 3, edges), -EINVAL);
	scores[0] = 4;
	assert_int_equal(gate_quantiles(scores, 1, retained, 1, edges), 0);
	assert_true(edges[0] == 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lab_containers),
		cmocka_unit_test(test_save),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_metadata),
		cmocka_unit_test(test_unfit),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_mixed),
		cmocka_unit_test(test_dtype_is_identity),
		cmocka_unit_test(test_kvzap_folder),
		cmocka_unit_test(test_quantiles),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
