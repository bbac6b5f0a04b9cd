/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/gate_fixture.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

float fixture_uniform(uint64_t seed, uint64_t tensor, uint64_t element)
{
	return (float)(int32_t)(mix(mix(seed << 8 | tensor) + element) >> 40) / 8388608.0f - 1.0f;
}

/* Scale and offset of a part; matrices are scaled by 1 / sqrt(columns). */
static void spread(const struct gate_part *p, float *ret_scale, float *ret_offset)
{
	*ret_scale = p->ndim == 2 ? 2.0f / sqrtf((float)p->shape[1]) : 1.0f;
	*ret_offset = 0;
	if (strstr(p->suffix, "norm")) {
		*ret_scale = 0.5f;
		*ret_offset = 1.5f;
	} else if (strstr(p->suffix, "bias")) {
		*ret_scale = 0.25f;
	} else if (strcmp(p->suffix, "k_base") == 0) {
		*ret_scale = 1.5f;
	}
}

void fixture_init(struct fixture *f, uint64_t seed)
{
	struct gate_part parts[GATE_PARTS_MAX];
	unsigned n_parts;

	if (!f->info.dtype)
		f->info.dtype = KVG_DTYPE_BF16;
	n_parts = gate_parts(&f->info, parts);
	assert(f->info.layers <= FIXTURE_LAYERS);
	f->n = 0;
	for (uint32_t l = 0; l < f->info.layers; l++) {
		for (unsigned i = 0; i < n_parts; i++, f->n++) {
			struct safetensors_tensor *t = &f->tensors[f->n];
			float scale, offset;
			void *data = malloc(gate_part_bytes(&parts[i]));

			snprintf(f->names[f->n], sizeof(f->names[0]), "layers.%u.%s", l,
				parts[i].suffix);
			*t = (struct safetensors_tensor){.name = f->names[f->n],
				.dtype = parts[i].dtype,
				.ndim = parts[i].ndim,
				.data = data,
				.bytes = gate_part_bytes(&parts[i])};
			memcpy(t->shape, parts[i].shape, sizeof(parts[i].shape));
			spread(&parts[i], &scale, &offset);
			for (uint64_t e = 0; e < fixture_count(t); e++)
				fixture_set(t, e, scale * fixture_uniform(seed, f->n, e) + offset);
		}
	}
	f->made = f->n;
}

void fixture_fini(struct fixture *f)
{
	for (uint32_t i = 0; i < f->made; i++)
		free((void *)f->tensors[i].data);
	f->n = f->made = 0;
}

struct safetensors_tensor *fixture_tensor(struct fixture *f, uint32_t layer, const char *suffix)
{
	char name[48];

	snprintf(name, sizeof(name), "layers.%u.%s", layer, suffix);
	for (uint32_t i = 0; i < f->n; i++)
		if (strcmp(f->names[i], name) == 0)
			return &f->tensors[i];
	assert(!"no such tensor");
	return NULL;
}

uint64_t fixture_count(const struct safetensors_tensor *t)
{
	return t->bytes / safetensors_dtype_bytes(t->dtype);
}

float fixture_get(const struct safetensors_tensor *t, uint64_t i)
{
	if (t->dtype == SAFETENSORS_BF16)
		return bf16_to_f32(((const uint16_t *)t->data)[i]);
	if (t->dtype == SAFETENSORS_F16)
		return f16_to_f32(((const uint16_t *)t->data)[i]);
	return ((const float *)t->data)[i];
}

void fixture_set(struct safetensors_tensor *t, uint64_t i, float value)
{
	if (t->dtype == SAFETENSORS_BF16)
		((uint16_t *)t->data)[i] = bf16_from_f32(value);
	else if (t->dtype == SAFETENSORS_F16)
		((uint16_t *)t->data)[i] = f16_from_f32(value);
	else
		((float *)t->data)[i] = value;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct safetensors_tensor *)a)->name,
		((const struct safetensors_tensor *)b)->name);
}

int fixture_try(const struct fixture *f, struct gate **ret, char *why, size_t why_size)
{
	struct safetensors_tensor sorted[FIXTURE_LAYERS * GATE_PARTS_MAX];

	memcpy(sorted, f->tensors, sizeof(sorted));
	qsort(sorted, f->n, sizeof(*sorted), by_name);
	return gate_build(sorted, f->n, ret, why, why_size);
}

struct gate *fixture_gate(const struct fixture *f)
{
	char why[300] = "";
	struct gate *g = NULL;
	int r = fixture_try(f, &g, why, sizeof(why));

	if (r < 0)
		fprintf(stderr, "fixture: %s\n", why);
	assert(r == 0);
	return g;
}

void fixture_hidden(uint64_t seed, uint32_t tokens, uint32_t hidden, uint32_t dtype, void *ret)
{
	for (uint64_t i = 0; i < (uint64_t)tokens * hidden; i++) {
		float v = 2.0f * fixture_uniform(seed, 255, i) * (i % hidden % 97 == 0 ? 10 : 1);

		if (dtype == KVG_DTYPE_BF16)
			((uint16_t *)ret)[i] = bf16_from_f32(v);
		else
			((float *)ret)[i] = v;
	}
}

void fixture_score(const struct gate *g, uint32_t layer, const void *x, uint32_t dtype,
	uint32_t tokens, enum gate_arithmetic arithmetic, enum gate_isa isa, float *ret)
{
	struct gate_scratch *s = NULL;
	int r = gate_scratch_new(g, tokens, &s);

	assert(r == 0);
	gate_score(
		g, layer, x, dtype, gate_info(g)->hidden, tokens, arithmetic, isa, s, ret, tokens);
	gate_scratch_free(s);
}
