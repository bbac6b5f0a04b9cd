/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credentials are those of the process that connected, taken by the kernel at that moment; nothing is believed that
 * the client says of itself. SO_PEERPIDFD names that very process; the older way, pidfd_open() of its number, could
 * hit a successor of the same number, which would merely keep the session until its socket closes.
 */
#include "daemon/serve/peer.h"

#include <errno.h>
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

int peer_init(struct peer *p, int sock)
{
	struct ucred cred;
	socklen_t size = sizeof(cred);

	*p = (struct peer){.pidfd = -1};
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
		return -errno;
	p->uid = cred.uid;
	p->pid = cred.pid;
	size = sizeof(p->gids);
	if (getsockopt(sock, SOL_SOCKET, SO_PEERGROUPS, p->gids, &size) == 0)
		p->n_gids = size / sizeof(p->gids[0]);
	if (p->n_gids == PEER_GROUPS_MAX)
		p->n_gids--;
	p->gids[p->n_gids++] = cred.gid;
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
}
