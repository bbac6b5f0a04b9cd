/* SPDX-License-Identifier: Apache-2.0 */
/* The restricted pickle reader: what torch.save writes is understood, anything else is refused and nothing runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <unistd.h>

#include "gates/pickle.h"

#define STORAGE    "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0007X\6\0\0\0cuda:0K\14tQ"
#define REBUILD    "ctorch._utils\n_rebuild_tensor_v2\n"
#define EMPTY_DICT "ccollections\nOrderedDict\n)R"

static int try(const void *data, size_t n, struct pickle **ret, char why[300])
{
	uint8_t *copy =
		malloc(n ? n : 1); /* exactly as large, so that a sanitizer sees a read beyond it */
	int r;

	memcpy(copy, data, n);
	r = pickle_parse(copy, n, ret, why, 300);
	if (r == 0 && !pickle_root(*ret))
		fail_msg("no root");
	if (r < 0)
		assert_true(why[0]);
	free(copy);
	return r;
}

static void refused_bytes(const void *data, size_t n, const char *reason)
{
	struct pickle *p = NULL;
	char why[300] = "";

	assert_int_equal(try(data, n, &p, why), -EBADMSG);
	assert_null(p);
	if (!strstr(why, reason))
		fail_msg("'%s' does not say '%s'", why, reason);
}

/* A literal, without its terminating zero. */
#define refused(text, reason) refused_bytes(text, sizeof(text) - 1, reason)

static const struct pickle_value *parsed_bytes(const void *data, size_t n, struct pickle **p)
{
	char why[300] = "";

	if (pickle_parse(data, n, p, why, sizeof(why)) != 0)
		fail_msg("refused: %s", why);
	return pickle_root(*p);
}

#define parsed(text, p) parsed_bytes(text, sizeof(text) - 1, p)

static void test_values(void **state)
{
	static const struct {
		const char *text;
		size_t n;
		int64_t number;
	} numbers[] = {
		{"K\377.", 3, 255},
		{"M\377\377.", 4, 65535},
		{"J\377\377\377\377.", 6, -1},
		{"\212\0.", 3, 0},
		{"\212\1\200.", 4, -128},
		{"\212\5\0\0\0\0\1.", 8, 4294967296},
		{"\210.", 2, 1},
		{"\211.", 2, 0},
	};
	struct pickle *p = NULL;
	const struct pickle_value *v;

	(void)state;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		v = parsed_bytes(numbers[i].text, numbers[i].n, &p);
		assert_true(v->kind == PICKLE_NUMBER && v->number == numbers[i].number);
		p = pickle_free(p);
	}
	v = parsed("\200\2}q\0(X\1\0\0\0aK\1X\1\0\0\0aK\2X\1\0\0\0bNu.", &p);
	assert_true(pickle_lookup(v, "a")->number == 2); /* the later of two */
	assert_true(pickle_lookup(v, "b")->kind == PICKLE_NONE);
	assert_null(pickle_lookup(v, "c"));
	assert_null(pickle_lookup(pickle_lookup(v, "a"), "a"));
	p = pickle_free(p);
	v = parsed("](K\1K\2eK\3a.", &p);
	assert_true(v->kind == PICKLE_LIST && v->items.n == 3);
	assert_true(v->items.last->value->number == 3 && !v->items.last->next);
	p = pickle_free(p);
	v = parsed("]q\5h\5a.", &p); /* a list that holds itself */
	assert_true(v->items.first->value == v);
	pickle_free(p);
}

static void test_tensor(void **state)
{
	struct pickle *p = NULL;
	const struct pickle_value *v;

	(void)state;
	v = parsed(REBUILD "(" STORAGE "K\2K\2K\5\206K\5K\1\206\211" EMPTY_DICT "tR.", &p);
	assert_int_equal(v->kind, PICKLE_TENSOR);
	assert_true(v->tensor->offset == 2 && v->tensor->count == 10 && v->tensor->ndim == 2);
	assert_true(v->tensor->shape[0] == 2 && v->tensor->shape[1] == 5);
	assert_true(
		v->tensor->storage->dtype == SAFETENSORS_F32 && v->tensor->storage->count == 12);
	assert_memory_equal(v->tensor->storage->key.s, "7", 1);
	p = pickle_free(p);
	/* strides of dimensions of one do not matter; a parameter is its tensor; a scalar has no dimensions */
	v = parsed("ctorch._utils\n_rebuild_parameter\n(" REBUILD "(" STORAGE
		   "K\0K\1K\3\206K\77K\1\206tR\210" EMPTY_DICT "tR.",
		&p);
	assert_true(v->kind == PICKLE_TENSOR && v->tensor->count == 3);
	p = pickle_free(p);
	v = parsed(REBUILD "(" STORAGE "K\0))tR.", &p);
	assert_true(v->tensor->ndim == 0 && v->tensor->count == 1);
	pickle_free(p);
}

/* NumPy's arrays are stepped over, whatever they are given. */
static void test_opaque(void **state)
{
	struct pickle *p = NULL;
	const struct pickle_value *v;

	(void)state;
	v = parsed("cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\205X\1\0\0\0b\207R("
		   "K\1NtbK\1\206.",
		&p);
	assert_true(v->kind == PICKLE_TUPLE && v->items.first->value->kind == PICKLE_OPAQUE);
	p = pickle_free(p);
	v = parsed("cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\n)RG\0\0\0\0\0\0\0\0\206R.", &p);
	assert_int_equal(v->kind, PICKLE_OPAQUE);
	pickle_free(p);
}

