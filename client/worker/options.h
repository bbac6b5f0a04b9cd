/* SPDX-License-Identifier: Apache-2.0 */
/*
 * options: what the command line said, from one table that --help is printed from as well.
 * Thread: main. Locks: none. Blocks: never. Errors: -EINVAL with a text on stderr.
 */
#ifndef KVGATE_WORKER_OPTIONS_H
#define KVGATE_WORKER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A prompt may part from another one at the edge of any block, and what it computes there sees the
 * rows before it or, when those are pruned, holes: a sentence that lies across is then no longer
 * read. `bench_evict edges` asks the lab model for such sentences, 22 of which it answers right over
 * whole blocks; with so many tokens protected at the end of every block, at shares of .3 and .1:
 *
 *	0: 10, 10	4: 19, 18	8: 22, 19	16: 22, 18	32: 22, 18
 *
 * 8 of 256 tokens raise what the best two planes hold from 12.7 to 15.5 % of all pairs, and cost no
 * answer at shares of .3 and .2. Computing the last pruned block again instead would take 256 tokens
 * of every prompt and move the hole to the edge before.
 */
#define BLOCK_WINDOW 8

#define TEXTS_MAX 256 /* prompts, questions: of each at most so many */

enum cache_mode {
	CACHE_OPTIONAL,
	CACHE_REQUIRED,
	CACHE_OFF,
};
enum prompt_format {
	FORMAT_LAB,
	FORMAT_BYTES,
	FORMAT_TOKENS,
};

struct texts {
	uint32_t n;
	struct {
		const char *text;
		bool is_file;
	} of[TEXTS_MAX];
};

struct options {
	/* clang-format off */
#define TEXT(field, option, argument, preset, help)  const char *field;
#define COUNT(field, option, argument, preset, help) uint32_t field;
#define REAL(field, option, argument, preset, help)  double field;
#define FLAG(field, option, argument, preset, help)  bool field;
#define LIST(field, option, argument, preset, help)  struct texts field;
#define FILES(field, option, argument, preset, help)
#include "client/worker/options.def"
#undef TEXT
#undef COUNT
#undef REAL
#undef FLAG
#undef LIST
#undef FILES
	/* clang-format on */
	enum cache_mode cache_mode;
	enum prompt_format prompt_format;
	uint32_t kv_dtype;
};

/*
 * 0, 1 when --help was all that was asked for, or -EINVAL. ret holds presets where nothing was
 * said.
 */
int options_parse(int argc, char **argv, struct options *ret);

#endif
