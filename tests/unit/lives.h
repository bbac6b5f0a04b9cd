/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lives: caches that end as if they were killed, each in a process of its own, for what is passed stands at fd 3 and following;
 * the test keeps what they park. lives_setup() comes first.
 * Thread: the test's. Locks: none. Blocks: until a life has ended. Errors: asserts.
 */
#ifndef KVGATE_TESTS_LIVES_H
#define KVGATE_TESTS_LIVES_H

#include <sys/types.h>

#include "daemon/base/park.h"
#include "tests/unit/cache_fixture.h"

#define KEPT_MAX 128

struct kept {
	char name[PARK_NAME_MAX + 1];
	int fd;
};
extern struct kept kept[KEPT_MAX];
extern unsigned n_kept;
void keep(const char *name, int fd);
void forget(const char *name);
int find(const char *name); /* -1 */
void drop_all(void);

extern struct fixture f;                      /* of the life that is being lived */
extern void (*begin_with)(struct fixture *f); /* further options; NULL */
extern uint32_t pinned_slot;                  /* the block that a pin page holds; KVG_SLOT_NONE */
/* What a life says of itself, so that it is killed in the middle of it on any machine. [1024] in shared memory. */
extern volatile unsigned *progress;

int lives_setup(void **state);
/* In a child: adopts what is kept, then lives; at the end nothing is put away. */
pid_t start(void (*life)(void *), void *arg);
void wait_for(pid_t pid, int expected);
void live(void (*life)(void *), void *arg); /* start, and wait for its end by itself */
/* When *progress has come to target, and us later. */
void kill_at(pid_t pid, unsigned target, unsigned us);

#endif
