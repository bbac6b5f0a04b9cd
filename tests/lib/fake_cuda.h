/* SPDX-License-Identifier: Apache-2.0 */
/* Where the driver without a GPU is, and a look at what lies behind one of its descriptors. */
#ifndef KVGATE_TESTS_FAKE_CUDA_H
#define KVGATE_TESTS_FAKE_CUDA_H

#include <stdint.h>
#include <sys/mman.h>

#define FAKE_CUDA KVG_BINARY_DIR "/tests/lib/libcuda_fake.so"

static inline uint8_t *fake_cuda_look(int fd, uint64_t bytes)
{
	void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return p == MAP_FAILED ? 0 : p;
}

#endif
