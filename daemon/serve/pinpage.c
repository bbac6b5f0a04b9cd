/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client may write anything into the page at any time, but it cannot change its size: the seals forbid it, and
 * the daemon goes by the geometry that it keeps itself. The header is written through the fd and all pages are
 * allocated beforehand, so that a lack of memory is an error here and not a SIGBUS somewhere else.
 */
#include "daemon/serve/pinpage.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static_assert(
	(PINPAGE_TOUCHES & (PINPAGE_TOUCHES - 1)) == 0, "the touch ring is indexed by a mask");

void pinpage_init(struct pinpage *p)
{
	*p = (struct pinpage){.fd = -1};
}

static uint32_t bytes(const struct pinpage *p)
{
	return pin_page_bytes(p->page.n_pins, p->page.n_touch);
}

static int fill(struct pinpage *p)
{
	struct kvg_shm_pins h = {
		.magic = KVG_PIN_MAGIC,
		.version = KVG_SHM_VERSION,
		.n_pins = p->page.n_pins,
		.n_touch = p->page.n_touch,
		.pins_off = pin_page_pins_off(),
		.touch_off = pin_page_touch_off(p->page.n_pins),
		.total_bytes = bytes(p),
	};
	int r = posix_fallocate(p->fd, 0, bytes(p));
	void *map;

	if (r)
		return -r;
	if (pwrite(p->fd, &h, sizeof(h), 0) != sizeof(h) ||
		fcntl(p->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	map = mmap(NULL, bytes(p), PROT_READ, MAP_SHARED, p->fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	p->page.map = map;
	return 0;
}

int pinpage_attach(struct pinpage *p, struct cache_tenant *t, uint32_t n_pins)
{
	int r;

	p->page.n_pins = n_pins;
	p->page.n_touch = PINPAGE_TOUCHES;
	p->fd = memfd_create("kvgate-pins", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	r = p->fd < 0 ? -errno : fill(p);
	if (r < 0) {
		pinpage_fini(p);
		return r;
	}
	p->tenant = t;
	cache_pins_attach(t, &p->page);
	return 0;
}

void pinpage_fini(struct pinpage *p)
{
	if (p->tenant)
		cache_pins_detach(p->tenant, &p->page);
	if (p->page.map)
		munmap((void *)(uintptr_t)p->page.map, bytes(p));
	if (p->fd >= 0)
		close(p->fd);
	pinpage_init(p);
}

bool pinpage_holds(const struct pinpage *p)
{
	const _Atomic uint64_t *pin;
	uint32_t high;

	if (!p->page.map)
		return false;
	pin = (const void *)((const uint8_t *)p->page.map + pin_page_pins_off());
	high = atomic_load_explicit(&p->page.map->pins_high, memory_order_relaxed);
	for (uint32_t i = 0; i < high && i < p->page.n_pins; i++)
		if (atomic_load_explicit(&pin[i], memory_order_relaxed))
			return true;
	return false;
}
