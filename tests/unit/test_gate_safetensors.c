/* SPDX-License-Identifier: Apache-2.0 */
/* safetensors: what is written comes back; every header that is not true is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gates/safetensors.h"

struct bytes {
	uint8_t *p;
	size_t n;
};

/* A file of this header, padded to 8, and n bytes of data. */
static struct bytes file_of(const char *header, size_t data)
{
	size_t length = (strlen(header) + 7) & ~(size_t)7;
	struct bytes b = {.n = 8 + length + data};

	b.p = aligned_alloc(64, (b.n + 63) & ~(size_t)63);
	memset(b.p, ' ', b.n);
	for (unsigned i = 0; i < 8; i++)
		b.p[i] = (uint8_t)((uint64_t)length >> (8 * i));
	memcpy(b.p + 8, header, strlen(header));
	return b;
}

static int try(const char *header, size_t data, char why[300])
{
	struct bytes b = file_of(header, data);
	struct safetensors *st = NULL;
	int r = safetensors_parse(b.p, b.n, &st, why, 300);

	if (r == 0)
		safetensors_close(st);
	free(b.p);
	return r;
}

static void accepted(const char *header, size_t data)
{
	char why[300] = "";

	if (try(header, data, why) != 0)
		fail_msg("refused: %s: %s", header, why);
}

static void refused(const char *header, size_t data, const char *reason)
{
	char why[300] = "";

	if (try(header, data, why) != -EBADMSG)
		fail_msg("not refused: %s", header);
	if (!strstr(why, reason))
		fail_msg("'%s' does not say '%s'", why, reason);
}

#define T(name, dtype, shape, offsets)                                                             \
	"\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets   \
	"]}"

static void test_accepted(void **state)
{
	(void)state;
	accepted("{}", 0);
	accepted("{" T("a", "F32", "2,3", "0,24") "}", 24);
	accepted("{" T("a", "F32", "", "0,4") "}", 4);
	accepted("{" T("a", "U8", "0,7", "0,0") "}", 0);
	accepted("{" T("b", "BF16", "2", "4,8") "," T("a", "I32", "1", "0,4") "}", 8);
	accepted("{\"__metadata__\":{\"k:\\\":\":\"v\"}," T("a:b", "I8", "1", "0,1") "}", 1);
	accepted("{\"__metadata__\":{}}", 0);
	accepted("{" T("empty", "F64", "0", "0,0") "," T("a", "U8", "3", "0,3") "}", 3);
}

static void test_refused(void **state)
{
	(void)state;
	refused("[]", 0, "no JSON header");
	refused("{", 0, "damaged");
	refused("{} {}", 0, "damaged");
	refused("{'a':1}", 0, "damaged");
	refused("{/**/}", 0, "damaged");
	refused("{\"a\":1}", 0, "data_offsets");
	refused("{\"a\":{}}", 0, "data_offsets");
	refused("{" T("a", "F33", "1", "0,4") "}", 4, "unknown dtype F33");
	refused("{" T("a", "F32", "1", "0,8") "}", 8, "8 bytes, its shape says 4");
	refused("{" T("a", "F32", "2", "0,8") "}", 4, "beyond the end");
	refused("{" T("a", "F32", "2", "0,8") "}", 9, "1 bytes follow");
	refused("{" T("a", "F32", "2", "4,12") "}", 12, "leaves a hole");
	refused("{" T("a", "F32", "2", "8,0") "}", 8, "beyond the end");
	refused("{" T("a", "F32", "1", "-4,0") "}", 8, "no data_offsets");
	refused("{" T("a", "F32", "1.0", "0,4") "}", 4, "not made of sizes");
	refused("{" T("a", "F32", "-1", "0,4") "}", 4, "not made of sizes");
	refused("{" T("a", "F32", "4294967296,4294967296", "0,4") "}", 4, "not made of sizes");
	refused("{" T("a", "F64", "2305843009213693952", "0,0") "}", 0, "overflows");
	refused("{" T("a", "U8", "18446744073709551616", "0,0") "}", 0, "not made of sizes");
	refused("{" T("a", "U8", "1", "0,18446744073709551615") "}", 1, "no data_offsets");
	refused("{" T("a", "U8", "1,1,1,1,1,1,1,1,1", "0,1") "}", 1, "9 dimensions");
	refused("{" T("a", "U8", "4", "0,4") "," T("b", "U8", "4", "2,6") "}", 6, "overlaps");
	refused("{" T("a", "U8", "4", "0,4") "," T("b", "U8", "4", "0,4") "}", 4, "overlaps");
	refused("{" T("a", "U8", "4", "0,4") "," T("a", "U8", "4", "0,4") "}", 4, "twice");
	refused("{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"}}", 0, "twice");
	refused("{\"__metadata__\":{\"k\":1}}", 0, "not a string");
	refused("{\"__metadata__\":{\"k\":{\"j\":\"v\"}}}", 0, "no");
	refused("{\"__metadata__\":3}", 0, "not an object");
	refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
		"are wanted");
	refused("{\"a\":{\"dtype\":{\"b\":\"U8\"},\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "");
	refused("{\"a\":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}", 0, "damaged");
	refused("{" T("a", "U8", "1", "0,1") "," T("b", "F32", "1", "1,5") "}", 5, "not aligned");
}

