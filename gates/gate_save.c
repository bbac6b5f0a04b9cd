/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gate's parts in canonical order: for each layer what gate_parts() lists, unpacked, little endian,
 * weights in the gate's dtype and the rest f32. The digest is SHA-256 over kind, sizes and those bytes, so it does not
 * depend on the container a gate came in; our own file holds the same bytes under the official names, and in its
 * metadata the sizes, the digest and what calibration and training left.
 */
#include <endian.h>
#include <errno.h>
#include <json-c/json.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate_private.h"
#include "gates/why.h"

#define DIGEST_TAG "kvgate gate 1"
#define HEX_BYTES  65

/* ---- parts ---- */

enum fast_kvzip_part {
	Q_WEIGHT,
	Q_BIAS,
	K_WEIGHT,
	B,
	K_BASE,
	Q_NORM,
	K_NORM,
};

static enum safetensors_dtype weight_dtype(const struct gate_info *i)
{
	switch (i->dtype) {
	case KVG_DTYPE_BF16:
		return SAFETENSORS_BF16;
	case KVG_DTYPE_F16:
		return SAFETENSORS_F16;
	}
	return SAFETENSORS_F32;
}

static unsigned fast_kvzip_parts(const struct gate_info *i, struct gate_part ret[GATE_PARTS_MAX])
{
	uint64_t h = i->heads, g = i->groups, s = i->sinks, d = i->dim;
	const enum safetensors_dtype w = weight_dtype(i), f32 = SAFETENSORS_F32;

	ret[Q_WEIGHT] = (struct gate_part){"q_proj.weight", w, 2, {h * g * d, i->hidden}};
	ret[Q_BIAS] = (struct gate_part){"q_proj.bias", w, 1, {h * g * d}};
	ret[K_WEIGHT] = (struct gate_part){"k_proj.weight", w, 2, {h * d, i->hidden}};
	ret[B] = (struct gate_part){"b", w, 3, {h, 1, g}};
	ret[K_BASE] = (struct gate_part){"k_base", f32, 4, {h, 1, s, d}};
	ret[Q_NORM] = (struct gate_part){"q_norm.weight", f32, 1, {d}};
	ret[K_NORM] = (struct gate_part){"k_norm.weight", f32, 1, {d}};
	return 7;
}

unsigned gate_parts(const struct gate_info *i, struct gate_part ret[GATE_PARTS_MAX])
{
	const enum safetensors_dtype w = weight_dtype(i);

	switch (i->kind) {
	case GATE_FAST_KVZIP:
		return fast_kvzip_parts(i, ret);
	case GATE_KVZAP_LINEAR:
		ret[0] = (struct gate_part){"weight", w, 2, {i->heads, i->hidden}};
		ret[1] = (struct gate_part){"bias", w, 1, {i->heads}};
		return 2;
	case GATE_KVZAP_MLP:
		ret[0] = (struct gate_part){"0.weight", w, 2, {i->mlp, i->hidden}};
		ret[1] = (struct gate_part){"0.bias", w, 1, {i->mlp}};
		ret[2] = (struct gate_part){"2.weight", w, 2, {i->heads, i->mlp}};
		ret[3] = (struct gate_part){"2.bias", w, 1, {i->heads}};
		return 4;
	}
	return 0;
}

uint64_t gate_part_bytes(const struct gate_part *p)
{
	uint64_t n = safetensors_dtype_bytes(p->dtype);

	for (unsigned i = 0; i < p->ndim; i++)
		n *= p->shape[i];
	return n;
}

/* Exact: a gate's values are values of its dtype. */
static void put_value(enum safetensors_dtype dtype, float value, void *ret, uint64_t i)
{
	union {
		float f;
		uint32_t u;
	} v = {.f = value};

	if (dtype == SAFETENSORS_F32)
		((uint32_t *)ret)[i] = htole32(v.u);
	else
		((uint16_t *)ret)[i] = htole16(
			dtype == SAFETENSORS_F16 ? f16_from_f32(value) : bf16_from_f32(value));
}

static void put_rows(
	const struct gate_matrix *m, uint32_t first, const struct gate_part *p, void *ret)
{
	uint64_t i = 0;

	for (uint32_t r = 0; r < p->shape[0]; r++)
		for (uint32_t c = 0; c < m->columns; c++)
			put_value(p->dtype, gate_matrix_at(m, first + r, c), ret, i++);
}

