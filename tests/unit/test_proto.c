/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvgate.proto to the byte: each message, filled by the rule of tests/ref/proto_golden.py, packs to the
 * committed bytes; and no number that was ever given out changes its meaning (golden_fields.txt).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <cmocka.h>

#include "proto/kvgate.pb-c.h"
#include "proto/kvgate-types.h"
#include "proto/shm.h"
#include "proto/wire.h"
#include "tests/unit/test_proto_golden.h"

/* ---- every message that can be reached from Request and Reply ---- */

#define MESSAGES_MAX 128
static const ProtobufCMessageDescriptor *messages[MESSAGES_MAX];
static const ProtobufCEnumDescriptor *enums[MESSAGES_MAX];
static unsigned n_messages, n_enums;

static void collect_enum(const ProtobufCEnumDescriptor *d)
{
	for (unsigned i = 0; i < n_enums; i++)
		if (enums[i] == d)
			return;
	assert_true(n_enums < MESSAGES_MAX);
	enums[n_enums++] = d;
}

static void collect(const ProtobufCMessageDescriptor *d)
{
	for (unsigned i = 0; i < n_messages; i++)
		if (messages[i] == d)
			return;
	assert_true(n_messages < MESSAGES_MAX);
	messages[n_messages++] = d;
	for (unsigned i = 0; i < d->n_fields; i++)
		if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
			collect(d->fields[i].descriptor);
		else if (d->fields[i].type == PROTOBUF_C_TYPE_ENUM)
			collect_enum(d->fields[i].descriptor);
}

static int setup(void **state)
{
	(void)state;
	collect(&kvgate__v1__request__descriptor);
	collect(&kvgate__v1__reply__descriptor);
	return 0;
}

static const ProtobufCMessageDescriptor *find_message(const char *name)
{
	for (unsigned i = 0; i < n_messages; i++)
		if (!strcmp(messages[i]->short_name, name))
			return messages[i];
	fail_msg("golden_proto.hex names a message %s that is not there", name);
	return NULL;
}

/* ---- examples ---- */

static size_t type_size(ProtobufCType type)
{
	switch (type) {
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static ProtobufCMessage *example(const ProtobufCMessageDescriptor *d, const char *member);

static void fill_value(const ProtobufCFieldDescriptor *f, unsigned i, void *at)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT32:
		*(uint32_t *)at = 300 + f->id + i;
		break;
	case PROTOBUF_C_TYPE_UINT64:
		*(uint64_t *)at = (1ull << 40) + f->id + i;
		break;
	case PROTOBUF_C_TYPE_INT32:
		*(int32_t *)at = -(int32_t)(f->id + i);
		break;
	case PROTOBUF_C_TYPE_BOOL:
	case PROTOBUF_C_TYPE_ENUM:
		*(int *)at = 1;
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		*(float *)at = (float)(f->id + i) + .5f;
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		*(double *)at = f->id + i + .25;
		break;
	case PROTOBUF_C_TYPE_STRING:
		*(char **)at = strdup(f->name);
		break;
	case PROTOBUF_C_TYPE_BYTES: {
		ProtobufCBinaryData *b = at;

		b->len = 3;
		b->data = malloc(3);
		b->data[0] = (uint8_t)f->id;
		b->data[1] = (uint8_t)i;
		b->data[2] = 255;
		break;
	}
	case PROTOBUF_C_TYPE_MESSAGE:
		*(ProtobufCMessage **)at = example(f->descriptor, NULL);
		break;
	default:
		fail_msg("%s has a type that proto_golden.py does not know", f->name);
	}
}

static ProtobufCMessage *example(const ProtobufCMessageDescriptor *d, const char *member)
{
	char *m = calloc(1, d->sizeof_message);

	protobuf_c_message_init(d, m);
	for (unsigned i = 0; i < d->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &d->fields[i];

		if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
			if (!member || strcmp(f->name, member))
				continue;
			*(uint32_t *)(m + f->quantifier_offset) = f->id;
		}
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			char *array = calloc(2, type_size(f->type));

			fill_value(f, 0, array);
			fill_value(f, 1, array + type_size(f->type));
			*(size_t *)(m + f->quantifier_offset) = 2;
			*(void **)(m + f->offset) = array;
		} else {
			fill_value(f, 0, m + f->offset);
		}
	}
	return (ProtobufCMessage *)m;
}

static void expect_packed(
	const char *name, const ProtobufCMessage *m, const uint8_t *bytes, size_t n)
{
	uint8_t *packed = malloc(n + 1);

	if (protobuf_c_message_get_packed_size(m) != n)
		fail_msg("%s: %zu bytes, committed %zu", name,
			protobuf_c_message_get_packed_size(m), n);
	assert_int_equal(protobuf_c_message_pack(m, packed), n);
	if (memcmp(packed, bytes, n))
		fail_msg("%s: other bytes than committed", name);
	free(packed);
}

