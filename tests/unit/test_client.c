/* SPDX-License-Identifier: Apache-2.0 */
/* Connection, deadlines, staging, commits and events of libkvgate against a daemon that is not always a good one. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/lib/client.h"
#include "client_fake.h"

static struct fake fake;
static unsigned fds_before;

static int setup(void **state)
{
	(void)state;
	fds_before = fake_count_fds();
	fake_init(&fake);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fake_fini(&fake);
	assert_int_equal(fake_count_fds(), fds_before);
	return 0;
}

static struct kvg_options options(void)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);

	o.socket = fake.socket;
	return o;
}

static struct kvg_client *open_client(int timeout_ms)
{
	struct kvg_options o = options();
	struct kvg_client *c;

	o.timeout_ms = timeout_ms;
	assert_int_equal(kvg_open(&o, &c), 0);
	return c;
}

static struct kvg_layout *open_layout(struct kvg_client *c)
{
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l;

	lo.model = "m";
	lo.layers = FAKE_LAYERS;
	lo.heads = FAKE_HEADS;
	lo.k_dim = FAKE_K_DIM;
	lo.v_dim = FAKE_V_DIM;
	lo.dtype = KVG_DTYPE_BF16;
	lo.block_tokens = FAKE_TOKENS;
	assert_int_equal(kvg_layout(c, &lo, &l), 0);
	return l;
}

/* ---- opening ---- */

static void test_open_and_describe(void **state)
{
	struct kvg_session_info s = KVG_OPTIONS_INIT(kvg_session_info);
	struct kvg_layout_info info = KVG_OPTIONS_INIT(kvg_layout_info);
	struct kvg_client *c = open_client(0);

	(void)state;
	assert_string_equal(kvg_tenant(c), "fake-tenant");
	kvg_session(c, &s);
	assert_string_equal(s.daemon, "fake 1");
	assert_int_equal(s.pins, FAKE_PINS);
	kvg_layout_describe(open_layout(c), &info);
	assert_int_equal(info.id, FAKE_LAYOUT);
	assert_int_equal(info.block_tokens, FAKE_TOKENS);
	assert_int_equal(info.n_planes, 1);
	assert_memory_equal(info.fingerprint, fake.fingerprint, 32);
	kvg_close(c);
	kvg_close(NULL);
}

static void test_nobody_there(void **state)
{
	struct kvg_options o = options();
	struct kvg_client *c;
	char longer[200];

	(void)state;
	o.socket = "/nonexistent/sock";
	assert_int_equal(kvg_open(&o, &c), -ENOENT);
	assert_non_null(strstr(kvg_last_error(NULL), "is kvgated running?"));
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	o.socket = longer;
	assert_int_equal(kvg_open(&o, &c), -ENAMETOOLONG);
}

/* A caller built against an older, or a newer, header. */
static void test_option_sizes(void **state)
{
	struct {
		struct kvg_options o;
		uint64_t more[4];
	} newer = {.o = options()};
	struct kvg_session_info s;
	struct kvg_client *c;

	(void)state;
	newer.o.size =
		offsetof(struct kvg_options, pins); /* older: no pins, no control, no timeout */
	newer.o.control = 1;
	assert_int_equal(kvg_open(&newer.o, &c), 0);
	assert_int_equal(c->lookup_error, 0); /* `control` was not seen */
	memset(&s, 0xee, sizeof(s));
	s.size = offsetof(struct kvg_session_info, staging_bytes);
	kvg_session(c, &s);
	assert_string_equal(s.tenant, "fake-tenant");
	assert_int_equal(s.pins, 0xeeeeeeee); /* nothing behind its size was written */
	assert_int_equal(s.size, offsetof(struct kvg_session_info, staging_bytes));
	kvg_close(c);
	newer.o.control = 0;
	newer.o.size = sizeof(newer);
	assert_int_equal(kvg_open(&newer.o, &c), 0);
	kvg_close(c);
	newer.more[3] = 1;
	assert_int_equal(kvg_open(&newer.o, &c), -E2BIG);
	newer.o.size = 0;
	assert_int_equal(kvg_open(&newer.o, &c), -EINVAL);
}

static int hello_fds[2];
static bool hello_with(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	if (*n_fds == 2)
		memcpy(fds, hello_fds, sizeof(hello_fds));
	return r;
}

