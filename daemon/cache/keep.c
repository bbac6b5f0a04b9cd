/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is kept of a tenant, and when it is put into the keeper's hands:
 *
 *	index, catalog		when the tenant comes to be
 *	layout			at registration, before a stage of it can be reserved
 *	segment			when it is made, before anything lies in it
 *	limits, floors		when they change
 *
 * so that whatever a block in the index refers to is there for the next daemon before the block is. (A segment's fd may wait
 * for a keeper that is behind: a worker that has packed waits for that, see commit_pack.c.)
 *
 * Records are the daemon's own format: numbers as they lie in memory, texts behind them. The catalog's version says so.
 */
#include "daemon/cache/keep.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/base/park.h"
#include "daemon/cache/catalog.h"
#include "daemon/cache/parked.h"
#include "daemon/cache/tenant.h"

enum record {
	RECORD_TENANT = 1, /* its name */
	RECORD_LAYOUT = 2,
	RECORD_POLICY = 3,
	RECORD_MODEL = 4,
};

enum {
	TEXT_MODEL,
	TEXT_REVISION,
	TEXT_ROPE,
	TEXT_EVICTION,
	TEXT_NAMESPACE,
	TEXT_GATE,
	N_TEXTS
};

struct layout_record {
	uint64_t opaque_bytes;
	uint32_t id, layers, heads, tokens, k_dim, v_dim, dtype, tp_rank, tp_size, hidden_dtype;
	uint32_t n_edges, n_retained, n_ungated;
	uint8_t fingerprint[32], gate_digest[32];
	float edges[KVG_PLANES_MAX - 1], retained[KVG_PLANES_MAX - 1];
	uint16_t text[N_TEXTS]; /* bytes of each; they follow, then u32 [n_ungated] */
};

struct policy_record {
	uint64_t quota, configured_host;
	float floor, high, low, configured_floor, configured_high, configured_low;
};

struct model_record {
	float floor, configured; /* floor 0: forgotten */
};

/* ---- segments ---- */

static void segment_name(
	const struct cache_tenant *t, uint32_t id, unsigned page_shift, char ret[PARK_NAME_MAX + 1])
{
	parked_name(
		&(struct parked){
			.kind = PARKED_SEGMENT,
			.n = {t->number, id, page_shift},
		},
		ret);
}

static void segment_added(void *owner, uint32_t id, unsigned page_shift, int fd)
{
	struct cache_tenant *t = owner;
	char name[PARK_NAME_MAX + 1];

	catalog_given(t->catalog, id);
	segment_name(t, id, page_shift, name);
	park_put(t->cache->o.park, name, fd);
}

static void segment_removed(void *owner, uint32_t id, unsigned page_shift)
{
	struct cache_tenant *t = owner;
	char name[PARK_NAME_MAX + 1];

	segment_name(t, id, page_shift, name);
	park_drop(t->cache->o.park, name);
}

const struct pool_watch keep_watch = {.added = segment_added, .removed = segment_removed};

/* ---- what is written ---- */

/* When there is no room, everything is written anew, this too. */
static int append(struct cache_tenant *t, enum record type, const void *payload, size_t n)
{
	int r;

	if (!t->catalog)
		return 0;
	r = catalog_append(t->catalog, (uint16_t)type, payload, n);
	if (r == -ENOSPC)
		r = keep_rewrite(t);
	if (r < 0)
		log_error("what is set for a tenant cannot be kept over a restart",
			"tenant=%s error=\"%s\"", t->name, strerror(-r));
	return r;
}

