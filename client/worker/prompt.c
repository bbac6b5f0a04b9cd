/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A prompt is built by appending to an array that was allocated for the longest it can get.
 */
#include "client/worker/prompt.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gates/why.h"

#define PROMPT_BYTES_MAX (64u << 20) /* more than any context window */

static void append_bytes(struct prompt *p, const char *text, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		p->tokens[p->n++] = (uint8_t)text[i];
}

int prompt_lab(const char *context, size_t context_bytes, const char *question, struct prompt *ret)
{
	const size_t question_bytes = question ? strlen(question) : 0;
	struct prompt p = {0};

	p.tokens = malloc((LAB_PROTECT + context_bytes + question_bytes + 2) * sizeof(*p.tokens));
	if (!p.tokens)
		return -ENOMEM;
	p.tokens[p.n++] = LAB_BOS;
	append_bytes(&p, LAB_SYSTEM, sizeof(LAB_SYSTEM) - 1);
	p.tokens[p.n++] = LAB_CTX;
	p.protect = p.n;
	append_bytes(&p, context, context_bytes);
	p.context_end = p.n;
	p.marked = true;
	if (question) {
		p.tokens[p.n++] = LAB_QUESTION;
		append_bytes(&p, question, question_bytes);
		p.tokens[p.n++] = LAB_ANSWER;
	}
	*ret = p;
	return 0;
}

static int prompt_bytes(const char *text, size_t bytes, struct prompt *ret)
{
	struct prompt p = {.tokens = malloc((bytes + 1) * sizeof(*p.tokens))};

	if (!p.tokens)
		return -ENOMEM;
	append_bytes(&p, text, bytes);
	p.context_end = p.n;
	*ret = p;
	return 0;
}

/* Decimal digits and no sign: strtoul() alone would take -1, or wrap around. */
static bool parse_id(const char *text, char **ret_end, uint32_t *ret)
{
	unsigned long id;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	id = strtoul(text, ret_end, 10);
	*ret = (uint32_t)id;
	return errno == 0 && id < UINT32_MAX;
}

/* One line of ids. */
static int prompt_ids(const char *line, struct prompt *ret)
{
	struct prompt p = {.tokens = malloc((strlen(line) / 2 + 1) * sizeof(*p.tokens))};
	char *end;

	if (!p.tokens)
		return -ENOMEM;
	for (;; line = end) {
		line += strspn(line, " \t\r\n,");
		if (!*line)
			break;
		if (!parse_id(line, &end, &p.tokens[p.n++])) {
			free(p.tokens);
			return -EINVAL;
		}
	}
	p.context_end = p.n;
	*ret = p;
	return 0;
}

/* The whole file, with a zero behind it. */
static int read_file(const char *path, char **ret, size_t *ret_bytes)
{
	FILE *f = fopen(path, "re");
	size_t bytes = 0, room = 4096;
	char *text = NULL;
	int r = f ? 0 : -errno;

	while (r == 0) {
		char *more = realloc(text, room + 1);

		if (!more) {
			r = -ENOMEM;
			break;
		}
		text = more;
		bytes += fread(text + bytes, 1, room - bytes, f);
		if (ferror(f))
			r = -EIO;
		else if (bytes < room)
			break;
		else if ((room *= 2) > PROMPT_BYTES_MAX)
			r = -EFBIG;
	}
	if (f)
		fclose(f);
	if (r < 0) {
		free(text);
		return r;
	}
	text[bytes] = '\0';
	*ret = text;
	*ret_bytes = bytes;
	return 0;
}

struct reading {
	const struct options *options;
	struct prompt *prompt;
	uint32_t n, room;
};

static int add(struct reading *r, struct prompt *p)
{
	if (r->n == r->room) {
		const uint32_t room = r->room ? 2 * r->room : 16;
		struct prompt *more = realloc(r->prompt, room * sizeof(*more));

		if (!more) {
			free(p->tokens);
			return -ENOMEM;
		}
		r->prompt = more;
		r->room = room;
	}
	r->prompt[r->n++] = *p;
	return 0;
}

