/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate: looks into gates, turns them into our format, calibrates and runs them. Needs no daemon.
 *
 * Hidden states come as safetensors with one tensor hidden.{l} [tokens, D], bf16 or f32, for each gated
 * layer; scores go out as score.{l} [H, tokens], f32.
 */
#include "client/ctl/ctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gates/gate.h"
#include "gates/safetensors.h"

#define NAME_BYTES 32
#define WHY_BYTES  400

struct options {
	const char *model, *retained, *edges, *isa;
	bool fast;
	uint64_t threads;
};

/* All layers' hidden states of one file, together. */
struct hidden {
	void *x; /* [layers][tokens][hidden] */
	uint32_t dtype, tokens;
};

static int failed(const char *path, const char *reason)
{
	fprintf(stderr, "kvgatectl: %s: %s\n", path, reason);
	return CTL_FAILED;
}

static struct gate *load(const char *path)
{
	char why[WHY_BYTES] = "";
	struct gate *g;

	if (gate_load(path, &g, why, sizeof(why)) < 0) {
		failed(path, why);
		return NULL;
	}
	return g;
}

/* ---- inspect ---- */

static struct json_object *number_of(double value)
{
	char text[32];

	snprintf(text, sizeof(text), "%.6g", value);
	return json_object_new_double_s(value, text);
}

static void print_json(const struct gate_info *i, const char *digest)
{
	const struct {
		const char *key;
		uint32_t value;
	} sizes[] = {{"layers", i->layers}, {"heads", i->heads}, {"groups", i->groups},
		{"hidden", i->hidden}, {"dim", i->dim}, {"sinks", i->sinks}, {"mlp", i->mlp}};
	struct json_object *o = json_object_new_object(), *edges = json_object_new_array();

	json_object_object_add(o, "kind", json_object_new_string(gate_kind_name(i->kind)));
	for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++)
		json_object_object_add(
			o, sizes[n].key, json_object_new_int64((int64_t)sizes[n].value));
	json_object_object_add(o, "digest", json_object_new_string(digest));
	json_object_object_add(o, "model", json_object_new_string(i->model));
	json_object_object_add(o, "isa", json_object_new_string(gate_isa_name(i->isa)));
	for (uint32_t n = 0; n < i->n_edges; n++) {
		struct json_object *e = json_object_new_object();

		json_object_object_add(e, "retained", number_of(i->quantiles[n]));
		json_object_object_add(e, "score", number_of(i->edges[n]));
		json_object_array_add(edges, e);
	}
	json_object_object_add(o, "edges", edges);
	ctl_json(o);
}

static void print_text(const struct gate_info *i, const char *digest)
{
	printf("kind     %s\n", gate_kind_name(i->kind));
	printf("shape    %u layers, %u heads", i->layers, i->heads);
	if (i->groups) /* KVzap scores from the hidden state alone */
		printf(" of %u queries", i->groups);
	printf(", hidden size %u", i->hidden);
	if (i->kind == GATE_FAST_KVZIP)
		printf(", width %u, %u sinks", i->dim, i->sinks);
	if (i->mlp)
		printf(", MLP of %u", i->mlp);
	printf("\ndigest   %s\nmodel    %s\nscores   with %s\n", digest,
		i->model[0] ? i->model : "(not stated)", gate_isa_name(i->isa));
	if (i->n_edges == 0)
		printf("edges    none: run kvgatectl gate calibrate\n");
	for (uint32_t n = 0; n < i->n_edges; n++)
		printf("%s best %4.1f %% of pairs score at least %.4g\n",
			n == 0 ? "edges   " : "        ", i->quantiles[n] * 100.0, i->edges[n]);
}

static int inspect(int n, char **files, const struct options *o)
{
	const struct gate_info *i;
	struct kvg_key digest;
	char hex[65];
	struct gate *g;

	(void)o;
	if (n != 1)
		return ctl_usage("gate", "inspect wants one FILE");
	g = load(files[0]);
	if (!g)
		return CTL_FAILED;
	i = gate_info(g);
	memcpy(digest.b, i->digest, sizeof(digest.b));
	kvg_key_to_hex(&digest, hex);
	if (ctl_options.json)
		print_json(i, hex);
	else
		print_text(i, hex);
	gate_free(g);
	return CTL_OK;
}

