/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A line is put together on the stack and written with one write(), so that lines of different threads never mix.
 * Values may come from clients: whatever is not printable becomes '?', so that nobody can forge a line. A line
 * that is too long ends in "...".
 *
 * Standard error belongs to the journal when $JOURNAL_STREAM names its device and inode (systemd.exec(5)); then a
 * line begins with its priority as sd-daemon(3) has it.
 */
#include "daemon/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024 /* the journal keeps a line of this size in one piece */

static const struct {
	const char *name;
	char priority;
} levels[] = {
	[LOG_LEVEL_ERROR] = {"error", '3'},
	[LOG_LEVEL_WARNING] = {"warning", '4'},
	[LOG_LEVEL_INFO] = {"info", '6'},
	[LOG_LEVEL_DEBUG] = {"debug", '7'},
};

static _Atomic int max_level = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&max_level, (int)level, memory_order_relaxed);
}

int log_level_from_name(const char *name)
{
	for (unsigned i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
		if (!strcmp(name, levels[i].name))
			return (int)i;
	return -EINVAL;
}

static bool is_journal(void)
{
	static _Atomic int known; /* 0: not asked yet, 1: no, 2: yes */
	int is = atomic_load_explicit(&known, memory_order_relaxed);

	if (!is) {
		const char *env = getenv("JOURNAL_STREAM");
		unsigned long long dev, ino;
		struct stat st;

		is = env && sscanf(env, "%llu:%llu", &dev, &ino) == 2 &&
				fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev &&
				st.st_ino == ino
			? 2
			: 1;
		atomic_store_explicit(&known, is, memory_order_relaxed);
	}
	return is == 2;
}

static size_t append(char *line, size_t used, const char *fmt, va_list args)
{
	size_t room = LINE_MAX_BYTES - used;
	int n = vsnprintf(line + used, room, fmt, args);

	if (n < 0)
		return used;
	if ((size_t)n < room)
		return used + (size_t)n;
	memcpy(line + LINE_MAX_BYTES - 4, "...", 4);
	return LINE_MAX_BYTES - 1;
}

static size_t append_text(char *line, size_t used, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	used = append(line, used, fmt, args);
	va_end(args);
	return used;
}

void log_write(enum log_level level, const char *message, const char *fmt, ...)
{
	int saved = errno;
	char line[LINE_MAX_BYTES + 1];
	size_t used = 0;
	va_list args;

	if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed))
		return;
	if (is_journal())
		used = append_text(line, used, "<%c>", levels[level].priority);
	used = append_text(line, used, "%s %s", levels[level].name, message);
	if (fmt[1]) { /* the macros put a blank before what they are given */
		va_start(args, fmt);
		used = append(line, used, fmt, args);
		va_end(args);
	}
	for (size_t i = 0; i < used; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[used++] = '\n';
	if (write(STDERR_FILENO, line, used) < 0) {
		/* nobody is there to be told */
	}
	errno = saved;
}
