/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gates made of numbers that gate_reference.py makes too: element i of tensor t of a seed is
 * scale * u + offset, u in [-1, 1) from splitmix64(seed, t, i), rounded to the tensor's dtype.
 */
#ifndef KVGATE_TESTS_GATE_FIXTURE_H
#define KVGATE_TESTS_GATE_FIXTURE_H

#include "gates/gate_private.h"

#define FIXTURE_LAYERS 3

struct fixture {
	struct gate_info info; /* kind and sizes are the caller's; dtype too, bf16 when it is 0 */
	struct safetensors_tensor tensors[FIXTURE_LAYERS * GATE_PARTS_MAX]; /* in canonical order */
	char names[FIXTURE_LAYERS * GATE_PARTS_MAX][48];
	uint32_t n;    /* how many of them are given to the reader */
	uint32_t made; /* how many own memory */
};

float fixture_uniform(uint64_t seed, uint64_t tensor, uint64_t element);

void fixture_init(struct fixture *f, uint64_t seed); /* f->info is set */
void fixture_fini(struct fixture *f);
/* Tensor of layer l with that suffix; elements are read and set through these. */
struct safetensors_tensor *fixture_tensor(struct fixture *f, uint32_t layer, const char *suffix);
float fixture_get(const struct safetensors_tensor *t, uint64_t i);
void fixture_set(struct safetensors_tensor *t, uint64_t i, float value);
uint64_t fixture_count(const struct safetensors_tensor *t);

struct gate *fixture_gate(const struct fixture *f); /* asserts that it loads */
/* -errno of building, the text in why. */
int fixture_try(const struct fixture *f, struct gate **ret, char *why, size_t why_size);

/* Hidden states: 2u, every 97th column ten times as large. */
void fixture_hidden(uint64_t seed, uint32_t tokens, uint32_t hidden, uint32_t dtype, void *ret);

/* Scores of one layer, [heads][tokens], scratch and all. */
void fixture_score(const struct gate *g, uint32_t layer, const void *x, uint32_t dtype,
	uint32_t tokens, enum gate_arithmetic arithmetic, enum gate_isa isa, float *ret);

#endif
