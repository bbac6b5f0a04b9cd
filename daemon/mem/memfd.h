/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memfd: shared memory that its other side can neither resize nor write against our will.
 * Thread: any. Locks: none. Blocks: never. Errors: negative errno; failing to protect is a failure.
 */
#ifndef KVGATE_DAEMON_MEM_MEMFD_H
#define KVGATE_DAEMON_MEM_MEMFD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * A memfd of this size that never changes (seals SHRINK, GROW, SEAL), close-on-exec, with this mode on its inode: what
 * the mode forbids, a re-open through /proc is refused. flags: further MFD_* flags, such as MFD_HUGETLB.
 */
int memfd_new(const char *name, uint64_t bytes, mode_t mode, unsigned flags, int *ret_fd);
/* A second, read-only description of the same file, for clients. The mode must let the owner read. */
int memfd_read_only(int fd, int *ret_fd);
/* Unasked, the kernel may back 2 MiB around what is touched in a memfd; advised: whose mapping has MADV_HUGEPAGE. */
bool memfd_backed_huge(bool advised);

#endif
