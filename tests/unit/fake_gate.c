/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_gate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct gate {
	struct gate_info info;
};
struct gate_scratch {
	uint32_t tokens, hidden;
};
int fake_gate_scratches;

void fake_gate_become(struct gate *g, uint32_t layers, uint32_t heads, uint32_t hidden)
{
	g->info = (struct gate_info){.layers = layers, .heads = heads, .hidden = hidden};
	g->info.digest[0] = (uint8_t)heads;
	g->info.digest[1] = (uint8_t)hidden;
}

struct gate *fake_gate_new(uint32_t layers, uint32_t heads, uint32_t hidden)
{
	struct gate *g = calloc(1, sizeof(*g));

	fake_gate_become(g, layers, heads, hidden);
	return g;
}

struct gate *gate_free(struct gate *g)
{
	free(g);
	return NULL;
}

const struct gate_info *gate_info(const struct gate *g)
{
	return &g->info;
}

int gate_scratch_new(const struct gate *g, uint32_t tokens, struct gate_scratch **ret)
{
	*ret = calloc(1, sizeof(**ret));
	(*ret)->tokens = tokens;
	(*ret)->hidden = g->info.hidden;
	fake_gate_scratches++;
	return 0;
}

struct gate_scratch *gate_scratch_free(struct gate_scratch *s)
{
	if (s)
		fake_gate_scratches--;
	free(s);
	return NULL;
}

void gate_score(const struct gate *g, uint32_t layer, const void *x, uint32_t x_dtype,
	size_t x_stride, uint32_t tokens, enum gate_arithmetic arithmetic, enum gate_isa isa,
	struct gate_scratch *scratch, float *ret_scores, size_t score_stride)
{
	(void)arithmetic;
	(void)isa;
	if (layer >= g->info.layers || tokens > scratch->tokens ||
		g->info.hidden != scratch->hidden)
		abort();
	for (uint32_t h = 0; h < g->info.heads; h++)
		for (uint32_t t = 0; t < tokens; t++) {
			size_t at = t * x_stride + h;

			ret_scores[h * score_stride + t] = x_dtype == KVG_DTYPE_F32
				? ((const float *)x)[at]
				: bf16_to_f32(((const uint16_t *)x)[at]);
		}
}
