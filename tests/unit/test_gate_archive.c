/* SPDX-License-Identifier: Apache-2.0 */
/* torch.save's archives, damaged or made to do harm: each is refused with a reason, and none becomes another gate. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <isa-l/crc.h>
#include <sys/stat.h>

#include "gates/gate_private.h"

#define LAB        KVG_SOURCE_DIR "/client/demo/lab/"
#define LAB_DIGEST "90a744da663f82e38f472bbfb6b5c2ab56ae51d1287165a165099a56407bddcc"

struct bytes {
	uint8_t *p;
	size_t n;
};

static struct bytes read_all(const char *path)
{
	struct bytes b;
	struct stat s;
	FILE *f = fopen(path, "rb");

	assert_true(f && fstat(fileno(f), &s) == 0);
	b.n = (size_t)s.st_size;
	b.p = malloc(b.n);
	assert_int_equal(fread(b.p, 1, b.n, f), b.n);
	fclose(f);
	return b;
}

static void hex(const uint8_t digest[32], char ret[65])
{
	for (unsigned i = 0; i < 32; i++)
		sprintf(ret + 2 * i, "%02x", digest[i]);
}

/* ---- damaged archives ---- */

/* From a block of exactly that size; a gate that comes out is the lab's own. */
static int read_pt(const uint8_t *p, size_t n)
{
	uint8_t *copy = malloc(n ? n : 1);
	struct gate *g = NULL;
	char why[300] = "", digest[65];
	int r;

	memcpy(copy, p, n);
	r = gate_read_pt(copy, n, &g, why, sizeof(why));
	free(copy);
	if (r == 0) {
		hex(gate_info(g)->digest, digest);
		assert_string_equal(digest, LAB_DIGEST);
		gate_free(g);
	} else {
		assert_true(why[0] && !g);
	}
	return r;
}

static void test_cut_short(void **state)
{
	struct bytes b = read_all(LAB "gate.pt");

	(void)state;
	assert_int_equal(read_pt(b.p, b.n), 0);
	for (size_t n = 0; n < b.n; n += n % 1000 < 50 ? 1 : 1231)
		assert_int_equal(read_pt(b.p, n), -EBADMSG);
	for (size_t n = b.n - 300; n < b.n; n++)
		assert_int_equal(read_pt(b.p, n), -EBADMSG);
	free(b.p);
}

/* Weights and description carry CRCs, so a flipped bit there never makes another gate. */
static void test_flipped(void **state)
{
	struct bytes b = read_all(LAB "gate_t211.pt");
	unsigned refusals = 0;

	(void)state;
	for (size_t at = 0; at < b.n; at += at < 200 || at > b.n - 3000 ? 1 : 7907) {
		b.p[at] ^= (uint8_t)(1u << at % 8);
		refusals += read_pt(b.p, b.n) < 0;
		b.p[at] ^= (uint8_t)(1u << at % 8);
	}
	assert_true(refusals > 500);
	free(b.p);
}

/* ---- archives made here ---- */

struct archive {
	uint8_t bytes[1 << 16], directory[1 << 12];
	size_t n, directory_bytes;
	unsigned members;
};

static void put(uint8_t *to, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (uint8_t)(v >> (8 * i));
}

static void add(struct archive *a, const char *name, const void *data, size_t n)
{
	uint8_t *local = a->bytes + a->n, *central = a->directory + a->directory_bytes;
	size_t length = strlen(name);

	memset(local, 0, 30);
	memset(central, 0, 46);
	put(local, 0x04034b50, 4);
	put(local + 26, length, 2);
	memcpy(local + 30, name, length);
	memcpy(local + 30 + length, data, n);
	put(central, 0x02014b50, 4);
	put(central + 16, crc32_gzip_refl(0, data, n), 4);
	put(central + 20, n, 4);
	put(central + 24, n, 4);
	put(central + 28, length, 2);
	put(central + 42, a->n, 4);
	memcpy(central + 46, name, length);
	a->n += 30 + length + n;
	a->directory_bytes += 46 + length;
	a->members++;
}

static void finish(struct archive *a)
{
	uint8_t *end;

	memcpy(a->bytes + a->n, a->directory, a->directory_bytes);
	end = a->bytes + a->n + a->directory_bytes;
	memset(end, 0, 22);
	put(end, 0x06054b50, 4);
	put(end + 8, a->members, 2);
	put(end + 10, a->members, 2);
	put(end + 12, a->directory_bytes, 4);
	put(end + 16, a->n, 4);
	a->n += a->directory_bytes + 22;
}

static void refused_archive(struct archive *a, const char *reason)
{
	char why[300] = "";
	struct gate *g = NULL;

	assert_true(gate_read_pt(a->bytes, a->n, &g, why, sizeof(why)) < 0);
	if (!strstr(why, reason))
		fail_msg("'%s' does not say '%s'", why, reason);
}

static void refused_pickle(const char *pickle, size_t n, const char *reason)
{
	static const uint8_t zeros[64];
	struct archive *a = calloc(1, sizeof(*a));

	add(a, "x/data.pkl", pickle, n);
	add(a, "x/data/0", zeros, sizeof(zeros));
	finish(a);
	refused_archive(a, reason);
	free(a);
}

#define TENSOR(count, size)                                                                        \
	"ctorch._utils\n_rebuild_tensor_v2\n(("                                                    \
	"X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3"                                    \
	"\0\0\0cpuK" count "tQK\0K" size "\205K\1\205tR"
