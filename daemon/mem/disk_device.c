/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device from outside: the file, its lock, its superblock, and whether it still answers.
 *
 * The lock is flock() - the kernel drops it with its holder, and /proc/locks says who that is - and O_EXCL for a block device,
 * which keeps file systems and volume managers away. A daemon that died may still have transfers under way in the kernel, which hold the
 * file and so the lock: that is waited for, but not for ever: a second lock goes with its process. The superblock stands in the
 * first and in the last page: either will do.
 *
 * A request that fails says nothing of the device, eight in a row that fail do, and then one more decides: the superblock is
 * read again. If that fails, too, the device is given up.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"

#define FAILURES_IN_ROW 8u
#define WRITE_FAILURES  4u /* in a row */

static int say(char *why, size_t size, int error, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int say(char *why, size_t size, int error, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, size, fmt, args);
	va_end(args);
	return error;
}

/* ---- file and lock ---- */

#define LOCK_MS      5000 /* for the transfers of a process that is gone */
#define LOCK_STEP_MS 5

/* The process that has the lock, 0: not to be seen. */
static long lock_holder(int fd)
{
	char line[256];
	struct stat st;
	long pid = 0;
	FILE *f = fopen("/proc/locks", "re");

	if (!f)
		return 0;
	while (fstat(fd, &st) == 0 && fgets(line, sizeof(line), f)) {
		unsigned major_, minor_;
		unsigned long inode;
		long who;

		if (sscanf(line, "%*d: FLOCK ADVISORY WRITE %ld %x:%x:%lu", &who, &major_, &minor_,
			    &inode) == 4 &&
			major_ == major(st.st_dev) && minor_ == minor(st.st_dev) &&
			inode == st.st_ino)
			pid = who;
	}
	fclose(f);
	return pid;
}

static int locked(long pid, char *why, size_t size)
{
	char who[32] = "another process";

	if (pid > 0)
		snprintf(who, sizeof(who), "process %ld", pid);
	return say(why, size, -EBUSY, "%s uses it: one daemon has a disk to itself", who);
}

/* One that goes with its process, whatever the kernel still has open. */
static int lock_process(int fd, char *why, size_t size)
{
	const bool reads = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY; /* kvgatectl disk check */
	struct flock l = {.l_type = reads ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};

	if (fcntl(fd, F_SETLK, &l) == 0)
		return 0;
	if (errno != EACCES && errno != EAGAIN)
		return say(why, size, -errno, "cannot be locked: %m");
	return locked(fcntl(fd, F_GETLK, &l) == 0 && l.l_type != F_UNLCK ? l.l_pid : 0, why, size);
}

int device_lock(int fd, char *why, size_t size)
{
	for (unsigned ms = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; ms += LOCK_STEP_MS) {
		const int error = errno;
		const long pid = lock_holder(fd);

		if (error != EWOULDBLOCK)
			return say(why, size, -error, "cannot be locked: %s", strerror(error));
		if (pid > 0 && (kill((pid_t)pid, 0) == 0 || errno != ESRCH))
			return locked(pid, why, size);
		if (ms >= LOCK_MS) {
			if (pid <= 0)
				return locked(pid, why, size);
			log_warning("the kernel still has a disk open for a process that is gone: "
				    "used all "
				    "the same, its transfers have ended by now",
				"process=%ld waited_ms=%u", pid, ms);
			break;
		}
		usleep(LOCK_STEP_MS * 1000);
	}
	return lock_process(fd, why, size);
}

static int open_failed(int error, char *why, size_t size)
{
	switch (error) {
	case ENOENT:
		return say(
			why, size, -error, "there is no such file; kvgatectl disk format makes it");
	case EROFS:
		return say(why, size, -error,
			"the file system is read-only: mount it for writing, or take another path");
	case EACCES:
	case EPERM:
		return say(why, size, -error,
			"may not be opened for reading and writing: its owner has to be the "
			"daemon's user");
	case EBUSY:
		return say(
			why, size, -error, "the block device is mounted, or something else has it");
	default:
		return say(why, size, -error, "cannot be opened: %s", strerror(error));
	}
}