static void test_nothing_runs(void **state)
{
	static const char run[] =
		"cos\nsystem\n(X\57\0\0\0touch /tmp/kvgate_pickle_ran; echo ran; rm -f /x; exittR.";

	(void)state;
	unlink("/tmp/kvgate_pickle_ran");
	refused(run, "os.system");
	refused("c__builtin__\neval\n(X\1\0\0\0001tR.", "__builtin__.eval");
	refused("cbuiltins\ngetattr\n.", "builtins.getattr");
	refused("ctorch\nload\n.", "torch.load");
	refused("ctorch.FloatStorage\nx\n.", "refused");
	refused("X\2\0\0\0osX\6\0\0\0system\223.", "0x93"); /* STACK_GLOBAL */
	refused("(S'id'\ni", "0x53");
	refused("\202\1.", "0x82"); /* EXT1 */
	assert_int_not_equal(access("/tmp/kvgate_pickle_ran", F_OK), 0);
}

static void test_refused(void **state)
{
	(void)state;
	refused("", "bytes");
	refused("\200", "cut short");
	refused("\200\4.", "protocol 4");
	refused(".", "ends with 0 values");
	refused("NN.", "ends with 2 values");
	refused("(.", "ends with 1 values");
	refused("N", "cut short");
	refused("X\377\377\377\377a.", "cut short");
	refused("X\4\0\0\0abc", "cut short");
	refused("\212\11\0\0\0\0\0\0\0\0\0.", "9 bytes");
	refused("K", "cut short");
	refused("0.", "0x30");
	refused("h\0.", "never written");
	refused("q\0.", "stack is empty");
	refused("Nr\377\377\377\377.", "memo");
	refused("Nj\377\377\377\377.", "memo");
	refused("(q\0.", "a mark");
	refused("t.", "no mark");
	refused("Nu.", "no mark");
	refused("N(K\1K\2u.", "nothing to put");
	refused("}(K\1u.", "nothing to put"); /* a key without a value */
	refused("(K\1K\2u.", "nothing to put");
	refused("](K\1K\2u.", "nothing to put");
	refused("}K\1a.", "nothing to put");
	refused("K\1a.", "nothing to put");
	refused("(K\1a.", "nothing to put");
	refused("\205.", "stack is empty");
	refused("N(\206.", "a mark");
	refused("NR.", "stack is empty");
	refused("N)R.", "call of nothing");
	refused("ccollections\nOrderedDict\nNR.", "call of nothing");
	refused("ccollections\nOrderedDict\nN\205R.", "not empty");
	refused("ctorch\nFloatStorage\n)R.", "is called");
	refused("NNb.", "state for something");
	refused("K\1Q.", "not a storage");
	refused("(X\7\0\0\0storageNX\1\0\0\0007X\3\0\0\0cpuK\1tQ.", "not a storage");
	refused("(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0007X\3\0\0\0cpuJ\377\377\377\377tQ"
		".",
		"not a storage");
	refused(REBUILD ")R.", "not a tensor");
	refused(REBUILD "(NK\0))tR.", "not a tensor");
	refused(REBUILD "(" STORAGE "J\377\377\377\377K\1\205K\1\205tR.", "not a tensor");
	refused(REBUILD "(" STORAGE "K\0K\1\205)tR.", "not a tensor");
	refused(REBUILD "(" STORAGE "K\0N\205K\1\205tR.", "not a tensor");
	refused(REBUILD "(" STORAGE "K\0K\15\205K\1\205tR.", "larger than its storage");
	refused(REBUILD "(" STORAGE "K\15))tR.", "larger than its storage");
	refused(REBUILD "(" STORAGE "K\0K\2K\2\206K\1K\2\206tR.", "not contiguous");
	refused(REBUILD "(" STORAGE
			"K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1ttR.",
		"not a tensor");
	refused(REBUILD
		"(" STORAGE
		"K\0\212\10\377\377\377\377\377\377\377\177\212\10\377\377\377\377\377\377\377\177"
		"\206\212\10\377\377\377\377\377\377\377\177K\1\206tR.",
		"overflows");
	refused("ctorch._utils\n_rebuild_parameter\n)R.", "without a tensor");
	refused("ccollections", "without an end");
}

/* Deep and wide, at the largest size that is read: linear time, no recursion, bounded memory. */
static void test_large(void **state)
{
	uint8_t *data = malloc(PICKLE_BYTES_MAX + 1);
	struct pickle *p = NULL;
	char why[300] = "";

	(void)state;
	memset(data, '(', PICKLE_BYTES_MAX);
	assert_int_equal(try(data, PICKLE_BYTES_MAX, &p, why), -EBADMSG);
	memset(data, 0x85, PICKLE_BYTES_MAX); /* a tuple of a tuple of a tuple ... */
	data[0] = 'N';
	data[PICKLE_BYTES_MAX - 1] = '.';
	assert_int_equal(try(data, PICKLE_BYTES_MAX, &p, why), 0);
	p = pickle_free(p);
	memset(data, 'N', PICKLE_BYTES_MAX);
	data[0] = '(';
	data[PICKLE_BYTES_MAX - 2] = 't';
	data[PICKLE_BYTES_MAX - 1] = '.';
	assert_int_equal(try(data, PICKLE_BYTES_MAX, &p, why), 0);
	p = pickle_free(p);
	assert_int_equal(try(data, PICKLE_BYTES_MAX + 1, &p, why), -EBADMSG);
	free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_tensor),
		cmocka_unit_test(test_opaque),
		cmocka_unit_test(test_nothing_runs),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_large),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
