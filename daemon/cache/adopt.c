/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the last daemon parked becomes this one's, tenant by tenant: catalog (name, layouts, what was set), index, segments; and
 * then the blocks, see adopt_blocks.c. Nothing is believed: what is damaged, missing, of another version, there twice or of
 * another tenant is refused with a line in the log, and dropped from the keeper's hands, so that it is not met again.
 *
 * Nothing that is shared is written before all of a tenant was read: a daemon that is killed here, or ends for lack of
 * memory, leaves what it found to the next one. No page is given to anybody before the server has attached the pin pages
 * that were parked as well: the loop does not run yet.
 */
#include "daemon/cache/adopt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/cache/catalog.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/parked.h"

#define NAME_MAX_BYTES 256 /* of a tenant, with its end */

static const char *reason(int error)
{
	switch (error) {
	case -EPROTONOSUPPORT:
		return "it was made by another release, in a format that this one does not know";
	case -EBADMSG:
		return "it is damaged, or something else";
	case -EEXIST:
		return "it is there twice";
	default:
		return strerror(-error);
	}
}

/* Of the daemon's own: it ends, and the next one finds everything as it was. */
static bool is_fatal(int error)
{
	return error == -ENOMEM || error == -EMFILE || error == -ENFILE;
}

static void refuse(struct cache *c, const char *name, int fd, int error)
{
	log_warning("a file descriptor of the last daemon cannot be taken over",
		"name=%s why=\"%s\"", name, reason(error));
	park_drop(c->o.park, name);
	if (fd >= 0)
		close(fd);
}

/* The next one of this kind and tenant, from *at on. */
static const char *next_parked(
	struct cache *c, enum parked_kind kind, uint32_t tenant, unsigned *at, struct parked *ret)
{
	const char *name;

	for (; (name = park_name(c->o.park, *at)); ++*at)
		if (parked_parse(name, ret) && ret->kind == kind && ret->n[PARKED_TENANT] == tenant)
			return name;
	return NULL;
}

/* ---- one tenant ---- */

struct reader {
	char name[NAME_MAX_BYTES];
	struct cache_tenant *tenant;
	unsigned records, bad;
};

static int read_name(void *userdata, uint16_t type, const uint8_t *payload, size_t n)
{
	struct reader *r = userdata;

	return keep_name(type, payload, n, r->name, sizeof(r->name)) ? 1 : -EBADMSG;
}

static int read_record(void *userdata, uint16_t type, const uint8_t *payload, size_t n)
{
	struct reader *r = userdata;
	int error = keep_take(r->tenant, type, payload, n);

	r->records++;
	if (error == -EBADMSG) { /* the others may be whole */
		r->bad++;
		return 0;
	}
	return error;
}

/* Its fd, if it is the only one of this tenant, and what it is. */
static int take_index(
	struct cache *c, uint32_t number, const struct catalog *catalog, struct index **ret)
{
	struct parked p;
	unsigned at = 0;
	const char *name = next_parked(c, PARKED_INDEX, number, &at, &p);
	int fd, r;

	if (!name)
		return -ENOENT;
	fd = park_take(c->o.park, at);
	if (fd < 0)
		return -ENOENT;
	at++;
	if (next_parked(c, PARKED_INDEX, number, &at, &p)) {
		refuse(c, name, fd, -EEXIST);
		return -EEXIST;
	}
	r = index_adopt(fd, ret);
	if (r == 0 && memcmp(index_instance(*ret), catalog_instance(catalog), 16)) {
		*ret = index_free(*ret); /* with its fd */
		fd = -1;
		r = -EBADMSG;
	}
	if (r < 0 && !is_fatal(r))
		refuse(c, name, fd, r);
	return r;
}

static int add_segments(struct cache *c, uint32_t number, struct pool_adoption *a)
{
	struct parked p;
	const char *name;

	for (unsigned at = 0; (name = next_parked(c, PARKED_SEGMENT, number, &at, &p)); at++) {
		int fd = park_take(c->o.park, at), r;

		if (fd < 0)
			continue;
		r = p.n[PARKED_ID] > UINT32_MAX || p.n[PARKED_SHIFT] > 63
			? -EBADMSG
			: pool_adoption_add(
				  a, (uint32_t)p.n[PARKED_ID], (unsigned)p.n[PARKED_SHIFT], 0, fd);
		if (is_fatal(r)) {
			close(fd);
			return r;
		}
		if (r < 0)
			refuse(c, name, fd, r);
		if (r == -EEXIST) /* both went by that name */
			park_put(c->o.park, name, pool_adoption_fd(a, (uint32_t)p.n[PARKED_ID]));
	}
	return 0;
}

