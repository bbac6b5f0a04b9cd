/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a path names has to be made by disk_format() before the cache opens it. A device, or a file that is there, is left as it
 * is, whatever it holds: what was written by mistake in a configuration must not cost anybody his data.
 */
#include "daemon/disks.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/base/log.h"
#include "daemon/base/options.h"

static int fail(char *ret_why, size_t why_size, int r, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int fail(char *ret_why, size_t why_size, int r, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(ret_why, why_size, fmt, args);
	va_end(args);
	return r;
}

void disks_fini(struct disks *d)
{
	while (d->n)
		free(d->path[--d->n]);
}

/* One of disk_paths, of n bytes. Of several state folders the first one is meant. */
static int add_path(struct disks *d, const char *path, size_t n, const char *state, char *ret_why,
	size_t why_size)
{
	char *full;
	int length;

	if (n == 0)
		return fail(ret_why, why_size, -EINVAL,
			"disk_paths has an empty path: separate paths by one ':'");
	if (d->n == DISK_DEVICES_MAX)
		return fail(ret_why, why_size, -EINVAL, "disk_paths has more than %d paths",
			DISK_DEVICES_MAX);
	if (path[0] == '/')
		length = asprintf(&full, "%.*s", (int)n, path);
	else if (state && state[0] == '/')
		length =
			asprintf(&full, "%.*s/%.*s", (int)strcspn(state, ":"), state, (int)n, path);
	else
		return fail(ret_why, why_size, -EINVAL,
			"disk_paths has the relative path %.*s, and there is no state folder: "
			"begin it "
			"with '/', or set $STATE_DIRECTORY (systemd does, with StateDirectory=)",
			(int)n, path);
	if (length < 0)
		return fail(ret_why, why_size, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < d->n; i++)
		if (!strcmp(d->path[i], full)) {
			free(full);
			return fail(ret_why, why_size, -EINVAL, "disk_paths has %.*s twice", (int)n,
				path);
		}
	d->path[d->n++] = full;
	return 0;
}

/* There afterwards. */
static int make(const char *path, const struct options *o, char *ret_why, size_t why_size)
{
	char why[300], bytes[32];
	struct stat st;
	int r;

	if (stat(path, &st) == 0)
		return 0;
	if (errno != ENOENT)
		return fail(ret_why, why_size, -errno, "%s: %s", path, strerror(errno));
	if (!o->disk_size)
		return fail(ret_why, why_size, -ENOENT,
			"%s is not there: make it with kvgatectl disk format %s --size SIZE, or "
			"set "
			"disk_size",
			path, path);
	r = disk_format(path, o->disk_size, o->segment_bytes, false, why, sizeof(why));
	if (r < 0)
		return fail(ret_why, why_size, r, "%s: %s", path, why);
	option_format_bytes((double)o->disk_size, bytes, sizeof(bytes));
	log_info("disk made", "path=\"%s\" bytes=%s", path, bytes);
	return 0;
}

int disks_init(
	struct disks *d, const struct options *o, const char *state, char *ret_why, size_t why_size)
{
	int r = 0;

	*d = (struct disks){.n = 0};
	for (const char *p = o->disk_paths; o->disk_paths[0] && r == 0;) {
		const size_t n = strcspn(p, ":");

		r = add_path(d, p, n, state, ret_why, why_size);
		p += n;
		if (!*p++)
			break;
	}
	for (unsigned i = 0; i < d->n && r == 0; i++)
		r = make(d->path[i], o, ret_why, why_size);
	if (r < 0)
		disks_fini(d);
	return r;
}
