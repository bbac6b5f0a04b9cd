/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk tier against fio on one file system, --dir DIR, else $TMPDIR, else /tmp. The daemon is measured end to end, through
 * libkvgate: io_uring, O_DIRECT, as many bytes in flight as fio has; what comes up is verified, and so is what fio's
 * processor time is compared by.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/bench_disk.h"

#define CONVERSATION KVG_SOURCE_DIR "/tests/bench/traces/mooncake_conversation.jsonl"

struct arguments {
	const char *dir, *trace, *only;
};

static bool take(const char *name, int argc, char **argv, int *i, const char **ret)
{
	const size_t n = strlen(name);

	if (!strncmp(argv[*i], name, n) && argv[*i][n] == '=') {
		*ret = argv[*i] + n + 1;
		return true;
	}
	if (strcmp(argv[*i], name) != 0 || *i + 1 >= argc)
		return false;
	*ret = argv[++*i];
	return true;
}

int main(int argc, char **argv)
{
	struct arguments a = {.dir = getenv("TMPDIR"), .trace = CONVERSATION};
	struct place p;
	int failed = 0;

	if (!a.dir)
		a.dir = "/tmp";
	for (int i = 1; i < argc; i++)
		if (!take("--dir", argc, argv, &i, &a.dir) &&
			!take("--trace", argc, argv, &i, &a.trace) &&
			!take("--only", argc, argv, &i, &a.only)) {
			fprintf(stderr,
				"usage: bench_disk [--dir DIR] [--trace FILE] [--only "
				"transfer|latency|partial|trace]\n");
			return 2;
		}
	place_init(&p, a.dir);
	if (!a.only || !strcmp(a.only, "transfer"))
		measure_transfer(&p);
	if (!a.only || !strcmp(a.only, "latency"))
		measure_latency(&p);
	if (!a.only || !strcmp(a.only, "partial"))
		measure_partial(&p);
	if (!a.only || !strcmp(a.only, "trace"))
		failed = measure_trace(&p, a.trace);
	place_fini(&p);
	return failed || figure_status();
}