static void refused(int index, int pins, const char *text)
{
	struct kvg_options o = options();
	struct kvg_client *c;

	hello_fds[0] = index >= 0 ? index : fake.index_ro;
	hello_fds[1] = pins >= 0 ? pins : fake.pins_fd;
	fake.handler = hello_with;
	assert_int_equal(kvg_open(&o, &c), -EBADMSG);
	if (!strstr(kvg_last_error(NULL), text))
		fail_msg("'%s' instead of '%s'", kvg_last_error(NULL), text);
	if (index >= 0)
		close(index);
	if (pins >= 0)
		close(pins);
	fake.handler = NULL;
}

/* Read-only copy of the fake's index, changed. */
static int changed_index(
	unsigned seals, size_t bytes, size_t offset, uint8_t flip, bool seal_header)
{
	int fd = fake_memfd(bytes, 0), ro;
	struct kvg_shm_index h = *fake.index;

	((uint8_t *)&h)[offset] ^= flip;
	if (seal_header)
		h.crc = index_crc(&h);
	assert_int_equal(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	ro = fake_read_only(fd);
	close(fd);
	return ro;
}

static void test_shared_memory_that_is_none(void **state)
{
	size_t bytes = fake.index->total_bytes;
	int p[2], fd;

	(void)state;
	assert_int_equal(pipe(p), 0);
	refused(p[0], -1, "shorter than its header");
	close(p[1]);
	refused(changed_index(0, bytes, 0, 0, false), -1, "not sealed");
	refused(changed_index(F_SEAL_SHRINK, bytes, 0, 1, false), -1, "no valid header");
	refused(changed_index(
			F_SEAL_SHRINK, bytes, offsetof(struct kvg_shm_index, n_slots), 1, false),
		-1, "no valid header");
	refused(changed_index(
			F_SEAL_SHRINK, bytes, offsetof(struct kvg_shm_index, version), 1, true),
		-1, "another version");
	refused(changed_index(
			F_SEAL_SHRINK, bytes, offsetof(struct kvg_shm_index, n_slots) + 4, 1, true),
		-1, "do not add up");
	refused(changed_index(
			F_SEAL_SHRINK, bytes, offsetof(struct kvg_shm_index, n_buckets), 1, true),
		-1, "do not add up");
	refused(changed_index(
			F_SEAL_SHRINK, bytes, offsetof(struct kvg_shm_index, entries_off), 1, true),
		-1, "do not add up");
	refused(changed_index(F_SEAL_SHRINK, bytes - 1, 0, 0, true), -1, "do not add up");
	refused(changed_index(F_SEAL_SHRINK, 40, 0, 0, true), -1, "shorter than its header");
	fd = dup(fake.index_fd);
	refused(fd, -1, "wrong mode"); /* a writable index is a defect, not a gift */
	refused(-1, fake_read_only(fake.pins_fd), "wrong mode");
	fd = fake_memfd(4096, F_SEAL_SHRINK);
	refused(-1, fd, "no valid header");
	fake.pins->touch_off = 4096 - 32;
	refused(-1, dup(fake.pins_fd), "do not add up");
	fake.pins->touch_off = 1024;
	fake.pins->n_touch = 7;
	refused(-1, dup(fake.pins_fd), "do not add up");
}

static bool hello_version(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	reply->hello->version = 9;
	return r;
}

static bool hello_one_fd(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	*n_fds = 1;
	return r;
}

static bool hello_refused(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	(void)f, (void)q, (void)fds, (void)n_fds;
	reply->code = KVG_CODE_DENIED;
	return true;
}

static void test_hello_that_fails(void **state)
{
	struct kvg_options o = options();
	struct kvg_client *c;

	(void)state;
	fake.handler = hello_version;
	assert_int_equal(kvg_open(&o, &c), -EPROTO);
	fake.handler = hello_one_fd;
	assert_int_equal(kvg_open(&o, &c), -EPROTO);
	fake.handler = hello_refused;
	assert_int_equal(kvg_open(&o, &c), -EACCES);
	assert_string_equal(kvg_last_error(NULL), kvg_code_prose(KVG_CODE_DENIED));
}

static void test_control_session(void **state)
{
	struct kvg_options o = options();
	struct kvg_client *c;
	struct kvg_key key = {{0}};
	struct kvg_pin pin;

	(void)state;
	o.control = 1;
	assert_int_equal(kvg_open(&o, &c), 0);
	assert_int_equal(kvg_lookup_pin(open_layout(c), &key, 0, &pin), -EOPNOTSUPP);
	kvg_unpin(c, &pin, 0);
	kvg_close(c);
}

static void test_layout_that_does_not_add_up(void **state)
{
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_client *c = open_client(0);
	static const float edge = 0.5f;
	struct kvg_layout *l;

	(void)state;
	assert_int_equal(kvg_layout(c, &lo, &l), -EINVAL);
	lo.layers = lo.heads = lo.k_dim = lo.v_dim = 1;
	lo.dtype = KVG_DTYPE_F32;
	assert_int_equal(kvg_layout(c, &lo, &l), -EINVAL);
	assert_non_null(strstr(kvg_last_error(c), "model"));
	lo.model = "m";
	lo.edges = &edge;
	lo.n_edges = 1;
	assert_int_equal(kvg_layout(c, &lo, &l), -EINVAL);
	lo.n_edges = 0;
	lo.layers = 5000;
	assert_int_equal(kvg_layout(c, &lo, &l), -EINVAL);
	assert_int_equal(kvg_last_code(c), KVG_CODE_BAD_LAYOUT);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_REGISTER_LAYOUT], 0);
	lo.layers = 1;
	assert_int_equal(kvg_layout(c, &lo, &l), 0);
	kvg_close(c);
}

