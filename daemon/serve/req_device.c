/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices: a session names one by its UUID, which is the same in every process, and is given the number that other requests
 * have for it and the table of what its tenant has there.
 */
#include <errno.h>
#include <string.h>

#include "daemon/serve/request.h"

#define UUID_BYTES 16

int prep_device(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Device *m = q->device;

	if (m->uuid.len != UUID_BYTES)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT, "uuid has %zu bytes: use %d",
			m->uuid.len, UUID_BYTES);
	r->args = request_alloc(r, 1, UUID_BYTES);
	memcpy(r->args, m->uuid.data, UUID_BYTES);
	return KVG_CODE_OK;
}

int request_device(struct request *r, uint32_t device, unsigned *ret)
{
	struct cache_device_info info;

	*ret = device ? device - 1 : 0;
	if (device && !cache_device_get(r->session->server->parts.cache, *ret, &info))
		return request_refuse(r, KVG_CODE_NOT_FOUND, "no device %u: open it first", device);
	return KVG_CODE_OK;
}

static int no_device(struct request *r)
{
	const struct cache *c = r->session->server->parts.cache;
	struct cache_device_info info;
	const char *why = cache_devices_why(c);

	if (cache_device_get(c, 0, &info))
		return request_refuse(r, KVG_CODE_NOT_FOUND,
			"the daemon does not use this GPU: see gpu_devices in kvgated.conf");
	return request_refuse(r, KVG_CODE_NOT_FOUND, "the daemon uses no GPU: %s",
		why[0] ? why : "gpu_devices in kvgated.conf names none");
}

int run_device(struct request *r)
{
	Kvgate__V1__DeviceReply *m = request_new(r, 1, Kvgate__V1__DeviceReply);
	struct cache_device_info info;
	unsigned at = 0;
	int fd, error;

	while (cache_device_get(r->session->server->parts.cache, at, &info) &&
		memcmp(info.uuid, r->args, UUID_BYTES))
		at++;
	error = cache_device_open(r->tenant->cache, at, &fd);
	if (error == -ENOENT)
		return no_device(r);
	if (error < 0)
		return request_errno(r, error);
	kvgate__v1__device_reply__init(m);
	m->device = at + 1;
	m->ordinal = (uint32_t)info.ordinal;
	r->fds[r->n_fds++] = fd;
	r->reply->body_case = KVGATE__V1__REPLY__BODY_DEVICE;
	r->reply->device = m;
	return KVG_CODE_OK;
}

/* ---- for people ---- */

static char *copied(struct request *r, const char *text)
{
	const size_t n = strlen(text) + 1;

	return memcpy(request_alloc(r, n, 1), text, n);
}

static Kvgate__V1__DeviceInfo *info_new(
	struct request *r, unsigned at, const struct cache_device_info *from)
{
	Kvgate__V1__DeviceInfo *d = request_new(r, 1, Kvgate__V1__DeviceInfo);

	kvgate__v1__device_info__init(d);
	d->device = at + 1;
	d->ordinal = (uint32_t)from->ordinal;
	d->uuid.len = UUID_BYTES;
	d->uuid.data = memcpy(request_alloc(r, 1, UUID_BYTES), from->uuid, UUID_BYTES);
	d->name = copied(r, from->name);
	d->bytes = from->bytes;
	d->limit = from->limit;
	d->segments = from->segments;
	d->used = from->used;
	d->copying = from->copying;
	d->starts = from->starts;
	d->mover = (uint32_t)from->mover;
	d->ready = from->ready;
	d->why = copied(r, from->why);
	return d;
}

void device_infos_fill(struct request *r, Kvgate__V1__StatReply *ret)
{
	const struct cache *c = r->session->server->parts.cache;
	struct cache_device_info info;
	unsigned n = 0;

	while (cache_device_get(c, n, &info))
		n++;
	ret->no_device = copied(r, cache_devices_why(c));
	ret->devices = request_new(r, n, Kvgate__V1__DeviceInfo *);
	for (unsigned i = 0; i < n && cache_device_get(c, i, &info); i++)
		ret->devices[ret->n_devices++] = info_new(r, i, &info);
}
