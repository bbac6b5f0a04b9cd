/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/options.h"

#define GIB (1ull << 30)

static char why[600];

/* The file's text on a machine of 64 GiB; NULL when refused, and `why` says so. */
static struct options *parse(const char *text)
{
	struct options *o;
	FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");

	assert_non_null(f);
	assert_int_equal(options_new(&o), 0);
	o->machine_bytes = 64 * GIB;
	why[0] = '\0';
	if (options_read(o, f, "t.conf", why, sizeof(why)) < 0 ||
		options_check(o, why, sizeof(why)) < 0)
		o = options_free(o);
	fclose(f);
	return o;
}

static void refuse(const char *text, const char *says)
{
	if (parse(text) || !strstr(why, says))
		fail_msg("`%s`: said `%s`, not `%s`", text, why, says);
}

static void test_refused(void **state)
{
	(void)state;
	refuse("[memory]\nhost_bites = 1GiB\n", "t.conf:2: host_bites is not a parameter");
	refuse("[memory]\n\n# c\nhost_bytes = banana\n",
		"t.conf:4: host_bytes = banana: use a size");
	refuse("[memory]\nhost_bytes = 1\n",
		"out of range: use 1MiB to 100% (of this machine's 64GiB)");
	refuse("[memory]\nhost_bytes = 65GiB\n", "out of range");
	refuse("[memory]\nhost_bytes = 99999999999999999999999999TiB\n", "out of range");
	refuse("[memory]\nhost_bytes = -1GiB\n", "use a size");
	refuse("[memory]\nhost_bytes = 0x10\n", "use a size");
	refuse("[memory]\nhost_bytes = 1e9\n", "use a size");
	refuse("[memory]\nhost_bytes = nan\n", "use a size");
	refuse("[memory]\nhost_bytes = 1GiB GiB\n", "use a size");
	refuse("[memory]\nhost_bytes = 0.3B\n", "use a size");
	refuse("[memory]\nhost_bytes =\n", "use a size");
	refuse("[memory]\nsegment_bytes = 5000\n", "segment_bytes");
	refuse("[memory]\nsegment_bytes = 3MiB\n", "power of two");
	refuse("[memory]\nindex_slots = 0\n", "index_slots");
	refuse("[memory]\nindex_slots = 12.5\n", "whole number");
	refuse("[memory]\nfloor = 1.5\n", "floor");
	refuse("[memory]\nfloor = 0\n", "floor");
	refuse("[memory]\nprefault = maybe\n", "yes or no");
	refuse("[memory]\nlow_watermark = .96\n",
		"low_watermark = 0.96 is above high_watermark = 0.95");
	refuse("[memory]\ngate_arithmetic = sloppy\n", "one of: exact fast");
	refuse("[memory]\nsocket = x\n", "socket belongs under [daemon]");
	refuse("[memory]\nfloor = .5\nfloor = .6\n", "t.conf:3: floor is given twice");
	refuse("[daemon]\nsocket_mode = 0999\n", "octal");
	refuse("[daemon]\nsocket_mode = 7777\n", "out of range");
	refuse("[daemon]\nsocket =\n", "socket has 0 characters");
	refuse("[nonsense]\na = 1\n", "t.conf:1: no section [nonsense]");
	refuse("[nonsense]\n", "no section [nonsense]");
	refuse("no section at all", "t.conf:1: neither");
	refuse("[memory\nfloor = 1\n", "t.conf:1");
	refuse("[tenant a/b]\n", "a name has 1 to 63");
	refuse("[tenant ]\n", "a name has");
	refuse("[tenant a]\ncolour = red\n", "colour is not a parameter of [tenant NAME]");
	refuse("[tenant a]\nuids = nobody-of-that-name\n", "no such user");
	refuse("[tenant a]\nuids = 4294967295\n", "no such user");
	refuse("[tenant a]\ngids = 12, x-no-group\n", "no such group");
	refuse("[tenant a]\nsessions = 2\n[tenant b]\n[tenant a]\nsessions = 3\n",
		"t.conf:5: sessions is given twice");
	refuse("[tenant a]\nuids = 1,2\n[tenant b]\nuids = 3,2\n",
		"[tenant a] and [tenant b] both have user 2");
	refuse("[tenant a]\ngids = 7\n[tenant b]\nuids = 7\n[tenant c]\ngids = 7\n",
		"[tenant a] and [tenant c] both have group 7");
	/* the name under which a user without a section goes belongs to that user */
	refuse("[tenant uid-61002]\nuids = 61001\n", "[tenant uid-61002] has user 61001");
	refuse("[tenant uid-5]\nuids = 5 6\n", "[tenant uid-5] has user 6: only user 5");
	refuse("[tenant uid-5]\nuids = 5\ngids = 5\n", "[tenant uid-5] has group 5");
	refuse("[tenant uid-05]\nuids = 5\n", "[tenant uid-05] has user 5");
	refuse("[tenant a]\nhost_bytes = 1TiB\n", "host_bytes");
	refuse("[gate g]\n", "[gate g] has no file");
	refuse("[gate g]\npath = x\n", "path is not a parameter of [gate NAME]");
	refuse("[model m]\ngate = g\n", "there is no [gate g]");
	refuse("[model m]\nfloor = 2\n", "floor");
}