/* ---- convert ---- */

static int save(const struct gate *g, const char *path, uint32_t n, const float *edges,
	const float *retained, const struct options *o)
{
	char why[WHY_BYTES] = "";

	if (gate_save(g, path, n, edges, retained, o->model, why, sizeof(why)) < 0)
		return failed(path, why);
	if (!ctl_options.json)
		printf("wrote %s\n", path);
	return CTL_OK;
}

static int convert(int n, char **files, const struct options *o)
{
	struct gate *g;
	int status;

	if (n != 2)
		return ctl_usage("gate", "convert wants FILE and the file to write");
	g = load(files[0]);
	if (!g)
		return CTL_FAILED;
	status = save(g, files[1], 0, NULL, NULL, o);
	gate_free(g);
	if (status == CTL_OK && ctl_options.json) {
		struct json_object *j = json_object_new_object();

		json_object_object_add(j, "wrote", json_object_new_string(files[1]));
		ctl_json(j);
	}
	return status;
}

/* ---- scores of hidden states ---- */

static const struct safetensors_tensor *find_layer(const struct safetensors *st, uint32_t layer)
{
	char name[NAME_BYTES];

	snprintf(name, sizeof(name), "hidden.%u", layer);
	return safetensors_find(st, name);
}

static int gather(const char *path, const struct safetensors *st, const struct gate_info *i,
	struct hidden *ret)
{
	const struct safetensors_tensor *first = find_layer(st, 0);
	char *to;

	if (!first || first->ndim != 2 || first->shape[1] != i->hidden ||
		first->shape[0] > UINT32_MAX ||
		(first->dtype != SAFETENSORS_BF16 && first->dtype != SAFETENSORS_F32))
		return failed(
			path, "wants hidden.0 as [tokens, D] in BF16 or F32, D as the gate's");
	to = malloc(first->bytes * i->layers + 1);
	if (!to)
		return failed(path, "out of memory");
	ret->x = to;
	ret->dtype = first->dtype == SAFETENSORS_BF16 ? KVG_DTYPE_BF16 : KVG_DTYPE_F32;
	ret->tokens = (uint32_t)first->shape[0];
	for (uint32_t l = 0; l < i->layers; l++, to += first->bytes) {
		const struct safetensors_tensor *t = find_layer(st, l);

		if (!t || t->dtype != first->dtype || t->ndim != 2 || t->bytes != first->bytes ||
			t->shape[0] != first->shape[0]) {
			free(ret->x);
			return failed(path, "wants one hidden.{l} for each gated layer, all alike");
		}
		memcpy(to, t->data, t->bytes);
	}
	return CTL_OK;
}

/* ret_scores: [layers][heads][tokens], the caller's to free. */
static int score_file(const struct gate *g, const char *path, const struct options *o,
	uint32_t *ret_tokens, float **ret_scores)
{
	const struct gate_info *i = gate_info(g);
	int isa = gate_isa_from_name(o->isa ? o->isa : "auto"), status;
	char why[WHY_BYTES] = "";
	struct safetensors *st;
	struct hidden h;
	float *scores;

	if (isa < 0 || !gate_isa_supported((enum gate_isa)isa))
		return ctl_usage("gate", "--isa %s is unknown, or not of this processor", o->isa);
	if (safetensors_open(path, &st, why, sizeof(why)) < 0)
		return failed(path, why);
	status = gather(path, st, i, &h);
	safetensors_close(st);
	if (status != CTL_OK)
		return status;
	scores = malloc(((size_t)i->layers * i->heads * h.tokens + 1) * sizeof(*scores));
	if (!scores ||
		gate_score_all(g, h.x, h.dtype, h.tokens, o->fast ? GATE_FAST : GATE_EXACT,
			(enum gate_isa)isa, (unsigned)o->threads, scores) < 0)
		status = failed(path, "out of memory");
	free(h.x);
	if (status != CTL_OK) {
		free(scores);
		return status;
	}
	*ret_tokens = h.tokens;
	*ret_scores = scores;
	return CTL_OK;
}

/* ---- calibrate ---- */

