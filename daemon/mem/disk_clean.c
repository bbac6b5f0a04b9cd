/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/mem/disk_device.h"
void clean_turn(struct disk_device *dev)
{
	(void)dev;
}
void clean_load_ended(struct disk_segment *s)
{
	(void)s;
}
void clean_free(struct disk_device *dev)
{
	(void)dev;
}
