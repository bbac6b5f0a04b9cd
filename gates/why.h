/* SPDX-License-Identifier: Apache-2.0 */
/*
 * why: the text that goes with an error code, for the person who gave us the file.
 * Thread: any. Locks: none. Blocks: never. Errors: it passes on the one it is given.
 *
 * Names out of a hostile file stand in it, and it ends on terminals and in logs: control characters become '?'.
 */
#ifndef KVGATE_GATES_WHY_H
#define KVGATE_GATES_WHY_H

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

__attribute__((format(printf, 3, 4))) static inline void why_print(
	char *ret_why, size_t why_size, const char *fmt, ...)
{
	va_list ap;

	if (why_size == 0)
		return;
	va_start(ap, fmt);
	vsnprintf(ret_why, why_size, fmt, ap);
	va_end(ap);
	for (char *c = ret_why; *c; c++)
		if ((unsigned char)*c < ' ' || *c == '\x7f')
			*c = '?';
}

/* The value is `error`. */
#define why(ret_why, why_size, error, ...) (why_print((ret_why), (why_size), __VA_ARGS__), (error))

#endif
