/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors files; what is accepted must lie in the file, and may be a gate with metadata. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct safetensors *st = NULL;
	struct gate *g = NULL;
	uint8_t *copy = malloc(n ? n : 1); /* aligned, and exactly as large */
	char why[300];

	if (!copy)
		return 0;
	memcpy(copy, data, n);
	if (safetensors_parse(copy, n, &st, why, sizeof(why)) == 0) {
		for (uint32_t i = 0; i < safetensors_count(st); i++) {
			const struct safetensors_tensor *t = safetensors_at(st, i);

			assert(t->bytes <= n && (const uint8_t *)t->data >= copy &&
				(const uint8_t *)t->data + t->bytes <= copy + n);
			assert(safetensors_find(st, t->name) == t);
		}
		if (safetensors_count(st) > 0 &&
			gate_build(safetensors_at(st, 0), safetensors_count(st), &g, why,
				sizeof(why)) == 0)
			gate_read_metadata(st, g, why, sizeof(why));
		gate_free(g);
		safetensors_close(st);
	}
	free(copy);
	return 0;
}
