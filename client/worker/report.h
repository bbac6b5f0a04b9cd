/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report: what an answer was and what it cost, for people or as one JSON object a line.
 * Thread: main. Locks: none. Blocks: on stdout. Errors: -ENOMEM.
 */
#ifndef KVGATE_WORKER_REPORT_H
#define KVGATE_WORKER_REPORT_H

#include "client/worker/generate.h"

int report(const struct engine *e, const struct answer *a);
/* --dump-logits: tensors `logits.I` [tokens computed][vocab] of prompt I. */
int report_logits(
	const struct engine *e, const struct answer *a, uint32_t n, char *ret_why, size_t why_size);

#endif