static int read_catalog(struct cache_tenant *t, struct catalog *catalog)
{
	struct reader reader = {.tenant = t};
	int r = catalog_read(catalog, read_record, &reader);

	if (r < 0 && r != -EBADMSG)
		return r;
	t->catalog = catalog;
	tenant_floors_changed(t); /* layouts may have come before what is set for them */
	if (r == 0 && !reader.bad)
		return 0;
	log_warning("a part of what was set for a tenant is lost: its catalog is damaged",
		"tenant=%s records=%u bad=%u%s", t->name, reader.records, reader.bad,
		r < 0 ? " cut=yes" : "");
	return keep_rewrite(t);
}

/* Catalog and index are the tenant's on success. */
static int fill(struct cache_tenant *t, struct catalog *catalog, const struct cache_pinned *pinned)
{
	struct cache *c = t->cache;
	struct pool_adoption *a;
	int r = pool_adoption_new(t->pool, &a);

	if (r < 0)
		return r;
	r = read_catalog(t, catalog);
	if (r == 0)
		r = add_segments(c, t->number, a);
	if (r == 0)
		r = adopt_blocks(t, a, pinned);
	if (r == 0)
		pool_tenant_own(t->pool, t);
	if (r == 0)
		pool_adoption_finish(a, catalog_last_given(catalog) + 1);
	if (r == 0)
		r = replicas_adopt(t, pinned);
	pool_adoption_free(a);
	return r;
}

/* 0: taken over, or refused and dropped. */
static int adopt_tenant(struct cache *c, uint32_t number, struct catalog *catalog,
	const struct cache_pinned *pinned, const char **ret_why)
{
	struct reader reader = {.records = 0};
	struct cache_tenant *t;
	struct index *index;
	int r = catalog_read(catalog, read_name, &reader);

	*ret_why = NULL;
	if (r == 0 || r == -EBADMSG)
		*ret_why = "it names no tenant";
	else if (r > 0 && cache_tenant_find(c, reader.name))
		*ret_why = "its tenant is there twice";
	if (*ret_why)
		return 0;
	r = r < 0 ? r : take_index(c, number, catalog, &index);
	if (r < 0 && !is_fatal(r)) {
		*ret_why = "its index is not there, or cannot be used: the tenant starts empty";
		return 0;
	}
	if (r < 0)
		return r;
	r = tenant_make(c, reader.name, index, &t);
	if (r < 0) {
		index_free(index);
		return r;
	}
	t->number = number;
	r = fill(t, catalog, pinned);
	if (r == 0) {
		tenant_gauges(t);
		evict_check(c, t);
	}
	return r;
}

/* ---- all of them ---- */

/* Two catalogs went by one name, and one of them is in use. */
static void put_again(struct cache *c, const char *name, uint32_t number)
{
	for (const struct cache_tenant *t = c->tenants; t; t = t->next)
		if (t->number == number && t->catalog)
			park_put(c->o.park, name, catalog_fd(t->catalog));
}

int cache_adopt(struct cache *c, const struct cache_pinned *pinned)
{
	struct parked p;
	const char *name, *why;

	loop_assert_owner(c->loop);
	for (unsigned at = 0; c->o.park && (name = park_name(c->o.park, at)); at++)
		if (parked_parse(name, &p) && p.n[PARKED_TENANT] > c->last_number)
			c->last_number = (uint32_t)p.n[PARKED_TENANT];
	devices_adopt(c);
	for (unsigned at = 0; c->o.park && (name = park_name(c->o.park, at)); at++) {
		struct catalog *catalog;
		int fd, r;

		if (!parked_parse(name, &p) || p.kind != PARKED_CATALOG)
			continue;
		fd = park_take(c->o.park, at);
		if (fd < 0)
			continue;
		r = catalog_adopt(fd, &catalog);
		if (r < 0 && is_fatal(r)) {
			close(fd);
			return r;
		}
		if (r < 0) {
			refuse(c, name, fd, r);
			continue;
		}
		r = adopt_tenant(c, (uint32_t)p.n[PARKED_TENANT], catalog, pinned, &why);
		if (r < 0)
			return r;
		if (why) {
			log_warning("a tenant of the last daemon cannot be taken over",
				"name=%s why=\"%s\"", name, why);
			park_drop(c->o.park, name);
			catalog_free(catalog);
			put_again(c, name, (uint32_t)p.n[PARKED_TENANT]);
		}
	}
	return mover_recover(c);
}
