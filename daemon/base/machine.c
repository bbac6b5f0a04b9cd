/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A control group may have less memory than the machine, and so may each of those around it: the least counts. The
 * line "0::/a/b" of /proc/self/cgroup names the group; its memory.max and those of its parents are looked at.
 */
#include "daemon/base/machine.h"

#include <limits.h>
#include <numa.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static uint64_t group_limit(const char *root, const char *group, uint64_t otherwise)
{
	char path[PATH_MAX * 2];
	unsigned long long v;
	FILE *f;
	int n;

	snprintf(path, sizeof(path), "%s%s/memory.max", root, group);
	f = fopen(path, "re");
	if (!f)
		return otherwise;
	n = fscanf(f, "%llu", &v); /* or "max" */
	fclose(f);
	return n == 1 && v < otherwise ? v : otherwise;
}

uint64_t machine_memory_limit(uint64_t bytes, const char *self, const char *root)
{
	char line[PATH_MAX], *slash;
	FILE *f = fopen(self, "re");

	while (f && fgets(line, sizeof(line), f)) {
		char *group = line + 3;

		if (strncmp(line, "0::/", 4))
			continue;
		group[strcspn(group, "\n")] = '\0';
		while ((slash = strrchr(group, '/'))) {
			bytes = group_limit(root, group, bytes);
			*slash = '\0';
		}
		bytes = group_limit(root, "", bytes);
		break;
	}
	if (f)
		fclose(f);
	return bytes;
}

uint64_t machine_memory(void)
{
	uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

	return machine_memory_limit(bytes, "/proc/self/cgroup", "/sys/fs/cgroup");
}

bool machine_has_node(int node)
{
	if (numa_available() < 0)
		return node == 0;
	return node >= 0 && node <= numa_max_node() &&
		numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned)node);
}
