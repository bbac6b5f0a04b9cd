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

/* Bytes of the UTF-8 character at p; 0: there is none. Overlong forms and surrogates are none. */
static size_t utf8_bytes(const uint8_t *p, size_t left)
{
	const size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;

	if (n == 0 || n > left || p[0] > 0xf4)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
		(p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	return n;
}

char *report_text(enum prompt_format format, const uint32_t *tokens, uint32_t n, size_t *ret_bytes)
{
	char *text = malloc(TOKEN_TEXT_MAX * (size_t)n + 1);
	size_t at = 0;

	if (!text)
		return NULL;
	for (uint32_t i = 0; i < n; i++)
		at += token_text(format, tokens[i], text + at);
	text[at] = '\0';
	*ret_bytes = at;
	return text;
}

char *report_escape(const char *text, size_t bytes)
{
	const uint8_t *p = (const uint8_t *)text;
	char *to = malloc(4 * bytes + 1);
	size_t at = 0, n;

	if (!to)
		return NULL;
	for (size_t i = 0; i < bytes; i += n ? n : 1) {
		n = p[i] == 0 || p[i] == '\\' ? 0 : utf8_bytes(p + i, bytes - i);
		if (n == 0)
			at += (size_t)sprintf(to + at, "\\x%02x", p[i]);
		memcpy(to + at, p + i, n);
		at += n;
	}
	to[at] = '\0';
	return to;
}

/*
 * The share of rows that is attended to: of the cached context, or, where the worker evicts its
 * own, of all that were computed.
 */
static double retention(const struct answer *a)
{
	const struct sequence *s = a->sequence;

	if (a->reuse.context.tokens)
		return a->reuse.retention;
	return (double)sequence_rows(s) / ((double)s->position * model_runs(s->config));
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
	add_number(o, "retention", retention(a));
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

static int report_line(const struct answer *a, const char *text, size_t bytes)
{
	fwrite(text, 1, bytes, stdout); /* a byte that is 0 is written, too */
	putchar('\n');
	fprintf(stderr,
		"  first token after %.1f ms, then %.0f tokens/s; %u of %u tokens reused, "
		"retention %.3f, %.1f MiB mapped; %u blocks shared\n",
		a->ttft_ms, tokens_per_s(a), a->reuse.context.tokens, a->prompt->n, retention(a),
		(double)a->reuse.bytes / (1 << 20), a->blocks_put);
	return 0;
}

int report(const struct engine *e, const struct answer *a)
{
	size_t bytes;
	char *text = report_text(e->options->prompt_format, a->tokens, a->n_tokens, &bytes);
	char *escaped = text ? report_escape(text, bytes) : NULL;
	int r = -ENOMEM;

	if (escaped)
		r = e->options->json ? report_json(e, a, escaped) : report_line(a, text, bytes);
	fflush(stdout);
	free(text);
	free(escaped);
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
