/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What keeps a client from writing is the read-only description and the inode's mode, not F_SEAL_FUTURE_WRITE:
 * with that seal a daemon that is started anew could not map the memory for writing either.
 */
#include "daemon/mem/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* Kernels before 6.3 do not know MFD_NOEXEC_SEAL; later ones may insist on it (vm.memfd_noexec). */
static int create(const char *name, unsigned flags)
{
	int fd = memfd_create(name, flags | MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

int memfd_new(const char *name, uint64_t bytes, mode_t mode, unsigned flags, int *ret_fd)
{
	int fd, r;

	fd = create(name, flags);
	if (fd < 0)
		return -errno;
	if (fchmod(fd, mode) < 0 || ftruncate(fd, (off_t)bytes) < 0 ||
		fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	*ret_fd = fd;
	return 0;
}

int memfd_read_only(int fd, int *ret_fd)
{
	char path[32];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	if (ro < 0)
		return -errno;
	*ret_fd = ro;
	return 0;
}

/* "always within_size advise [never] deny force" */
bool memfd_backed_huge(bool advised)
{
	char text[128] = "";
	int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	return strstr(text, "[always]") || strstr(text, "[within_size]") ||
		strstr(text, "[force]") || (advised && strstr(text, "[advise]"));
}
