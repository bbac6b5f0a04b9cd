/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log: structured lines to standard error - `level message key=value ...`, journal priorities under systemd.
 * Thread: any. Locks: none (one write per line). Blocks: as standard error does. Errors: swallowed, there is nobody to tell.
 */
#ifndef KVGATE_DAEMON_BASE_LOG_H
#define KVGATE_DAEMON_BASE_LOG_H

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARNING,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG
};

void log_set_level(enum log_level level);
int log_level_from_name(const char *name); /* "error" ...; -EINVAL */

/* Use the macros. The message says what happened; the rest of the format is ` key=value` pairs: log_info("session opened", "uid=%u", uid). */
void log_write(enum log_level level, const char *message, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define log_error(message, ...)   log_write(LOG_LEVEL_ERROR, message, " " __VA_ARGS__)
#define log_warning(message, ...) log_write(LOG_LEVEL_WARNING, message, " " __VA_ARGS__)
#define log_info(message, ...)    log_write(LOG_LEVEL_INFO, message, " " __VA_ARGS__)
#define log_debug(message, ...)   log_write(LOG_LEVEL_DEBUG, message, " " __VA_ARGS__)

#endif
