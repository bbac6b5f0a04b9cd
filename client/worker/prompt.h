/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prompt: texts to token ids and back. There is no tokenizer here: a token is a byte, or comes as
 * a number.
 * Thread: main. Locks: none. Blocks: on files. Errors: negative errno and a text.
 *
 * The lab model's form: <bos> SYS <ctx> context <q> question <a> answer <eos>.
 */
#ifndef KVGATE_WORKER_PROMPT_H
#define KVGATE_WORKER_PROMPT_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/worker/options.h"

enum lab_token {
	LAB_BOS = 256,
	LAB_CTX,
	LAB_QUESTION,
	LAB_ANSWER,
	LAB_EOS,
};
#define LAB_SYSTEM  "You read a text and then answer questions about it exactly.\n"
#define LAB_PROTECT 62u /* <bos>, SYS, <ctx> */

struct prompt {
	uint32_t *tokens;
	uint32_t n;
	uint32_t protect;     /* leading tokens that are never evicted */
	uint32_t context_end; /* the context is protect .. context_end - 1; a question may follow */
	bool marked;          /* the format says where it ends; else it is all of the prompt */
};

int prompts_read(const struct options *o, uint32_t vocab, struct prompt **ret, uint32_t *ret_n,
	char *ret_why, size_t why_size);
void prompts_free(struct prompt *p, uint32_t n);

/* <bos> SYS <ctx> context; then, question not NULL, <q> question <a>. -ENOMEM. */
int prompt_lab(const char *context, size_t context_bytes, const char *question, struct prompt *ret);

#define TOKEN_TEXT_MAX 16
/* What a token reads as: a byte, "<eos>", or " 123". ret: [TOKEN_TEXT_MAX]. Returns its bytes. */
uint32_t token_text(enum prompt_format format, uint32_t token, char *ret);

#endif
