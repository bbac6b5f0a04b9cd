/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/cache/parked.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned numbers_of(enum parked_kind kind)
{
	switch (kind) {
	case PARKED_CATALOG:
	case PARKED_INDEX:
		return 1;
	case PARKED_PROCESS:
		return 2;
	case PARKED_SEGMENT:
	case PARKED_REPLICAS:
	case PARKED_MOVER:
		return 3;
	case PARKED_GPU_SEGMENT:
	case PARKED_PINS:
		return PARKED_NUMBERS;
	}
	return 0;
}

void parked_name(const struct parked *p, char ret[PARK_NAME_MAX + 1])
{
	int at = snprintf(ret, PARK_NAME_MAX + 1, PARK_PREFIX "%c", p->kind);

	for (unsigned i = 0; i < numbers_of(p->kind); i++)
		at += snprintf(ret + at, (size_t)(PARK_NAME_MAX + 1 - at), "-%llu",
			(unsigned long long)p->n[i]);
}

bool parked_parse(const char *name, struct parked *ret)
{
	const size_t prefix = strlen(PARK_PREFIX);
	char again[PARK_NAME_MAX + 1];
	struct parked p = {0};
	const char *at;
	char *end;

	if (strncmp(name, PARK_PREFIX, prefix) || !name[prefix])
		return false;
	p.kind = (enum parked_kind)name[prefix];
	at = name + prefix + 1;
	for (unsigned i = 0; i < numbers_of(p.kind); i++) {
		if (*at != '-')
			return false;
		p.n[i] = strtoull(at + 1, &end, 10);
		at = end;
	}
	if (!numbers_of(p.kind) || p.n[PARKED_TENANT] > UINT32_MAX)
		return false;
	parked_name(&p, again); /* one way to write each, no signs, no blanks, nothing behind */
	if (strcmp(name, again))
		return false;
	*ret = p;
	return true;
}
