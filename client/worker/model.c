/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights are widened to f32 once and lie one after another in one allocation. Q, K and V are put
 * under one another, and so are gate and up, so that each layer is four products. Tensors are
 * looked up over all weight files of the folder, be it one or a set of shards.
 */
#include "client/worker/model.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "gates/safetensors.h"
#include "gates/why.h"
#include "proto/shape.h"

#define SHARDS_MAX 1024 /* the largest models have a few hundred */
#define CONFIG_MAX (1 << 20)

struct loader {
	const char *folder;
	struct model *model;
	struct safetensors *file[SHARDS_MAX];
	size_t n_files;
	float *at; /* where the next weights go */
	char *why;
	size_t why_size;
	int error; /* the first */
};

/* ---- files ---- */

static int weight_files(const char *folder, glob_t *ret)
{
	char pattern[4096];

	snprintf(pattern, sizeof(pattern), "%s/model*.safetensors", folder);
	if (glob(pattern, 0, NULL, ret))
		return -ENOENT;
	return ret->gl_pathc <= SHARDS_MAX ? 0 : -E2BIG;
}

static int read_config(const char *folder, struct model_config *ret, char *ret_why, size_t why_size)
{
	char path[4096], what[200] = "it cannot be read", *text = calloc(1, CONFIG_MAX);
	FILE *f;
	int r;

	if (!text)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	snprintf(path, sizeof(path), "%s/config.json", folder);
	f = fopen(path, "re");
	if (!f) {
		r = why(ret_why, why_size, -errno, "%s: %s", path, strerror(errno));
		free(text);
		return r;
	}
	if (fread(text, 1, CONFIG_MAX - 1, f) == CONFIG_MAX - 1)
		r = why(ret_why, why_size, -EFBIG, "%s: too long for a config.json", path);
	else
		r = ferror(f) ? -EIO : model_config_parse(text, ret, what, sizeof(what));
	if (r < 0 && r != -EFBIG)
		r = why(ret_why, why_size, r, "%s: %s", path, what);
	fclose(f);
	free(text);
	return r;
}

static int hash_file(EVP_MD_CTX *ctx, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;
	struct stat st;
	void *map;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size == 0) {
		r = errno ? -errno : -ENODATA;
	} else {
		map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (map == MAP_FAILED)
			r = -errno;
		else if (!EVP_DigestUpdate(ctx, map, (size_t)st.st_size))
			r = -EIO;
		if (map != MAP_FAILED)
			munmap(map, (size_t)st.st_size);
	}
	if (fd >= 0)
		close(fd);
	return r;
}

int model_digest(const char *folder, char ret_hex[65], char *ret_why, size_t why_size)
{
	const char *at = folder;
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t digest[32];
	char path[4096];
	glob_t files = {0};
	int r = weight_files(folder, &files);

	snprintf(path, sizeof(path), "%s/config.json", folder);
	if (r == 0 && (!ctx || !EVP_DigestInit_ex(ctx, EVP_sha256(), NULL)))
		r = -ENOMEM;
	if (r == 0)
		r = hash_file(ctx, at = path);
	for (size_t i = 0; r == 0 && i < files.gl_pathc; i++)
		r = hash_file(ctx, at = files.gl_pathv[i]);
	if (r == 0 && !EVP_DigestFinal_ex(ctx, digest, NULL))
		r = -EIO;
	for (int i = 0; r == 0 && i < 32; i++)
		snprintf(ret_hex + 2 * i, 3, "%02x", digest[i]);
	if (r < 0)
		r = why(ret_why, why_size, r, "%s: its digest cannot be made: %s", at,
			strerror(-r));
	globfree(&files);
	EVP_MD_CTX_free(ctx);
	return r;
}

/* ---- tensors ---- */

static const struct safetensors_tensor *find(const struct loader *l, const char *name)
{
	const struct safetensors_tensor *t = NULL;

	for (size_t i = 0; !t && i < l->n_files; i++)
		t = safetensors_find(l->file[i], name);
	return t;
}

static bool widen(const struct safetensors_tensor *t, size_t n, float *dst)
{
	const uint16_t *half = t->data;

	if (t->dtype == SAFETENSORS_F32)
		memcpy(dst, t->data, n * sizeof(*dst));
	else if (t->dtype == SAFETENSORS_BF16)
		for (size_t i = 0; i < n; i++)
			dst[i] = bf16_to_f32(half[i]);
	else if (t->dtype == SAFETENSORS_F16)
		for (size_t i = 0; i < n; i++)
			dst[i] = f16_to_f32(half[i]);
	else
		return false;
	return true;
}

/*
 * Appends tensor `name` of layer `layer` (< 0: of none); cols 0: a vector. Returns where it lies.
 */
static const float *take(
	struct loader *l, int layer, const char *name, uint32_t rows, uint32_t cols)
{
	const size_t n = (size_t)rows * (cols ? cols : 1);
	const struct safetensors_tensor *t;
	float *dst = l->at;
	char full[160];