/* "0.05,0.1": at most KVG_PLANES_MAX - 1 numbers. */
static int parse_list(const char *text, float ret[KVG_PLANES_MAX - 1], uint32_t *ret_n)
{
	char *end;
	uint32_t n = 0;

	for (;; text = end + 1) {
		if (n == KVG_PLANES_MAX - 1)
			return -1;
		ret[n++] = strtof(text, &end);
		if (end == text || (*end && *end != ','))
			return -1;
		if (!*end)
			break;
	}
	*ret_n = n;
	return 0;
}

static int score_files(const struct gate *g, int n, char **files, const struct options *o,
	float **ret, uint64_t *ret_n)
{
	size_t runs = (size_t)gate_info(g)->layers * gate_info(g)->heads;
	float *all = NULL, *scores, *grown;
	uint64_t have = 0;
	uint32_t tokens;

	for (int f = 0; f < n; f++) {
		int status = score_file(g, files[f], o, &tokens, &scores);

		if (status != CTL_OK) {
			free(all);
			return status;
		}
		grown = realloc(all, (have + runs * tokens + 1) * sizeof(*all));
		if (!grown) {
			free(scores);
			free(all);
			return failed(files[f], "out of memory");
		}
		all = grown;
		memcpy(all + have, scores, runs * tokens * sizeof(*all));
		have += runs * tokens;
		free(scores);
	}
	*ret = all;
	*ret_n = have;
	return CTL_OK;
}

static int measure_edges(const struct gate *g, int n, char **files, const struct options *o,
	uint32_t n_edges, const float *retained, float *ret_edges)
{
	uint64_t n_scores = 0;
	float *scores = NULL;
	int status = score_files(g, n, files, o, &scores, &n_scores);

	if (status != CTL_OK)
		return status;
	if (gate_quantiles(scores, n_scores, retained, n_edges, ret_edges) < 0)
		status = ctl_usage("gate",
			"no quantiles: no scores, NaN among them, or --retained "
			"not ascending between 0 and 1");
	free(scores);
	return status;
}

static int calibrate(int n, char **files, const struct options *o)
{
	float retained[KVG_PLANES_MAX - 1], edges[KVG_PLANES_MAX - 1];
	uint32_t n_retained = 6, n_edges = 0;
	int status = CTL_OK;
	struct gate *g;

	if (n < 2 || (n == 2) != (o->edges != NULL))
		return ctl_usage("gate",
			"calibrate wants FILE, the file to write and HIDDEN files, "
			"or --edges");
	memcpy(retained, gate_default_retained, sizeof(gate_default_retained));
	if (o->retained && parse_list(o->retained, retained, &n_retained) < 0)
		return ctl_usage("gate", "--retained wants shares such as .05,.1,.2");
	if (o->edges && (parse_list(o->edges, edges, &n_edges) < 0 || n_edges != n_retained))
		return ctl_usage("gate", "--edges wants one score for each of --retained");
	g = load(files[0]);
	if (!g)
		return CTL_FAILED;
	if (!o->edges)
		status = measure_edges(g, n - 2, files + 2, o, n_retained, retained, edges);
	if (status == CTL_OK)
		status = save(g, files[1], n_retained, edges, retained, o);
	gate_free(g);
	return status == CTL_OK ? inspect(1, files + 1, o) : status;
}

/* ---- score ---- */

static int write_scores(
	const struct gate_info *i, uint32_t tokens, const float *scores, const char *path)
{
	struct safetensors_tensor *t = calloc(i->layers, sizeof(*t));
	char(*names)[NAME_BYTES] = calloc(i->layers, sizeof(*names));
	size_t n = (size_t)i->heads * tokens;
	char why[WHY_BYTES] = "out of memory";
	int r = -1;

	for (uint32_t l = 0; t && names && l < i->layers; l++) {
		snprintf(names[l], sizeof(names[l]), "score.%u", l);
		t[l] = (struct safetensors_tensor){.name = names[l],
			.dtype = SAFETENSORS_F32,
			.ndim = 2,
			.shape = {i->heads, tokens},
			.data = scores + l * n,
			.bytes = n * sizeof(*scores)};
	}
	if (t && names)
		r = safetensors_write(path, t, i->layers, NULL, 0, why, sizeof(why));
	free(t);
	free(names);
	return r < 0 ? failed(path, why) : CTL_OK;
}