static void test_prefix(void **state)
{
	static const uint8_t huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	struct safetensors *st = NULL;
	char why[300] = "";
	uint8_t *large;

	(void)state;
	for (size_t n = 0; n < sizeof(huge); n++)
		assert_int_equal(safetensors_parse(huge, n, &st, why, sizeof(why)), -EBADMSG);
	large = calloc(1, SAFETENSORS_HEADER_MAX + 16);
	for (unsigned i = 0; i < 8; i++)
		large[i] = (uint8_t)((uint64_t)(SAFETENSORS_HEADER_MAX + 1) >> (8 * i));
	assert_int_equal(
		safetensors_parse(large, SAFETENSORS_HEADER_MAX + 16, &st, why, sizeof(why)),
		-EBADMSG);
	assert_non_null(strstr(why, "at most"));
	free(large);
	assert_null(st);
}

static struct bytes read_lab(const char *name)
{
	char path[512];
	struct bytes b;
	struct stat s;
	FILE *f;

	snprintf(path, sizeof(path), KVG_SOURCE_DIR "/client/demo/lab/%s", name);
	f = fopen(path, "rb");
	assert_true(f && fstat(fileno(f), &s) == 0);
	b.n = (size_t)s.st_size;
	b.p = aligned_alloc(64, (b.n + 63) & ~(size_t)63);
	assert_int_equal(fread(b.p, 1, b.n, f), b.n);
	fclose(f);
	return b;
}

/* Every tensor of a parsed file lies in it, whole. */
static void check_inside(const struct bytes *b, const struct safetensors *st)
{
	for (uint32_t i = 0; i < safetensors_count(st); i++) {
		const struct safetensors_tensor *t = safetensors_at(st, i);
		const uint8_t *p = t->data;

		assert_true(p >= b->p && p <= b->p + b->n && t->bytes <= b->n - (size_t)(p - b->p));
		assert_true((uintptr_t)p % safetensors_dtype_bytes(t->dtype) == 0);
	}
}

/* Parsed from a block of exactly that size, so that a sanitizer sees a read beyond it. */
static int parse_copy(const uint8_t *p, size_t n)
{
	struct bytes copy = {malloc(n ? n : 1), n};
	struct safetensors *st = NULL;
	char why[300] = "";
	int r;

	memcpy(copy.p, p, n);
	r = safetensors_parse(copy.p, n, &st, why, sizeof(why));
	if (r == 0) {
		check_inside(&copy, st);
		safetensors_close(st);
	} else {
		assert_true(r == -EBADMSG && why[0]);
	}
	free(copy.p);
	return r;
}