size_t keep_encode_layout(const struct cache_layout *l, uint8_t *ret)
{
	const struct layout_identity *id = &l->identity;
	const char *const text[N_TEXTS] = {id->model, id->revision, id->rope, id->eviction,
		id->key_namespace, l->gate ? l->gate->name : ""};
	struct layout_record r = {
		.opaque_bytes = id->shape.opaque_bytes,
		.id = l->id,
		.layers = id->shape.layers,
		.heads = id->shape.heads,
		.tokens = id->shape.tokens,
		.k_dim = id->shape.k_dim,
		.v_dim = id->shape.v_dim,
		.dtype = id->shape.dtype,
		.tp_rank = id->tp_rank,
		.tp_size = id->tp_size,
		.hidden_dtype = l->hidden_dtype,
		.n_edges = id->n_edges,
		.n_retained = l->n_retained,
	};
	uint8_t *at = ret + sizeof(r);

	memcpy(r.fingerprint, l->fingerprint, sizeof(r.fingerprint));
	memcpy(r.gate_digest, id->gate_digest, sizeof(r.gate_digest));
	memcpy(r.edges, id->edges, sizeof(r.edges));
	memcpy(r.retained, l->retained, sizeof(r.retained));
	for (unsigned i = 0; i < N_TEXTS; i++) {
		r.text[i] = (uint16_t)strlen(text[i]);
		memcpy(at, text[i], r.text[i]);
		at += r.text[i];
	}
	for (uint32_t i = 0; l->layer_gate && i < r.layers; i++)
		if (l->layer_gate[i] == UINT32_MAX) {
			memcpy(at, &i, sizeof(i));
			at += sizeof(i);
			r.n_ungated++;
		}
	memcpy(ret, &r, sizeof(r));
	return (size_t)(at - ret);
}

static_assert(sizeof(struct layout_record) + N_TEXTS * LAYOUT_TEXT_MAX +
			KVG_LAYERS_MAX * sizeof(uint32_t) <=
		CATALOG_RECORD_MAX,
	"a layout fits a record");

int keep_layout(const struct cache_layout *l)
{
	struct cache_tenant *t = l->tenant;
	uint8_t *payload;
	int r;

	if (!t->catalog)
		return 0;
	payload = malloc(CATALOG_RECORD_MAX);
	if (!payload)
		return -ENOMEM;
	r = catalog_append(t->catalog, RECORD_LAYOUT, payload, keep_encode_layout(l, payload));
	if (r == -ENOSPC) { /* it may not be in the table yet */
		r = keep_rewrite(t);
		if (r == 0)
			r = catalog_append(
				t->catalog, RECORD_LAYOUT, payload, keep_encode_layout(l, payload));
	}
	free(payload);
	return r;
}

void keep_policy(struct cache_tenant *t)
{
	const struct policy_record r = {
		.quota = t->quota,
		.configured_host = t->configured.host_bytes,
		.floor = t->floor,
		.high = t->high,
		.low = t->low,
		.configured_floor = t->configured.floor,
		.configured_high = t->configured_high,
		.configured_low = t->configured_low,
	};

	append(t, RECORD_POLICY, &r, sizeof(r));
}

void keep_model(struct cache_tenant *t, const char *model, float floor, float configured)
{
	uint8_t payload[sizeof(struct model_record) + LAYOUT_TEXT_MAX];
	const struct model_record r = {.floor = floor, .configured = configured};
	const size_t n = strlen(model);

	if (n > LAYOUT_TEXT_MAX) /* no layout has such a model */
		return;
	memcpy(payload, &r, sizeof(r));
	memcpy(payload + sizeof(r), model, n);
	append(t, RECORD_MODEL, payload, sizeof(r) + n);
}

int keep_rewrite(struct cache_tenant *t)
{
	int r;

	if (!t->catalog)
		return 0;
	catalog_rewrite(t->catalog);
	r = catalog_append(t->catalog, RECORD_TENANT, t->name, strlen(t->name));
	for (uint32_t i = 0; i < t->n_layouts && r == 0; i++)
		if (t->layouts[i]->identity.model[0])
			r = keep_layout(t->layouts[i]);
	if (r < 0)
		return r; /* what was in force stays so */
	keep_policy(t);
	for (const struct model_floor *m = t->models; m; m = m->next)
		keep_model(t, m->model, m->floor, m->configured);
	catalog_rewritten(t->catalog);
	return 0;
}

