/* SPDX-License-Identifier: Apache-2.0 */
/* Samples as the lab model reads them: bytes are tokens, five special ones around them. */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <stdarg.h>
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
#define TEXT_MAX (1 << 20) /* bytes: prompts that no engine reads are a mistake */

static const char system_text[] = "You read a text and then answer questions about it exactly.\n";

/* Where in the file, for what is wrong with it. */
struct place {
	const char *path;
	uint32_t line;
};

static void refuse(const struct place *at, const char *what, ...)
	__attribute__((noreturn, format(printf, 2, 3)));
static void refuse(const struct place *at, const char *what, ...)
{
	va_list ap;

	fprintf(stderr, "bench_quality: %s:%u: ", at->path, at->line);
	va_start(ap, what);
	vfprintf(stderr, what, ap);
	va_end(ap);
	fprintf(stderr, "; a line is {\"task\", \"context\", \"qa\": [[question, answer], ...]}\n");
	exit(2);
}

struct text {
	const char *bytes;
	size_t n;
};

/* Any bytes, NUL among them. */
static void put(uint32_t *tokens, uint32_t *n, struct text text)
{
	for (size_t i = 0; i < text.n; i++)
		tokens[(*n)++] = (unsigned char)text.bytes[i];
}

static uint32_t *room(size_t n)
{
	uint32_t *t = malloc(n * sizeof(*t));

	assert(t);
	return t;
}

/* Answers of the task `copy` are cut: what follows them is not asked for. */
static void add_question(struct quality_sample *s, struct text question, struct text answer)
{
	const bool whole = strcmp(s->task, "copy") != 0;
	uint32_t n = 0, *t = room(question.n + answer.n + 3);

	t[n++] = Q;
	put(t, &n, question);
	t[n++] = A;
	put(t, &n, answer);
	if (whole)
		t[n++] = EOS;
	s->question[s->n_questions].tokens = t;
	s->question[s->n_questions].n_tokens = n;
	s->question[s->n_questions++].n_answer = (uint32_t)answer.n + whole;
}

/* An empty text asks for nothing and answers nothing. */
static struct text text_of(const struct place *at, struct json_object *v, const char *field)
{
	struct text t = {NULL, 0};

	if (!json_object_is_type(v, json_type_string))
		refuse(at, "%s is %s, not a text", field,
			v ? json_type_to_name(json_object_get_type(v)) : "null or missing");
	t.bytes = json_object_get_string(v);
	t.n = (size_t)json_object_get_string_len(v);
	if (t.n == 0)
		refuse(at, "%s is empty", field);
	if (t.n > TEXT_MAX)
		refuse(at, "%s has %zu bytes, more than %d", field, t.n, TEXT_MAX);
	return t;
}

static void read_questions(const struct place *at, struct json_object *qa, struct quality_sample *s)
{
	const size_t n = json_object_is_type(qa, json_type_array) ? json_object_array_length(qa)
								  : 0;

	if (n == 0)
		refuse(at, "qa holds no questions");
	s->question = calloc(n, sizeof(*s->question));
	assert(s->question);
	for (size_t i = 0; i < n; i++) {
		struct json_object *pair = json_object_array_get_idx(qa, i);
		char question[48], answer[48];

		if (!json_object_is_type(pair, json_type_array) ||
			json_object_array_length(pair) != 2)
			refuse(at, "qa[%zu] is not a question and an answer", i);
		snprintf(question, sizeof(question), "qa[%zu][0], the question,", i);
		snprintf(answer, sizeof(answer), "qa[%zu][1], the answer,", i);
		add_question(s, text_of(at, json_object_array_get_idx(pair, 0), question),
			text_of(at, json_object_array_get_idx(pair, 1), answer));
	}
}

static void read_sample(const struct place *at, const char *line, struct quality_sample *s)
{
	static const struct text before = {system_text, sizeof(system_text) - 1};
	struct json_object *o = json_tokener_parse(line);
	struct text context;

	if (!json_object_is_type(o, json_type_object))
		refuse(at, "this is no JSON object");
	memset(s, 0, sizeof(*s));
	s->task = strdup(text_of(at, json_object_object_get(o, "task"), "task").bytes);
	context = text_of(at, json_object_object_get(o, "context"), "context");
	s->tokens = room(before.n + context.n + 2);
	assert(s->task);
	s->tokens[s->n_tokens++] = BOS;
	put(s->tokens, &s->n_tokens, before);
	s->tokens[s->n_tokens++] = CTX;
	put(s->tokens, &s->n_tokens, context);
	read_questions(at, json_object_object_get(o, "qa"), s);
	json_object_put(o);
}

static bool blank(const char *line)
{
	return line[strspn(line, " \t\r\n")] == 0;
}

static void sample_fini(struct quality_sample *s)
{
	for (uint32_t j = 0; j < s->n_questions; j++)
		free(s->question[j].tokens);
	free(s->question);
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
	struct place at = {.path = path};
	uint32_t n = 0;
	size_t size = 0;
	char *line = NULL;
	FILE *f = fopen(path, "r");

	if (!f) {
		fprintf(stderr, "bench_quality: cannot open %s; name a file with --samples\n",
			path);
		exit(2);
	}
	while (getline(&line, &size, f) > 0) {
		at.line++;
		if (blank(line))
			continue;
		read_sample(&at, line, &s);
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
