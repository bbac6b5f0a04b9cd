/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvgate-mover LIBRARY DEVICE PARENT: the one process that has a context on a device. Whatever the driver does to it - a lost
 * device ends a process, and takes tenths of a second to come back - the daemon goes on and starts another.
 *
 * It takes what waits for it, copies all of that, waits until it is there, and says so: so that a page is never said to
 * be where it is not yet. When the daemon's end of the socket closes, or the daemon dies, it is of no more use. Nothing has
 * to be put away: the kernel does that, and the daemon waits for this process to be gone before a page that it was writing
 * to is used for anything else.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gpu/mover/copy.h"

#define JOBS_MAX 64 /* taken together: a launch and a wait are shared by so many */

struct mover {
	struct gpu_driver *driver;
	struct segments segments;
	struct copy copy;
	struct mover_done done[JOBS_MAX];
	unsigned n;
	char why[GPU_WHY_BYTES];
};

static void say(const void *message, size_t n)
{
	if (send(MOVER_FD, message, n, MSG_NOSIGNAL) < 0)
		exit(EXIT_FAILURE); /* nobody listens any more */
}

static void say_state(enum mover_kind kind, const char *text)
{
	struct mover_state m = {.head = {MOVER_VERSION, kind}};

	snprintf(m.text, sizeof(m.text), "%s", text);
	say(&m, sizeof(m));
}

static _Noreturn void fail(const char *text)
{
	say_state(MOVER_FAILED, text);
	exit(EXIT_FAILURE);
}

/* ---- what comes ---- */

static void import(struct mover *m, const struct mover_import *i, int fd)
{
	const struct mover_segment *s;

	if (fd < 0)
		fail("a segment came without its descriptor");
	if (segments_import(&m->segments, i, fd, m->why, sizeof(m->why)) < 0)
		fprintf(stderr, "kvgate-mover: %s\n", m->why);
	s = segments_find(&m->segments, i->tier, i->segment);
	if (s && !s->error && i->fresh && i->tier == KVG_TIER_GPU &&
		copy_zero(&m->copy, s, m->why, sizeof(m->why)) < 0)
		fail(m->why);
}

static void copy(struct mover *m, const struct mover_copy *q)
{
	struct mover_done *done = &m->done[m->n++];

	*done = (struct mover_done){.head = {MOVER_VERSION, MOVER_DONE}, .job = q->job};
	for (uint32_t i = 0; i < q->n && !done->error; i++) {
		const struct mover_range *r = &q->range[i];
		const struct mover_segment *from, *to;

		from = segments_find(&m->segments, r->from_tier, r->from_segment);
		to = segments_find(&m->segments, r->to_tier, r->to_segment);
		done->error = copy_check(from, to, r, q->page_shift);
		if (done->error)
			snprintf(done->text, sizeof(done->text), "segments %u and %u: %s",
				r->from_segment, r->to_segment, strerror(-done->error));
		else if (copy_range(&m->copy, from, to, r, q->page_shift, m->why, sizeof(m->why)) <
			0)
			fail(m->why);
	}
}

static void finish(struct mover *m)
{
	if (copy_finish(&m->copy, m->why, sizeof(m->why)) < 0)
		fail(m->why);
	for (unsigned i = 0; i < m->n; i++)
		say(&m->done[i], sizeof(m->done[i]));
	m->n = 0;
}

static size_t size_of(const union mover_message *q)
{
	switch (q->head.kind) {
	case MOVER_IMPORT:
		return sizeof(q->import);
	case MOVER_FORGET:
		return sizeof(q->forget);
	case MOVER_COPY:
		return q->copy.n > MOVER_COPIES
			? 0
			: offsetof(struct mover_copy, range) + q->copy.n * sizeof(q->copy.range[0]);
	default:
		return 0;
	}
}

static void obey(struct mover *m, const union mover_message *q, size_t n, int fd)
{
	if (n < sizeof(q->head) || q->head.version != MOVER_VERSION || n != size_of(q))
		fail("a message of another version");
	switch (q->head.kind) {
	case MOVER_IMPORT:
		import(m, &q->import, fd);
		break;
	case MOVER_FORGET: /* nothing of it is on its way when all that came before is done */
		finish(m);
		segments_forget(&m->segments, q->forget.tier, q->forget.segment);
		break;
	default:
		copy(m, &q->copy);
	}
	if (fd >= 0)
		close(fd);
}

/* False: nothing is there now. */
static bool take_one(struct mover *m)
{
	static union mover_message q; /* not half overwritten: each is as long as it says */
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec io = {&q, sizeof(q)};
	struct msghdr h = {.msg_iov = &io,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	const ssize_t n = recvmsg(MOVER_FD, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	const struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&h) : NULL;
	int fd = -1;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0)
		exit(EXIT_SUCCESS); /* the daemon closed its end */
	if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	obey(m, &q, (size_t)n, fd);
	return true;
}

/* ---- */

static void start(struct mover *m, const char *library, int ordinal)
{
	if (gpu_driver_open_as(library, &m->driver, m->why, sizeof(m->why)) < 0 ||
		gpu_device_open(m->driver, ordinal, &m->segments.device, m->why, sizeof(m->why)) <
			0 ||
		copy_init(&m->copy, m->segments.device, m->why, sizeof(m->why)) < 0)
		fail(m->why);
	say_state(MOVER_READY, gpu_device_info(m->segments.device)->name);
}

int main(int argc, char **argv)
{
	static struct mover m;
	struct pollfd p = {.fd = MOVER_FD, .events = POLLIN};

	if (argc != 4) {
		fprintf(stderr, "kvgate-mover is started by kvgated, for a GPU of its own\n");
		return EXIT_FAILURE;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != (pid_t)atol(argv[3]))
		return EXIT_FAILURE; /* it died before that was set */
	start(&m, argv[1], atoi(argv[2]));
	for (;;) {
		while (m.n < JOBS_MAX && take_one(&m))
			;
		if (m.n)
			finish(&m);
		else
			poll(&p, 1, -1);
	}
}
