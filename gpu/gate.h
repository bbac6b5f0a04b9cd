/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate: scores by a loaded gate, on a device.
 * Thread: any that has entered the device; a gate is immutable. Locks: none. Blocks: gpu_gate_new() while weights go to
 * the device, gpu_gate_score() never. Errors: negative errno with a text.
 *
 * What it computes, and `exact`, are those of gates/gate.h, which is its twin: sums run in another order, all else is
 * the same up to the processor's exp. A KVzap MLP rounds what its first matrix gives to bf16 in either arithmetic.
 */
#ifndef KVGATE_GPU_GATE_H
#define KVGATE_GPU_GATE_H

#include "gates/gate.h"
#include "gpu/module.h"

struct gpu_gate;

enum gpu_gate_path {
	GPU_GATE_AUTO = 0,
	GPU_GATE_MMA,
	GPU_GATE_WGMMA, /* Hopper's; a matrix of few rows goes by mma.sync all the same */
};

/*
 * -EOPNOTSUPP: the gate's weights are not bf16, its hidden size is no multiple of 8, its width is not 16, it has more
 * than 19 query heads a KV head or more than 64 sinks: such a gate scores on the CPU. -ENOMEM.
 */
int gpu_gate_new(struct gpu_device *dev, const struct gate *g, struct gpu_gate **ret, char *ret_why,
	size_t why_size);
struct gpu_gate *gpu_gate_free(struct gpu_gate *g); /* nothing that uses it is on its way */
uint64_t gpu_gate_bytes(const struct gpu_gate *g);  /* of weights, on the device */

struct gpu_gate_job {
	struct CUstream_st *stream;
	enum gpu_gate_path path;
	enum gate_arithmetic arithmetic;
	uint32_t layer, layers; /* gated layers [layer, layer + layers), in one launch */
	uint32_t tokens;
	uint64_t x; /* bf16 [layers][tokens][hidden], 16-byte aligned */
	uint64_t x_stride,
		x_layer; /* elements from token to token, layer to layer: multiples of 8 */
	uint64_t scores; /* f32 [layers][heads][tokens] */
	uint64_t score_stride, score_layer; /* elements from head to head, layer to layer */
	uint64_t scratch;                   /* of gpu_gate_scratch() bytes, 16-byte aligned */
};
uint64_t gpu_gate_scratch(const struct gpu_gate *g, uint32_t layers, uint32_t tokens);
int gpu_gate_score(
	const struct gpu_gate *g, const struct gpu_gate_job *j, char *ret_why, size_t why_size);

#endif