/* ---- tenants ---- */

static void name_of(
	const struct cache_tenant *t, enum parked_kind kind, char ret[PARK_NAME_MAX + 1])
{
	parked_name(&(struct parked){.kind = kind, .n = {t->number}}, ret);
}

int keep_tenant(struct cache_tenant *t)
{
	struct park *park = t->cache->o.park;
	char name[PARK_NAME_MAX + 1];
	int r;

	if (!park || !park_active(park))
		return 0;
	r = catalog_new(index_instance(t->index), &t->catalog);
	if (r < 0)
		return r;
	t->number = ++t->cache->last_number;
	r = catalog_append(t->catalog, RECORD_TENANT, t->name, strlen(t->name));
	if (r < 0)
		return r;
	pool_tenant_own(t->pool, t);
	name_of(t, PARKED_CATALOG, name);
	park_put(park, name, catalog_fd(t->catalog));
	name_of(t, PARKED_INDEX, name);
	park_put(park, name, index_kept_fd(t->index));
	return 0;
}

void keep_forget(struct cache_tenant *t)
{
	char name[PARK_NAME_MAX + 1];

	if (!t->catalog)
		return;
	if (t->number) {
		name_of(t, PARKED_CATALOG, name);
		park_drop(t->cache->o.park, name);
		name_of(t, PARKED_INDEX, name);
		park_drop(t->cache->o.park, name);
	}
	t->catalog = catalog_free(t->catalog);
}

/* ---- what is read ---- */

static bool text_possible(const uint8_t *text, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!text[i])
			return false;
	return true;
}

bool keep_name(uint16_t type, const uint8_t *payload, size_t n, char *ret, size_t size)
{
	if (type != RECORD_TENANT || n == 0 || n >= size || !text_possible(payload, n))
		return false;
	memcpy(ret, payload, n);
	ret[n] = '\0';
	return true;
}

/* id 0: under its own. */
static int take_layout(struct cache_tenant *t, uint32_t id, const uint8_t *payload, size_t n)
{
	char text[N_TEXTS][LAYOUT_TEXT_MAX + 1];
	uint32_t ungated[KVG_LAYERS_MAX];
	struct layout_record r;
	size_t at = sizeof(r);

	if (n < sizeof(r))
		return -EBADMSG;
	memcpy(&r, payload, sizeof(r));
	for (unsigned i = 0; i < N_TEXTS; at += r.text[i++]) {
		if (r.text[i] > LAYOUT_TEXT_MAX || r.text[i] > n - at ||
			!text_possible(payload + at, r.text[i]))
			return -EBADMSG;
		memcpy(text[i], payload + at, r.text[i]);
		text[i][r.text[i]] = '\0';
	}
	if (r.n_ungated > KVG_LAYERS_MAX || n - at != r.n_ungated * sizeof(ungated[0]) ||
		r.n_edges > KVG_PLANES_MAX - 1 || r.n_retained > KVG_PLANES_MAX - 1)
		return -EBADMSG;
	memcpy(ungated, payload + at, n - at);
	struct cache_layout_spec s = {
		.id =
			{
				.shape =
					{
						.layers = r.layers,
						.heads = r.heads,
						.tokens = r.tokens,
						.k_dim = r.k_dim,
						.v_dim = r.v_dim,
						.dtype = r.dtype,
						.opaque_bytes = r.opaque_bytes,
					},
				.model = text[TEXT_MODEL],
				.revision = text[TEXT_REVISION],
				.rope = text[TEXT_ROPE],
				.eviction = text[TEXT_EVICTION],
				.key_namespace = text[TEXT_NAMESPACE],
				.tp_rank = r.tp_rank,
				.tp_size = r.tp_size,
				.n_edges = r.n_edges,
			},
		.gate = text[TEXT_GATE],
		.hidden_dtype = r.hidden_dtype,
		.ungated_layers = ungated,
		.n_ungated = r.n_ungated,
		.n_retained = r.n_retained,
	};

	memcpy(s.id.gate_digest, r.gate_digest, sizeof(r.gate_digest));
	memcpy(s.id.edges, r.edges, sizeof(r.edges));
	memcpy(s.retained, r.retained, sizeof(r.retained));
	return layout_adopt(t, id ? id : r.id, r.fingerprint, &s);
}

