/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keeper: a parent that holds what a daemon parks with it and starts the daemon again when it dies; for machines without systemd.
 * Thread: the process's only one. Locks: none. Blocks: keeper_run(), until the daemon is not to be started again.
 * Errors: logged; the exit status says how it ended.
 */
#ifndef KVGATE_DAEMON_KEEPER_H
#define KVGATE_DAEMON_KEEPER_H

/* Runs `program` with argv (argv[0] included) and environ. Returns the exit status for the keeper itself. */
int keeper_run(const char *program, char *const *argv);

#endif