static void test_long_line(void **state)
{
	char text[2000] = "[tenant a]\nuids = ";

	(void)state;
	for (int i = 0; i < 200; i++)
		strcat(text, "1000, ");
	refuse(text, "t.conf:2: the line is longer than");
}

static void test_values(void **state)
{
	struct options *o = parse(
		"\xef\xbb\xbf; comment\n[memory]\nhost_bytes = 25%  # a quarter\nfloor=30%\n"
		"segment_bytes = 64 MiB ; inline\nhuge_pages = off\n  numa_node = 1\n"
		"gate_arithmetic = fast\n[limits]\nstaging_bytes = 1.5GiB\n"
		"[daemon]\nsocket = /x y/sock\nsocket_mode = 666\n");

	(void)state;
	assert_non_null(o);
	assert_int_equal(o->host_bytes, 16 * GIB);
	assert_true(o->floor == .3);
	assert_int_equal(o->segment_bytes, 64 << 20);
	assert_false(o->huge_pages);
	assert_true(o->prefault);
	assert_int_equal(o->numa_node, 1);
	assert_int_equal(o->gate_arithmetic, 1);
	assert_int_equal(o->staging_bytes, 3 * GIB / 2);
	assert_string_equal(o->socket, "/x y/sock");
	assert_int_equal(o->socket_mode, 0666);
	options_free(o);
}

static void test_tenants(void **state)
{
	struct options *o = parse(
		"[memory]\nhost_bytes = 1GiB\nfloor = .5\n[limits]\nsessions = 7\n"
		"[tenant a]\nuids = 1, root,\n   2 3\nhost_bytes = 2GiB\nstaging_bytes = 1MiB\n"
		"[tenant b]\ngids = 50\nfloor = .25\n[tenant uid-77]\nsessions = 3\n"
		"[tenant uid-78]\nuids = 78\n[tenant uid-team]\nuids = 79\n");
	const struct options_tenant *a, *b, *c;
	const gid_t groups[] = {10, 50};

	(void)state;
	assert_non_null(o);
	assert_int_equal(o->n_tenants, 5);
	a = options_tenant_find(o, "a");
	b = options_tenant_find(o, "b");
	c = options_tenant_find(o, "uid-77");
	assert_null(options_tenant_find(o, "d"));
	assert_int_equal(a->uids.n, 4);
	assert_ptr_equal(options_tenant_of(o, 0, NULL, 0), a);
	assert_ptr_equal(options_tenant_of(o, 3, groups, 2), a); /* the user before his groups */
	assert_ptr_equal(options_tenant_of(o, 99, groups, 2), b);
	assert_null(options_tenant_of(o, 99, groups, 1));
	/* own values, else those of everybody; never more memory than there is */
	assert_int_equal(a->limits.host_bytes, GIB);
	assert_int_equal(a->limits.staging_bytes, 1 << 20);
	assert_int_equal(a->limits.sessions, 7);
	assert_true(a->limits.floor == .5);
	assert_true(b->limits.floor == .25);
	assert_int_equal(c->limits.sessions, 3);
	assert_int_equal(o->limits.sessions, 7);
	assert_int_equal(o->limits.host_bytes, GIB);
	options_free(o);
}