static struct cache_layout *find_layout(const struct cache_tenant *t, const uint8_t fingerprint[32])
{
	for (uint32_t i = 0; i < t->n_layouts; i++)
		if (!memcmp(t->layouts[i]->fingerprint, fingerprint, 32))
			return t->layouts[i];
	return NULL;
}

/* Its own id if no other layout has that place, else a new one. 0: there are too many. */
static uint32_t free_id(const struct cache_tenant *t, uint32_t own)
{
	const uint32_t at = (own - 1) % LAYOUTS_MAX;

	if (own && (at >= t->n_layouts || !t->layouts[at]->identity.model[0]))
		return own;
	return t->n_layouts < LAYOUTS_MAX ? t->n_layouts + 1 : 0;
}

int keep_take_layout(
	struct cache_tenant *t, const uint8_t *payload, size_t n, struct cache_layout **ret)
{
	struct layout_record r;
	uint32_t id;
	int error;

	if (n < sizeof(r))
		return -EBADMSG;
	memcpy(&r, payload, sizeof(r));
	*ret = find_layout(t, r.fingerprint);
	if (*ret)
		return 0;
	id = free_id(t, r.id);
	error = id ? take_layout(t, id, payload, n) : -ENOSPC;
	*ret = error < 0 ? NULL : find_layout(t, r.fingerprint);
	return error < 0 ? error : *ret ? keep_layout(*ret) : -EBADMSG;
}

static bool is_share(float f)
{
	return f > 0 && f <= 1;
}

/* What the configuration says no longer is said anew with the first session. */
static int take_policy(struct cache_tenant *t, const uint8_t *payload, size_t n)
{
	struct policy_record r;

	if (n != sizeof(r))
		return -EBADMSG;
	memcpy(&r, payload, sizeof(r));
	if (!r.quota || !is_share(r.floor) || !is_share(r.high) || !is_share(r.low) ||
		r.low > r.high)
		return -EBADMSG;
	t->quota = r.quota;
	t->floor = r.floor;
	t->high = r.high;
	t->low = r.low;
	t->configured.host_bytes = r.configured_host;
	t->configured.floor = r.configured_floor;
	t->configured_high = r.configured_high;
	t->configured_low = r.configured_low;
	return 0;
}

static int take_model(struct cache_tenant *t, const uint8_t *payload, size_t n)
{
	char model[LAYOUT_TEXT_MAX + 1];
	struct model_record r;

	if (n < sizeof(r) || n - sizeof(r) > LAYOUT_TEXT_MAX ||
		!text_possible(payload + sizeof(r), n - sizeof(r)))
		return -EBADMSG;
	memcpy(&r, payload, sizeof(r));
	memcpy(model, payload + sizeof(r), n - sizeof(r));
	model[n - sizeof(r)] = '\0';
	if (!model[0] || (r.floor != 0 && !is_share(r.floor)))
		return -EBADMSG;
	return tenant_set_model(t, model, r.floor, r.configured);
}

int keep_take(struct cache_tenant *t, uint16_t type, const uint8_t *payload, size_t n)
{
	switch ((enum record)type) {
	case RECORD_TENANT:
		return 0;
	case RECORD_LAYOUT:
		return take_layout(t, 0, payload, n);
	case RECORD_POLICY:
		return take_policy(t, payload, n);
	case RECORD_MODEL:
		return take_model(t, payload, n);
	}
	return -EBADMSG;
}
