/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two fds of every session are parked: the page in which its client writes its pins, and a pidfd of that client. The next
 * daemon makes a session without a socket of them:
 *
 *	parked fds --> AWAY --hello {resume}--> OPEN, with the same page and number
 *	                 +-----------------+--> freed: the process is gone (pidfd)
 *
 * The page is attached before anything can be evicted, so a pin that was valid when the last daemon died is valid all the
 * time. Without a pidfd nobody could tell when it ends, so such a page is not kept.
 *
 * Who resumes must be that process. A pid is nobody else's as long as its process lives, and the pidfd tells whether it
 * does. /proc is not asked: under systemd's sandbox it shows no processes of others.
 */
#include "daemon/serve/away.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/cache/parked.h"

/* ---- for the next daemon ---- */

void away_keep(struct session *s)
{
	struct park *park = s->server->parts.park;
	char name[PARK_NAME_MAX + 1];
	struct parked page, process;

	if (!park || !park_active(park) || s->peer.pidfd < 0)
		return;
	page = (struct parked){
		.kind = PARKED_PINS,
		.n =
			{
				cache_tenant_number(s->tenant->cache),
				s->id,
				s->pinpage.page.n_pins,
				s->pinpage.page.n_touch,
				s->peer.uid,
				(uint64_t)s->peer.pid,
			},
	};
	process = (struct parked){.kind = PARKED_PROCESS, .n = {page.n[0], s->id}};
	parked_name(&process, name);
	if (!park_offer(park, name, s->peer.pidfd))
		return;
	s->parked = page;
	parked_name(&page, name);
	if (!park_offer(park, name, s->pinpage.fd)) {
		s->parked.kind = 0;
		parked_name(&process, name);
		park_drop(park, name);
	}
}

void away_forget(struct session *s)
{
	struct parked process = {.kind = PARKED_PROCESS};
	char name[PARK_NAME_MAX + 1];

	if (!s->parked.kind)
		return;
	parked_name(&s->parked, name);
	park_drop(s->server->parts.park, name);
	memcpy(process.n, s->parked.n, 2 * sizeof(process.n[0]));
	parked_name(&process, name);
	park_drop(s->server->parts.park, name);
	s->parked.kind = 0;
}

/* ---- of the last daemon ---- */

struct found {
	struct parked name;
	struct pinpage page;
	int pidfd;
};

struct all_found {
	struct found *at;
	unsigned n;
};

