/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credentials are those of the process that connected, taken by the kernel at that moment; nothing is believed that
 * the client says of itself. SO_PEERPIDFD names that very process; the older way, pidfd_open() of its number, could
 * hit a successor of the same number, which would merely keep the session until its socket closes.
 */
#include "daemon/serve/peer.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static int open_pidfd(int sock, pid_t pid)
{
	socklen_t size = sizeof(int);
	int fd;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0)
		return fd;
	if (errno == ESRCH || errno == EINVAL) /* EINVAL: reaped before it could be named */
		return -ESRCH;
	if (pid <= 0)
		return -ENOENT;
	fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? -errno : fd;
}

/*
 * Where the list does not fit, the kernel copies nothing of it and says how long it is. The process may change its groups
 * as it likes, those of the socket stay: a second call is enough. The primary group comes first, so that there is always one.
 */
static int read_groups(struct peer *p, int sock, gid_t primary)
{
	socklen_t size = 0;
	gid_t *gids;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, NULL, &size) < 0 && errno != ERANGE)
		size = 0; /* a kernel that keeps none */
	if (size / sizeof(*gids) > PEER_GROUPS_MAX)
		return -E2BIG;
	gids = malloc(sizeof(*gids) + size);
	if (!gids)
		return -ENOMEM;
	gids[0] = primary;
	if (size && getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, gids + 1, &size) < 0) {
		int r = -errno;

		free(gids);
		return r;
	}
	p->gids = gids;
	p->n_gids = 1 + size / sizeof(*gids);
	return 0;
}

int peer_init(struct peer *p, int sock)
{
	struct ucred cred;
	socklen_t size = sizeof(cred);
	int r;

	*p = (struct peer){.pidfd = -1};
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
		return -errno;
	p->uid = cred.uid;
	p->pid = cred.pid;
	r = read_groups(p, sock, cred.gid);
	if (r < 0)
		return r;
	p->pidfd = open_pidfd(sock, cred.pid);
	if (p->pidfd == -ESRCH)
		return -ESRCH;
	if (p->pidfd < 0)
		p->pidfd = -1;
	return 0;
}

void peer_fini(struct peer *p)
{
	if (p->pidfd >= 0)
		close(p->pidfd);
	p->pidfd = -1;
	free(p->gids);
	p->gids = NULL;
	p->n_gids = 0;
}
