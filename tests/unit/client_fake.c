/* SPDX-License-Identifier: Apache-2.0 */
#include "client_fake.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SEGMENT_BYTES (1u << 20)
#define STAGING_BYTES (1u << 20)

int fake_memfd(uint64_t bytes, unsigned seals)
{
	int fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	assert(!seals || fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

int fake_read_only(int fd)
{
	char path[64];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	assert(ro >= 0);
	return ro;
}

static void *map(int fd, uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert(p != MAP_FAILED);
	return p;
}

unsigned fake_count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* ---- shared memory ---- */

static void init_index(struct fake *f)
{
	const uint64_t entries_off = 8192,
		       total = entries_off + FAKE_SLOTS * sizeof(struct kvg_shm_entry);

	f->index_fd = fake_memfd(total, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	f->index_ro = fake_read_only(f->index_fd);
	f->index = map(f->index_fd, total);
	memcpy(f->index->magic, KVG_INDEX_MAGIC, 8);
	f->index->version = KVG_SHM_VERSION;
	f->index->entry_bytes = sizeof(struct kvg_shm_entry);
	f->index->n_buckets = FAKE_BUCKETS;
	f->index->n_slots = FAKE_SLOTS;
	f->index->buckets_off = 4096;
	f->index->entries_off = entries_off;
	f->index->total_bytes = total;
	f->index->crc = index_crc(f->index);
	f->buckets = (void *)((uint8_t *)f->index + 4096);
	f->entries = (void *)((uint8_t *)f->index + entries_off);
}

static void init_pins(struct fake *f)
{
	f->pins_fd = fake_memfd(4096, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	f->pins = map(f->pins_fd, 4096);
	memcpy(f->pins->magic, KVG_PIN_MAGIC, 8);
	f->pins->version = KVG_SHM_VERSION;
	f->pins->n_pins = FAKE_PINS;
	f->pins->n_touch = FAKE_TOUCHES;
	f->pins->pins_off = 128;
	f->pins->touch_off = 1024;
	f->pins->total_bytes = 4096;
}

void fake_key(uint64_t seed, struct kvg_key *ret)
{
	for (unsigned i = 0; i < 4; i++) {
		uint64_t v = (seed * 4 + i + 1) * 0x9e3779b97f4a7c15ull;

		v ^= v >> 29;
		memcpy(ret->b + 8 * i, &v, 8);
	}
}

uint32_t fake_token(uint64_t seed, uint32_t t)
{
	return (uint32_t)(seed * 1000 + t);
}

uint32_t fake_plane_of(uint32_t run, uint32_t token)
{
	return (run + token) % FAKE_PLANES;
}

uint8_t fake_byte(uint64_t seed, uint32_t run, uint32_t token, bool is_v)
{
	return (uint8_t)(seed * 31 + run * 67 + token * 3 + is_v);
}

/* Pairs in token order inside each run; score falls with the token. */
static uint64_t write_plane(struct fake *f, uint8_t *to, const struct kvg_key *key, uint64_t seed,
	uint32_t plane, uint32_t *ret_pairs)
{
	const uint32_t runs = FAKE_LAYERS * FAKE_HEADS, k_row = FAKE_K_DIM * 2,
		       v_row = FAKE_V_DIM * 2;
	struct kvg_plane_header h = {.version = KVG_SHM_VERSION};
	struct plane_geometry g;
	uint32_t pairs = 0, at = 0;

	for (uint32_t r = 0; r < runs; r++)
		for (uint32_t t = 0; t < FAKE_TOKENS; t++)
			pairs += fake_plane_of(r, t) == plane;
	plane_geometry(runs, pairs, plane ? 0 : FAKE_TOKENS, k_row, v_row, 0, &g);
	memset(to, 0, g.bytes);
	for (uint32_t r = 0; r < runs; r++) {
		((uint32_t *)(to + g.cu_off))[r] = at;
		for (uint32_t t = 0; t < FAKE_TOKENS; t++) {
			if (fake_plane_of(r, t) != plane)
				continue;
			((uint16_t *)(to + g.index_off))[at] = (uint16_t)t;
			((uint16_t *)(to + g.score_off))[at] =
				f16_from_f32(1.0f - (float)t / FAKE_TOKENS);
			memset(to + g.k_off + at * k_row, fake_byte(seed, r, t, false), k_row);
			memset(to + g.v_off + at * v_row, fake_byte(seed, r, t, true), v_row);
			at++;
		}
	}
	((uint32_t *)(to + g.cu_off))[runs] = at;
	for (uint32_t t = 0; plane == 0 && t < FAKE_TOKENS; t++)
		((uint32_t *)(to + g.ids_off))[t] = fake_token(seed, t);
	memcpy(h.magic, KVG_PLANE_MAGIC, 8);
	h.plane = (uint16_t)plane;
	h.n_planes = FAKE_PLANES;
	memcpy(h.fingerprint, f->fingerprint, 32);
	h.key = *key;
	h.runs = runs;
	h.tokens = FAKE_TOKENS;
	h.pairs = pairs;
	h.n_token_ids = plane ? 0 : FAKE_TOKENS;
	h.k_row = k_row;
	h.v_row = v_row;
	h.bytes = g.bytes;
	h.body_crc = crc32c(0, to + KVG_PLANE_HEADER_BYTES, g.bytes - KVG_PLANE_HEADER_BYTES);
	plane_header_seal(&h);
	memcpy(to, &h, sizeof(h));
	*ret_pairs = pairs;
	return g.bytes;
}

static void put_way(struct fake *f, const struct kvg_key *key, uint32_t slot)
{
	uint64_t at = kvg_key_bucket(key, FAKE_BUCKETS);

	for (;; at = (at + 1) % FAKE_BUCKETS) {
		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++)
			if (!f->buckets[at].way[w]) {
				f->buckets[at].way[w] = (uint64_t)kvg_key_tag(key) << 32 |
					(slot + 1);
				return;
			}
		f->buckets[at].overflow++;
	}
}

uint32_t fake_put_entry(struct fake *f, const struct kvg_key *key, uint32_t layout,
	unsigned n_planes, unsigned mapped)
{
	uint32_t slot = f->n_slots++, gen = 100 + slot;
	struct kvg_shm_entry *e = &f->entries[slot];

	assert(slot < FAKE_SLOTS);
	e->key = *key;
	e->layout = layout;
	e->parent = KVG_SLOT_NONE;
	e->tokens = FAKE_TOKENS;
	e->n_planes = n_planes;
	e->crc = entry_crc(e, gen);
	put_way(f, key, slot);
	atomic_store(&e->word, kvg_word(gen, 1, (uint8_t)mapped, (uint8_t)mapped));
	return slot;
}

uint32_t fake_put(struct fake *f, const struct kvg_key *key, uint64_t seed, unsigned mapped)
{
	uint32_t slot = fake_put_entry(f, key, FAKE_LAYOUT, FAKE_PLANES, 0);
	struct kvg_shm_entry *e = &f->entries[slot];
	uint32_t gen = kvg_word_gen(e->word);

	for (uint32_t p = 0; p < FAKE_PLANES; p++) {
		struct kvg_shm_plane_ref *r = &e->plane[p];

		r->segment = FAKE_SEGMENT;
		r->page = f->next_page;
		r->page_shift = FAKE_SHIFT;
		r->tier = KVG_TIER_HOST;
		r->bytes = write_plane(
			f, f->segment + ((uint64_t)r->page << FAKE_SHIFT), key, seed, p, &r->pairs);
		r->check = plane_ref_check(r, p, gen);
		f->next_page += (uint32_t)((r->bytes + 4095) >> FAKE_SHIFT);
		assert(((uint64_t)f->next_page << FAKE_SHIFT) <= SEGMENT_BYTES);
	}
	atomic_store(&e->word, kvg_word(gen, 1, (uint8_t)mapped, (uint8_t)mapped));
	return slot;
}

uint8_t *fake_plane(struct fake *f, uint32_t slot, uint32_t plane)
{
	return f->segment + ((uint64_t)f->entries[slot].plane[plane].page << FAKE_SHIFT);
}

/* ---- the socket ---- */

void fake_send(struct fake *f, const Kvgate__V1__Reply *reply, const int *fds, unsigned n_fds)
{
	uint8_t buf[KVG_MESSAGE_MAX]; /* tests send from their own thread, too */
	size_t n = kvgate__v1__reply__pack(reply, buf);

	wire_send(f->conn, buf, n, fds, n_fds); /* the client may be gone: that is its business */
}

static void usual_stage(struct fake *f, const Kvgate__V1__Stage *s, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	static Kvgate__V1__StageReply m;
	static Kvgate__V1__StageSlot slot[16], *slots[16];

	kvgate__v1__stage_reply__init(&m);
	for (unsigned i = 0; i < s->count && i < 16; i++) {
		kvgate__v1__stage_slot__init(&slot[i]);
		slot[i].stage = ++f->next_stage;
		slot[i].offset = (f->next_stage % 32) * 8192;
		slot[i].bytes = 8192;
		slots[i] = &slot[i];
	}
	m.n_slots = s->count < 16 ? s->count : 16;
	m.slots = slots;
	m.memfd_bytes = STAGING_BYTES;
	if (!f->sent_staging)
		fds[(*n_fds)++] = f->staging_fd;
	f->sent_staging = true;
	reply->body_case = KVGATE__V1__REPLY__BODY_STAGE;
	reply->stage = &m;
}

static void usual_commit(const Kvgate__V1__Commit *q, Kvgate__V1__Reply *reply)
{
	static Kvgate__V1__CommitReply m;
	static Kvgate__V1__CommitResult result[KVG_BATCH_MAX], *results[KVG_BATCH_MAX];

	kvgate__v1__commit_reply__init(&m);
	for (size_t i = 0; i < q->n_items; i++) {
		kvgate__v1__commit_result__init(&result[i]);
		result[i].handle = q->items[i]->stage;
		result[i].code = q->items[i]->tokens == 1 ? KVG_CODE_BAD_SCORES : KVG_CODE_OK;
		results[i] = &result[i];
	}
	m.n_results = q->n_items;
	m.results = results;
	reply->body_case = KVGATE__V1__REPLY__BODY_COMMIT;
	reply->commit = &m;
}

static void usual_layout(
	struct fake *f, const Kvgate__V1__RegisterLayout *q, Kvgate__V1__Reply *reply)
{
	static Kvgate__V1__RegisterLayoutReply m;
	struct layout_identity id = {
		.shape = {q->layers, q->heads, q->block_tokens, q->k_dim, q->v_dim, q->dtype,
			q->opaque_bytes},
		.model = q->model,
		.revision = q->revision,
		.rope = q->rope,
		.eviction = q->eviction,
		.key_namespace = q->key_namespace,
		.tp_rank = q->tp_rank,
		.tp_size = q->tp_size,
		.n_edges = (uint32_t)q->n_edges,
	};

	if (q->gate_digest.len == 32)
		memcpy(id.gate_digest, q->gate_digest.data, 32);
	if (q->n_edges)
		memcpy(id.edges, q->edges, q->n_edges * sizeof(float));
	layout_fingerprint(f->hasher, &id, f->fingerprint);
	kvgate__v1__register_layout_reply__init(&m);
	m.layout = FAKE_LAYOUT;
	m.page_bytes = 1u << FAKE_SHIFT;
	m.floor = 1.0f;
	m.fingerprint = (ProtobufCBinaryData){32, f->fingerprint};
	m.gate_digest = q->gate_digest;
	m.edges = q->edges;
	m.n_edges = q->n_edges;
	reply->body_case = KVGATE__V1__REPLY__BODY_REGISTER_LAYOUT;
	reply->register_layout = &m;
}

static void usual_map(struct fake *f, const Kvgate__V1__MapSegments *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	static Kvgate__V1__MapSegmentsReply m;
	static Kvgate__V1__SegmentInfo info, *infos[1] = {&info};

	kvgate__v1__map_segments_reply__init(&m);
	kvgate__v1__segment_info__init(&info);
	for (size_t i = 0; i < q->n_segments; i++)
		if (q->segments[i] == FAKE_SEGMENT) {
			info.segment = FAKE_SEGMENT;
			info.bytes = SEGMENT_BYTES;
			info.page_shift = FAKE_SHIFT;
			info.tier = KVG_TIER_HOST;
			m.segments = infos;
			m.n_segments = 1;
			fds[(*n_fds)++] = f->segment_ro;
		}
	reply->body_case = KVGATE__V1__REPLY__BODY_MAP_SEGMENTS;
	reply->map_segments = &m;
}

bool fake_fill_usual(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	static char tenant[] = "fake-tenant", daemon[] = "fake 1";
	static Kvgate__V1__HelloReply hello = KVGATE__V1__HELLO_REPLY__INIT;
	static Kvgate__V1__AbortReply aborted = KVGATE__V1__ABORT_REPLY__INIT;
	static Kvgate__V1__ReleaseReply released = KVGATE__V1__RELEASE_REPLY__INIT;
	static Kvgate__V1__SubscribeReply subscribed = KVGATE__V1__SUBSCRIBE_REPLY__INIT;

	reply->body_case = (Kvgate__V1__Reply__BodyCase)q->body_case;
	switch (q->body_case) {
	case KVGATE__V1__REQUEST__BODY_HELLO:
		hello.version = KVG_PROTOCOL_VERSION;
		hello.tenant = tenant;
		hello.daemon = daemon;
		hello.pins = FAKE_PINS;
		reply->hello = &hello;
		if (!q->hello->control) {
			fds[(*n_fds)++] = f->index_ro;
			fds[(*n_fds)++] = f->pins_fd;
		}
		return true;
	case KVGATE__V1__REQUEST__BODY_REGISTER_LAYOUT:
		usual_layout(f, q->register_layout, reply);
		return true;
	case KVGATE__V1__REQUEST__BODY_STAGE:
		usual_stage(f, q->stage, reply, fds, n_fds);
		return true;
	case KVGATE__V1__REQUEST__BODY_COMMIT:
		usual_commit(q->commit, reply);
		return true;
	case KVGATE__V1__REQUEST__BODY_ABORT:
		reply->abort = &aborted;
		f->n_last_ids = 0;
		for (size_t i = 0; i < q->abort->n_stages && i < 8; i++)
			f->last_ids[f->n_last_ids++] = q->abort->stages[i];
		return true;
	case KVGATE__V1__REQUEST__BODY_RELEASE:
		reply->release = &released;
		f->n_last_ids = 0;
		for (size_t i = 0; i < q->release->n_handles && i < 8; i++)
			f->last_ids[f->n_last_ids++] = q->release->handles[i];
		return true;
	case KVGATE__V1__REQUEST__BODY_SUBSCRIBE:
		reply->subscribe = &subscribed;
		return true;
	case KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS:
		usual_map(f, q->map_segments, reply, fds, n_fds);
		return true;
	default:
		reply->body_case = KVGATE__V1__REPLY__BODY__NOT_SET;
		reply->code = KVG_CODE_BAD_ARGUMENT;
		return true;
	}
}

static void serve_connection(struct fake *f)
{
	static uint8_t buf[KVG_MESSAGE_MAX];

	for (;;) {
		Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;
		Kvgate__V1__Request *q;
		int fds[8];
		unsigned n_fds = 0, got_fds = 0;
		ssize_t n = wire_recv(f->conn, buf, sizeof(buf), fds, 8, &got_fds);

		if (n <= 0)
			return;
		q = kvgate__v1__request__unpack(NULL, (size_t)n, buf);
		assert(q && got_fds == 0 && q->id);
		reply.id = q->id;
		bool answers = f->handler ? f->handler(f, q, &reply, fds, &n_fds)
					  : fake_fill_usual(f, q, &reply, fds, &n_fds);
		f->n_requests[q->body_case]++; /* what it left behind may be looked at */
		if (answers) {
			reply.fds = reply.fds ? reply.fds : n_fds;
			fake_send(f, &reply, fds, n_fds);
		}
		kvgate__v1__request__free_unpacked(q, NULL);
	}
}

static void *serve(void *arg)
{
	struct fake *f = arg;

	for (;;) {
		int s = accept4(f->listen_fd, NULL, NULL, SOCK_CLOEXEC);

		if (s < 0)
			return NULL;
		f->conn = s;
		f->sent_staging = false;
		serve_connection(f);
		f->conn = -1;
		close(s);
	}
}

void fake_init(struct fake *f)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	memset(f, 0, sizeof(*f));
	f->conn = -1;
	strcpy(f->dir, "/tmp/kvgate-fake-XXXXXX");
	assert(mkdtemp(f->dir));
	snprintf(f->socket, sizeof(f->socket), "%s/sock", f->dir);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", f->socket);
	init_index(f);
	init_pins(f);
	f->segment_fd = fake_memfd(SEGMENT_BYTES, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	f->segment_ro = fake_read_only(f->segment_fd);
	f->segment = map(f->segment_fd, SEGMENT_BYTES);
	f->staging_fd = fake_memfd(STAGING_BYTES, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	f->staging = map(f->staging_fd, STAGING_BYTES);
	assert(key_hasher_new(&f->hasher) == 0);
	f->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert(f->listen_fd >= 0 && bind(f->listen_fd, (struct sockaddr *)&a, sizeof(a)) == 0);
	assert(listen(f->listen_fd, 4) == 0);
	assert(pthread_create(&f->thread, NULL, serve, f) == 0);
}

void fake_fini(struct fake *f)
{
	shutdown(f->listen_fd, SHUT_RDWR);
	if (f->conn >= 0) /* a failed test left its client open */
		shutdown(f->conn, SHUT_RDWR);
	pthread_join(f->thread, NULL);
	munmap(f->index, f->index->total_bytes);
	munmap(f->pins, 4096);
	munmap(f->segment, SEGMENT_BYTES);
	munmap(f->staging, STAGING_BYTES);
	key_hasher_free(f->hasher);
	close(f->listen_fd);
	close(f->index_fd);
	close(f->index_ro);
	close(f->pins_fd);
	close(f->segment_fd);
	close(f->segment_ro);
	close(f->staging_fd);
	unlink(f->socket);
	rmdir(f->dir);
}

void fake_open(struct fake *f, struct kvg_client **ret, struct kvg_layout **ret_layout)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	static const float edges[] = {0.5f, 0.25f};
	static const uint8_t digest[32] = {1};

	o.socket = f->socket;
	assert(kvg_open(&o, ret) == 0);
	lo.model = "m";
	lo.layers = FAKE_LAYERS;
	lo.heads = FAKE_HEADS;
	lo.k_dim = FAKE_K_DIM;
	lo.v_dim = FAKE_V_DIM;
	lo.dtype = KVG_DTYPE_BF16;
	lo.block_tokens = FAKE_TOKENS;
	lo.gate_digest = digest;
	lo.edges = edges;
	lo.n_edges = 2;
	assert(kvg_layout(*ret, &lo, ret_layout) == 0);
}