static void test_damaged(void **state)
{
	struct bytes b = read_lab("gate.safetensors");
	size_t header = b.p[0] | (size_t)b.p[1] << 8;

	(void)state;
	assert_int_equal(parse_copy(b.p, b.n), 0);
	for (size_t n = 0; n < b.n; n += n < 300 ? 1 : 4999)
		assert_int_equal(parse_copy(b.p, n), -EBADMSG);
	for (size_t at = 0; at < header + 8; at += 3) {
		for (unsigned bit = 0; bit < 8; bit += 2) {
			b.p[at] ^= (uint8_t)(1u << bit);
			parse_copy(b.p, header + 8 + 4096);
			parse_copy(b.p, b.n);
			b.p[at] ^= (uint8_t)(1u << bit);
		}
		at += at % 7;
	}
	free(b.p);
}

static void test_round_trip(void **state)
{
	const uint8_t one[3] = {1, 2, 3};
	const uint16_t two[4] = {5, 6, 7, 8};
	const double eight[1] = {2.5};
	const struct safetensors_tensor tensors[] = {
		{"odd \"name\"\\/\n\u00e9", SAFETENSORS_U8, 1, {3}, one, 3},
		{"two", SAFETENSORS_BF16, 2, {2, 2}, two, 8},
		{"eight", SAFETENSORS_F64, 0, {0}, eight, 8},
		{"none", SAFETENSORS_F32, 2, {0, 9}, NULL, 0},
	};
	const struct safetensors_pair metadata[] = {{"key", "value \"quoted\""}, {"b", ""}};
	char path[] = "/tmp/test_gate_safetensors.XXXXXX", why[300] = "";
	int fd = mkstemp(path);
	struct safetensors *st = NULL;
	const struct safetensors_tensor *t;

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(safetensors_write(path, tensors, 4, metadata, 2, why, sizeof(why)), 0);
	assert_int_equal(safetensors_open(path, &st, why, sizeof(why)), 0);
	assert_int_equal(safetensors_count(st), 4);
	for (unsigned i = 0; i < 4; i++) {
		t = safetensors_find(st, tensors[i].name);
		assert_non_null(t);
		assert_int_equal(t->dtype, tensors[i].dtype);
		assert_int_equal(t->ndim, tensors[i].ndim);
		assert_memory_equal(t->shape, tensors[i].shape, sizeof(t->shape));
		assert_int_equal(t->bytes, tensors[i].bytes);
		if (t->bytes)
			assert_memory_equal(t->data, tensors[i].data, t->bytes);
		if (i > 0)
			assert_true(strcmp(safetensors_at(st, i - 1)->name,
					    safetensors_at(st, i)->name) < 0);
	}
	assert_string_equal(safetensors_metadata(st, "key"), "value \"quoted\"");
	assert_string_equal(safetensors_metadata(st, "b"), "");
	assert_null(safetensors_metadata(st, "c"));
	assert_null(safetensors_find(st, "tw"));
	safetensors_close(st);
	unlink(path);
}

static void test_paths(void **state)
{
	struct safetensors *st = NULL;
	char why[300] = "";

	(void)state;
	assert_int_equal(safetensors_open("/tmp/no such file", &st, why, sizeof(why)), -ENOENT);
	assert_true(why[0]);
	assert_int_equal(safetensors_open("/tmp", &st, why, sizeof(why)), -EISDIR);
	assert_int_equal(safetensors_open("/dev/null", &st, why, sizeof(why)), -EBADMSG);
	assert_int_equal(safetensors_write("/no such folder/x", NULL, 0, NULL, 0, why, sizeof(why)),
		-ENOENT);
	assert_null(st);
}

static void test_dtypes(void **state)
{
	(void)state;
	for (int d = SAFETENSORS_BOOL; d <= SAFETENSORS_U64; d++) {
		assert_non_null(safetensors_dtype_name((enum safetensors_dtype)d));
		assert_true(safetensors_dtype_bytes((enum safetensors_dtype)d) > 0);
	}
	assert_null(safetensors_dtype_name((enum safetensors_dtype)0));
	assert_int_equal(safetensors_dtype_bytes((enum safetensors_dtype)77), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accepted),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_prefix),
		cmocka_unit_test(test_damaged),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_paths),
		cmocka_unit_test(test_dtypes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