static bool is_alive(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

static int take_pidfd(struct park *park, const struct parked *of)
{
	const char *name;
	struct parked p;

	for (unsigned i = 0; (name = park_name(park, i)); i++)
		if (parked_parse(name, &p) && p.kind == PARKED_PROCESS &&
			p.n[PARKED_TENANT] == of->n[PARKED_TENANT] &&
			p.n[PARKED_ID] == of->n[PARKED_ID])
			return park_take(park, i);
	return -1;
}

static void drop(struct park *park, const struct parked *page)
{
	struct parked process = {
		.kind = PARKED_PROCESS, .n = {page->n[PARKED_TENANT], page->n[PARKED_ID]}};
	char name[PARK_NAME_MAX + 1];

	parked_name(page, name);
	park_drop(park, name);
	parked_name(&process, name);
	park_drop(park, name);
}

static void found_fini(struct found *f)
{
	pinpage_fini(&f->page);
	if (f->pidfd >= 0)
		close(f->pidfd);
	f->pidfd = -1;
}

static int find_one(struct park *park, const struct parked *name, int fd, struct found *ret)
{
	int r;

	ret->name = *name;
	ret->pidfd = take_pidfd(park, name);
	pinpage_init(&ret->page);
	r = name->n[PARKED_N_PINS] > UINT32_MAX || name->n[PARKED_N_TOUCH] > UINT32_MAX
		? -EBADMSG
		: pinpage_adopt(&ret->page, fd, (uint32_t)name->n[PARKED_N_PINS],
			  (uint32_t)name->n[PARKED_N_TOUCH]);
	if (r < 0)
		close(fd);
	else if (ret->pidfd < 0)
		r = -ESRCH;
	return r;
}

/*
 * A daemon that was killed between the two has parked the process alone: its session was just being made, and had pinned
 * nothing, or was just being taken back.
 */
static void drop_without_page(struct park *park)
{
	const char *name;
	struct parked p;

	for (unsigned i = 0; (name = park_name(park, i)); i++) {
		const bool is_process = parked_parse(name, &p) && p.kind == PARKED_PROCESS;
		const int fd = is_process ? park_take(park, i) : -1;

		if (fd < 0)
			continue;
		close(fd);
		park_drop(park, name);
	}
}

/* Pages of processes that are gone pin nothing any more. */
static int find_all(struct park *park, struct all_found *ret)
{
	const char *name;
	struct parked p;
	int r;

	for (unsigned i = 0; (name = park_name(park, i)); i++) {
		struct found *more, *f;
		int fd;

		if (!parked_parse(name, &p) || p.kind != PARKED_PINS)
			continue;
		fd = park_take(park, i);
		if (fd < 0)
			continue;
		more = reallocarray(ret->at, ret->n + 1, sizeof(*more));
		if (!more) {
			close(fd);
			return -ENOMEM;
		}
		ret->at = more;
		f = &ret->at[ret->n];
		r = find_one(park, &p, fd, f);
		if (r == 0 && is_alive(f->pidfd)) {
			ret->n++;
			continue;
		}
		if (r < 0)
			log_warning("pins of the last daemon cannot be taken over",
				"name=%s why=\"%s\"", name,
				r == -ESRCH ? "the pidfd of their process is missing"
					    : strerror(-r));
		found_fini(f);
		drop(park, &p);
	}
	drop_without_page(park);
	return 0;
}

static bool is_pinned(void *userdata, uint32_t tenant, struct kvg_handle h)
{
	const struct all_found *all = userdata;

	for (unsigned i = 0; i < all->n; i++)
		if (all->at[i].name.n[PARKED_TENANT] == tenant && pinpage_pins(&all->at[i].page, h))
			return true;
	return false;
}

static struct tenant *tenant_of(struct server *s, uint64_t number)
{
	for (struct tenant *t = s->tenants.first; t; t = t->next)
		if (cache_tenant_number(t->cache) == number)
			return t;
	return NULL;
}

static int make_session(struct server *server, struct tenant *t, struct found *f)
{
	const struct peer peer = {
		.uid = (uid_t)f->name.n[PARKED_UID],
		.pid = (pid_t)f->name.n[PARKED_PID],
		.pidfd = f->pidfd,
	};
	struct session *s;
	int r = session_new_away(server, t, f->name.n[PARKED_ID], &peer, &s);

	if (r < 0)
		return r;
	f->pidfd = -1;
	s->parked = f->name;
	pinpage_move(&s->pinpage, &f->page);
	pinpage_show(&s->pinpage, t->cache);
	/* it holds what it holds, whatever the limits are by now */
	charge_add(&s->presence, &t->account, ACCOUNT_SESSIONS, 1);
	if (s->pinpage.page.n_pins > t->share_of_pins)
		charge_add(&s->page_pins, &t->account, ACCOUNT_PAGE_PINS,
			s->pinpage.page.n_pins - t->share_of_pins);
	return 0;
}

static int make_sessions(struct server *s, struct all_found *all)
{
	int r = 0;

	for (unsigned i = 0; i < all->n; i++) {
		struct found *f = &all->at[i];
		struct tenant *t = tenant_of(s, f->name.n[PARKED_TENANT]);

		if (f->name.n[PARKED_ID] > s->last_session)
			s->last_session = f->name.n[PARKED_ID];
		if (r == 0 && t)
			r = make_session(s, t, f);
		else if (r == 0)
			drop(s->parts.park, &f->name); /* nothing is left to be pinned */
		found_fini(f);
	}
	free(all->at);
	return r;
}

int server_adopt(struct server *s)
{
	struct all_found all = {.n = 0};
	const struct cache_pinned pinned = {.pinned = is_pinned, .userdata = &all};
	const uint64_t began = loop_now_ns();
	int r;

	r = s->parts.park ? find_all(s->parts.park, &all) : 0;
	if (r == 0)
		r = cache_adopt(s->parts.cache, &pinned);
	if (r == 0)
		r = tenants_adopt(&s->tenants, s->parts.cache, s->parts.counters, s->parts.options);
	if (r < 0) {
		while (all.n)
			found_fini(&all.at[--all.n]);
		free(all.at);
		return r;
	}
	r = make_sessions(s, &all);
	if (r < 0)
		return r;
	if (s->parts.park)
		park_drop_rest(s->parts.park);
	if (s->tenants.n)
		log_info("the last daemon's work is taken over",
			"tenants=%lld clients_away=%lld ms=%.1f", (long long)s->tenants.n,
			(long long)s->n_sessions, (double)(loop_now_ns() - began) / 1e6);
	return 0;
}

/* ---- the client comes back ---- */

static bool is_same_process(const struct session *away, const struct session *s)
{
	return s->peer.uid == away->peer.uid && s->peer.pid > 0 && s->peer.pid == away->peer.pid &&
		is_alive(away->peer.pidfd);
}

static void take_over(struct session *s, struct session *away)
{
	struct tenant *t = away->tenant;

	session_greeted(s, t);
	charge_take(&away->presence, away->presence.amount, &s->presence);
	charge_take(&away->page_pins, away->page_pins.amount, &s->page_pins);
	cache_pins_detach(t->cache, &away->pinpage.page); /* nothing is evicted in between */
	pinpage_move(&s->pinpage, &away->pinpage);
	pinpage_show(&s->pinpage, t->cache);
	s->id = away->id;
	s->parked = away->parked;
	away->parked.kind = 0;
	session_free(away);
}

int away_resume(struct request *r, uint64_t id)
{
	struct session *s = r->session, *away = s->server->sessions;

	while (away && !(away->state == SESSION_AWAY && away->id == id))
		away = away->next;
	if (!away)
		return request_refuse(r, KVG_CODE_NO_SESSION,
			"session %llu is not there to be resumed: it is over, or the last daemon "
			"could not keep it; say hello without resume",
			(unsigned long long)id);
	if (!is_same_process(away, s))
		return request_refuse(r, KVG_CODE_NO_SESSION,
			"session %llu is another process's: say hello without resume",
			(unsigned long long)id);
	take_over(s, away);
	r->tenant = s->tenant;
	return KVG_CODE_OK;
}