static void put_values(const float *values, const struct gate_part *p, void *ret)
{
	uint64_t n = gate_part_bytes(p) / safetensors_dtype_bytes(p->dtype);

	for (uint64_t i = 0; i < n; i++)
		put_value(p->dtype, values[i], ret, i);
}

static void fast_kvzip_data(const struct gate *g, const struct gate_layer *y, unsigned part,
	const struct gate_part *p, void *ret)
{
	uint32_t q_rows = g->info.heads * g->info.groups * g->info.dim;

	switch ((enum fast_kvzip_part)part) {
	case Q_WEIGHT:
		put_rows(&y->in, 0, p, ret);
		break;
	case Q_BIAS:
		put_values(y->in.bias, p, ret);
		break;
	case K_WEIGHT:
		put_rows(&y->in, q_rows, p, ret);
		break;
	case B:
		put_values(y->b, p, ret);
		break;
	case K_BASE:
		put_values(y->k_base, p, ret);
		break;
	case Q_NORM:
		put_values(y->q_norm, p, ret);
		break;
	case K_NORM:
		put_values(y->k_norm, p, ret);
		break;
	}
}

void gate_part_data(const struct gate *g, uint32_t layer, unsigned part, void *ret)
{
	const struct gate_layer *y = &g->layers[layer];
	const struct gate_matrix *m = part < 2 ? &y->in : &y->out;
	struct gate_part parts[GATE_PARTS_MAX];

	gate_parts(&g->info, parts);
	if (g->info.kind == GATE_FAST_KVZIP)
		fast_kvzip_data(g, y, part, &parts[part], ret);
	else if (part % 2 == 0)
		put_rows(m, 0, &parts[part], ret);
	else
		put_values(m->bias, &parts[part], ret);
}

/* ---- digest ---- */

/* The dtype is last and only there when it is not bf16: bf16 gates had their digests before there were others. */
static bool hash_sizes(EVP_MD_CTX *hash, const struct gate_info *i)
{
	const uint32_t sizes[] = {i->kind, i->layers, i->heads, i->groups, i->hidden, i->dim,
		i->sinks, i->mlp, i->dtype};
	unsigned n_sizes = sizeof(sizes) / sizeof(sizes[0]) - (i->dtype == KVG_DTYPE_BF16);
	uint32_t little[sizeof(sizes) / sizeof(sizes[0])];

	for (unsigned n = 0; n < n_sizes; n++)
		little[n] = htole32(sizes[n]);
	return EVP_DigestUpdate(hash, DIGEST_TAG, sizeof(DIGEST_TAG)) &&
		EVP_DigestUpdate(hash, little, n_sizes * sizeof(*little));
}

static bool hash_parts(EVP_MD_CTX *hash, const struct gate *g, void *buffer)
{
	struct gate_part parts[GATE_PARTS_MAX];
	unsigned n = gate_parts(&g->info, parts);

	for (uint32_t l = 0; l < g->info.layers; l++) {
		for (unsigned i = 0; i < n; i++) {
			gate_part_data(g, l, i, buffer);
			if (!EVP_DigestUpdate(hash, buffer, gate_part_bytes(&parts[i])))
				return false;
		}
	}
	return true;
}

int gate_digest(const struct gate *g, uint8_t ret[32])
{
	struct gate_part parts[GATE_PARTS_MAX];
	unsigned n = gate_parts(&g->info, parts);
	uint64_t largest = 0;
	EVP_MD_CTX *hash;
	void *buffer;
	bool ok;

	for (unsigned i = 0; i < n; i++)
		if (gate_part_bytes(&parts[i]) > largest)
			largest = gate_part_bytes(&parts[i]);
	buffer = malloc(largest);
	hash = EVP_MD_CTX_new();
	ok = buffer && hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) &&
		hash_sizes(hash, &g->info) && hash_parts(hash, g, buffer) &&
		EVP_DigestFinal_ex(hash, ret, NULL);
	EVP_MD_CTX_free(hash);
	free(buffer);
	return ok ? 0 : -ENOMEM;
}

static void to_hex(const uint8_t digest[32], char ret[HEX_BYTES])
{
	for (unsigned i = 0; i < 32; i++)
		sprintf(ret + 2 * i, "%02x", digest[i]);
}

/* ---- calibration ---- */