static void test_gates_and_models(void **state)
{
	struct options *o =
		parse("[gate g]\nfile = /a/b.pt\n[model Qwen/Qwen3-8B]\nfloor = .3\ngate = g\n");

	(void)state;
	assert_non_null(o);
	assert_int_equal(o->n_gates, 1);
	assert_string_equal(o->gates[0].file, "/a/b.pt");
	assert_true(options_model_find(o, "Qwen/Qwen3-8B")->floor == .3);
	assert_string_equal(options_model_find(o, "Qwen/Qwen3-8B")->gate, "g");
	assert_null(options_model_find(o, "other"));
	options_free(o);
}

static struct options *load(char *const *argv, char *const *envp)
{
	struct options *o = NULL;
	int argc = 0;

	while (argv[argc])
		argc++;
	why[0] = '\0';
	return options_load(argc, argv, envp, &o, why, sizeof(why)) == 0 ? o : NULL;
}

static void test_sources(void **state)
{
	char path[] = "/tmp/kvgate-options-XXXXXX", config[64];
	char *argv[] = {"kvgated", config, "--floor", "0.75", "--index-slots=100", NULL};
	char *no_env[] = {"PATH=/bin", "KVGATED=/bin/kvgated", NULL};
	char *env[] = {"KVGATED_FLOOR=0.5", "KVGATED_SESSIONS=9", NULL};
	char *bad_env[] = {"KVGATED_FLOR=0.5", NULL};
	char *file_only[] = {"kvgated", config, NULL};
	int fd = mkstemp(path);
	struct options *o;

	(void)state;
	assert_true(fd >= 0);
	assert_true(dprintf(fd, "[memory]\nfloor = .25\nindex_slots = 64\n") > 0);
	snprintf(config, sizeof(config), "--config=%s", path);
	o = load(file_only, no_env);
	assert_non_null(o);
	assert_true(o->floor == .25);
	assert_string_equal(o->config, path);
	options_free(o);
	o = load(file_only, env);
	assert_non_null(o);
	assert_true(o->floor == .5);
	assert_int_equal(o->limits.sessions, 9);
	options_free(o);
	o = load(argv, env);
	assert_non_null(o);
	assert_true(o->floor == .75);
	assert_int_equal(o->index_slots, 100);
	options_free(o);
	assert_null(load(file_only, bad_env));
	assert_non_null(strstr(why, "KVGATED_FLOR is not a parameter"));
	unlink(path);
	assert_null(load(file_only, no_env)); /* a file that was asked for must be there */
	assert_non_null(strstr(why, path));
	close(fd);
}

static void test_flags(void **state)
{
	char *none[] = {NULL};
	char *help[] = {"kvgated", "--help", NULL}, *version[] = {"kvgated", "--version", NULL};
	char *unknown[] = {"kvgated", "--flor", "1", NULL},
	     *missing[] = {"kvgated", "--floor", NULL};
	char *word[] = {"kvgated", "floor", NULL}, *last[] = {"kvgated", "--flor", NULL},
	     *bad[] = {"kvgated", "--config=/dev/null", "--floor=x", NULL};
	struct options *o = load(help, none);

	(void)state;
	assert_int_equal(o->action, OPTIONS_HELP);
	options_free(o);
	o = load(version, none);
	assert_int_equal(o->action, OPTIONS_VERSION);
	options_free(o);
	assert_null(load(unknown, none));
	assert_non_null(strstr(why, "--flor: no such flag"));
	assert_null(load(missing, none));
	assert_non_null(strstr(why, "--floor: needs a value"));
	assert_null(load(last, none));
	assert_non_null(strstr(why, "--flor: no such flag"));
	assert_null(load(word, none));
	assert_non_null(strstr(why, "flags begin with --"));
	assert_null(load(bad, none));
	assert_non_null(strstr(why, "--floor=x: floor = x: use a share"));
}

static unsigned changed, fixed;

static void on_difference(void *userdata, const char *name, bool reload)
{
	(void)userdata, (void)name;
	changed += reload;
	fixed += !reload;
}