/* "message.Request.hello": the example of one line. */
static ProtobufCMessage *example_of(const char *line, const ProtobufCMessageDescriptor **ret_d)
{
	char name[64], *member;

	snprintf(name, sizeof(name), "%s", strchr(line, '.') + 1);
	member = strchr(name, '.');
	if (member)
		*member++ = '\0';
	*ret_d = find_message(name);
	return example(*ret_d, member);
}

static bool is_message(const struct golden *g)
{
	return !strncmp(g->name, "message.", 8);
}

static void test_golden_bytes(void **state)
{
	static struct golden g;
	FILE *f = golden_open();
	bool seen[MESSAGES_MAX] = {0};

	(void)state;
	while (golden_next(f, &g)) {
		const ProtobufCMessageDescriptor *d;
		ProtobufCMessage *m;

		if (!is_message(&g))
			continue;
		m = example_of(g.name, &d);
		expect_packed(g.name, m, g.bytes, g.n);
		protobuf_c_message_free_unpacked(m, NULL);

		m = protobuf_c_message_unpack(d, NULL, g.n, g.bytes);
		assert_non_null(m);
		expect_packed(g.name, m, g.bytes, g.n);
		protobuf_c_message_free_unpacked(m, NULL);
		for (unsigned i = 0; i < n_messages; i++)
			seen[i] = seen[i] || messages[i] == d;
	}
	fclose(f);
	for (unsigned i = 0; i < n_messages; i++)
		if (!seen[i])
			fail_msg("no committed bytes for %s", messages[i]->short_name);
}

/* What a newer peer adds is skipped, kept apart, and changes nothing else. */
static void test_unknown_fields(void **state)
{
	static const uint8_t unknown[] = {0xb8, 0x3e, 0x96, 0x01, /* 999: varint 150 */
		0xba, 0x3e, 0x02, 'h', 'i', 0xbd, 0x3e, 1, 2, 3, 4, 0xb9, 0x3e, 1, 2, 3, 4, 5, 6, 7,
		8};
	static struct golden g;
	FILE *f = golden_open();

	(void)state;
	while (golden_next(f, &g)) {
		const ProtobufCMessageDescriptor *d;
		ProtobufCMessage *m;
		size_t n = g.n;

		if (!is_message(&g))
			continue;
		protobuf_c_message_free_unpacked(example_of(g.name, &d), NULL);
		assert_true(n + sizeof(unknown) <= sizeof(g.bytes));
		memcpy(g.bytes + n, unknown, sizeof(unknown));
		m = protobuf_c_message_unpack(d, NULL, n + sizeof(unknown), g.bytes);
		assert_non_null(m);
		assert_int_equal(m->n_unknown_fields, 4);
		assert_true(protobuf_c_message_check(m));
		expect_packed(g.name, m, g.bytes, n + sizeof(unknown));
		protobuf_c_message_free_unpacked(m, NULL);
	}
	fclose(f);
}

/* Cut anywhere, a message is refused or is a shorter message; never read past its end. */
static void test_truncated(void **state)
{
	static struct golden g;
	FILE *f = golden_open();
	unsigned refused = 0;

	(void)state;
	while (golden_next(f, &g)) {
		const ProtobufCMessageDescriptor *d;

		if (!is_message(&g))
			continue;
		protobuf_c_message_free_unpacked(example_of(g.name, &d), NULL);
		for (size_t n = 0; n < g.n; n++) {
			uint8_t *exact = malloc(n ? n : 1);
			ProtobufCMessage *m;

			memcpy(exact, g.bytes, n);
			m = protobuf_c_message_unpack(d, NULL, n, exact);
			if (m)
				protobuf_c_message_free_unpacked(m, NULL);
			else
				refused++;
			free(exact);
		}
	}
	fclose(f);
	assert_true(refused > 1000);
}

/* ---- numbers ---- */

static const char *type_name(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT32:
		return "uint32";
	case PROTOBUF_C_TYPE_UINT64:
		return "uint64";
	case PROTOBUF_C_TYPE_INT32:
		return "int32";
	case PROTOBUF_C_TYPE_BOOL:
		return "bool";
	case PROTOBUF_C_TYPE_FLOAT:
		return "float";
	case PROTOBUF_C_TYPE_DOUBLE:
		return "double";
	case PROTOBUF_C_TYPE_STRING:
		return "string";
	case PROTOBUF_C_TYPE_BYTES:
		return "bytes";
	case PROTOBUF_C_TYPE_ENUM:
		return ((const ProtobufCEnumDescriptor *)f->descriptor)->short_name;
	case PROTOBUF_C_TYPE_MESSAGE:
		return ((const ProtobufCMessageDescriptor *)f->descriptor)->short_name;
	default:
		return "?";
	}
}

struct given {
	char owner[64], name[64], type[64];
	unsigned number;
};
static struct given given[1024];
static unsigned n_given;

