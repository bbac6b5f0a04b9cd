/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer: who is at the other end of a socket, in the kernel's words, and an fd that tells when it is gone.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_SERVE_PEER_H
#define KVGATE_DAEMON_SERVE_PEER_H

#include <stdint.h>
#include <sys/types.h>

#define PEER_GROUPS_MAX 65536 /* of a process: the kernel's own limit, NGROUPS_MAX */

struct peer {
	uid_t uid;
	pid_t pid;
	int pidfd;   /* -1: of another pid namespace; then only the end of file tells */
	gid_t *gids; /* all: each of them may choose the tenant */
	size_t n_gids;
};

/* As of connect(). -ESRCH: gone already. peer_fini() it in any case. */
int peer_init(struct peer *p, int sock);
void peer_fini(struct peer *p);

#endif
