// SPDX-License-Identifier: Apache-2.0
/*
 * Pages between host and device, or within either, by threads that load and store 16 bytes. What reaches the link's
 * limit is bytes in flight: some 150 KB of reads have to be under way to a host that answers after 2 us. A block has
 * 12 KB, so that few blocks do, and other multiprocessors see nothing of it. Shared memory is not used and registers
 * are few, so that a block finds room beside those of other kernels.
 *
 * Stores that go over the link are waited for. Nobody is held up by a store, so as many as threads can make would stand
 * before the link in queues that all memory traffic of the device goes through, and a kernel that runs beside this one
 * would take three times as long.
 *
 * A block takes pieces of all its threads' loads, not whole pages: small pages keep all threads busy, and large ones
 * all blocks.
 */
#include "gpu/kernels/move.h"

#define THREADS MOVE_THREADS
#define LOADS   4 /* in flight, of each thread */
#define PIECE   (THREADS * LOADS) /* units of 16 bytes */

/* Read once, written once: neither has any business in a cache. */
static __device__ uint4 load_streaming(const uint4 *p)
{
	uint4 v;

	asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
		: "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
	return v;
}

static __device__ uint4 *list_at(uint64_t list, uint32_t i)
{
	return reinterpret_cast<uint4 *>(reinterpret_cast<const uint64_t *>(list)[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 6)
move_pages(const __grid_constant__ struct move_args a)
{
	const uint32_t units = a.page_bytes / MOVE_ALIGN;
	const uint64_t all = (uint64_t)a.pages * units;

	for (uint64_t piece = (uint64_t)blockIdx.x * PIECE; piece < all; piece += (uint64_t)gridDim.x * PIECE) {
		uint4 v[LOADS], *to[LOADS];

#pragma unroll
		for (int j = 0; j < LOADS; j++) {
			const uint64_t at = piece + j * THREADS + threadIdx.x;

			to[j] = NULL;
			if (at < all) {
				const uint32_t page = at / units, unit = at - (uint64_t)page * units;

				to[j] = list_at(a.to, page) + unit;
				v[j] = load_streaming(list_at(a.from, page) + unit);
			}
		}
#pragma unroll
		for (int j = 0; j < LOADS; j++)
			if (to[j])
				__stcs(to[j], v[j]);
		if (a.to_host)
			__threadfence_system();
	}
}

/*
 * The same by the engine that copies in bulk, on Hopper and later: one warp a block, whose first thread only says what
 * is to be copied. A piece goes through one of STAGES buffers in shared memory; a buffer is loaded again when what was
 * stored from it has been read.
 */
#define BULK_STAGES MOVE_BULK_STAGES

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
static __device__ uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ void bulk_load(void *to, uint64_t from, uint32_t bytes, uint64_t *barrier)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
		"r"(bytes) : "memory");
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
			     shared_address(to)),
		"l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

static __device__ void bulk_store(uint64_t to, const void *from, uint32_t bytes)
{
	asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
		"r"(shared_address(from)), "r"(bytes) : "memory");
	asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

static __device__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
	asm volatile("{\n\t.reg .pred p;\n"
		     "again:\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t@!p bra again;\n}" ::"r"(
			     shared_address(barrier)),
		"r"(parity) : "memory");
}

struct piece {
	uint64_t to, from;
	uint32_t bytes;
};

/* False: there are no more. */
static __device__ bool piece_at(const struct move_args &a, uint64_t i, struct piece *ret)
{
	const uint32_t of_page = (a.page_bytes + a.piece - 1) / a.piece;
	const uint32_t page = i / of_page, offset = (i - (uint64_t)page * of_page) * a.piece;

	if (i >= (uint64_t)a.pages * of_page)
		return false;
	ret->to = (uint64_t)list_at(a.to, page) + offset;
	ret->from = (uint64_t)list_at(a.from, page) + offset;
	ret->bytes = min(a.piece, a.page_bytes - offset);
	return true;
}
#endif

extern "C" __global__ void __launch_bounds__(32) move_pages_bulk(const __grid_constant__ struct move_args a)
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
	extern __shared__ __align__(128) unsigned char buffer[]; /* [BULK_STAGES][piece] */
	__shared__ uint64_t barrier[BULK_STAGES];
	struct piece p[BULK_STAGES];
	uint64_t next = blockIdx.x;
	uint32_t issued = 0;

	if (threadIdx.x)
		return;
	for (int i = 0; i < BULK_STAGES; i++)
		asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barrier[i])) : "memory");
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#pragma unroll
	for (int i = 0; i < BULK_STAGES; i++, next += gridDim.x)
		if (piece_at(a, next, &p[i])) {
			bulk_load(buffer + i * a.piece, p[i].from, p[i].bytes, &barrier[i]);
			issued++;
		}
	for (uint32_t done = 0, round = 0; done < issued; round++) {
#pragma unroll
		for (int i = 0; i < BULK_STAGES; i++) {
			if (done == issued)
				break;
			barrier_wait(&barrier[i], round & 1);
			bulk_store(p[i].to, buffer + i * a.piece, p[i].bytes);
			done++;
			if (!piece_at(a, next, &p[i]))
				continue;
			next += gridDim.x;
			issued++;
			if (a.to_host) /* no more than three before the link: see above */
				asm volatile("cp.async.bulk.wait_group 2;" ::: "memory");
			asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
			bulk_load(buffer + i * a.piece, p[i].from, p[i].bytes, &barrier[i]);
		}
	}
	asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}
