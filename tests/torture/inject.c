/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into a process: makes the n-th call of one kind fail, once. KVG_INJECT=KIND:N[:+] (with `+`: the n-th and
 * all later ones). When it struck, the file KVG_INJECT_STRUCK is made, so that a test knows when N passed the end.
 * Kinds: memory (malloc, calloc, realloc, posix_memalign, aligned_alloc) and, by name, the system calls below.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic long left = -1; /* calls until the failure; -1: not set up, 0: done */
static bool forever;
static char kind[32];

static void set_up(void)
{
	const char *env = getenv("KVG_INJECT");
	const char *colon = env ? strchr(env, ':') : NULL;
	long n = 0;

	if (colon && (size_t)(colon - env) < sizeof(kind)) {
		memcpy(kind, env, (size_t)(colon - env));
		n = atol(colon + 1);
		forever = strchr(colon + 1, '+') != NULL;
	}
	atomic_store(&left, n);
}

static void struck(void)
{
	const char *path = getenv("KVG_INJECT_STRUCK");

	if (path) {
		int fd = (int)syscall(
			SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

		if (fd >= 0)
			syscall(SYS_close, fd);
	}
}

static bool fails(const char *name)
{
	long now = atomic_load(&left);

	if (now == -1) {
		set_up();
		now = atomic_load(&left);
	}
	if (now == 0 || strcmp(kind, name))
		return false;
	if (forever && now == 1)
		return true;
	if (atomic_fetch_sub(&left, 1) != 1)
		return false;
	if (forever)
		atomic_store(&left, 1);
	struck();
	return true;
}

/* The allocator itself is reached by glibc's own names: dlsym() would allocate. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

static void *no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

void *malloc(size_t n)
{
	return fails("memory") ? no_memory() : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	return fails("memory") ? no_memory() : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	return fails("memory") ? no_memory() : __libc_realloc(p, n);
}

int posix_memalign(void **ret, size_t align, size_t n)
{
	void *p = fails("memory") ? NULL : __libc_memalign(align, n);

	if (!p)
		return ENOMEM;
	*ret = p;
	return 0;
}

void *aligned_alloc(size_t align, size_t n)
{
	return fails("memory") ? no_memory() : __libc_memalign(align, n);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(name, error, value)                                                                   \
	do {                                                                                       \
		if (fails(name)) {                                                                 \
			errno = error;                                                             \
			return value;                                                              \
		}                                                                                  \
	} while (0)

void *mmap(void *addr, size_t n, int prot, int flags, int fd, off_t off)
{
	FAIL("mmap", ENOMEM, MAP_FAILED);
	return (void *)syscall(SYS_mmap, addr, n, prot, flags, fd, off);
}

int memfd_create(const char *name, unsigned flags)
{
	FAIL("memfd_create", EMFILE, -1);
	return (int)syscall(SYS_memfd_create, name, flags);
}

int ftruncate(int fd, off_t n)
{
	FAIL("ftruncate", ENOSPC, -1);
	return (int)syscall(SYS_ftruncate, fd, n);
}

int fallocate(int fd, int mode, off_t off, off_t n)
{
	FAIL("fallocate", ENOSPC, -1);
	return (int)syscall(SYS_fallocate, fd, mode, off, n);
}

int fchmod(int fd, mode_t mode)
{
	FAIL("fchmod", EPERM, -1);
	return (int)syscall(SYS_fchmod, fd, mode);
}

int open(const char *path, int flags, ...)
{
	__builtin_va_list args;
	int mode;

	__builtin_va_start(args, flags);
	mode = flags & (O_CREAT | O_TMPFILE) ? __builtin_va_arg(args, int) : 0;
	__builtin_va_end(args);
	FAIL("open", EMFILE, -1);
	return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int epoll_ctl(int ep, int op, int fd, struct epoll_event *e)
{
	if (op == EPOLL_CTL_ADD)
		FAIL("epoll_ctl", ENOSPC, -1);
	return (int)syscall(SYS_epoll_ctl, ep, op, fd, e);
}

int accept4(int fd, struct sockaddr *a, socklen_t *n, int flags)
{
	FAIL("accept4", EMFILE, -1);
	return NEXT(accept4)(fd, a, n, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	FAIL("sendmsg", ENOBUFS, -1);
	return NEXT(sendmsg)(fd, m, flags);
}

ssize_t send(int fd, const void *data, size_t n, int flags)
{
	FAIL("sendmsg", ENOBUFS, -1);
	return NEXT(send)(fd, data, n, flags);
}

ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	FAIL("recvmsg", ENOMEM, -1);
	return NEXT(recvmsg)(fd, m, flags);
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *n)
{
	FAIL("getsockopt", ENOBUFS, -1);
	return NEXT(getsockopt)(fd, level, name, value, n);
}