static int check_calibration(
	uint32_t n, const float *edges, const float *retained, char *ret_why, size_t why_size)
{
	if (n > KVG_PLANES_MAX - 1)
		return why(ret_why, why_size, -EINVAL, "%u edges, at most %u make planes", n,
			KVG_PLANES_MAX - 1);
	for (uint32_t i = 0; i < n; i++) {
		if (!isfinite(edges[i]) || !(retained[i] > 0 && retained[i] < 1))
			return why(ret_why, why_size, -EINVAL,
				"edge %u is %g at a share of %g: not a calibration", i, edges[i],
				retained[i]);
		if (i > 0 && !(edges[i] < edges[i - 1] && retained[i] > retained[i - 1]))
			return why(ret_why, why_size, -EINVAL,
				"edge %u does not descend: too few different scores, or shares "
				"out of order; calibrate with fewer shares or more text",
				i);
	}
	return 0;
}

static int read_list(const char *text, uint32_t *ret_n, float ret[KVG_PLANES_MAX - 1])
{
	struct json_object *list = json_tokener_parse(text);
	size_t n = 0;
	bool ok = list && json_object_is_type(list, json_type_array);

	if (ok)
		n = json_object_array_length(list);
	ok = ok && n <= KVG_PLANES_MAX - 1;
	for (size_t i = 0; ok && i < n; i++) {
		struct json_object *number = json_object_array_get_idx(list, i);

		ok = json_object_is_type(number, json_type_double) ||
			json_object_is_type(number, json_type_int);
		ret[i] = (float)json_object_get_double(number);
	}
	if (list)
		json_object_put(list);
	if (!ok)
		return -EBADMSG;
	*ret_n = (uint32_t)n;
	return 0;
}

static int read_calibration(
	const struct safetensors *st, struct gate_info *info, char *ret_why, size_t why_size)
{
	const char *edges = safetensors_metadata(st, "edges");
	const char *retained = safetensors_metadata(st, "retained");
	uint32_t n_edges, n_retained;

	if (!edges && !retained)
		return 0;
	if (!edges || !retained || read_list(edges, &n_edges, info->edges) < 0 ||
		read_list(retained, &n_retained, info->quantiles) < 0 || n_edges != n_retained)
		return why(ret_why, why_size, -EBADMSG,
			"metadata: edges and retained are no lists "
			"of the same length, up to %u",
			KVG_PLANES_MAX - 1);
	info->n_edges = n_edges;
	return check_calibration(n_edges, info->edges, info->quantiles, ret_why, why_size);
}

int gate_read_metadata(const struct safetensors *st, struct gate *g, char *ret_why, size_t why_size)
{
	const char *kind = safetensors_metadata(st, "kind");
	const char *digest = safetensors_metadata(st, "digest");
	const char *model = safetensors_metadata(st, "model");
	const char *training = safetensors_metadata(st, "training");
	char hex[HEX_BYTES];

	if (kind && strcmp(kind, gate_kind_name(g->info.kind)) != 0)
		return why(ret_why, why_size, -EBADMSG, "metadata says %s, the tensors are %s",
			kind, gate_kind_name(g->info.kind));
	to_hex(g->info.digest, hex);
	if (digest && strcmp(digest, hex) != 0)
		return why(ret_why, why_size, -EBADMSG,
			"the weights do not have the digest that the file states: it is damaged");
	if (model && strlen(model) >= sizeof(g->info.model))
		return why(ret_why, why_size, -EBADMSG, "metadata: the model's name is too long");
	if (model)
		strcpy(g->info.model, model);
	if (training) {
		g->training = strdup(training);
		if (!g->training)
			return why(ret_why, why_size, -ENOMEM, "out of memory");
	}
	return read_calibration(st, &g->info, ret_why, why_size);
}

/* ---- writing ---- */

struct saving {
	const struct gate *g;
	struct gate_part parts[GATE_PARTS_MAX];
	unsigned n_parts;
	struct safetensors_tensor *tensors;
	char (*names)[64];
	uint8_t *bytes;
};

static uint64_t layer_bytes(const struct saving *s)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < s->n_parts; i++)
		n += (gate_part_bytes(&s->parts[i]) + 63) & ~63ull;
	return n;
}

