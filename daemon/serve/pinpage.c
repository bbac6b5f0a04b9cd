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
#include <sys/stat.h>
#include <unistd.h>

/* What no configuration goes beyond. */
#define PINPAGE_PINS_MAX    (1u << 20)
#define PINPAGE_TOUCHES_MAX (1u << 20)

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

static int map_page(struct pinpage *p)
{
	void *map = mmap(NULL, bytes(p), PROT_READ, MAP_SHARED, p->fd, 0);

	if (map == MAP_FAILED)
		return -errno;
	p->page.map = map;
	return 0;
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

	if (r)
		return -r;
	if (pwrite(p->fd, &h, sizeof(h), 0) != sizeof(h) ||
		fcntl(p->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	return map_page(p);
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
	pinpage_show(p, t);
	return 0;
}

void pinpage_show(struct pinpage *p, struct cache_tenant *t)
{
	p->tenant = t;
	cache_pins_attach(t, &p->page);
}

/* Where its touches had been taken to is not known: those that were not are lost. */
int pinpage_adopt(struct pinpage *p, int fd, uint32_t n_pins, uint32_t n_touch)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
	int has = fcntl(fd, F_GET_SEALS), r;
	struct stat st;

	if (n_pins == 0 || n_pins > PINPAGE_PINS_MAX || n_touch == 0 ||
		n_touch > PINPAGE_TOUCHES_MAX || (n_touch & (n_touch - 1)))
		return -EBADMSG;
	if (has < 0 || (has & seals) != seals || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
		st.st_size != (off_t)pin_page_bytes(n_pins, n_touch))
		return -EBADMSG;
	p->page.n_pins = n_pins;
	p->page.n_touch = n_touch;
	p->fd = fd;
	r = map_page(p);
	if (r < 0) {
		pinpage_init(p);
		return r;
	}
	p->page.touch_tail = atomic_load_explicit(&p->page.map->touch_head, memory_order_acquire);
	return 0;
}

void pinpage_move(struct pinpage *to, struct pinpage *from)
{
	*to = *from;
	to->tenant = NULL;
	to->page.next = to->page.prev = NULL;
	pinpage_init(from);
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

bool pinpage_pins(const struct pinpage *p, struct kvg_handle h)
{
	const _Atomic uint64_t *pin =
		(const void *)((const uint8_t *)p->page.map + pin_page_pins_off());
	uint32_t high = atomic_load_explicit(&p->page.map->pins_high, memory_order_relaxed);

	for (uint32_t i = 0; i < high && i < p->page.n_pins; i++)
		if (atomic_load_explicit(&pin[i], memory_order_relaxed) == kvg_handle_pack(h))
			return true;
	return false;
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