static void read_given(void)
{
	FILE *f = fopen(KVG_SOURCE_DIR "/tests/unit/golden_fields.txt", "r");
	char line[256];

	assert_non_null(f);
	n_given = 0;
	while (fgets(line, sizeof(line), f)) {
		struct given *g = &given[n_given];

		if (line[0] == '#')
			continue;
		assert_true(n_given < sizeof(given) / sizeof(given[0]));
		assert_int_equal(
			sscanf(line, "%63s %u %63s %63s", g->owner, &g->number, g->name, g->type),
			4);
		n_given++;
	}
	fclose(f);
}

static void expect_given(const char *owner, unsigned number, const char *name, const char *type)
{
	for (unsigned i = 0; i < n_given; i++)
		if (given[i].number == number && !strcmp(given[i].owner, owner)) {
			if (strcmp(given[i].name, name) || strcmp(given[i].type, type))
				fail_msg("%s %u was %s %s and is now %s %s", owner, number,
					given[i].name, given[i].type, name, type);
			given[i].owner[0] = '\0'; /* seen */
			return;
		}
	fail_msg("%s %u %s %s: new; add the line to golden_fields.txt", owner, number, name, type);
}

/* Numbers that travel outside of messages' own fields, and those that lie in shared memory. */
static void expect_constants(void)
{
	static const struct {
		const char *owner, *name;
		unsigned number;
	} constants[] = {
		{"tier", "NONE", KVG_TIER_NONE},
		{"tier", "HOST", KVG_TIER_HOST},
		{"tier", "GPU", KVG_TIER_GPU},
		{"tier", "DISK", KVG_TIER_DISK},
		{"input", "NONE", STAGE_INPUT_NONE},
		{"input", "SCORES", STAGE_INPUT_SCORES},
		{"input", "HIDDEN", STAGE_INPUT_HIDDEN},
		{"plane_flag", "OPAQUE", KVG_PLANE_OPAQUE},
		{"entry_flag", "LIVE", (unsigned)KVG_ENTRY_LIVE},
		{"score", "PROTECTED", KVG_SCORE_PROTECTED},
		{"version", "shm", KVG_SHM_VERSION},
		{"version", "protocol", KVG_PROTOCOL_VERSION},
	};
	static const struct {
		const char *name, *bytes;
	} magics[] = {{"index", KVG_INDEX_MAGIC}, {"pins", KVG_PIN_MAGIC},
		{"plane", KVG_PLANE_MAGIC}, {"replicas", KVG_REPLICAS_MAGIC}};

	for (unsigned i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
		expect_given(constants[i].owner, constants[i].number, constants[i].name, "number");
	for (unsigned i = 0; i < sizeof(magics) / sizeof(magics[0]); i++)
		expect_given("magic", i, magics[i].name, magics[i].bytes);
	for (unsigned i = 0; i < 256; i++)
		if (dtype_name(i))
			expect_given("dtype", i, dtype_name(i), "number");
}

static void test_numbers_are_never_reused(void **state)
{
	static const struct {
		unsigned number;
		const char *name;
	} codes[] = {
#define KVG_ERROR(number, name, prose) {number, #name},
#include "proto/kvgate-errors.def"
#undef KVG_ERROR
	};

	(void)state;
	read_given();
	for (unsigned i = 0; i < n_messages; i++)
		for (unsigned j = 0; j < messages[i]->n_fields; j++) {
			const ProtobufCFieldDescriptor *f = &messages[i]->fields[j];
			char type[80];

			snprintf(type, sizeof(type), "%s%s",
				f->label == PROTOBUF_C_LABEL_REPEATED ? "repeated-" : "",
				type_name(f));
			expect_given(messages[i]->short_name, f->id, f->name, type);
		}
	for (unsigned i = 0; i < n_enums; i++)
		for (unsigned j = 0; j < enums[i]->n_values; j++)
			expect_given(enums[i]->short_name, (unsigned)enums[i]->values[j].value,
				enums[i]->values[j].name, "value");
	for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		expect_given("error", codes[i].number, codes[i].name, "code");
	expect_constants();
	for (unsigned i = 0; i < n_given; i++)
		if (given[i].owner[0] && strcmp(given[i].type, "reserved"))
			fail_msg("%s %u %s is gone; mark its line reserved", given[i].owner,
				given[i].number, given[i].name);
}

static void test_codes_have_prose(void **state)
{
	(void)state;
	for (int code = 0; strcmp(kvg_code_name(code), "UNKNOWN"); code++)
		assert_true(strlen(kvg_code_prose(code)) >= 4);
	assert_string_equal(kvg_code_name(KVG_CODE_OK), "OK");
	assert_string_equal(kvg_code_name(KVG_CODE_INTERNAL), "INTERNAL");
	assert_string_equal(kvg_code_name(-1), "UNKNOWN");
	assert_string_equal(kvg_code_name(100000), "UNKNOWN");
	assert_true(strlen(kvg_code_prose(100000)) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden_bytes),
		cmocka_unit_test(test_unknown_fields),
		cmocka_unit_test(test_truncated),
		cmocka_unit_test(test_numbers_are_never_reused),
		cmocka_unit_test(test_codes_have_prose),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