int device_open_file(const char *path, bool write, bool *ret_direct, char *why, size_t size)
{
	struct stat st;
	int fd, flags = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC;

	if (stat(path, &st) < 0)
		return open_failed(errno, why, size);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return say(why, size, -EINVAL, "is neither a file nor a block device");
	if (S_ISBLK(st.st_mode) && write)
		flags |= O_EXCL;
	*ret_direct = true;
	fd = open(path, flags | O_DIRECT);
	if (fd < 0 && errno == EINVAL) {
		*ret_direct = false;
		fd = open(path, flags);
	}
	return fd < 0 ? open_failed(errno, why, size) : fd;
}

int device_size(int fd, uint64_t *ret)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	*ret = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, ret) < 0)
		return -errno;
	return 0;
}

/* ---- the superblock ---- */

static int read_super(int fd, uint64_t at, void *page, struct fmt_super *ret)
{
	ssize_t n = pread(fd, page, DISK_PAGE, (off_t)at);

	if (n < 0)
		return -errno;
	return n == DISK_PAGE ? fmt_super_check(page, ret) : -ENOENT;
}

int device_super(int fd, struct fmt_super *ret, char *why, size_t size)
{
	void *page = aligned_alloc(DISK_PAGE, DISK_PAGE);
	struct fmt_super s = {0};
	uint64_t bytes = 0;
	int r, copy = -ENOENT;

	if (!page)
		return say(why, size, -ENOMEM, "no memory");
	r = device_size(fd, &bytes);
	if (r == 0)
		r = read_super(fd, 0, page, &s);
	if (r < 0 && r != -EPROTONOSUPPORT && bytes >= 2 * DISK_PAGE)
		copy = read_super(fd, bytes / DISK_PAGE * DISK_PAGE - DISK_PAGE, page, &s);
	free(page);
	if (r < 0 && (copy == 0 || copy == -EPROTONOSUPPORT))
		r = copy;
	if (r == -EPROTONOSUPPORT)
		return say(why, size, r,
			"its format is version %u, and this kvgate knows %u: use the newer one, or "
			"make it anew "
			"with kvgatectl disk format --force",
			s.version, FMT_VERSION);
	if (r == -ENOENT)
		return say(why, size, -EBADMSG,
			"is no disk of kvgate: kvgatectl disk format makes one of it");
	if (r == -EBADMSG)
		return say(why, size, r,
			"its superblock is damaged, and so is the copy at the end: kvgatectl disk "
			"format --force makes "
			"it anew, empty");
	if (r < 0)
		return say(why, size, r, "cannot be read: %s", strerror(-r));
	*ret = s;
	return 0;
}

static int check_size(int fd, const struct fmt_super *s, char *why, size_t size)
{
	uint64_t bytes;
	struct stat st;
	int r = device_size(fd, &bytes);

	if (r < 0 || fstat(fd, &st) < 0)
		return say(why, size, r < 0 ? r : -errno, "cannot be asked for its size");
	if (S_ISBLK(st.st_mode) ? bytes >= s->bytes : bytes == s->bytes)
		return 0;
	return say(why, size, -EFBIG,
		"has %llu bytes, and was formatted with %llu: give it that size back (truncate -s "
		"%llu), or "
		"make it anew with kvgatectl disk format --force",
		(unsigned long long)bytes, (unsigned long long)s->bytes,
		(unsigned long long)s->bytes);
}

/* ---- a device ---- */

static int make_segments(struct disk_device *dev)
{
	dev->segment_pages = (uint32_t)(dev->super.segment_bytes / DISK_PAGE);
	dev->free_end = &dev->free;
	dev->parked_end = &dev->parked;
	dev->segments = calloc(dev->super.n_segments, sizeof(*dev->segments));
	if (!dev->segments)
		return -ENOMEM;
	for (uint32_t i = 0; i < dev->super.n_segments; i++) {
		dev->segments[i].dev = dev;
		dev->segments[i].number = i;
	}
	return 0;
}