static bool other_fingerprint(struct fake *f, const Kvgate__V1__Request *q,
	Kvgate__V1__Reply *reply, int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	if (reply->body_case == KVGATE__V1__REPLY__BODY_REGISTER_LAYOUT)
		reply->register_layout->fingerprint.data[0] ^= 1;
	return r;
}

static void test_fingerprints_must_agree(void **state)
{
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l;

	(void)state;
	fake.handler = other_fingerprint;
	lo.model = "m";
	lo.opaque_bytes = 100;
	assert_int_equal(kvg_layout(c, &lo, &l), -EPROTO);
	kvg_close(c);
}

/* ---- writing ---- */

static void test_stage_and_commit(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct kvg_stage s[2];
	struct kvg_commit item[2];
	struct kvg_commit_result result[2];

	(void)state;
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 2, s), 2);
	assert_int_equal(s[0].kv_bytes,
		FAKE_LAYERS * FAKE_HEADS * FAKE_TOKENS * 2 * (FAKE_K_DIM + FAKE_V_DIM));
	assert_int_equal(s[0].aux_bytes, FAKE_LAYERS * FAKE_HEADS * FAKE_TOKENS * sizeof(float));
	memset(s[0].kv, 0x11, s[0].kv_bytes);
	memset(s[0].aux, 0x22, s[0].aux_bytes);
	memset(s[0].tokens, 0x33, FAKE_TOKENS * 4);
	assert_int_equal(fake.staging[8192], 0x11);
	assert_int_equal(fake.staging[8192 + s[0].kv_bytes], 0x22);
	assert_int_equal(kvg_stage_tokens(l, KVG_INPUT_SCORES, &s[1], FAKE_TOKENS + 1), -EINVAL);
	assert_int_equal(kvg_stage_tokens(l, KVG_INPUT_SCORES, &s[1], 1), 0);
	assert_int_equal(s[1].kv_bytes, s[0].kv_bytes / FAKE_TOKENS);
	for (unsigned i = 0; i < 2; i++) {
		item[i] = (struct kvg_commit){.stage = &s[i]};
		fake_key(i, &item[i].key);
	}
	item[1].parent = &item[0].key;
	assert_int_equal(kvg_commit(c, item, 2, result), 0);
	assert_int_equal(result[0].code, KVG_CODE_OK);
	assert_int_equal(result[0].handle.slot, s[0].id);
	assert_string_equal(result[0].error, "");
	assert_int_equal(result[1].code, KVG_CODE_BAD_SCORES); /* the fake dislikes one token */
	assert_string_equal(result[1].error, kvg_code_prose(KVG_CODE_BAD_SCORES));
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, s), 1);
	assert_null(s[0].aux);
	assert_int_equal(kvg_abort(c, s, 1), 0);
	assert_int_equal(fake.last_ids[0], s[0].id);
	assert_int_equal(kvg_stage(l, KVG_INPUT_HIDDEN, 1, s), -EINVAL); /* no gate */
	kvg_close(c);
}

struct done {
	unsigned calls;
	int64_t ticket;
	int error, code;
};

