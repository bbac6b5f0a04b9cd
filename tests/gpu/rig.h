/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rig: a device for a test or a bench, memory on it, time on it.
 * Thread: one. Locks: none. Blocks: yes. Errors: says what is wrong and exits with 1; with 77, and the reason, where
 * there is no GPU.
 */
#ifndef KVGATE_TESTS_GPU_RIG_H
#define KVGATE_TESTS_GPU_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/module.h"
#include "gpu/table.h"
#include "tests/gpu/random.h"

struct rig {
	struct gpu_driver *driver;
	struct gpu_device *device;
	CUstream stream;
};

/* What driver calls fail with, all through these programs: rig_cu(r, cuMemFree, p). */
#define rig_cu(r, function, ...)                                                                   \
	rig_check((r)->driver, (r)->driver->function(__VA_ARGS__), #function, __FILE__, __LINE__)
void rig_check(const struct gpu_driver *d, CUresult result, const char *function, const char *file,
	int line);
void rig_die(const char *what, ...) __attribute__((noreturn, format(printf, 1, 2)));

void rig_init(struct rig *r);
void rig_fini(struct rig *r);

/* Poisoned: every byte is RIG_POISON. */
#define RIG_POISON 0xa5
CUdeviceptr rig_alloc(struct rig *r, size_t bytes);
void rig_poison(struct rig *r, CUdeviceptr at, size_t bytes);
/* Allocates, copies. */
CUdeviceptr rig_upload(struct rig *r, const void *data, size_t bytes);
void rig_download(struct rig *r, void *to, CUdeviceptr from, size_t bytes);
void rig_free(struct rig *r, CUdeviceptr at);
void rig_sync(struct rig *r);

struct gpu_module *rig_module(struct rig *r, const char *image);
CUfunction rig_function(struct gpu_module *m, const char *name, uint32_t shared);
void rig_launch(struct rig *r, const struct gpu_launch *l, const void *args);

/* Median of the microseconds `work` takes on the stream, of n runs, each after `before` where it is one. */
double rig_time(struct rig *r, unsigned n, void (*work)(void *), void (*before)(void *), void *arg);
/* The GB/s, bytes read and written both counted, of a copy of many times the cache within the device. */
double rig_copy_GBps(struct rig *r);

#endif
