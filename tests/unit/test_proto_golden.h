/* SPDX-License-Identifier: Apache-2.0 */
/* The committed bytes of golden_proto.hex, by name. Include after cmocka.h. */
#ifndef KVGATE_TESTS_PROTO_GOLDEN_H
#define KVGATE_TESTS_PROTO_GOLDEN_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct golden {
	char name[64];
	uint8_t bytes[4096];
	size_t n;
};

/* The next line; false at the end. */
static inline bool golden_next(FILE *f, struct golden *ret)
{
	static char hex[2 * sizeof(ret->bytes) + 2];

	if (fscanf(f, "%63s %8193s", ret->name, hex) != 2)
		return false;
	ret->n = hex[0] == '-' ? 0 : strlen(hex) / 2;
	assert_true(ret->n <= sizeof(ret->bytes));
	for (size_t i = 0; i < ret->n; i++) {
		unsigned byte;

		assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
		ret->bytes[i] = (uint8_t)byte;
	}
	return true;
}

static inline FILE *golden_open(void)
{
	FILE *f = fopen(KVG_SOURCE_DIR "/tests/unit/golden_proto.hex", "r");

	assert_non_null(f);
	return f;
}

/* The line of that name, which must be there. The next call overwrites it. */
static inline const struct golden *golden(const char *name)
{
	static struct golden g;
	FILE *f = golden_open();

	do
		assert_true(golden_next(f, &g));
	while (strcmp(g.name, name));
	fclose(f);
	return &g;
}

static inline void expect_golden(const char *name, const void *bytes, size_t n)
{
	const struct golden *g = golden(name);

	assert_int_equal(n, g->n);
	assert_memory_equal(bytes, g->bytes, n);
}

#endif