static void test_follow(void **state)
{
	struct options *a = parse("[memory]\nfloor = .5\nindex_slots = 64\nhost_bytes = 1GiB\n");
	struct options *b = parse("[memory]\nfloor = .25\nindex_slots = 128\nhost_bytes = "
				  "2GiB\n[limits]\npins = 5\n");

	(void)state;
	assert_int_equal(options_follow(b, a, on_difference, NULL, why, sizeof(why)), 0);
	assert_int_equal(changed, 2);
	assert_int_equal(fixed, 2);
	assert_true(b->floor == .25);
	assert_int_equal(b->index_slots, 64);
	assert_int_equal(b->host_bytes, GIB);
	assert_int_equal(b->limits.host_bytes, GIB);
	assert_int_equal(b->limits.pins, 5);
	options_free(a);
	options_free(b);
}

/* Under [disk] a name may stand without its prefix; it is the same parameter. */
static void test_disk(void **state)
{
	struct options *o = parse("[disk]\npaths = a:/b/c\ndisk_size = 2GiB\ndrain_seconds = 7\n"
				  "engine = threads\n[daemon]\ndrain_seconds = 3\n"
				  "[limits]\ntenant_disk_bytes = 5GiB\n"
				  "[tenant a]\ndisk_bytes = 1TiB\n[tenant b]\n");

	(void)state;
	assert_non_null(o);
	assert_string_equal(o->disk_paths, "a:/b/c");
	assert_int_equal(o->disk_size, 2 * GIB);
	assert_int_equal(o->disk_drain_seconds, 7);
	assert_int_equal(o->drain_seconds, 3);
	assert_int_equal(o->disk_engine, 1);
	assert_int_equal(o->limits.disk_bytes, 5 * GIB);
	assert_int_equal(options_tenant_find(o, "a")->limits.disk_bytes, 1024 * GIB);
	assert_int_equal(options_tenant_find(o, "b")->limits.disk_bytes, 5 * GIB);
	options_free(o);
	refuse("[disk]\npaths = a\ndisk_paths = b\n", "t.conf:3: disk_paths is given twice");
	refuse("[disk]\nsizes = 1GiB\n", "sizes is not a parameter");
	refuse("[disk]\nhost_bytes = 1GiB\n", "host_bytes belongs under [memory]");
	refuse("[memory]\ndisk_size = 1GiB\n", "disk_size belongs under [disk]");
	refuse("[memory]\nsize = 1GiB\n", "size is not a parameter");
	refuse("[disk]\nengine = fast\n", "one of: auto threads");
	o = parse("[disk]\npaths =\n");
	assert_non_null(o);
	assert_string_equal(o->disk_paths, "");
	options_free(o);
}

/* Defaults must be good on a machine of any size. */
static void test_defaults(void **state)
{
	struct options *o;

	(void)state;
	assert_int_equal(options_new(&o), 0);
	for (uint64_t machine = 256ull << 20; machine <= 16ull << 40; machine *= 4) {
		o->machine_bytes = machine;
		for (unsigned i = 0; i < OPTION_N; i++)
			option_set_default(
				&option_table[i], machine, (char *)o + option_table[i].offset);
		assert_int_equal(options_check(o, why, sizeof(why)), 0);
		assert_int_equal(o->host_bytes, machine / 2);
		assert_true(o->staging_bytes <= machine);
	}
	options_free(o);
}

/* --help and the manual mention every parameter. */
static void test_help(void **state)
{
	void (*print[])(FILE *) = {options_help, options_help_mdoc};

	(void)state;
	for (int k = 0; k < 2; k++) {
		char *text = NULL;
		size_t n = 0;
		FILE *f = open_memstream(&text, &n);

		print[k](f);
		fclose(f);
		for (unsigned i = 0; i < OPTION_N; i++) {
			char name[80];

			snprintf(name, sizeof(name), "%s%s ", k ? ".It Cm " : "--",
				option_table[i].name);
			for (char *c = name; !k && *c; c++)
				if (*c == '_')
					*c = '-';
			assert_non_null(strstr(text, name));
			assert_int_equal(
				option_find(option_table[i].name, strlen(option_table[i].name)), i);
		}
		free(text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_long_line),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_tenants),
		cmocka_unit_test(test_gates_and_models),
		cmocka_unit_test(test_sources),
		cmocka_unit_test(test_flags),
		cmocka_unit_test(test_follow),
		cmocka_unit_test(test_disk),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_help),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
