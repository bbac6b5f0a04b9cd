/* SPDX-License-Identifier: Apache-2.0 */
/*
 * options: what the command line said, from one table that --help is printed from as well.
 * Thread: main. Locks: none. Blocks: never. Errors: -EINVAL with a text on stderr.
 */
#ifndef KVGATE_WORKER_OPTIONS_H
#define KVGATE_WORKER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

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