int device_open(const char *path, bool write, struct disk_device **ret, char *why, size_t size)
{
	struct disk_device *dev = calloc(1, sizeof(*dev));
	bool direct = true;
	int r = -ENOMEM;

	if (dev) {
		dev->fd = -1;
		dev->path = strdup(path);
	}
	if (!dev || !dev->path) {
		device_free(dev);
		return say(why, size, -ENOMEM, "no memory");
	}
	r = dev->fd = device_open_file(path, write, &direct, why, size);
	if (r >= 0)
		r = device_lock(dev->fd, why, size);
	if (r == 0)
		r = device_super(dev->fd, &dev->super, why, size);
	if (r == 0)
		r = check_size(dev->fd, &dev->super, why, size);
	if (r == 0) {
		r = make_segments(dev);
		if (r < 0)
			say(why, size, r, "no memory for %u segments", dev->super.n_segments);
	}
	if (r < 0) {
		device_free(dev);
		return r;
	}
	if (!direct)
		log_warning("the file system has no O_DIRECT: the kernel keeps copies of what is "
			    "on this disk in memory",
			"path=\"%s\" fix=\"a file on ext4 or xfs, or a block device\"", path);
	*ret = dev;
	return 0;
}

struct disk_device *device_free(struct disk_device *dev)
{
	if (!dev)
		return NULL;
	assert(!dev->io);
	for (uint32_t i = 0; dev->segments && i < dev->super.n_segments; i++)
		segment_clear(&dev->segments[i]);
	free(dev->segments);
	if (dev->fd >= 0) {
		flock(dev->fd, LOCK_UN); /* the kernel may have the file open for a while */
		close(dev->fd);
	}
	free(dev->path);
	free(dev);
	return NULL;
}

int device_start(struct disk_device *dev, const struct disk_options *o, struct loop *loop)
{
	const struct io_options io = {
		.loop = loop,
		.fd = dev->fd,
		.in_flight_bytes = o->in_flight_bytes,
		.uring = o->uring,
		.sqpoll = o->sqpoll,
		.iopoll = o->iopoll,
	};

	struct io_request *r, *next;
	int error = o->fault ? io_new_faulty(&io, o->fault, &dev->io) : io_new(&io, &dev->io);

	if (error < 0)
		return error;
	r = dev->parked;
	dev->parked = NULL;
	dev->parked_end = &dev->parked;
	for (; r; r = next) {
		next = r->next;
		io_submit(dev->io, r);
	}
	return 0;
}

void device_stop(struct disk_device *dev)
{
	struct io *io = dev->io;

	dev->io = NULL; /* what is submitted meanwhile waits */
	io_free(io);
}

void device_abandon(struct disk_device *dev)
{
	dev->failed = true;
	if (dev->io)
		device_stop(dev);
	while (dev->parked) {
		struct io_request *r = dev->parked;

		dev->parked = r->next;
		r->result = -EIO;
		disk_defer(dev->disk, r);
	}
}

/* ---- requests, and what they say of the device ---- */

void device_no_writes(struct disk_device *dev, const char *why, int error)
{
	if (dev->no_writes)
		return;
	dev->no_writes = true;
	if (dev->failed)
		return;
	log_error("a disk takes no more writes, what is on it can be read",
		"path=\"%s\" why=\"%s\" error=\"%s\" "
		"fix=\"see to the device, then restart\"",
		dev->path, why, strerror(-error));
}

static void give_up(struct disk_device *dev, int error)
{
	if (dev->failed)
		return;
	log_error("a disk does not answer any more and is given up, with all that was on it",
		"path=\"%s\" error=\"%s\" "
		"fix=\"see to the device, then restart\"",
		dev->path, strerror(-error));
	dev->failed = dev->no_writes = dev->lost = true;
	dev->disk->stat.failed++;
	disk_wake(dev->disk);
}

static void probed(struct dev_request *q, int error)
{
	struct disk_device *dev = q->dev;

	free((void *)q->iov.iov_base);
	free(q);
	dev->probing = false;
	dev->io_failures = 0;
	if (error < 0)
		give_up(dev, error);
}

