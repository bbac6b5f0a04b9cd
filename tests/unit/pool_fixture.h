/* SPDX-License-Identifier: Apache-2.0 */
/* A pool's sums, and the kernel's. */
#ifndef KVGATE_TESTS_POOL_FIXTURE_H
#define KVGATE_TESTS_POOL_FIXTURE_H

#include "daemon/mem/pool.h"
#include "daemon/mem/tier.h"

#define MIB   (1ull << 20)
#define SHIFT 16
#define PAGE  (1u << SHIFT)

struct pool_tenant *tenant(struct pool *p);
struct pool_stat stat_of(struct pool *p);
uint64_t kernel_of(int fd);
/* Bytes the kernel holds for all segments of a tenant; ids are tried up to a bound. */
uint64_t kernel_bytes(struct pool_tenant *t);
/* As a client would: maps all of it, read-only, and looks everywhere. */
void read_everywhere(const struct pool_segment *s);

#endif