#define refused_text(text, reason) refused_pickle(text, sizeof(text) - 1, reason)

static void test_descriptions(void **state)
{
	(void)state;
	refused_text("\200\2}.", "no list \"module\"");
	refused_text("\200\2K\1.", "no list \"module\"");
	refused_text("\200\2}X\6\0\0\0moduleK\1s.", "no list \"module\"");
	refused_text("\200\2}X\6\0\0\0module]K\1as.", "not a dict");
	refused_text("\200\2}X\6\0\0\0module]s.", "not a gate");
	refused_text("\200\2}X\6\0\0\0module]}X\1\0\0\0bK\1sas.", "not a tensor");
	refused_text("\200\2}X\6\0\0\0module]}K\1" TENSOR("\20", "\20") "sas.", "not a tensor");
	refused_text(
		"\200\2}X\6\0\0\0module]}X\1\0\0\0b" TENSOR("\20", "\20") "sas.", "not a gate");
	refused_text("\200\2}X\6\0\0\0module]}X\1\0\0\0b" TENSOR("\21", "\20") "sas.",
		"larger than the archive's member");
	refused_text("\200\2}X\6\0\0\0module]}(X\1\0\0\0b" TENSOR("\20", "\20") "X\1\0\0\0b" TENSOR(
			     "\20", "\20") "uas.",
		"stands twice");
	refused_text("cos\nsystem\n(X\2\0\0\0idtR.", "os.system");
}

/* 25 layers, each the same 8 KiB: a small file must not become a large gate. */
static void test_shared_bytes(void **state)
{
	static const char start[] = "\200\2}X\6\0\0\0module](", stop[] = "es.";
	static const char layer[] =
		"}X\1\0\0\0bctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\n"
		"FloatStorage\nX\1\0\0\0000X\3\0\0\0cpuM\0\10tQK\0M\0\10\205K\1\205tRs";
	static const uint8_t zeros[8192];
	struct archive *a = calloc(1, sizeof(*a));
	char pickle[8192];
	size_t n = sizeof(start) - 1;

	(void)state;
	memcpy(pickle, start, n);
	for (unsigned i = 0; i < 25; i++, n += sizeof(layer) - 1)
		memcpy(pickle + n, layer, sizeof(layer) - 1);
	memcpy(pickle + n, stop, sizeof(stop) - 1);
	add(a, "x/data.pkl", pickle, n + sizeof(stop) - 1);
	add(a, "x/data/0", zeros, sizeof(zeros));
	finish(a);
	refused_archive(a, "they share bytes");
	free(a);
}

static void test_archives(void **state)
{
	static const char empty[] = "\200\2}.";
	struct archive *a = calloc(1, sizeof(*a));

	(void)state;
	add(a, "x/version", "3\n", 2);
	finish(a);
	refused_archive(a, "without data.pkl");
	memset(a, 0, sizeof(*a));
	add(a, "x/data.pkl", empty, 4);
	add(a, "y/data.pkl", empty, 4);
	finish(a);
	refused_archive(a, "two data.pkl");
	memset(a, 0, sizeof(*a));
	add(a, "x/data.pkl", empty, 4);
	add(a, "x/data.pkl", empty, 4);
	finish(a);
	refused_archive(a, "stands twice");
	memset(a, 0, sizeof(*a));
	add(a, "x/data.pkl", empty, 4);
	add(a, "x/byteorder", "big", 3);
	finish(a);
	refused_archive(a, "big-endian");
	memset(a, 0, sizeof(*a));
	add(a, "x/data.pkl", empty, 4);
	finish(a);
	a->bytes[30 + 10] ^= 1; /* its data */
	refused_archive(a, "CRC");
	free(a);
}

/* Fields of one member's central header. */
static void test_directory(void **state)
{
	static const struct {
		unsigned at, bytes;
		uint32_t value;
		const char *reason;
	} damages[] = {
		{8, 2, 1, "encrypted"},
		{10, 2, 8, "compressed"},
		{20, 4, 3, "compressed"},
		{28, 2, 9, ""},
		{28, 2, 65535, "damaged"},
		{42, 4, 1, "not where"},
		{42, 4, 0x7fffffff, "not where"},
		{42, 4, 0xffffffff, "4 GiB"},
	};
	struct archive *a = calloc(1, sizeof(*a));

	(void)state;
	for (unsigned i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
		memset(a, 0, sizeof(*a));
		add(a, "x/data.pkl", "\200\2}.", 4);
		put(a->directory + damages[i].at, damages[i].value, damages[i].bytes);
		finish(a);
		refused_archive(a, damages[i].reason);
	}
	memset(a, 0, sizeof(*a));
	add(a, "x/data.pkl", "\200\2}.", 4);
	put(a->directory + 20, 0xfffffff0, 4);
	put(a->directory + 24, 0xfffffff0, 4);
	finish(a);
	refused_archive(a, "into the directory");
	free(a);
}

/* A name out of a file comes back as text, whatever is in it. */
static void test_control_characters(void **state)
{
	(void)state;
	refused_text("cos\x1b\nsys\rtem\n(X\2\0\0\0idtR.", "os?.sys?tem");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cut_short),
		cmocka_unit_test(test_flipped),
		cmocka_unit_test(test_descriptions),
		cmocka_unit_test(test_shared_bytes),
		cmocka_unit_test(test_archives),
		cmocka_unit_test(test_directory),
		cmocka_unit_test(test_control_characters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
