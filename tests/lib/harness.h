/* SPDX-License-Identifier: Apache-2.0 */
/*
 * harness: a real kvgated in a folder of its own, and processes to try it with.
 * Thread: the test's. Locks: none. Blocks: until the daemon serves, or 20 s. Errors: asserts.
 */
#ifndef KVGATE_TESTS_HARNESS_H
#define KVGATE_TESTS_HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvgate.h"

struct daemon_process {
	pid_t pid;
	char dir[64]; /* private, mode 0755 so that other users reach the socket */
	char socket[96];
	char config[96];
	char log[96]; /* what it printed */
};

/* Starts kvgated with this config text ("" = defaults for tests: 64 MiB, small segments) and waits until it serves. */
void daemon_start(struct daemon_process *d, const char *config);
/* The same, without waiting, and with further flags (NULL-terminated, may be NULL). For starts that must fail. */
void daemon_spawn(struct daemon_process *d, const char *config, const char *const *flags);
bool daemon_wait_ready(struct daemon_process *d);
/* SIGTERM, then the exit status as waitpid gives it; asserts that it ends within 20 s. */
int daemon_stop(struct daemon_process *d);
int daemon_wait(struct daemon_process *d);
/* Asserts that it is alive and has not logged a defect; removes the folder after a stop. */
void daemon_check_alive(const struct daemon_process *d);
void daemon_cleanup(struct daemon_process *d);
bool daemon_logged(const struct daemon_process *d, const char *text);
unsigned daemon_count_fds(const struct daemon_process *d);
unsigned count_fds(pid_t pid);

/* Who answers at the socket: with --keeper, not the process that was started. Waits until somebody does. */
pid_t daemon_serving(const struct daemon_process *d);

/* Runs fn in a child, as uid when not 0 (needs root: see can_change_user). Returns the child's pid. */
typedef int (*child_fn)(void *arg);
pid_t child_start(uid_t uid, child_fn fn, void *arg);
/* Exit status of the child; 128 + signal when it was killed. */
int child_wait(pid_t pid);
int child_run(uid_t uid, child_fn fn, void *arg);
bool can_change_user(void);

struct kvg_client *client_open(const struct daemon_process *d);
/* A counter summed over its labels, seen by c. */
double client_counter(struct kvg_client *c, const char *name);
/* Waits until the counter has the value, 10 s at most; asserts. */
void client_wait_counter(struct kvg_client *c, const char *name, double value);

/* A small model: layers, heads, dims, dtype, tokens a block, and the edges of a client-side gate (n_planes 1 .. 7). */
struct test_model {
	const char *name;
	uint32_t layers, heads, k_dim, v_dim, dtype, tokens, n_planes;
};
extern const struct test_model model_small; /* 4 layers, 2 heads, d 16, bf16, 32 tokens, 4 planes */
extern const struct test_model
	model_deep; /* 128 KiB of KV a block: 8 layers, 4 heads, d 16, bf16, 64 tokens, 5 planes */
extern const struct test_model
	model_wide; /* 4 MiB of KV a block: 32 layers, 8 heads, d 64, bf16, 64 tokens, 4 planes */
int model_try(struct kvg_client *c, const struct test_model *m, struct kvg_layout **ret);
struct kvg_layout *model_register(struct kvg_client *c, const struct test_model *m);

/*
 * Contents are made from (seed, position), so that any process can compare them: tokens, scores in [0, 1), and rows in
 * which every byte depends on layer, K or V, head, token.
 */
void content_tokens(uint64_t seed, uint32_t n, uint32_t *ret);
float content_score(uint64_t seed, uint32_t layer, uint32_t head, uint32_t token);
void content_row(uint64_t seed, uint32_t layer, int is_v, uint32_t head, uint32_t token, void *ret,
	size_t bytes);
/* Fills a stage with the contents of block `seed`. */
void content_fill(const struct test_model *m, uint64_t seed, struct kvg_stage *s);
/* Compares every pair that is there, byte for byte. Returns the number of pairs seen; asserts on a difference. */
uint64_t content_compare(
	const struct test_model *m, uint64_t seed, struct kvg_layout *l, const struct kvg_pin *pin);
/* Puts a chain of n blocks with seeds seed .. seed + n - 1; ret_keys gets their keys. Returns the code of the last one. */
int chain_put(struct kvg_client *c, struct kvg_layout *l, const struct test_model *m, uint64_t seed,
	uint32_t n, struct kvg_key *ret_keys);
/* What a child that puts is told, and what readers of it are. */
struct chain_task {
	const struct daemon_process *d;
	const char *tenant; /* whose session it has to be; NULL: anybody's */
	uint64_t seed;
	uint32_t n;      /* blocks */
	uint32_t expect; /* of them, those that a reader will find */
};
/* As a child_fn: opens a session, puts the chain of a small model, and goes. 0 when every block was new. */
int chain_put_child(void *task);
/* The keys of that chain. */
void chain_keys(struct kvg_layout *l, const struct test_model *m, uint64_t seed, uint32_t n,
	struct kvg_key *ret_keys);

#endif