static void probe(struct disk_device *dev)
{
	struct dev_request *q = calloc(1, sizeof(*q));
	void *page = aligned_alloc(DISK_PAGE, DISK_PAGE);

	if (!q || !page) {
		free(q);
		free(page);
		return;
	}
	dev->probing = true;
	q->iov.iov_base = page;
	q->ended = probed;
	dev_submit(dev, q, IO_READ, 0, DISK_PAGE);
}

static void on_done(struct io_request *r)
{
	struct dev_request *q = (struct dev_request *)r;
	struct disk_device *dev = q->dev;
	int error = r->result;

	dev->disk->n_requests--;
	if (error == 0 || error == -EBADMSG)
		dev->io_failures = 0;
	else if (error != -ENOSPC && error != -ENOMEM && !dev->failed && !dev->probing &&
		q->ended != probed && ++dev->io_failures >= FAILURES_IN_ROW)
		probe(dev);
	q->ended(q, error);
}

void dev_submit(struct disk_device *dev, struct dev_request *q, enum io_op op, uint64_t offset,
	uint64_t bytes)
{
	struct disk *d = dev->disk;

	static_assert(offsetof(struct dev_request, io) == 0, "on_done() casts");
	q->dev = dev;
	q->io.op = op;
	q->io.offset = offset;
	q->io.bytes = bytes;
	q->io.done = on_done;
	if (!q->io.iov && (op == IO_READ || op == IO_WRITE)) {
		q->iov.iov_len = bytes;
		q->io.iov = &q->iov;
		q->io.n_iov = 1;
	}
	if (dev->failed) {
		dev_fail(dev, q, -EIO);
		return;
	}
	d->n_requests++;
	if (dev->io) {
		io_submit(dev->io, &q->io);
		return;
	}
	q->io.next = NULL;
	*dev->parked_end = &q->io;
	dev->parked_end = &q->io.next;
}

void dev_fail(struct disk_device *dev, struct dev_request *q, int error)
{
	q->dev = dev;
	q->io.done = on_done;
	q->io.result = error;
	dev->disk->n_requests++;
	disk_defer(dev->disk, &q->io);
}

void device_wrote(struct disk_device *dev, int error)
{
	if (error == 0)
		dev->write_failures = 0;
	else if (++dev->write_failures >= WRITE_FAILURES)
		device_no_writes(dev, "several writes in a row have failed", error);
}

/* ---- for those who have no daemon ---- */

static int format_allowed(int fd, bool force, char *why, size_t size)
{
	uint8_t *page = aligned_alloc(DISK_PAGE, DISK_PAGE);
	struct fmt_super s;
	bool other = false;
	ssize_t n = 0;
	int r = 0;

	if (!page)
		return say(why, size, -ENOMEM, "no memory");
	n = pread(fd, page, DISK_PAGE, 0);
	if (n == DISK_PAGE)
		r = fmt_super_check(page, &s);
	for (ssize_t i = 0; i < n; i++)
		other = other || page[i];
	free(page);
	if (n < 0)
		return say(why, size, -errno, "cannot be read: %m");
	if (force || !other)
		return 0;
	if (r != -ENOENT && n == DISK_PAGE)
		return say(why, size, -EEXIST,
			"is a disk of kvgate already: --force makes it anew, empty");
	return say(why, size, -EEXIST, "has something else on it: --force overwrites that");
}

static int allocate(int fd, uint64_t bytes, bool *ret_sparse, char *why, size_t size)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return say(why, size, -errno, "cannot be asked for its size: %m");
	if (S_ISBLK(st.st_mode))
		return 0;
	if (ftruncate(fd, (off_t)bytes) < 0)
		return say(why, size, -errno, "cannot be given %llu bytes: %m",
			(unsigned long long)bytes);
	if (fallocate(fd, 0, 0, (off_t)bytes) == 0)
		return 0;
	if (errno == EOPNOTSUPP) {
		*ret_sparse = true;
		return 0;
	}
	return say(why, size, -errno,
		errno == ENOSPC ? "the file system has no room for %llu bytes"
				: "%llu bytes cannot be allocated",
		(unsigned long long)bytes);
}