static void commit_done(void *userdata, int64_t ticket, int error,
	const struct kvg_commit_result *results, size_t n)
{
	struct done *d = userdata;

	d->calls++;
	d->ticket = ticket;
	d->error = error;
	d->code = n ? results[0].code : -1;
}

static bool readable(int fd, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, timeout_ms) == 1;
}

static void test_commit_from_an_event_loop(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct done done = {0};
	struct kvg_stage s;
	struct kvg_commit item = {.stage = &s};
	int64_t ticket;

	(void)state;
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), 1);
	assert_false(readable(kvg_fd(c), 0));
	ticket = kvg_commit_start(c, &item, 1, commit_done, &done);
	assert_true(ticket > 0);
	assert_true(readable(kvg_fd(c), 5000));
	assert_int_equal(done.calls, 0);
	assert_int_equal(kvg_dispatch(c), 0);
	assert_int_equal(done.calls, 1);
	assert_int_equal(done.ticket, ticket);
	assert_int_equal(done.code, KVG_CODE_OK);
	assert_false(readable(kvg_fd(c), 0));

	/* what a blocking call takes in by the way still makes the fd readable */
	ticket = kvg_commit_start(c, &item, 1, commit_done, &done);
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), 1);
	assert_int_equal(done.calls, 1);
	assert_true(readable(kvg_fd(c), 0));
	assert_int_equal(kvg_dispatch(c), 0);
	assert_int_equal(done.calls, 2);
	assert_false(readable(kvg_fd(c), 0));

	/* the end of the connection ends the commit, too */
	assert_true(kvg_commit_start(c, &item, 1, commit_done, &done) > 0);
	while (!readable(kvg_fd(c), 100))
		;
	shutdown(fake.conn, SHUT_RDWR);
	assert_true(kvg_commit_start(c, &item, 1, commit_done, &done) > 0 || c->dead);
	while (kvg_dispatch(c) == 0)
		;
	assert_true(done.calls >= 3);
	assert_int_equal(kvg_dispatch(c), -ECONNRESET);
	kvg_close(c);
}

static void test_close_with_commits_in_flight(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct done done = {0};
	struct kvg_stage s;
	struct kvg_commit item = {.stage = &s};

	(void)state;
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), 1);
	for (int i = 0; i < 10; i++)
		assert_true(kvg_commit_start(c, &item, 1, commit_done, &done) > 0);
	kvg_close(c); /* frees them, calls nobody */
	assert_int_equal(done.calls, 0);
}

/* ---- answers that come late, wrong or never ---- */

static bool silent_for_stage(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	if (q->body_case == KVGATE__V1__REQUEST__BODY_STAGE)
		usleep(150000);
	return r;
}

static void test_late_stages_go_back(void **state)
{
	struct kvg_client *c = open_client(50);
	struct kvg_layout *l = open_layout(c);
	struct kvg_stage s[3];

	(void)state;
	fake.handler = silent_for_stage;
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 3, s), -ETIMEDOUT);
	for (int i = 0; i < 200 && !fake.n_requests[KVGATE__V1__REQUEST__BODY_ABORT]; i++) {
		readable(kvg_fd(c), 20);
		assert_int_equal(kvg_dispatch(c), 0);
	}
	assert_int_equal(fake.n_last_ids, 3);
	fake.handler = NULL;
	assert_int_equal(
		kvg_stage(l, KVG_INPUT_NONE, 1, s), 1); /* the memfd of the late reply was kept */
	memset(s[0].kv, 1, s[0].kv_bytes);
	kvg_close(c);
}

static bool wrong_body(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	static Kvgate__V1__AbortReply m = KVGATE__V1__ABORT_REPLY__INIT;

	if (q->body_case != KVGATE__V1__REQUEST__BODY_STAGE)
		return fake_fill_usual(f, q, reply, fds, n_fds);
	reply->body_case = KVGATE__V1__REPLY__BODY_ABORT;
	reply->abort = &m;
	return true;
}

static bool wrong_id(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	reply->id += q->body_case == KVGATE__V1__REQUEST__BODY_STAGE ? 100 : 0;
	return r;
}

static bool wrong_fd_count(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	if (q->body_case == KVGATE__V1__REQUEST__BODY_STAGE)
		reply->fds = 2;
	return r;
}

static bool bad_slot(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	if (q->body_case == KVGATE__V1__REQUEST__BODY_STAGE)
		reply->stage->slots[0]->offset = 1u << 20;
	return r;
}

