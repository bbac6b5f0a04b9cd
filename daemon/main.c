/* SPDX-License-Identifier: Apache-2.0 */
/* kvgated: reads its options, then daemon_run() does the rest. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/options.h"
#include "daemon/daemon.h"

int main(int argc, char **argv)
{
	struct options *o;
	char why[600];

	if (options_load(argc, argv, environ, &o, why, sizeof(why)) < 0) {
		log_error("bad configuration", "why=\"%s\"", why);
		return EXIT_FAILURE;
	}
	switch (o->action) {
	case OPTIONS_RUN:
		return daemon_run(o, argc, argv, environ);
	case OPTIONS_HELP:
		options_help(stdout);
		break;
	case OPTIONS_HELP_MDOC:
		options_help_mdoc(stdout);
		break;
	case OPTIONS_VERSION:
		puts("kvgated " KVG_VERSION);
		break;
	}
	options_free(o);
	return fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}