	if (l->error)
		return NULL;
	if (layer < 0)
		snprintf(full, sizeof(full), "%s.weight", name);
	else
		snprintf(full, sizeof(full), "model.layers.%d.%s.weight", layer, name);
	t = find(l, full);
	if (!t)
		l->error = why(l->why, l->why_size, -EBADMSG, "%s: no tensor %s", l->folder, full);
	else if (t->ndim != (cols ? 2 : 1) || t->shape[0] != rows || (cols && t->shape[1] != cols))
		l->error = why(l->why, l->why_size, -EBADMSG,
			"%s: %s: its shape does not fit config.json, which makes it [%u, %u]",
			l->folder, full, rows, cols);
	else if (!widen(t, n, dst))
		l->error = why(l->why, l->why_size, -ENOTSUP,
			"%s: %s: weights of type %s; use bf16, f16 or f32", l->folder, full,
			safetensors_dtype_name(t->dtype));
	l->at += n;
	return dst;
}

static size_t count_weights(const struct model_config *c)
{
	const size_t d = c->hidden, q = (size_t)c->heads * c->head_dim;
	const size_t kv = (size_t)c->kv_heads * c->head_dim;
	const size_t layer = 2 * d + 2 * c->head_dim + (2 * q + 2 * kv) * d + 3 * d * c->mlp;

	return c->vocab * d * (c->tied ? 1 : 2) + d + c->layers * layer;
}

static void take_layer(struct loader *l, int i)
{
	const struct model_config *c = &l->model->config;
	struct model_layer *w = &l->model->layer[i];
	const uint32_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;

	w->attention_norm = take(l, i, "input_layernorm", c->hidden, 0);
	w->qkv = take(l, i, "self_attn.q_proj", q, c->hidden);
	take(l, i, "self_attn.k_proj", kv, c->hidden);
	take(l, i, "self_attn.v_proj", kv, c->hidden);
	w->q_norm = take(l, i, "self_attn.q_norm", c->head_dim, 0);
	w->k_norm = take(l, i, "self_attn.k_norm", c->head_dim, 0);
	w->output = take(l, i, "self_attn.o_proj", c->hidden, q);
	w->mlp_norm = take(l, i, "post_attention_layernorm", c->hidden, 0);
	w->gate_up = take(l, i, "mlp.gate_proj", c->mlp, c->hidden);
	take(l, i, "mlp.up_proj", c->mlp, c->hidden);
	w->down = take(l, i, "mlp.down_proj", c->hidden, c->mlp);
}

static int take_all(struct loader *l)
{
	struct model *m = l->model;
	const struct model_config *c = &m->config;

	m->layer = calloc(c->layers, sizeof(*m->layer));
	m->weights = malloc(count_weights(c) * sizeof(float));
	if (!m->layer || !m->weights)
		return why(l->why, l->why_size, -ENOMEM, "no memory for %zu weights",
			count_weights(c));
	l->at = m->weights;
	m->embedding = take(l, -1, "model.embed_tokens", c->vocab, c->hidden);
	for (uint32_t i = 0; i < c->layers; i++)
		take_layer(l, (int)i);
	m->norm = take(l, -1, "model.norm", c->hidden, 0);
	m->logits = c->tied ? m->embedding : take(l, -1, "lm_head", c->vocab, c->hidden);
	snprintf(m->rope, sizeof(m->rope), "default theta=%.9g", (double)c->rope_theta);
	return l->error;
}

static int open_files(struct loader *l, const char *folder)
{
	glob_t files = {0};
	char text[256];
	int r = weight_files(folder, &files);

	if (r < 0)
		r = why(l->why, l->why_size, r,
			r == -ENOENT ? "%s: no model*.safetensors"
				     : "%s: too many model*.safetensors",
			folder);
	for (size_t i = 0; r == 0 && i < files.gl_pathc; i++) {
		r = safetensors_open(files.gl_pathv[i], &l->file[i], text, sizeof(text));
		if (r == 0)
			l->n_files++;
		else
			r = why(l->why, l->why_size, r, "%s: %s", files.gl_pathv[i], text);
	}
	globfree(&files);
	return r;
}

/* Weights of layers that config.json does not count: it belongs to another model. */
static int check_layers(const struct loader *l)
{
	const uint32_t layers = l->model->config.layers;
	unsigned long layer;

	for (size_t i = 0; i < l->n_files; i++)
		for (uint32_t j = 0; j < safetensors_count(l->file[i]); j++) {
			const char *name = safetensors_at(l->file[i], j)->name;

			if (sscanf(name, "model.layers.%lu.", &layer) == 1 && layer >= layers)
				return why(l->why, l->why_size, -EBADMSG,
					"%s: tensor %s: num_hidden_layers in config.json is %u",
					l->folder, name, layers);
		}
	return 0;
}

int model_load(const char *folder, struct model **ret, char *ret_why, size_t why_size)
{
	struct loader *l = calloc(1, sizeof(*l));
	struct model *m = calloc(1, sizeof(*m));
	int r;

	if (!l || !m) {
		free(l);
		free(m);
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	}
	*l = (struct loader){.folder = folder, .model = m, .why = ret_why, .why_size = why_size};
	r = read_config(folder, &m->config, ret_why, why_size);
	if (r == 0)
		r = open_files(l, folder);
	if (r == 0)
		r = check_layers(l);
	if (r == 0)
		r = take_all(l);
	while (l->n_files > 0)
		safetensors_close(l->file[--l->n_files]);
	free(l);
	if (r == 0)
		*ret = m;
	else
		model_free(m);
	return r;
}

struct model *model_free(struct model *m)
{
	if (m) {
		free(m->layer);
		free(m->weights);
		free(m);
	}
	return NULL;
}

bool model_is_eos(const struct model *m, uint32_t token)
{
	for (uint32_t i = 0; i < m->config.n_eos; i++)
		if (m->config.eos[i] == token)
			return true;
	return false;
}