static bool garbage(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	if (q->body_case != KVGATE__V1__REQUEST__BODY_STAGE)
		return fake_fill_usual(f, q, reply, fds, n_fds);
	wire_send(f->conn, "\xff\xff\xff\xff\xff", 5, &f->segment_ro, 1);
	return false;
}

/* Neither an event nor an end: no daemon says that. */
static bool id_0_and_ok(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool r = fake_fill_usual(f, q, reply, fds, n_fds);

	if (q->body_case == KVGATE__V1__REQUEST__BODY_STAGE)
		reply->id = 0;
	return r;
}

static void test_wrong_answers_end_the_connection(void **state)
{
	static const fake_handler wrong[] = {
		wrong_body, wrong_id, id_0_and_ok, wrong_fd_count, bad_slot, garbage};

	(void)state;
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct kvg_client *c = open_client(2000);
		struct kvg_layout *l = open_layout(c);
		struct kvg_key key = {{0}};
		struct kvg_stage s;
		struct kvg_pin pin;

		fake.handler = wrong[i];
		assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), -EPROTO);
		assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), -EPROTO);
		assert_int_equal(kvg_lookup_pin(l, &key, 0, &pin), -ENOTCONN);
		assert_int_equal(kvg_dispatch(c), -EPROTO);
		kvg_close(c);
		fake.handler = NULL;
	}
}

static void test_end_of_daemon_is_told(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct kvg_stage s;

	(void)state;
	shutdown(fake.conn, SHUT_RDWR);
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), -ECONNRESET);
	assert_non_null(strstr(kvg_last_error(c), "open a new connection"));
	kvg_close(c);
}

/* ---- events ---- */

static void count_event(void *userdata, const struct kvg_event *e)
{
	unsigned *n = userdata;

	if (e->kind == 0)
		n[1] += (unsigned)e->count;
	else
		n[0]++;
}

static void send_events(unsigned n)
{
	Kvgate__V1__Event e = KVGATE__V1__EVENT__INIT;
	Kvgate__V1__Reply r = KVGATE__V1__REPLY__INIT;

	e.kind = KVGATE__V1__EVENT_KIND__EVENT_COMMITTED;
	r.body_case = KVGATE__V1__REPLY__BODY_EVENT;
	r.event = &e;
	for (unsigned i = 0; i < n; i++)
		fake_send(&fake, &r, NULL, 0);
}

static bool events_before_stage(struct fake *f, const Kvgate__V1__Request *q,
	Kvgate__V1__Reply *reply, int *fds, unsigned *n_fds)
{
	if (q->body_case == KVGATE__V1__REQUEST__BODY_STAGE)
		send_events(5000);
	return fake_fill_usual(f, q, reply, fds, n_fds);
}

static void test_events_wait_for_dispatch(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	unsigned n[2] = {0};
	struct kvg_stage s;

	(void)state;
	assert_int_equal(kvg_subscribe(c, 2, NULL, NULL), -EINVAL);
	assert_int_equal(kvg_subscribe(c, 2, count_event, n), 0);
	fake.handler = events_before_stage;
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), 1);
	assert_int_equal(n[0], 0);
	assert_int_equal(kvg_dispatch(c), 0);
	assert_int_equal(n[0], 4096); /* a bounded queue, and it says what it lost */
	assert_int_equal(n[1], 5000 - 4096);
	kvg_close(c);
}

/* ---- acquire ---- */

static bool answer_acquire(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	static Kvgate__V1__AcquireReply m;
	static Kvgate__V1__BlockResult b[KVG_BATCH_MAX], *list[KVG_BATCH_MAX];

	if (q->body_case != KVGATE__V1__REQUEST__BODY_ACQUIRE)
		return fake_fill_usual(f, q, reply, fds, n_fds);
	kvgate__v1__acquire_reply__init(&m);
	for (size_t i = 0; i < q->acquire->n_keys; i++) {
		kvgate__v1__block_result__init(&b[i]);
		b[i].code = q->acquire->keys[i].data[0] == 0xff ? KVG_CODE_NOT_FOUND : KVG_CODE_OK;
		b[i].handle = 1ull << 32 | i;
		list[i] = &b[i];
		m.n_blocks = i + 1;
		if (b[i].code && q->acquire->prefix)
			break;
	}
	m.blocks = list;
	reply->body_case = KVGATE__V1__REPLY__BODY_ACQUIRE;
	reply->acquire = &m;
	return true;
}

