/* SPDX-License-Identifier: Apache-2.0 */
/* Samples as the lab model reads them: bytes are tokens, five special ones around them. */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <json-c/json.h>

enum {
	BOS = 256,
	CTX = 257,
	Q = 258,
	A = 259,
	EOS = 260
};
static const char system_text[] = "You read a text and then answer questions about it exactly.\n";

static void put(uint32_t *tokens, uint32_t *n, const char *text)
{
	for (const unsigned char *p = (const unsigned char *)text; *p; p++)
		tokens[(*n)++] = *p;
}

static uint32_t *room(size_t n)
{
	uint32_t *t = malloc(n * sizeof(*t));

	assert(t);
	return t;
}

/* Answers of the task `copy` are cut: what follows them is not asked for. */
static void add_question(struct quality_sample *s, const char *question, const char *answer)
{
	const bool whole = strcmp(s->task, "copy") != 0;
	uint32_t n = 0, *t = room(strlen(question) + strlen(answer) + 3);

	t[n++] = Q;
	put(t, &n, question);
	t[n++] = A;
	put(t, &n, answer);
	if (whole)
		t[n++] = EOS;
	s->question[s->n_questions].tokens = t;
	s->question[s->n_questions].n_tokens = n;
	s->question[s->n_questions++].n_answer = (uint32_t)strlen(answer) + whole;
}

static const char *text_of(struct json_object *o, const char *key)
{
	struct json_object *v;

	return json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_string)
		? json_object_get_string(v)
		: NULL;
}

/* False when the line is not a sample. */
static bool read_sample(const char *line, struct quality_sample *s)
{
	struct json_object *o = json_tokener_parse(line), *qa;
	const char *task = o ? text_of(o, "task") : NULL,
		   *context = o ? text_of(o, "context") : NULL;
	bool good = task && context && json_object_object_get_ex(o, "qa", &qa) &&
		json_object_is_type(qa, json_type_array);

	memset(s, 0, sizeof(*s));
	if (good) {
		s->task = strdup(task);
		s->tokens = room(strlen(system_text) + strlen(context) + 2);
		s->tokens[s->n_tokens++] = BOS;
		put(s->tokens, &s->n_tokens, system_text);
		s->tokens[s->n_tokens++] = CTX;
		put(s->tokens, &s->n_tokens, context);
	}
	for (size_t i = 0; good && i < json_object_array_length(qa) && i < QUALITY_QUESTIONS_MAX;
		i++) {
		struct json_object *pair = json_object_array_get_idx(qa, i);

		good = json_object_is_type(pair, json_type_array) &&
			json_object_array_length(pair) == 2;
		if (good)
			add_question(s, json_object_get_string(json_object_array_get_idx(pair, 0)),
				json_object_get_string(json_object_array_get_idx(pair, 1)));
	}
	json_object_put(o);
	return good;
}

static void sample_fini(struct quality_sample *s)
{
	for (uint32_t j = 0; j < s->n_questions; j++)
		free(s->question[j].tokens);
	free(s->tokens);
	free(s->task);
}

static uint32_t seen_of(const struct quality_sample *s, uint32_t n, const char *task)
{
	uint32_t seen = 0;

	for (uint32_t i = 0; i < n; i++)
		seen += !strcmp(s[i].task, task);
	return seen;
}

struct quality_sample *quality_samples_load(const char *path, uint32_t contexts, uint32_t *ret_n)
{
	struct quality_sample *all = NULL, s;
	uint32_t n = 0, number = 0;
	size_t size = 0;
	char *line = NULL;
	FILE *f = fopen(path, "r");

	if (!f) {
		fprintf(stderr, "bench_quality: cannot open %s; name a file with --samples\n",
			path);
		exit(2);
	}
	while (getline(&line, &size, f) > 0) {
		number++;
		if (!read_sample(line, &s)) {
			fprintf(stderr,
				"bench_quality: %s:%u is not {\"task\", \"context\", \"qa\": "
				"[[question, answer], ...]}\n",
				path, number);
			exit(2);
		}
		if (contexts && seen_of(all, n, s.task) >= contexts) {
			sample_fini(&s);
			continue;
		}
		if ((n & (n - 1)) == 0)
			all = realloc(all, (n ? 2 * n : 1) * sizeof(*all));
		assert(all);
		all[n++] = s;
	}
	free(line);
	fclose(f);
	if (n == 0) {
		fprintf(stderr, "bench_quality: %s holds no samples\n", path);
		exit(2);
	}
	*ret_n = n;
	return all;
}

void quality_samples_free(struct quality_sample *s, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		sample_fini(&s[i]);
	free(s);
}
