/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper around a daemon that is played by this program itself (`test_keeper play DIR`): it stores descriptors, dies in
 * several ways, and looks at what it gets back.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/keeper.h"

#define STORED 300 /* more than fit one message */

static char dir[64];

/* ---- the player: each life appends a line to DIR/log and does what DIR/script says for it ---- */

static void line(const char *dir_, const char *text)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/log", dir_);
	f = fopen(path, "ae");
	fprintf(f, "%s\n", text);
	fclose(f);
}

static void put(int i)
{
	char name[32], state[96];
	int fd = memfd_create("kept", MFD_CLOEXEC);

	snprintf(name, sizeof(name), "kvg-test-%d", i);
	if (write(fd, name, strlen(name)) < 0)
		_exit(9);
	snprintf(state, sizeof(state), "FDSTORE=1\nFDNAME=%s", name);
	while (sd_pid_notify_with_fds(0, 0, state, &fd, 1) == -EAGAIN)
		usleep(1000);
	close(fd);
}

/* Descriptors that came back with what was written to them. */
static int count_kept(void)
{
	char **names = NULL, text[32];
	int n = sd_listen_fds_with_names(1, &names), good = 0;

	for (int i = 0; i < n; i++) {
		ssize_t got = pread(SD_LISTEN_FDS_START + i, text, sizeof(text) - 1, 0);

		text[got > 0 ? got : 0] = '\0';
		good += !strcmp(text, names[i]) && !strncmp(text, "kvg-test-", 9);
		free(names[i]);
	}
	free(names);
	return good == n ? n : -1;
}

static int play(const char *dir_)
{
	char path[128], text[64], step[16] = "";
	int kept = count_kept(), life = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/script", dir_);
	f = fopen(path, "r+e");
	if (!f || fscanf(f, "%15s", step) != 1)
		return 8;
	fclose(f);
	/* the script is a letter for each life */
	snprintf(path, sizeof(path), "%s/lives", dir_);
	f = fopen(path, "re");
	if (f) {
		if (fscanf(f, "%d", &life) != 1)
			return 7;
		fclose(f);
	}
	f = fopen(path, "we");
	fprintf(f, "%d", life + 1);
	fclose(f);
	if (life >= (int)strlen(step))
		return 0; /* more lives than the script has: the log shows it */
	snprintf(text, sizeof(text), "%c %d", step[life], kept);
	line(dir_, text);
	if (step[life] != 'x')
		sd_notify(0, "READY=1");
	switch (step[life]) {
	case 's': /* stores, and is killed */
		for (int i = 0; i < STORED; i++)
			put(i);
		sd_notify_barrier(0, 5000000);
		kill(getpid(), SIGKILL);
		break;
	case 'r': /* removes some, and fails */
		for (int i = 0; i < STORED / 2; i++) {
			snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=kvg-test-%d", i);
			while (sd_notify(0, text) == -EAGAIN)
				usleep(1000);
		}
		sd_notify_barrier(0, 5000000);
		return 3;
	case 'w': /* waits for SIGTERM */
		signal(SIGTERM, SIG_DFL);
		pause();
		break;
	case 'x': /* fails before it is ready */
		return 5;
	}
	return 0;
}

/* ---- the tests ---- */

static void start(const char *script, pid_t *ret)
{
	char path[128];
	FILE *f;

	strcpy(dir, "/tmp/kvgate-keeper-XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/script", dir);
	f = fopen(path, "we");
	fprintf(f, "%s\n", script);
	fclose(f);
	*ret = fork();
	if (*ret == 0) {
		char *argv[] = {(char *)"test_keeper", (char *)"play", dir, NULL};

		_exit(keeper_run("/proc/self/exe", argv));
	}
}

static const char *log_of(void)
{
	static char text[512];
	char path[128];
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/log", dir);
	f = fopen(path, "re");
	if (f) {
		n = fread(text, 1, sizeof(text) - 1, f);
		fclose(f);
	}
	text[n] = '\0';
	return text;
}

static void await(const char *lines)
{
	for (int i = 0; i < 6000 && strcmp(log_of(), lines); i++)
		usleep(5000);
	assert_string_equal(log_of(), lines);
}

static int end(pid_t keeper)
{
	char command[128];
	int status;

	assert_int_equal(waitpid(keeper, &status, 0), keeper);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	assert_int_equal(system(command), 0);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* Killed, failed, and at last done: what was stored and not removed is there each time, in its order. */
static void test_kept(void **state)
{
	pid_t keeper;

	(void)state;
	start("srn", &keeper);
	await("s 0\nr 300\nn 150\n");
	assert_int_equal(end(keeper), 0);
}

/* One that never was ready would only fail again. */
static void test_never_ready(void **state)
{
	pid_t keeper;

	(void)state;
	start("xn", &keeper);
	await("x 0\n");
	assert_int_equal(end(keeper), 5);
}

/* SIGUSR2: another daemon with the same memory. SIGTERM: the end of both. */
static void test_signals(void **state)
{
	pid_t keeper;

	(void)state;
	start("sww", &keeper);
	await("s 0\nw 300\n");
	kill(keeper, SIGUSR2);
	await("s 0\nw 300\nw 300\n");
	kill(keeper, SIGTERM);
	assert_int_equal(end(keeper), 128 + SIGTERM);
}

/* Others know the address, too: their word does not count. */
static void test_strangers(void **state)
{
	char address[64];
	pid_t keeper;

	(void)state;
	start("ww", &keeper);
	await("w 0\n");
	snprintf(address, sizeof(address), "@kvgated-keeper-%d", (int)keeper);
	setenv("NOTIFY_SOCKET", address, 1);
	put(1);
	unsetenv("NOTIFY_SOCKET");
	kill(keeper, SIGUSR2);
	await("w 0\nw 0\n");
	kill(keeper, SIGTERM);
	assert_int_equal(end(keeper), 128 + SIGTERM);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kept),
		cmocka_unit_test(test_never_ready),
		cmocka_unit_test(test_signals),
		cmocka_unit_test(test_strangers),
	};

	if (argc == 3 && !strcmp(argv[1], "play"))
		return play(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
