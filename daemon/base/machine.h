/* SPDX-License-Identifier: Apache-2.0 */
/*
 * machine: how much memory there is for this process, and where.
 * Thread: any. Locks: none. Blocks: reads files of the kernel. Errors: none; what cannot be read sets no limit.
 */
#ifndef KVGATE_DAEMON_BASE_MACHINE_H
#define KVGATE_DAEMON_BASE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

/* The machine's memory, or what the control groups around this process leave of it (containers, MemoryMax=). */
uint64_t machine_memory(void);

/* The same with files elsewhere: the process's cgroup file, and where the cgroup file system is. */
uint64_t machine_memory_limit(uint64_t bytes, const char *self, const char *root);

/* Memory may be taken from this NUMA node. Without NUMA there is node 0. */
bool machine_has_node(int node);

#endif
