/* SPDX-License-Identifier: Apache-2.0 */
/* One block put and read back: cc example.c $(pkg-config --cflags --libs kvgate) && ./a.out */
#include <kvgate.h>
#include <stdio.h>
#include <string.h>

enum {
	LAYERS = 2,
	HEADS = 2,
	DIM = 8,
	TOKENS = 16
};

static int failed(struct kvg_client *c, const char *what)
{
	fprintf(stderr, "%s: %s\n", what, kvg_last_error(c));
	kvg_close(c);
	return 1;
}

/* Not in the cache yet: computed here, and given to everybody else. */
static int put(struct kvg_client *c, struct kvg_layout *layout, const uint32_t *prompt)
{
	struct kvg_stage stage;
	struct kvg_commit item = {&stage, {{0}}, NULL};
	struct kvg_commit_result result;

	if (kvg_stage(layout, KVG_INPUT_NONE, 1, &stage) < 0)
		return -1;
	memset(stage.kv, 0, stage.kv_bytes); /* [LAYERS][2][HEADS][TOKENS][DIM] */
	memcpy(stage.tokens, prompt, TOKENS * sizeof(*prompt));
	kvg_key_chain(layout, NULL, prompt, TOKENS, &item.key);
	return kvg_commit(c, &item, 1, &result) < 0 || result.code > KVG_CODE_EXISTS ? -1 : 0;
}

int main(void)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_client *c = NULL;
	struct kvg_layout *layout;
	struct kvg_pin pin;
	uint32_t prompt[TOKENS];
	int n;

	for (n = 0; n < TOKENS; n++)
		prompt[n] = 1000 + n;
	if (kvg_open(NULL, &c) < 0)
		return failed(NULL, "open");
	o.model = "example";
	o.layers = LAYERS, o.heads = HEADS, o.k_dim = o.v_dim = DIM;
	o.dtype = KVG_DTYPE_F32, o.block_tokens = TOKENS;
	if (kvg_layout(c, &o, &layout) < 0)
		return failed(c, "layout");

	/* The longest prefix of the prompt that is there, at least 30 % of each block's pairs. */
	while (kvg_prefix_pin_tokens(layout, prompt, TOKENS, 0.3f, &pin, NULL) == 0)
		if (put(c, layout, prompt) < 0)
			return failed(c, "put");
	n = kvg_planes(layout, &pin, plane); /* pointers into the daemon's memory, no copy */
	if (n < 0)
		return failed(c, "planes");
	printf("planes: %d, holding %.0f %% of the pairs; layer 0, head 1: rows %u to %u\n", n,
		100 * pin.retention, plane[0].cu[1], plane[0].cu[2]);
	kvg_unpin(c, &pin, 1);
	kvg_close(c);
	return 0;
}
