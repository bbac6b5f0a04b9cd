/* SPDX-License-Identifier: Apache-2.0 */
/* events: one line an event, until --count of them, the daemon's end, or ctrl-c. */
#include "client/ctl/ctl.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct watch {
	uint64_t count, seen;
};

static void print_event(void *userdata, const struct kvg_event *e)
{
	struct watch *w = userdata;
	struct timespec now;
	char hex[65];

	if (w->count && w->seen >= w->count)
		return;
	w->seen++;
	clock_gettime(CLOCK_REALTIME, &now);
	kvg_key_to_hex(&e->key, hex);
	if (ctl_options.json) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(
			o, "time", ctl_json_real((double)now.tv_sec + (double)now.tv_nsec / 1e9));
		json_object_object_add(o, "event", json_object_new_string(ctl_event(e->kind)));
		json_object_object_add(o, "tenant", json_object_new_string(e->tenant));
		json_object_object_add(o, "key", json_object_new_string(hex));
		json_object_object_add(o, "layout", json_object_new_int64(e->layout));
		json_object_object_add(o, "held", json_object_new_int64(e->held));
		json_object_object_add(o, "bytes", json_object_new_int64((int64_t)e->bytes));
		json_object_object_add(o, "count", json_object_new_int64((int64_t)e->count));
		ctl_json_line(o);
		return;
	}
	if (e->kind == 0)
		printf("lost       %llu events: this reader was too slow\n",
			(unsigned long long)e->count);
	else
		printf("%-10s %.16s layout %u planes 0x%02x %s\n", ctl_event(e->kind), hex,
			e->layout, e->held, ctl_bytes((double)e->bytes).s);
	fflush(stdout);
}

/* "committed,evicted" as bits; 0 when a word is unknown. */
static uint32_t kinds(const char *text)
{
	uint32_t bits = 0;

	if (!text)
		return 1u << 1 | 1u << 2 | 1u << 3;
	while (*text) {
		size_t n = strcspn(text, ",");
		int kind = 1;

		for (; kind <= 3; kind++)
			if (strlen(ctl_event(kind)) == n && !strncmp(text, ctl_event(kind), n))
				break;
		if (kind > 3)
			return 0;
		bits |= 1u << kind;
		text += n + (text[n] == ',');
	}
	return bits;
}

int ctl_events(int argc, char **argv)
{
	struct watch w = {0};
	const char *names = NULL;
	const struct ctl_flag flags[] = {
		{"kinds", "LIST", "of committed,shrunk,evicted (all)", CTL_TEXT, &names},
		{"count", "N", "end after so many", CTL_NUMBER, &w.count},
		{0},
	};
	struct kvg_client *c;
	int n, r, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n)
		return ctl_usage(argv[0], "takes no '%s'", argv[1]);
	if (!kinds(names))
		return ctl_usage(argv[0], "--kinds '%s': use committed, shrunk, evicted", names);
	c = ctl_open();
	if (!c)
		return CTL_FAILED;
	r = kvg_subscribe(c, kinds(names), print_event, &w);
	while (r == 0 && (!w.count || w.seen < w.count)) {
		struct pollfd p = {.fd = kvg_fd(c), .events = POLLIN};

		if (p.fd < 0 || (poll(&p, 1, -1) < 0 && errno != EINTR))
			r = p.fd < 0 ? p.fd : -errno;
		else
			r = kvg_dispatch(c);
	}
	status = r < 0 ? ctl_failed(c, r, "events") : CTL_OK;
	kvg_close(c);
	return status;
}
