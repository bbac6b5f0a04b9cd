/* SPDX-License-Identifier: Apache-2.0 */
/* version: of the library in any case; of the daemon when there is one. */
#include "client/ctl/ctl.h"

#include <stdio.h>

int ctl_version(int argc, char **argv)
{
	static const struct ctl_flag flags[] = {{0}};
	struct kvg_session_info s = KVG_OPTIONS_INIT(kvg_session_info);
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c = NULL;
	int n, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	o.socket = ctl_options.socket;
	o.control = 1;
	o.timeout_ms = 1000;
	if (kvg_open(&o, &c) == 0)
		kvg_session(c, &s);
	if (ctl_options.json) {
		struct json_object *j = json_object_new_object();

		json_object_object_add(j, "library", json_object_new_string(kvg_version()));
		json_object_object_add(j, "daemon", c ? json_object_new_string(s.daemon) : NULL);
		json_object_object_add(j, "protocol", c ? json_object_new_int64(s.protocol) : NULL);
		ctl_json(j);
	} else {
		printf("libkvgate %s\n", kvg_version());
		if (c)
			printf("%s, protocol %u\n", s.daemon, s.protocol);
		else
			printf("no daemon: %s\n", kvg_last_error(NULL));
	}
	kvg_close(c);
	return CTL_OK;
}
