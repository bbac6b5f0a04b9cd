/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report: what an answer was and what it cost, for people or as one JSON object a line.
 * Thread: main. Locks: none. Blocks: on stdout. Errors: -ENOMEM.
 */
#ifndef KVGATE_WORKER_REPORT_H
#define KVGATE_WORKER_REPORT_H

#include "client/worker/generate.h"

/*
 * JSON's "text" is UTF-8 whatever the model says: a byte that is not part of a UTF-8 character, a
 * zero byte and the backslash are written as \xNN; "tokens" has the ids themselves.
 */
int report(const struct engine *e, const struct answer *a);

/* What tokens read as, zero bytes among them; the caller's. NULL: no memory. */
char *report_text(enum prompt_format format, const uint32_t *tokens, uint32_t n, size_t *ret_bytes);
/* The same as JSON has it. */
char *report_escape(const char *text, size_t bytes);
/* --dump-logits: tensors `logits.I` [tokens computed][vocab] of prompt I. */
int report_logits(
	const struct engine *e, const struct answer *a, uint32_t n, char *ret_why, size_t why_size);

#endif
