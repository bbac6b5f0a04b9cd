/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model: the weights of one Qwen3-architecture decoder, in f32, read from a folder as Hugging
 * Face lays it out.
 * Thread: immutable once loaded, any. Locks: none. Blocks: loading reads files.
 * Errors: negative errno and a text: -ENOENT, -EBADMSG not a model, -ENOTSUP one that this code
 * does not know.
 */
#ifndef KVGATE_WORKER_MODEL_H
#define KVGATE_WORKER_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_EOS_MAX 8

struct model_config {
	uint32_t layers;
	uint32_t hidden;   /* D */
	uint32_t heads;    /* query heads */
	uint32_t kv_heads; /* H; heads = H * G */
	uint32_t head_dim;
	uint32_t mlp;
	uint32_t vocab;
	uint32_t eos[MODEL_EOS_MAX];
	uint32_t n_eos;
	float rms_eps;
	float rope_theta;
	bool tied; /* the output matrix is the embedding */
};

/* Matrices are [out][in], as the files have them. */
struct model_layer {
	const float *attention_norm;  /* [D] */
	const float *qkv;             /* [(heads + 2 kv_heads) * head_dim][D]: Q, K, V */
	const float *q_norm, *k_norm; /* [head_dim] */
	const float *output;          /* [D][heads * head_dim] */
	const float *mlp_norm;        /* [D] */
	const float *gate_up;         /* [2 mlp][D]: gate, up */
	const float *down;            /* [D][mlp] */
};

struct model {
	struct model_config config;
	const float *embedding; /* [vocab][D] */
	const float *logits;    /* [vocab][D] */
	const float *norm;      /* [D] */
	struct model_layer *layer;
	float *weights; /* all of them */
	char rope[64];  /* for a layout: how positions were turned into angles */
};

int model_load(const char *folder, struct model **ret, char *ret_why, size_t why_size);
struct model *model_free(struct model *m);

static inline uint32_t model_group(const struct model_config *c)
{
	return c->heads / c->kv_heads;
}
static inline uint32_t model_runs(const struct model_config *c)
{
	return c->layers * c->kv_heads;
}
bool model_is_eos(const struct model *m, uint32_t token);

/* config.json alone, for tests: 0, or an errno and a text. */
int model_config_parse(const char *json, struct model_config *ret, char *ret_why, size_t why_size);

/*
 * SHA-256 over config.json and the weight files in the order of their names: a layout's revision.
 */
int model_digest(const char *folder, char ret_hex[65], char *ret_why, size_t why_size);

#endif