static int add_text(struct reading *r, const char *text, size_t bytes)
{
	const struct texts *questions = &r->options->questions;
	struct prompt p;
	int e;

	if (r->options->prompt_format == FORMAT_BYTES) {
		e = prompt_bytes(text, bytes, &p);
		return e < 0 ? e : add(r, &p);
	}
	for (uint32_t i = 0; i < (questions->n ? questions->n : 1); i++) {
		e = prompt_lab(text, bytes, questions->n ? questions->of[i].text : NULL, &p);
		if (e == 0)
			e = add(r, &p);
		if (e < 0)
			return e;
	}
	return 0;
}

static int add_lines(struct reading *r, char *text)
{
	for (char *save, *line = strtok_r(text, "\n", &save); line;
		line = strtok_r(NULL, "\n", &save)) {
		struct prompt p;
		int e = prompt_ids(line, &p);

		if (e == 0)
			e = add(r, &p);
		if (e < 0)
			return e;
	}
	return 0;
}

static int add_file(struct reading *r, const char *path)
{
	size_t bytes;
	char *text;
	int e = read_file(path, &text, &bytes);

	if (e < 0)
		return e;
	e = r->options->prompt_format == FORMAT_TOKENS ? add_lines(r, text)
						       : add_text(r, text, bytes);
	free(text);
	return e;
}

static int check(
	struct prompt *p, const struct options *o, uint32_t vocab, char *ret_why, size_t why_size)
{
	if (o->protect != UINT32_MAX)
		p->protect = o->protect < p->context_end ? o->protect : p->context_end;
	if (p->n == 0)
		return why(ret_why, why_size, -EINVAL, "an empty prompt");
	for (uint32_t i = 0; i < p->n; i++)
		if (p->tokens[i] >= vocab)
			return why(ret_why, why_size, -EINVAL,
				"token %u: the model's vocabulary has %u", p->tokens[i], vocab);
	return 0;
}

int prompts_read(const struct options *o, uint32_t vocab, struct prompt **ret, uint32_t *ret_n,
	char *ret_why, size_t why_size)
{
	struct reading r = {.options = o};
	const char *what = o->tokens;
	int e = 0;

	if (o->prompt_format == FORMAT_TOKENS)
		e = add_file(&r, o->tokens);
	for (uint32_t i = 0; e == 0 && i < o->prompts.n; i++) {
		what = o->prompts.of[i].text;
		e = o->prompts.of[i].is_file ? add_file(&r, what)
					     : add_text(&r, what, strlen(what));
	}
	if (e < 0)
		e = why(ret_why, why_size, e, "%.200s: %s", what,
			e == -EINVAL ? "token ids are whole numbers from 0 to 4294967294"
				     : strerror(-e));
	if (e == 0 && r.n == 0)
		e = why(ret_why, why_size, -EINVAL, "%.200s: no prompt in it", what);
	for (uint32_t i = 0; e == 0 && i < r.n; i++)
		e = check(&r.prompt[i], o, vocab, ret_why, why_size);
	if (e < 0) {
		prompts_free(r.prompt, r.n);
		return e;
	}
	*ret = r.prompt;
	*ret_n = r.n;
	return 0;
}

void prompts_free(struct prompt *p, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		free(p[i].tokens);
	free(p);
}

uint32_t token_text(enum prompt_format format, uint32_t token, char *ret)
{
	static const char *const special[] = {"<bos>", "<ctx>", "<q>", "<a>", "<eos>"};

	if (format == FORMAT_TOKENS || token > LAB_EOS)
		return (uint32_t)snprintf(ret, TOKEN_TEXT_MAX, " %u", token);
	if (token >= LAB_BOS)
		return (uint32_t)snprintf(ret, TOKEN_TEXT_MAX, "%s", special[token - LAB_BOS]);
	*ret = (char)token;
	return 1;
}