static int gather(struct saving *s)
{
	uint32_t n = s->g->info.layers * s->n_parts, at = 0;
	uint8_t *p;

	s->tensors = calloc(n, sizeof(*s->tensors));
	s->names = calloc(n, sizeof(*s->names));
	s->bytes = p = malloc(layer_bytes(s) * s->g->info.layers);
	if (!s->tensors || !s->names || !p)
		return -ENOMEM;
	for (uint32_t l = 0; l < s->g->info.layers; l++) {
		for (unsigned i = 0; i < s->n_parts; i++, at++) {
			struct safetensors_tensor *t = &s->tensors[at];

			snprintf(s->names[at], sizeof(*s->names), "layers.%u.%s", l,
				s->parts[i].suffix);
			t->name = s->names[at];
			t->dtype = s->parts[i].dtype;
			t->ndim = s->parts[i].ndim;
			memcpy(t->shape, s->parts[i].shape, sizeof(s->parts[i].shape));
			t->bytes = gate_part_bytes(&s->parts[i]);
			t->data = p;
			gate_part_data(s->g, l, i, p);
			p += (t->bytes + 63) & ~63ull;
		}
	}
	return 0;
}

/* The shortest text that reads back as the same number. */
static struct json_object *number_of(float value)
{
	char text[32];

	for (int digits = 6; digits <= 9; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, (double)value);
		if (strtof(text, NULL) == value)
			break;
	}
	return json_object_new_double_s(value, text);
}

static char *list_text(uint32_t n, const float *values)
{
	struct json_object *list = json_object_new_array();
	char *text = NULL;

	for (uint32_t i = 0; list && i < n; i++)
		json_object_array_add(list, number_of(values[i]));
	if (list)
		text = strdup(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN));
	json_object_put(list);
	return text;
}

static int write_out(const struct saving *s, const char *path, uint32_t n_edges, const float *edges,
	const float *retained, const char *model, char *ret_why, size_t why_size)
{
	const struct gate_info *i = &s->g->info;
	const struct {
		const char *key;
		uint32_t value;
	} sizes[] = {{"layers", i->layers}, {"heads", i->heads}, {"groups", i->groups},
		{"hidden", i->hidden}, {"dim", i->dim}, {"sinks", i->sinks}, {"mlp", i->mlp}};
	const unsigned n_sizes = sizeof(sizes) / sizeof(sizes[0]);
	struct safetensors_pair pairs[16];
	char numbers[16][12], hex[HEX_BYTES];
	char *edges_text = list_text(n_edges, edges), *retained_text = list_text(n_edges, retained);
	uint32_t n = 0;
	int r = -ENOMEM;

	to_hex(i->digest, hex);
	pairs[n++] = (struct safetensors_pair){"kind", gate_kind_name(i->kind)};
	pairs[n++] = (struct safetensors_pair){"digest", hex};
	pairs[n++] = (struct safetensors_pair){"model", model};
	for (unsigned k = 0; k < n_sizes; k++) {
		snprintf(numbers[k], sizeof(numbers[k]), "%u", sizes[k].value);
		pairs[n++] = (struct safetensors_pair){sizes[k].key, numbers[k]};
	}
	if (n_edges > 0) {
		pairs[n++] = (struct safetensors_pair){"edges", edges_text};
		pairs[n++] = (struct safetensors_pair){"retained", retained_text};
	}
	if (s->g->training)
		pairs[n++] = (struct safetensors_pair){"training", s->g->training};
	if (edges_text && retained_text)
		r = safetensors_write(
			path, s->tensors, i->layers * s->n_parts, pairs, n, ret_why, why_size);
	free(edges_text);
	free(retained_text);
	return r;
}

int gate_save(const struct gate *g, const char *path, uint32_t n_edges, const float *edges,
	const float *retained, const char *model, char *ret_why, size_t why_size)
{
	struct saving s = {.g = g};
	int r;

	if (n_edges == 0) {
		n_edges = g->info.n_edges;
		edges = g->info.edges;
		retained = g->info.quantiles;
	}
	if (!model)
		model = g->info.model;
	if (strlen(model) >= sizeof(g->info.model))
		return why(ret_why, why_size, -EINVAL, "the model's name is too long");
	r = check_calibration(n_edges, edges, retained, ret_why, why_size);
	if (r < 0)
		return r;
	s.n_parts = gate_parts(&g->info, s.parts);
	r = gather(&s);
	if (r == 0)
		r = write_out(&s, path, n_edges, edges, retained, model, ret_why, why_size);
	if (r == -ENOMEM)
		why_print(ret_why, why_size, "out of memory");
	free(s.tensors);
	free(s.names);
	free(s.bytes);
	return r;
}
