/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight processes attend over one context of 32K tokens of Qwen3-8B's shape (36 layers, 8 KV heads, 4 query heads of
 * each, 128): one allocation, exported once, mapped by each without the right to write, and a private tail of each. Then
 * each copies the context for itself, one at a time, and must get the same bits from its copy.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gpu/attend.h"
#include "gpu/vmm.h"
#include "tests/bench/figure.h"
#include "tests/gpu/planes.h"
#include "tests/gpu/rig.h"

#define PROCESSES 8
#define LAYERS    36u
#define HEADS     8u
#define GROUP     4u
#define DIM       128u
#define TAIL      100u
#define OUT       ((size_t)HEADS * GROUP * DIM)

static const struct attend_shape shape = {HEADS, GROUP, DIM, KVG_DTYPE_BF16};

static void must(int r, const char *why)
{
	if (r < 0)
		rig_die("%s", why);
}

static void context_init(struct planes *p)
{
	const struct planes_shape of_planes = {LAYERS, HEADS, DIM, KVG_DTYPE_BF16, 32768, 256, 7};

	planes_init(p, &of_planes, NULL, 12);
}

/* ---- one byte, and perhaps a descriptor, between two processes ---- */

static void say(int s, char what, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {&what, 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		m.msg_control = control.room;
		m.msg_controllen = sizeof(control.room);
		control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	if (sendmsg(s, &m, MSG_NOSIGNAL) != 1)
		rig_die("a process is gone");
}

static int hear(int s, char what)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	char got = 0;
	struct iovec iov = {&got, 1};
	struct msghdr m = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.room,
		.msg_controllen = sizeof(control.room)};
	int fd = -1;

	if (recvmsg(s, &m, 0) != 1 || got != what)
		rig_die("expected '%c' of another process, got '%c'", what, got ? got : '-');
	if (m.msg_controllen >= CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

/* ---- one of the eight ---- */

struct reader {
	struct rig rig;
	struct gpu_attend *kernels;
	struct planes planes;
	CUdeviceptr q, tail, out;
};

static void reader_init(struct reader *r, int number)
{
	const size_t tail = (size_t)2 * HEADS * TAIL * DIM;
	uint16_t *data = malloc((tail + LAYERS * OUT) * 2);
	char why[GPU_WHY_BYTES];

	rig_init(&r->rig);
	must(gpu_attend_open(r->rig.device, &shape, &r->kernels, why, sizeof(why)), why);
	context_init(&r->planes);
	planes_random(data, tail + LAYERS * OUT, KVG_DTYPE_BF16, 1.0f, 50 + number);
	r->tail = rig_upload(&r->rig, data, tail * 2);
	r->q = rig_upload(&r->rig, data + tail, LAYERS * OUT * 2);
	r->out = rig_alloc(&r->rig, LAYERS * OUT * 2);
	free(data);
}

static void attend_layer(struct reader *r, uint64_t region, uint32_t layer)
{
	const struct gpu_attend_io io = {.q = r->q + layer * OUT * 2,
		.out = r->out + layer * OUT * 2,
		.scale = 1.0f / sqrtf(DIM)};
	const uint64_t head = (uint64_t)TAIL * DIM * 2;
	struct gpu_attend_plan *uploaded;
	struct attend_plan *p;
	char why[GPU_WHY_BYTES];

	must(attend_plan_new(&shape, gpu_device_info(r->rig.device)->processors, &p), "plan");
	must(attend_plan_sequence(p, 1, 0), "plan");
	planes_plan(&r->planes, region, layer, 7, NULL, p);
	for (uint32_t h = 0; h < HEADS; h++)
		must(attend_plan_run(p, h, r->tail + h * head, r->tail + (HEADS + h) * head, TAIL),
			"plan");
	must(attend_plan_seal(p), "plan");
	must(gpu_attend_upload(r->kernels, p, &uploaded, why, sizeof(why)), why);
	must(gpu_attend(uploaded, r->rig.stream, &io, why, sizeof(why)), why);
	rig_sync(&r->rig);
	gpu_attend_plan_free(uploaded);
	attend_plan_free(p);
}

static void attend_all(struct reader *r, uint64_t region, uint16_t *ret)
{
	rig_poison(&r->rig, r->out, LAYERS * OUT * 2);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		attend_layer(r, region, layer);
	rig_download(&r->rig, ret, r->out, LAYERS * OUT * 2);
}

static int read_shared(int s, int number, uint64_t bytes)
{
	static uint16_t shared[LAYERS * OUT], private[LAYERS * OUT];
	struct reader r = {0};
	char why[GPU_WHY_BYTES];
	CUdeviceptr copy;
	uint64_t region;
	int fd;

	reader_init(&r, number);
	say(s, 'r', -1);
	fd = hear(s, 'f');
	must(gpu_vmm_map(r.rig.device, fd, bytes, false, &region, why, sizeof(why)), why);
	close(fd);
	attend_all(&r, region, shared);
	say(s, 's', -1);
	hear(s, 'p');
	rig_cu(&r.rig, cuMemAlloc, &copy, bytes);
	rig_cu(&r.rig, cuMemcpyAsync, copy, region, bytes, r.rig.stream);
	attend_all(&r, copy, private);
	rig_free(&r.rig, copy);
	for (size_t i = 0; i < LAYERS * OUT; i++)
		if ((shared[i] & 0x7f80) == 0x7f80 || shared[i] == RIG_POISON * 0x101)
			rig_die("an element that is no result");
	say(s, memcmp(shared, private, sizeof(shared)) ? 'x' : 'e', -1);
	hear(s, 'q');
	return 0;
}

/* ---- the one that owns the context ---- */

static double used_GiB(struct rig *r)
{
	size_t free_bytes, all;

	rig_cu(r, cuMemGetInfo, &free_bytes, &all);
	return (double)(all - free_bytes) * 0x1p-30;
}

static int make_context(struct rig *r, uint64_t bytes)
{
	const size_t pool_bytes = (size_t)64 << 20;
	char *pool = malloc(pool_bytes);
	char why[GPU_WHY_BYTES];
	CUdeviceptr from;
	uint64_t region;
	int fd;

	must(gpu_vmm_create(r->driver, 0, bytes, &fd, why, sizeof(why)), why);
	must(gpu_vmm_map(r->device, fd, bytes, true, &region, why, sizeof(why)), why);
	planes_random(pool, pool_bytes / 2, KVG_DTYPE_BF16, 1.0f, 1);
	from = rig_upload(r, pool, pool_bytes);
	for (uint64_t at = 0; at < bytes; at += pool_bytes - 4096) /* no two the same */
		rig_cu(r, cuMemcpyAsync, region + at, from,
			bytes - at < pool_bytes - 4096 ? bytes - at : pool_bytes - 4096, r->stream);
	rig_free(r, from);
	must(gpu_vmm_unmap(r->device, region, bytes, why, sizeof(why)), why);
	free(pool);
	return fd;
}

static int own(const int *s, uint64_t bytes)
{
	double before, shared;
	struct rig r;
	int fd, equal = 0, status = 0;

	rig_init(&r);
	for (int i = 0; i < PROCESSES; i++)
		hear(s[i], 'r');
	before = used_GiB(&r);
	fd = make_context(&r, bytes);
	for (int i = 0; i < PROCESSES; i++)
		say(s[i], 'f', fd);
	for (int i = 0; i < PROCESSES; i++)
		hear(s[i], 's');
	shared = used_GiB(&r) - before;
	for (int i = 0; i < PROCESSES; i++) {
		say(s[i], 'p', -1);
		hear(s[i], 'e');
		equal++;
	}
	for (int i = 0; i < PROCESSES; i++)
		say(s[i], 'q', -1);
	while (wait(&status) > 0)
		if (status)
			rig_die("a process failed");
	figure_print(&(struct figure_line){"gpu", "share_8_GiB", "GiB", shared,
			     PROCESSES * (double)bytes * 0x1p-30, FIGURE_NONE},
		"8 copies; %d processes have the bits that a copy of their own gives, %s", equal,
		gpu_device_info(r.device)->name);
	return figure_status();
}

/* CUDA does not survive fork(): all processes are made before anybody starts it. */
int main(void)
{
	struct planes planes;
	int s[PROCESSES];
	uint64_t bytes;

	context_init(&planes);
	bytes = (planes.bytes + (2 << 20) - 1) & ~(uint64_t)((2 << 20) - 1);
	for (int i = 0; i < PROCESSES; i++) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
			rig_die("no sockets");
		if (fork() == 0) {
			close(pair[0]);
			exit(read_shared(pair[1], i, bytes));
		}
		close(pair[1]);
		s[i] = pair[0];
	}
	return own(s, bytes);
}