static int write_super(int fd, const struct fmt_super *s, char *why, size_t size)
{
	void *page = aligned_alloc(DISK_PAGE, DISK_PAGE);
	const uint64_t at[2] = {s->bytes - DISK_PAGE,
		0}; /* the copy first: it is not looked at while the other is good */

	if (!page)
		return say(why, size, -ENOMEM, "no memory");
	fmt_super_make(s, page);
	for (unsigned i = 0; i < 2; i++) {
		errno = EIO;
		if (pwrite(fd, page, DISK_PAGE, (off_t)at[i]) != DISK_PAGE || fsync(fd) < 0) {
			free(page);
			return say(why, size, -errno, "cannot be written: %m");
		}
	}
	free(page);
	return 0;
}

static int format(
	int fd, uint64_t bytes, uint64_t segment_bytes, bool force, char *why, size_t size)
{
	struct fmt_super s = {.version = FMT_VERSION};
	bool sparse = false;
	uint64_t there;
	int r = device_lock(fd, why, size);

	if (r == 0)
		r = format_allowed(fd, force, why, size);
	if (r < 0)
		return r;
	r = device_size(fd, &there);
	if (r < 0)
		return say(why, size, r, "cannot be asked for its size");
	s.bytes = (bytes ? bytes : there) / DISK_PAGE * DISK_PAGE;
	s.segment_bytes = segment_bytes ? segment_bytes : DISK_SEGMENT_DEFAULT;
	s.n_segments = fmt_segments(s.bytes, s.segment_bytes);
	if (s.segment_bytes < FMT_SEGMENT_MIN || s.segment_bytes > FMT_SEGMENT_MAX ||
		s.segment_bytes % DISK_PAGE)
		return say(why, size, -EINVAL,
			"a segment has 64 KiB to 2 GiB, in whole pages of 4 KiB");
	if (!s.n_segments || s.bytes > INT64_MAX)
		return say(why, size, -EINVAL,
			"%llu bytes are not enough: a disk has at least %u segments, and 2 MiB for "
			"itself",
			(unsigned long long)s.bytes, FMT_SEGMENTS_MIN);
	if (getentropy(s.id, sizeof(s.id)) < 0)
		return say(why, size, -errno, "no random numbers: %m");
	r = allocate(fd, s.bytes, &sparse, why, size);
	if (r == 0)
		r = write_super(fd, &s, why, size);
	if (r == 0)
		say(why, size, 0, "%u segments of %llu bytes%s", s.n_segments,
			(unsigned long long)s.segment_bytes,
			sparse ? "; this file system cannot allocate ahead, so it may be full "
				 "before the disk is"
			       : "");
	return r;
}

int disk_format(const char *path, uint64_t bytes, uint64_t segment_bytes, bool force, char *why,
	size_t size)
{
	struct stat st;
	bool made = stat(path, &st) < 0 && errno == ENOENT, block = !made && S_ISBLK(st.st_mode);
	int fd, r;

	if (!made && !block && !S_ISREG(st.st_mode))
		return say(why, size, -EINVAL, "is neither a file nor a block device");
	if (block && bytes) {
		uint64_t there = 0;

		fd = open(path, O_RDONLY | O_CLOEXEC);
		r = fd < 0 ? -errno : device_size(fd, &there);
		if (fd >= 0)
			close(fd);
		if (r == 0 && there < bytes)
			return say(why, size, -EINVAL, "has %llu bytes only",
				(unsigned long long)there);
	}
	fd = open(path, O_RDWR | O_CLOEXEC | (made ? O_CREAT | O_EXCL : 0) | (block ? O_EXCL : 0),
		0600);
	if (fd < 0)
		return made && errno == ENOENT
			? say(why, size, -ENOENT, "its folder does not exist")
			: open_failed(errno, why, size);
	r = format(fd, bytes, segment_bytes, force, why, size);
	close(fd);
	if (r < 0 && made)
		unlink(path);
	return r;
}
