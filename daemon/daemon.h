/* SPDX-License-Identifier: Apache-2.0 */
/*
 * daemon: the composition root - owns every part, in layer order, and the process-wide things: signals, systemd.
 * Thread: the main thread, which becomes the control thread. Locks: none. Blocks: daemon_run() until the end.
 * Errors: an exit status; the reason is in the log.
 */
#ifndef KVGATE_DAEMON_DAEMON_H
#define KVGATE_DAEMON_DAEMON_H

struct options;

/* `o` and its later versions are owned from here on. argv and envp are read again on SIGHUP. */
int daemon_run(struct options *o, int argc, char *const *argv, char *const *envp);

#endif
