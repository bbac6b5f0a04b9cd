/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One entry for each slot of the index. As there, fields are stored in relaxed words, since readers look at any time, and a word with
 * release behind what it makes visible.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/cache/replica_private.h"
#include "daemon/mem/memfd.h"
#include "proto/plane.h"

#define ENTRIES_OFF 4096u

int replica_table_new(struct replica_table *t, const struct index *x, const uint8_t device[16])
{
	struct kvg_shm_replicas head = {
		.magic = KVG_REPLICAS_MAGIC,
		.version = KVG_SHM_VERSION,
		.entry_bytes = sizeof(struct kvg_shm_replica),
		.n_slots = index_slots(x),
		.entries_off = ENTRIES_OFF,
	};
	void *map;
	int r;

	head.total_bytes = ENTRIES_OFF + head.n_slots * sizeof(struct kvg_shm_replica);
	head.total_bytes = (head.total_bytes + 4095) & ~4095ull;
	memcpy(head.instance, index_instance(x), sizeof(head.instance));
	memcpy(head.device, device, sizeof(head.device));
	head.crc = replicas_crc(&head);
	*t = (struct replica_table){
		.fd = -1, .read_fd = -1, .n_slots = head.n_slots, .bytes = head.total_bytes};
	r = memfd_new("kvgate-replicas", t->bytes, 0400, 0, &t->fd);
	if (r == 0)
		r = memfd_read_only(t->fd, &t->read_fd);
	if (r < 0)
		return r;
	map = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, t->fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	t->head = map;
	t->entries = (struct kvg_shm_replica *)((uint8_t *)map + ENTRIES_OFF);
	memcpy(t->head, &head, sizeof(head));
	return 0;
}

/* A memfd that cannot change its size, open for writing, of this index and device. */
int replica_table_adopt(
	struct replica_table *t, const struct index *x, const uint8_t device[16], int fd)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW, has = fcntl(fd, F_GET_SEALS);
	const int flags = fcntl(fd, F_GETFL);
	struct kvg_shm_replicas h;
	struct stat st;
	void *map;
	int r;

	*t = (struct replica_table){.fd = -1, .read_fd = -1};
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || has < 0 || (has & seals) != seals ||
		fstat(fd, &st) < 0 || pread(fd, &h, sizeof(h), 0) != sizeof(h))
		return -EBADMSG;
	if (memcmp(h.magic, KVG_REPLICAS_MAGIC, sizeof(h.magic)) || h.crc != replicas_crc(&h) ||
		h.version != KVG_SHM_VERSION || h.entry_bytes != sizeof(struct kvg_shm_replica) ||
		h.n_slots != index_slots(x) || h.entries_off != ENTRIES_OFF ||
		h.total_bytes != (uint64_t)st.st_size ||
		h.n_slots > (h.total_bytes - ENTRIES_OFF) / sizeof(struct kvg_shm_replica) ||
		memcmp(h.instance, index_instance(x), sizeof(h.instance)) ||
		memcmp(h.device, device, sizeof(h.device)))
		return -EBADMSG;
	r = memfd_read_only(fd, &t->read_fd);
	if (r < 0)
		return r;
	map = mmap(NULL, h.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	t->fd = fd;
	t->n_slots = h.n_slots;
	t->bytes = h.total_bytes;
	t->head = map;
	t->entries = (struct kvg_shm_replica *)((uint8_t *)map + ENTRIES_OFF);
	return 0;
}

void replica_table_fini(struct replica_table *t)
{
	if (t->head)
		munmap(t->head, t->bytes);
	if (t->fd >= 0)
		close(t->fd);
	if (t->read_fd >= 0)
		close(t->read_fd);
	*t = (struct replica_table){.fd = -1, .read_fd = -1};
}

void replica_table_set(struct replica_table *t, struct kvg_handle h, uint8_t planes)
{
	assert(h.slot < t->n_slots);
	atomic_store_explicit(&t->entries[h.slot].word, planes ? kvg_word(h.gen, 1, 0, planes) : 0,
		memory_order_release);
}

void replica_table_place(struct replica_table *t, struct kvg_handle h, uint32_t plane,
	const struct kvg_shm_plane_ref *r)
{
	struct kvg_shm_replica *e = &t->entries[h.slot];
	struct kvg_shm_plane_ref ref = *r;
	uint64_t *to = (uint64_t *)&e->plane[plane], v;

	ref.check = plane_ref_check(&ref, plane, h.gen);
	for (unsigned i = 0; i < sizeof(ref) / sizeof(v); i++) {
		memcpy(&v, (const uint8_t *)&ref + i * sizeof(v), sizeof(v));
		__atomic_store_n(&to[i], v, __ATOMIC_RELAXED);
	}
}
