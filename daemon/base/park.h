/* SPDX-License-Identifier: Apache-2.0 */
/*
 * park: file descriptors that somebody keeps - systemd's fd store, or `kvgated --keeper` - until the next daemon comes.
 * Thread: the control thread; park_put(), park_drop() and park_settle() any. Locks: one, around what waits to be sent.
 * Blocks: park_settle() and park_sync(). Errors: negative errno; what the keeper does not take is counted and logged.
 *
 * Both keepers speak one protocol (sd_notify(3), sd_listen_fds(3)), and it is all that is known of them here:
 *
 *	out	datagrams to $NOTIFY_SOCKET, a path or '@' and an abstract name; one name each
 *			FDSTORE=1\nFDPOLL=0\nFDNAME=name	with one fd
 *			FDSTOREREMOVE=1\nFDNAME=name		every fd of that name goes
 *			BARRIER=1				with one fd, closed when all before it was read
 *	in	$LISTEN_PID, $LISTEN_FDS, $LISTEN_FDNAMES (names divided by colons), fds from 3 on
 *		$FDSTORE: how many fds are kept; 0: none. systemd says it from release 254 on.
 */
#ifndef KVGATE_DAEMON_BASE_PARK_H
#define KVGATE_DAEMON_BASE_PARK_H

#include <stdbool.h>
#include <stdint.h>

#define PARK_PREFIX   "kvg-" /* of every name; an fd of any other name is not for the park */
#define PARK_NAME_MAX 255    /* systemd's FDNAME_MAX; printable, no colon */

struct loop;
struct park;

/*
 * Takes over every fd that was passed to this process; those without the prefix wait for park_next_foreign(). -EINVAL: their
 * names are not as many as they are.
 */
int park_new(struct loop *loop, struct park **ret);
/* Closes what nobody took; what is in the keeper's hands stays there. */
struct park *park_free(struct park *p);
/* Does somebody keep fds? If not, the log says once why, and what to do. */
bool park_active(const struct park *p);

/*
 * The fd is borrowed for the call; it is kept under this name from the moment the message is sent, which is now, or soon
 * when the keeper is behind. Put and drop of one name keep their order. Nothing happens when nobody keeps fds.
 */
void park_put(struct park *p, const char *name, int fd);
/*
 * The same for what is many and can be done without: a quarter of the room is left to park_put(). False: it is not kept, and
 * not to be dropped.
 */
bool park_offer(struct park *p, const char *name, int fd);
void park_drop(struct park *p, const char *name);
/* Waits until everything that was put so far was sent: it is safe from this daemon's death then. 0, -ETIMEDOUT. */
int park_settle(struct park *p, int timeout_ms);
/* The same, and until the keeper has read all of it. -ENOTCONN: nobody keeps fds. */
int park_sync(struct park *p, int timeout_ms);
/* The daemon goes down: from here on nothing is dropped, whatever ends. */
void park_freeze(struct park *p);

/*
 * What the last daemon parked: i = 0, 1, ... NULL: no more. A name may come twice, and in any order. Taking makes the fd the
 * caller's, close-on-exec; the keeper has it still. -1: it is taken.
 */
const char *park_name(const struct park *p, unsigned i);
int park_take(struct park *p, unsigned i);
/* The end of adoption: what was not taken is dropped and closed, with a line in the log each. Returns how many. */
unsigned park_drop_rest(struct park *p);
/* fds without the prefix - the listener's - one after the other, the caller's from here on; -1: no more. */
int park_next_foreign(struct park *p, const char **ret_name);

struct park_stat {
	uint64_t capacity; /* 0: not known */
	uint64_t kept;     /* names that were put, or came, and were not dropped */
	uint64_t waiting;  /* messages */
	uint64_t refused;  /* fds that the keeper has no room for, or that could not be sent */
};
void park_stat(struct park *p, struct park_stat *ret);

#endif
