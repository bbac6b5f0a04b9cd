/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate_private: what a loaded gate is made of - shared by readers, writer and scorers.
 * Thread: built by one, immutable after. Locks: none. Blocks: never. Errors: negative errno with a text.
 */
#ifndef KVGATE_GATES_GATE_PRIVATE_H
#define KVGATE_GATES_GATE_PRIVATE_H

#include "gates/gate.h"
#include "gates/safetensors.h"

#define GATE_FILE_MAX   (4ull << 30) /* the largest released gate has 315 MB */
#define GATE_GROUPS_MAX 256u         /* query heads per KV head: 71 in the widest model known */
#define GATE_DIM_MAX    256u         /* gate width, 16 in all released gates */
#define GATE_SINKS_MAX  1024u        /* 16 in all released gates */
#define GATE_ROWS_MAX   (1u << 18)   /* of one projection: 128 query heads of width 16 are 2048 */
#define GATE_BYTES_MAX  (8ull << 30) /* packed: the largest file, f16 held as f32 */

#define GATE_ROWS  16u /* rows of one block of a packed matrix */
#define GATE_DEPTH 32u /* packed columns are a multiple of this */

/*
 * A weight matrix the way the kernels read it: blocks of 16 rows, and in each, pairs of columns:
 * w[block][column / 2][row][column % 2], bf16. That is the operand of AVX-512's and AMX's dot products,
 * and two shifts make two vectors of 16 f32 of each 64 bytes. Weights that are no bf16 are held as f32, a column
 * after the other: w[block][column][row]. Missing rows and columns are zero.
 */
struct gate_matrix {
	uint32_t rows, columns;
	uint32_t blocks; /* ceil(rows / GATE_ROWS) */
	uint32_t depth;  /* columns, rounded up to GATE_DEPTH */
	bool wide;       /* f32, else bf16 */
	void *w;
	float *bias; /* [blocks * GATE_ROWS], zero where there is none */
};

struct gate_layer {
	struct gate_matrix
		in; /* Fast KVzip: q rows [H][G][d'], then k rows [H][d']; KVzap: all, or the first */
	struct gate_matrix out; /* KVzap MLP: the second */
	float *b;               /* Fast KVzip: [H][G] */
	float *k_base;          /* [H][S][d'] */
	float *q_norm, *k_norm; /* [d'] */
};

struct gate {
	struct gate_info info;
	char *training; /* recipe, as the file has it, or NULL */
	struct gate_layer *layers;
};

/* ---- gate_build.c ---- */

/*
 * Tensors named layers.{l}.*, sorted by name, become a gate; their data may be unaligned. Shapes decide
 * what kind it is and how large; they must fit together, and every weight must be finite.
 */
int gate_build(const struct safetensors_tensor *tensors, uint32_t n, struct gate **ret,
	char *ret_why, size_t why_size);

/* One value of a packed matrix. */
float gate_matrix_at(const struct gate_matrix *m, uint32_t row, uint32_t column);

/* To the nearest value of bf16 or f16; any other dtype leaves it as it is. */
static inline float gate_round(float f, uint32_t dtype)
{
	switch (dtype) {
	case KVG_DTYPE_BF16:
		return bf16_to_f32(bf16_from_f32(f));
	case KVG_DTYPE_F16:
		return f16_to_f32(f16_from_f32(f));
	}
	return f;
}

/* ---- gate_pt.c ---- */

int gate_read_pt(const void *data, size_t bytes, struct gate **ret, char *ret_why, size_t why_size);

/* ---- gate_save.c ---- */

/* The tensors that make up a gate, in canonical order and unpacked: for the digest and for files. */
struct gate_part {
	const char *suffix; /* "q_proj.weight" */
	enum safetensors_dtype dtype;
	unsigned ndim;
	uint64_t shape[4];
};
/* At most GATE_PARTS_MAX, of one layer. */
#define GATE_PARTS_MAX 7u
unsigned gate_parts(const struct gate_info *info, struct gate_part ret[GATE_PARTS_MAX]);
uint64_t gate_part_bytes(const struct gate_part *p);
/* Little endian, gate_part_bytes(); `part` is an index into what gate_parts() answered. */
void gate_part_data(const struct gate *g, uint32_t layer, unsigned part, void *ret);
int gate_digest(const struct gate *g, uint8_t ret[32]);

/* Calibration and the rest of our own metadata, when the file has it. */
int gate_read_metadata(
	const struct safetensors *st, struct gate *g, char *ret_why, size_t why_size);

#endif
