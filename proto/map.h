/* SPDX-License-Identifier: Apache-2.0 */
/*
 * map: memory where huge pages can serve it.
 * Thread: any. Locks: none. Blocks: map_huge() for the kernel's clearing and copying. Errors: negative errno.
 */
#ifndef KVGATE_PROTO_MAP_H
#define KVGATE_PROTO_MAP_H

#include <stdint.h>

#define MAP_HUGE_BYTES (2ull << 20) /* what one entry of a page table's second level covers */

/* Maps the first `bytes` of fd, shared, at a multiple of MAP_HUGE_BYTES when there are as many. munmap() ends it. */
int map_shared(int fd, uint64_t bytes, int prot, void **ret);

/* Memory of one's own, zeros, at a multiple of MAP_HUGE_BYTES, which huge pages back if the kernel has any. -ENOMEM. */
int map_private(uint64_t bytes, void **ret);

/*
 * Sees to it that what lies in the whole huge pages between addr and addr + bytes is backed, and by huge pages if the
 * kernel has any; contents stay, and nothing outside is touched. A wish: where it is not granted, little is backed.
 */
void map_huge(void *addr, uint64_t bytes);

#endif