static void test_acquire_in_batches(void **state)
{
	enum {
		N = 600
	};
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	static struct kvg_key key[N];
	static struct kvg_acquired got[N];
	struct kvg_handle h[3] = {{1, 2}, {3, 4}, {5, 6}};

	(void)state;
	fake.handler = answer_acquire;
	memset(key, 0, sizeof(key));
	key[300].b[0] = 0xff;
	assert_int_equal(kvg_acquire(l, key, N, 0, 0, got), N - 1);
	assert_int_equal(got[300].code, KVG_CODE_NOT_FOUND);
	assert_int_equal(got[599].code, KVG_CODE_OK);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_ACQUIRE], 3);
	assert_int_equal(kvg_acquire(l, key, N, 0, 1, got), 300);
	assert_int_equal(got[301].code, KVG_CODE_NOT_FOUND);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_ACQUIRE], 5);
	assert_int_equal(kvg_release(c, h, 3), 0);
	assert_int_equal(fake.last_ids[2], 6ull << 32 | 5);
	kvg_close(c);
}

/* ---- lists in pages ---- */

static uint64_t next_cursor[4];

static bool answer_list(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	static uint8_t key[32];
	static Kvgate__V1__BlockInfo b = KVGATE__V1__BLOCK_INFO__INIT, *list[] = {&b, &b, &b};
	static Kvgate__V1__Counter counter = KVGATE__V1__COUNTER__INIT, *counters[] = {&counter};
	static Kvgate__V1__ListReply m = KVGATE__V1__LIST_REPLY__INIT;
	static Kvgate__V1__StatReply s = KVGATE__V1__STAT_REPLY__INIT;

	b.key = (ProtobufCBinaryData){32, key};
	m.blocks = list;
	m.n_blocks = 3;
	s.counters = counters;
	s.n_counters = 1;
	if (q->body_case == KVGATE__V1__REQUEST__BODY_LIST) {
		m.next = next_cursor[q->list->cursor];
		reply->list = &m;
	} else if (q->body_case == KVGATE__V1__REQUEST__BODY_STAT) {
		s.next = next_cursor[q->stat->cursor];
		reply->stat = &s;
	} else {
		return fake_fill_usual(f, q, reply, fds, n_fds);
	}
	reply->body_case = (Kvgate__V1__Reply__BodyCase)q->body_case;
	return true;
}

static int count_block(void *userdata, const struct kvg_block_entry *b)
{
	(void)b;
	return ++*(unsigned *)userdata == 5;
}

static void count_counter(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	(void)name, (void)tenant, (void)model, (void)tier, (void)plane, (void)value;
	++*(unsigned *)userdata;
}

static void test_lists_in_pages(void **state)
{
	struct kvg_list_options o = KVG_OPTIONS_INIT(kvg_list_options);
	struct kvg_client *c = open_client(0);
	unsigned n = 0;

	(void)state;
	fake.handler = answer_list;
	memcpy(next_cursor, (uint64_t[]){1, 3, 0, 0}, sizeof(next_cursor));
	assert_int_equal(kvg_stat(c, 0, count_counter, &n), 0);
	assert_int_equal(n, 3);
	n = 0;
	assert_int_equal(kvg_list(c, &o, count_block, &n), 0);
	assert_int_equal(n, 5); /* told to stop in the second page */
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_LIST], 2);
	next_cursor[1] = 1; /* a daemon that never comes to an end */
	assert_int_equal(kvg_stat(c, 0, count_counter, &n), -EPROTO);
	kvg_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_open_and_describe),
		TEST(test_nobody_there),
		TEST(test_option_sizes),
		TEST(test_shared_memory_that_is_none),
		TEST(test_hello_that_fails),
		TEST(test_control_session),
		TEST(test_layout_that_does_not_add_up),
		TEST(test_fingerprints_must_agree),
		TEST(test_stage_and_commit),
		TEST(test_commit_from_an_event_loop),
		TEST(test_close_with_commits_in_flight),
		TEST(test_late_stages_go_back),
		TEST(test_wrong_answers_end_the_connection),
		TEST(test_end_of_daemon_is_told),
		TEST(test_events_wait_for_dispatch),
		TEST(test_acquire_in_batches),
		TEST(test_lists_in_pages),
	};

	return cmocka_run_group_tests_name("client", tests, NULL, NULL);
}
