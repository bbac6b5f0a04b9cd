/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both forms say the same: the text, how long its first token took, and what of the prompt came
 * from the cache.
 */
#include "client/worker/report.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

#include "gates/safetensors.h"
#include "gates/why.h"

static char *answer_text(const struct engine *e, const struct answer *a)
{
	char *text = malloc(16 * (size_t)a->n_tokens + 1), *at = text;

	if (!text)
		return NULL;
	*at = '\0';
	for (uint32_t i = 0; i < a->n_tokens; i++) {
		token_text(e->options->prompt_format, a->tokens[i], at);
		at += strlen(at);
	}
	return text;
}

static double tokens_per_s(const struct answer *a)
{
	return a->decode_ms > 0.0 ? (a->n_tokens - 1) * 1e3 / a->decode_ms : 0.0;
}

static void add_number(struct json_object *o, const char *key, double value)
{
	json_object_object_add(o, key, json_object_new_double(value));
}

static void add_count(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static int report_json(const struct engine *e, const struct answer *a, const char *text)
{
	struct json_object *o = json_object_new_object(), *ids = json_object_new_array();

	if (!o || !ids) {
		json_object_put(o);
		json_object_put(ids);
		return -ENOMEM;
	}
	json_object_object_add(o, "text", json_object_new_string(text));
	for (uint32_t i = 0; i < a->n_tokens; i++)
		json_object_array_add(ids, json_object_new_int64(a->tokens[i]));
	json_object_object_add(o, "tokens", ids);
	add_count(o, "prompt_tokens", a->prompt->n);
	add_count(o, "tokens_reused", a->reuse.context.tokens);
	add_number(o, "retention", a->reuse.retention);
	add_count(o, "bytes_mapped", a->reuse.bytes);
	add_count(o, "own_rows", sequence_rows(a->sequence));
	add_number(o, "ttft_ms", a->ttft_ms);
	add_number(o, "tokens_per_s", tokens_per_s(a));
	add_count(o, "blocks_put", a->blocks_put);
	add_count(o, "bytes_put", a->bytes_put);
	add_number(o, "put_ms", a->put_ms);
	json_object_object_add(o, "cache", json_object_new_boolean(e->store != NULL));
	puts(json_object_to_json_string_ext(
		o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
	return 0;
}

int report(const struct engine *e, const struct answer *a)
{
	char *text = answer_text(e, a);
	int r = 0;

	if (!text)
		return -ENOMEM;
	if (e->options->json) {
		r = report_json(e, a, text);
	} else {
		printf("%s\n", text);
		fprintf(stderr,
			"  first token after %.1f ms, then %.0f tokens/s; %u of %u tokens reused, "
			"retention %.3f, %.1f MiB mapped; %u blocks shared\n",
			a->ttft_ms, tokens_per_s(a), a->reuse.context.tokens, a->prompt->n,
			a->reuse.retention, (double)a->reuse.bytes / (1 << 20), a->blocks_put);
	}
	fflush(stdout);
	free(text);
	return r;
}

int report_logits(
	const struct engine *e, const struct answer *a, uint32_t n, char *ret_why, size_t why_size)
{
	struct safetensors_tensor *t = calloc(n, sizeof(*t));
	char(*name)[32] = calloc(n, sizeof(*name));
	int r;

	if (!t || !name) {
		free(t);
		free(name);
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	}
	for (uint32_t i = 0; i < n; i++) {
		snprintf(name[i], sizeof(name[i]), "logits.%u", i);
		t[i] = (struct safetensors_tensor){.name = name[i],
			.dtype = SAFETENSORS_F32,
			.ndim = 2,
			.shape = {a[i].n_logits, e->model->config.vocab},
			.data = a[i].logits,
			.bytes = (uint64_t)a[i].n_logits * e->model->config.vocab * sizeof(float)};
	}
	r = safetensors_write(e->options->dump_logits, t, n, NULL, 0, ret_why, why_size);
	free(t);
	free(name);
	return r;
}
