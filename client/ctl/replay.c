/* SPDX-License-Identifier: Apache-2.0 */
/* replay: hit rates on a trace, of the daemon's policy and of others beside it. */
#include "client/ctl/replay.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"

#define CAPACITIES_MAX 16

struct options {
	const char *capacity, *policy;
	uint64_t block_bytes;
	double floor;
};

static int parse_capacities(const char *s, uint64_t *ret, unsigned *ret_n)
{
	*ret_n = 0;
	while (*ret_n < CAPACITIES_MAX) {
		char *end;

		errno = 0;
		ret[*ret_n] = strtoull(s, &end, 10);
		if (end == s || errno || *s == '-' || !ret[*ret_n] || ret[*ret_n] > UINT32_MAX)
			return -EINVAL;
		if (*end == 'k') {
			ret[*ret_n] *= 1000;
			end++;
		}
		++*ret_n;
		if (!*end)
			return 0;
		if (*end != ',')
			return -EINVAL;
		s = end + 1;
	}
	return -EINVAL;
}

static struct json_object *describe(
	enum replay_policy policy, const struct replay_setup *s, const struct replay_result *r)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "policy", json_object_new_string(replay_policy_name[policy]));
	json_object_object_add(o, "capacity", json_object_new_int64((int64_t)s->capacity));
	json_object_object_add(o, "references", json_object_new_int64((int64_t)r->references));
	json_object_object_add(o, "hits", json_object_new_int64((int64_t)r->hits));
	json_object_object_add(
		o, "hit_rate", json_object_new_double((double)r->hits / (double)r->references));
	json_object_object_add(o, "held", json_object_new_int64((int64_t)r->held));
	json_object_object_add(o, "retention", json_object_new_double(r->retention));
	return o;
}

static int replay(const struct trace *t, const uint64_t *capacity, unsigned n, int only,
	const struct options *o)
{
	struct json_object *all = json_object_new_array();
	int r = 0;

	if (!ctl_options.json) {
		printf("%zu requests, %zu blocks, %u of them different\n\n%10s", t->n_requests,
			t->n, t->n_blocks, "blocks");
		for (int p = 0; p < N_REPLAY_POLICIES; p++)
			if (only < 0 || only == p)
				printf("%10s", replay_policy_name[p]);
		printf("%s\n", o->floor < 1 && only <= REPLAY_KVGATE ? "   retention" : "");
	}
	for (unsigned i = 0; r == 0 && i < n; i++) {
		const struct replay_setup setup = {capacity[i], o->block_bytes, o->floor};
		double retention = 1;

		if (!ctl_options.json)
			printf("%10llu", (unsigned long long)capacity[i]);
		for (int p = 0; r == 0 && p < N_REPLAY_POLICIES; p++) {
			struct replay_result result;

			if (only >= 0 && only != p)
				continue;
			r = replay_run(t, (enum replay_policy)p, &setup, &result);
			if (r < 0)
				break;
			if (p == REPLAY_KVGATE)
				retention = result.retention;
			if (ctl_options.json)
				json_object_array_add(
					all, describe((enum replay_policy)p, &setup, &result));
			else
				printf("%8.2f %%",
					100 * (double)result.hits / (double)result.references);
			fflush(stdout);
		}
		if (!ctl_options.json && o->floor < 1 && only <= REPLAY_KVGATE)
			printf("%10.1f %%", 100 * retention);
		if (!ctl_options.json)
			printf("\n");
	}
	if (ctl_options.json && r == 0)
		ctl_json(all);
	else
		json_object_put(all);
	if (r < 0)
		fprintf(stderr, "kvgatectl replay: %s\n", strerror(-r));
	return r < 0 ? CTL_FAILED : CTL_OK;
}

int ctl_replay(int argc, char **argv)
{
	struct options o = {.capacity = "1k,3k,10k,30k", .block_bytes = 32 << 20, .floor = 1};
	const struct ctl_flag flags[] = {
		{"capacity", "LIST", "budgets in whole blocks (1k,3k,10k,30k)", CTL_TEXT,
			&o.capacity},
		{"block-bytes", "SIZE", "of a whole block (32 MiB)", CTL_SIZE, &o.block_bytes},
		{"floor", "SHARE", "kvgate: pressure leaves that much of a block (1)", CTL_REAL,
			&o.floor},
		{"policy", "NAME", "only kvgate, lru, s3fifo or optimum", CTL_TEXT, &o.policy},
		{0},
	};
	uint64_t capacity[CAPACITIES_MAX];
	struct trace trace;
	char why[512];
	unsigned n_capacities;
	int n, only = -1, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n != 1)
		return ctl_usage(argv[0], "wants one TRACE");
	if (parse_capacities(o.capacity, capacity, &n_capacities) < 0)
		return ctl_usage(argv[0], "--capacity is a list like 1000,3k,10k");
	if (!(o.floor > 0 && o.floor <= 1))
		return ctl_usage(argv[0], "--floor is above 0 and at most 1");
	if (!o.block_bytes || o.block_bytes > UINT32_MAX)
		return ctl_usage(argv[0], "--block-bytes is 1 byte to 4 GiB");
	for (int p = 0; o.policy && p < N_REPLAY_POLICIES; p++)
		if (!strcmp(o.policy, replay_policy_name[p]))
			only = p;
	if (o.policy && only < 0)
		return ctl_usage(argv[0], "no policy '%s'", o.policy);
	if (trace_read(argv[1], &trace, why, sizeof(why)) < 0) {
		fprintf(stderr, "kvgatectl replay: %s\n", why);
		return CTL_FAILED;
	}
	status = replay(&trace, capacity, n_capacities, only, &o);
	trace_fini(&trace);
	return status;
}