static void print_scores(const struct gate_info *i, uint32_t tokens, const float *scores)
{
	struct json_object *layers = json_object_new_array(), *o;
	size_t n = (size_t)i->heads * tokens;

	for (uint32_t l = 0; l < i->layers; l++, scores += n) {
		double sum = 0, least = n ? scores[0] : 0, most = least;

		for (size_t k = 0; k < n; k++) {
			sum += scores[k];
			least = scores[k] < least ? scores[k] : least;
			most = scores[k] > most ? scores[k] : most;
		}
		if (!ctl_options.json) {
			printf("layer %3u   mean %-10.4g least %-10.4g most %.4g\n", l,
				n ? sum / (double)n : 0, least, most);
			continue;
		}
		o = json_object_new_object();
		json_object_object_add(o, "layer", json_object_new_int64(l));
		json_object_object_add(o, "mean", number_of(n ? sum / (double)n : 0));
		json_object_object_add(o, "least", number_of(least));
		json_object_object_add(o, "most", number_of(most));
		json_object_array_add(layers, o);
	}
	if (!ctl_options.json) {
		json_object_put(layers);
		return;
	}
	o = json_object_new_object();
	json_object_object_add(o, "tokens", json_object_new_int64(tokens));
	json_object_object_add(o, "heads", json_object_new_int64(i->heads));
	json_object_object_add(o, "layers", layers);
	ctl_json(o);
}

static int score(int n, char **files, const struct options *o)
{
	uint32_t tokens = 0;
	float *scores = NULL;
	struct gate *g;
	int status;

	if (n != 2 && n != 3)
		return ctl_usage("gate", "score wants FILE, HIDDEN and perhaps a file to write");
	g = load(files[0]);
	if (!g)
		return CTL_FAILED;
	status = score_file(g, files[1], o, &tokens, &scores);
	if (status == CTL_OK && n == 3)
		status = write_scores(gate_info(g), tokens, scores, files[2]);
	if (status == CTL_OK)
		print_scores(gate_info(g), tokens, scores);
	free(scores);
	gate_free(g);
	return status;
}

static const struct action {
	const char *name, *operands, *prose;
	int (*run)(int n, char **files, const struct options *o);
} actions[] = {
	{"inspect", "FILE", "kind, shape, digest, model, and the scores at the edges", inspect},
	{"convert", "FILE OUT", "writes it in our format: safetensors", convert},
	{"calibrate", "FILE OUT HIDDEN...",
		"the same with edges measured on hidden states, or given", calibrate},
	{"score", "FILE HIDDEN [OUT]", "scores hidden states; OUT: all of them as safetensors",
		score},
};
#define N_ACTIONS (sizeof(actions) / sizeof(actions[0]))

static void print_actions(void)
{
	printf("\nActions:\n");
	for (size_t i = 0; i < N_ACTIONS; i++) {
		char head[64];

		snprintf(head, sizeof(head), "%s %s", actions[i].name, actions[i].operands);
		printf("  %-30s %s\n", head, actions[i].prose);
	}
}

int ctl_gate(int argc, char **argv)
{
	struct options o = {.threads = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN)};
	const struct ctl_flag flags[] = {
		{"model", "NAME", "convert, calibrate: the model the gate belongs to", CTL_TEXT,
			&o.model},
		{"retained", "LIST", "calibrate: shares at the edges (.05,.1,.2,.3,.5,.75)",
			CTL_TEXT, &o.retained},
		{"edges", "LIST", "calibrate: scores at the edges, known already", CTL_TEXT,
			&o.edges},
		{"fast", NULL, "calibrate, score: without bf16 rounding points", CTL_SWITCH,
			&o.fast},
		{"isa", "NAME", "calibrate, score: scalar, avx2, avx512, avx512-bf16, amx-bf16",
			CTL_TEXT, &o.isa},
		{"threads", "N", "calibrate, score: threads (all processors)", CTL_NUMBER,
			&o.threads},
		{0},
	};
	int n, status = ctl_parse(argc, argv, flags, &n);

	if (status == CTL_OK)
		print_actions(); /* help was asked for */
	if (status >= 0)
		return status;
	for (size_t i = 0; n > 0 && i < N_ACTIONS; i++)
		if (!strcmp(argv[1], actions[i].name))
			return actions[i].run(n - 1, argv + 2, &o);
	return ctl_usage(argv[0], "wants an action: inspect, convert, calibrate or score");
}
