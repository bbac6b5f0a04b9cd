/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real daemon, killed and stopped, and the next one. The test is who keeps its file descriptors, as systemd does: it
 * reads NOTIFY_SOCKET beside everything else, and passes what it has to the next daemon. The socket is its own as well, so
 * clients of the gap wait.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/shm.h"
#include "proto/wire.h"
#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

enum {
	BLOCKS = 20,
	KEPT_MAX = 1024,
	HIGH_FDS = 3000
};

/* ---- who keeps the fds ---- */

struct kept {
	char name[256];
	int fd;
};

struct keeper {
	struct daemon_process d;
	char notify[96];
	int notify_sock, sock;
	pthread_t thread;
	pthread_mutex_t lock;
	atomic_bool stop;
	struct kept kept[KEPT_MAX];
	unsigned n;
};
static struct keeper k;

static void forget(const char *name)
{
	for (unsigned i = k.n; i-- > 0;)
		if (!strcmp(k.kept[i].name, name)) {
			close(k.kept[i].fd);
			k.kept[i] = k.kept[--k.n];
		}
}

/* False: there is nothing to be read. */
static bool read_one(void)
{
	char text[1000], control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {.iov_base = text, .iov_len = sizeof(text) - 1};
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n = recvmsg(k.notify_sock, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	char *name;
	int fd = -1;

	if (n < 0)
		return false;
	text[n] = '\0';
	if (CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	name = strstr(text, "FDNAME=");
	pthread_mutex_lock(&k.lock);
	if (name && !strncmp(text, "FDSTORE=1", 9)) {
		assert(k.n < KEPT_MAX);
		strcpy(k.kept[k.n].name, name + 7);
		k.kept[k.n++].fd = fd;
		fd = -1;
	} else if (name && !strncmp(text, "FDSTOREREMOVE=1", 15)) {
		forget(name + 7);
	}
	pthread_mutex_unlock(&k.lock);
	if (fd >= 0)
		close(fd);
	return true;
}

static void *read_on(void *unused)
{
	struct pollfd p = {.fd = k.notify_sock, .events = POLLIN};

	(void)unused;
	while (!atomic_load(&k.stop))
		if (!read_one())
			poll(&p, 1, 20);
	while (read_one())
		;
	return NULL;
}

static int bound(int type, const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	assert(sock >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	assert(bind(sock, (struct sockaddr *)&a, sizeof(a)) == 0 && chmod(path, 0666) == 0);
	return sock;
}

static void keeper_start(void)
{
	k = (struct keeper){.d.dir = "/tmp/kvgate-test-XXXXXX"};
	assert(mkdtemp(k.d.dir) && chmod(k.d.dir, 0755) == 0);
	snprintf(k.d.socket, sizeof(k.d.socket), "%s/sock", k.d.dir);
	snprintf(k.d.log, sizeof(k.d.log), "%s/log", k.d.dir);
	snprintf(k.notify, sizeof(k.notify), "%s/notify", k.d.dir);
	k.notify_sock = bound(SOCK_DGRAM, k.notify);
	k.sock = bound(SOCK_SEQPACKET, k.d.socket);
	assert(listen(k.sock, 64) == 0);
	pthread_mutex_init(&k.lock, NULL);
}

/* Everything of the last daemon has been read when it returns, and nothing is read any more. */
static void keeper_pause(void)
{
	atomic_store(&k.stop, true);
	pthread_join(k.thread, NULL);
}

static void keeper_stop(void)
{
	while (k.n)
		close(k.kept[--k.n].fd);
	close(k.notify_sock);
	close(k.sock);
	daemon_cleanup(&k.d);
}

/* In the child: fds from 3 on, and what is said of them. */
static void pass(void)
{
	static char names[KEPT_MAX * 80] = "kvgated.socket";
	char number[16];

	assert(fcntl(k.sock, F_DUPFD_CLOEXEC, HIGH_FDS) >= HIGH_FDS);
	for (unsigned i = 0; i < k.n; i++) {
		assert(fcntl(k.kept[i].fd, F_DUPFD_CLOEXEC, HIGH_FDS + 1 + (int)i) ==
			HIGH_FDS + 1 + (int)i);
		strcat(names, ":");
		strcat(names, k.kept[i].name);
	}
	for (unsigned i = 0; i <= k.n; i++)
		assert(dup2(HIGH_FDS + (int)i, 3 + (int)i) == 3 + (int)i);
	snprintf(number, sizeof(number), "%u", k.n + 1);
	setenv("LISTEN_FDS", number, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	setenv("NOTIFY_SOCKET", k.notify, 1);
	setenv("FDSTORE", "1024", 1);
}

static void begin(const char *host_bytes)
{
	const char *binary = getenv("KVGATED") ? getenv("KVGATED")
					       : KVG_BINARY_DIR "/daemon/kvgated";
	int log;

	k.d.pid = fork();
	assert(k.d.pid >= 0);
	if (k.d.pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pass();
		log = open(k.d.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
		if (log < 0 || dup2(log, 2) < 0)
			_exit(127);
		execl(binary, binary, "--config", "/dev/null", "--host-bytes", host_bytes,
			"--segment-bytes", "4MiB", "--index-slots", "65536", NULL);
		_exit(127);
	}
	atomic_store(&k.stop, false);
	assert(pthread_create(&k.thread, NULL, read_on, NULL) == 0);
}

static void end(int signal)
{
	int status;

	assert(kill(k.d.pid, signal) == 0);
	status = daemon_wait(&k.d);
	assert(signal == SIGKILL ? WIFSIGNALED(status) : status == 0);
	keeper_pause();
}

/* ---- nothing is lost ---- */

static unsigned read_chain(struct kvg_client *c, struct kvg_layout *l, uint64_t seed)
{
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	int n;

	chain_keys(l, &model_small, seed, BLOCKS, keys);
	n = kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins);
	assert(n >= 0);
	for (int i = 0; i < n; i++)
		content_compare(&model_small, seed + (unsigned)i, l, &pins[i]);
	kvg_unpin(c, pins, (unsigned)n);
	return (unsigned)n;
}

struct life {
	unsigned chains; /* that are there at first */
};

static int look_and_put(void *arg)
{
	const struct life *life = arg;
	struct kvg_client *c = client_open(&k.d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[BLOCKS];

	for (unsigned i = 0; i < life->chains; i++)
		if (read_chain(c, l, 100 * i) != BLOCKS)
			return 1;
	if (client_counter(c, "kvgate_blocks") != life->chains * BLOCKS)
		return 2;
	if (client_counter(c, "kvgate_adopted_blocks_total") != life->chains * BLOCKS ||
		client_counter(c, "kvgate_adopt_lost_blocks_total") != 0)
		return 3;
	if (chain_put(c, l, &model_small, 100 * life->chains, BLOCKS, keys) != KVG_CODE_OK)
		return 4;
	if (read_chain(c, l, 100 * life->chains) != BLOCKS)
		return 5;
	kvg_close(c);
	return 0;
}

static void test_nothing_is_lost(void **state)
{
	unsigned kept = 0;

	(void)state;
	keeper_start();
	for (unsigned i = 0; i < 8; i++) {
		struct life life = {.chains = i};

		begin("64MiB");
		assert_int_equal(child_run(0, look_and_put, &life), 0);
		end(i % 3 == 2 ? SIGTERM : SIGKILL);
		/* its page and pidfd are gone, or still there when it had no time to say so */
		assert_true(!kept || k.n <= kept + 1 + 2);
		kept = k.n;
	}
	keeper_stop();
}

/* ---- pins ---- */

struct holder {
	int tell, hear;
};

/* Has pinned a chain, and compares it when it is told to: while nobody serves, under the next daemon, under pressure. */
static int hold(void *arg)
{
	const struct holder *h = arg;
	struct kvg_client *c = client_open(&k.d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	char byte = 'h';

	if (chain_put(c, l, &model_small, 7, BLOCKS, keys) != KVG_CODE_OK ||
		kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins) != BLOCKS)
		return 1;
	for (int i = 0; i < BLOCKS; i++)
		content_compare(&model_small, 7 + (unsigned)i, l, &pins[i]);
	while (write(h->tell, &byte, 1) == 1 && read(h->hear, &byte, 1) == 1)
		for (int i = 0; i < BLOCKS; i++)
			content_compare(&model_small, 7 + (unsigned)i, l, &pins[i]);
	return 0;
}

static void ask(int hear, int tell)
{
	char byte;

	if (tell >= 0)
		assert_int_equal(write(tell, "?", 1), 1);
	assert_int_equal(read(hear, &byte, 1), 1);
}

/* Far more than there is room for. */
static int press(void *unused)
{
	struct kvg_client *c = client_open(&k.d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[BLOCKS];

	(void)unused;
	for (unsigned i = 0; i < 60; i++)
		if (chain_put(c, l, &model_small, 10000 + 100 * i, BLOCKS, keys) != KVG_CODE_OK)
			return 1;
	if (client_counter(c, "kvgate_evicted_blocks_total") == 0)
		return 2;
	if (read_chain(c, l, 7) != BLOCKS) /* pinned by somebody who is away */
		return 3;
	kvg_close(c);
	return 0;
}

static int purge_all(void *unused)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result purged;
	struct kvg_client *c = client_open(&k.d);

	(void)unused;
	for (int i = 0; i < 200; i++) { /* until the daemon has heard that the process is gone */
		if (kvg_purge(c, &o, &purged) || purged.pinned == 0)
			break;
		usleep(10000);
	}
	if (purged.pinned || client_counter(c, "kvgate_bytes") != 0)
		return 1;
	client_wait_counter(c, "kvgate_sessions", 1);
	kvg_close(c);
	return 0;
}

static void test_pins_hold(void **state)
{
	int there[2], back[2];
	struct holder h;
	pid_t pid;

	(void)state;
	keeper_start();
	begin("8MiB");
	assert_int_equal(pipe2(there, O_CLOEXEC) | pipe2(back, O_CLOEXEC), 0);
	h = (struct holder){.tell = back[1], .hear = there[0]};
	pid = child_start(0, hold, &h);
	ask(back[0], -1);
	for (int i = 0; i < 3; i++) {
		end(i == 1 ? SIGTERM : SIGKILL);
		ask(back[0], there[1]); /* nobody serves */
		begin("8MiB");
		assert_int_equal(child_run(0, press, NULL), 0);
		ask(back[0], there[1]);
	}
	kill(pid, SIGKILL);
	assert_int_equal(child_wait(pid), 128 + SIGKILL);
	assert_int_equal(child_run(0, purge_all, NULL), 0);
	end(SIGTERM);
	keeper_stop();
}

/* ---- resuming ---- */

struct greeting {
	int sock, code;
	uint64_t session;
	uint32_t pins;
	ino_t page; /* which memory it is */
	char instance[16];
};

static void greet(uint64_t resume, struct greeting *ret)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello hello = KVGATE__V1__HELLO__INIT;
	struct kvg_shm_index head;
	struct raw_reply r;
	struct stat st;

	*ret = (struct greeting){.sock = raw_connect(&k.d)};
	hello.version_min = 1;
	hello.version_max = KVG_PROTOCOL_VERSION;
	hello.client = (char *)(uintptr_t) "raw";
	hello.pins = 100;
	hello.resume = resume;
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &hello;
	raw_send(ret->sock, &q);
	assert(raw_recv(ret->sock, &r));
	ret->code = (int)r.reply->code;
	if (ret->code == KVG_CODE_OK) {
		assert(r.n_fds == 2 && fstat(r.fds[1], &st) == 0);
		assert(pread(r.fds[0], (void *)&head, sizeof(head), 0) == sizeof(head));
		memcpy(ret->instance, head.instance, sizeof(head.instance));
		ret->session = r.reply->hello->session;
		ret->pins = r.reply->hello->pins;
		ret->page = st.st_ino;
	}
	raw_reply_free(&r);
}

static int resume_in_vain(void *session)
{
	struct greeting g;

	greet(*(uint64_t *)session, &g);
	return g.code == KVG_CODE_NO_SESSION ? 0 : 1;
}

static void test_resume(void **state)
{
	struct greeting first, again, other;

	(void)state;
	keeper_start();
	begin("8MiB");
	greet(0, &first);
	assert_int_equal(first.code, KVG_CODE_OK);
	greet(first.session, &other); /* it is there, not away */
	assert_int_equal(other.code, KVG_CODE_NO_SESSION);
	close(other.sock);
	for (int i = 0; i < 3; i++) {
		end(SIGKILL);
		begin("8MiB");
		assert_int_equal(child_run(0, resume_in_vain, &first.session), 0);
		greet(first.session + 17, &other);
		assert_int_equal(other.code, KVG_CODE_NO_SESSION);
		close(other.sock);
		greet(0, &other); /* a new one gets another number */
		assert_int_equal(other.code, KVG_CODE_OK);
		assert_true(other.session > first.session && other.page != first.page);
		greet(first.session, &again);
		assert_int_equal(again.code, KVG_CODE_OK);
		assert_true(again.session == first.session && again.page == first.page &&
			again.pins == first.pins);
		assert_memory_equal(again.instance, first.instance, sizeof(first.instance));
		close(first.sock);
		close(other.sock);
		first = again;
		greet(first.session, &other);
		assert_int_equal(other.code, KVG_CODE_NO_SESSION);
		close(other.sock);
	}
	close(first.sock);
	end(SIGTERM);
	keeper_stop();
}

/* ---- nobody keeps anything ---- */

static void test_without_keeper(void **state)
{
	struct daemon_process d;

	(void)state;
	daemon_start(&d, "");
	assert_true(daemon_logged(&d, "nobody keeps file descriptors"));
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_is_lost),
		cmocka_unit_test(test_pins_hold),
		cmocka_unit_test(test_resume),
		cmocka_unit_test(test_without_keeper),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
