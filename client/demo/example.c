/* SPDX-License-Identifier: Apache-2.0 */
/* One block put and read back: cc example.c $(pkg-config --cflags --libs kvgate) && ./a.out, with kvgated running. */
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

int main(void)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_commit_result result;
	struct kvg_client *c = NULL;
	struct kvg_layout *layout;
	struct kvg_stage stage;
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

	if (kvg_prefix_pin_tokens(layout, prompt, TOKENS, 0.3f, &pin, NULL) ==
		0) { /* a miss: compute and put it */
		struct kvg_commit put = {&stage, {{0}}, NULL};

		kvg_key_chain(layout, NULL, prompt, TOKENS, &put.key);
		if (kvg_stage(layout, KVG_INPUT_NONE, 1, &stage) < 0)
			return failed(c, "stage");
		memset(stage.kv, 0, stage.kv_bytes); /* [LAYERS][2][HEADS][TOKENS][DIM] */
		memcpy(stage.tokens, prompt, sizeof(prompt));
		if (kvg_commit(c, &put, 1, &result) < 0 || result.code > KVG_CODE_EXISTS ||
			kvg_prefix_pin_tokens(layout, prompt, TOKENS, 0.3f, &pin, NULL) != 1)
			return failed(c, "commit");
	}
	n = kvg_planes(layout, &pin, plane); /* pointers into the daemon's memory, no copy */
	if (n < 0)
		return failed(c, "planes");
	printf("%d planes, %.0f %% of the pairs; layer 0, head 1 of the best plane: %u pairs from "
	       "row %u\n",
		n, 100 * pin.retention, plane[0].cu[2] - plane[0].cu[1], plane[0].cu[1]);
	kvg_unpin(c, &pin, 1);
	kvg_close(c);
	return 0;
}
