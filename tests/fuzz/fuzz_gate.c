/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Official gate files, three ways by the first byte, so that the zip's CRCs do not keep the fuzzer from what
 * lies behind them: the archive as it comes, a pickle alone, and an archive built around a pickle.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <isa-l/crc.h>

#include "gates/gate_private.h"
#include "gates/pickle.h"

#define STORAGES 3u
#define STORAGE  4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void read_archive(const uint8_t *data, size_t n)
{
	struct gate *g = NULL;
	char why[300];

	if (gate_read_pt(data, n, &g, why, sizeof(why)) == 0)
		gate_free(g);
}

static void read_pickle(const uint8_t *data, size_t n)
{
	struct pickle *p = NULL;
	char why[300];

	if (pickle_parse(data, n, &p, why, sizeof(why)) == 0) {
		pickle_lookup(pickle_root(p), "module");
		pickle_free(p);
	}
}

static void put(uint8_t *to, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (uint8_t)(v >> (8 * i));
}

/* One member at *at, its central header at *central; names have ten bytes. */
static void add(uint8_t *base, size_t *at, uint8_t **central, const char *name, const uint8_t *data,
	size_t n)
{
	memset(base + *at, 0, 30);
	put(base + *at, 0x04034b50, 4);
	put(base + *at + 26, 10, 2);
	memcpy(base + *at + 30, name, 10);
	memcpy(base + *at + 40, data, n);
	memset(*central, 0, 46);
	put(*central, 0x02014b50, 4);
	put(*central + 16, crc32_gzip_refl(0, data, n), 4);
	put(*central + 20, n, 4);
	put(*central + 24, n, 4);
	put(*central + 28, 10, 2);
	put(*central + 42, *at, 4);
	memcpy(*central + 46, name, 10);
	*at += 40 + n;
	*central += 56;
}

static void read_built(const uint8_t *data, size_t n)
{
	static const uint8_t zeros[STORAGE];
	size_t members = 40 + n + STORAGES * (40 + STORAGE), at = 0;
	size_t total = members + (1 + STORAGES) * 56 + 22;
	uint8_t *archive = calloc(1, total), *central = archive + members;
	char name[] = "x/data/000";

	if (!archive)
		return;
	add(archive, &at, &central, "x/data.pkl", data, n);
	for (unsigned i = 0; i < STORAGES; i++) {
		name[7] = (char)('0' + i);
		add(archive, &at, &central, name, zeros, STORAGE);
	}
	put(central, 0x06054b50, 4);
	put(central + 8, 1 + STORAGES, 2);
	put(central + 10, 1 + STORAGES, 2);
	put(central + 12, (1 + STORAGES) * 56, 4);
	put(central + 16, members, 4);
	read_archive(archive, total);
	free(archive);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	if (n == 0)
		return 0;
	switch (data[0] % 3) {
	case 0:
		read_pickle(data + 1, n - 1);
		break;
	case 1:
		read_built(data + 1, n - 1);
		break;
	case 2:
		read_archive(data + 1, n - 1);
		break;
	}
	return 0;
}
