/* SPDX-License-Identifier: Apache-2.0 */
/*
 * config.json. What it says is either followed or refused: a setting that would change the
 * numbers and is not known here must not be passed over in silence.
 */
#include "client/worker/model.h"

#include <errno.h>
#include <string.h>

#include <json-c/json.h>

#include "client/worker/attention.h"
#include "gates/why.h"

/*
 * Each has a reason: far above any model, and products of two of them fit 64 bits many times
 * over.
 */
#define LAYERS_MAX 1024
#define HEADS_MAX  4096
#define DIM_MAX    1024
#define WIDTH_MAX  (1 << 20)
#define VOCAB_MAX  (1 << 24)

struct reader {
	struct json_object *json;
	char *why;
	size_t why_size;
	int error; /* the first */
};

static void refuse(struct reader *r, int error, const char *key, const char *what)
{
	if (r->error == 0)
		r->error = why(r->why, r->why_size, error, "%s: %s", key, what);
}

static struct json_object *find(const struct reader *r, const char *key)
{
	struct json_object *o = NULL;

	json_object_object_get_ex(r->json, key, &o);
	return o;
}

static uint32_t number(struct reader *r, const char *key, uint32_t max)
{
	struct json_object *o = find(r, key);
	int64_t n;

	if (!o || !json_object_is_type(o, json_type_int)) {
		refuse(r, -EBADMSG, key, "an integer is needed");
		return 1;
	}
	n = json_object_get_int64(o);
	if (n < 1 || n > max) {
		refuse(r, -EBADMSG, key, "out of range");
		return 1;
	}
	return (uint32_t)n;
}

static double real(struct reader *r, struct json_object *o, const char *key)
{
	double d = o ? json_object_get_double(o) : 0.0;

	if (!(d > 0.0 && d < 1e12))
		refuse(r, -EBADMSG, key, "a number above 0 is needed");
	return d;
}

/* Whether `o` (NULL: JSON's null) is this very text. */
static bool is_text(struct json_object *o, const char *text)
{
	return json_object_is_type(o, json_type_string) && !strcmp(json_object_get_string(o), text);
}

static bool is_true(const struct reader *r, const char *key)
{
	struct json_object *o = find(r, key);

	return o && json_object_get_boolean(o);
}

/* Either "rope_theta" with "rope_scaling", or, newer, both in "rope_parameters". */
static float rope_theta(struct reader *r)
{
	struct json_object *rope = find(r, "rope_parameters"), *o = NULL;

	if (!rope)
		rope = find(r, "rope_scaling");
	if (rope && !json_object_is_type(rope, json_type_object))
		refuse(r, -EBADMSG, "rope_scaling", "an object is needed");
	if (rope) {
		if ((json_object_object_get_ex(rope, "rope_type", &o) ||
			    json_object_object_get_ex(rope, "type", &o)) &&
			!is_text(o, "default"))
			refuse(r, -ENOTSUP, "rope_scaling",
				"only plain rotary positions, \"default\", are known");
		o = NULL;
		json_object_object_get_ex(rope, "rope_theta", &o);
	}
	return (float)real(r, o ? o : find(r, "rope_theta"), "rope_theta");
}

static void end_tokens(struct reader *r, struct model_config *c)
{
	struct json_object *o = find(r, "eos_token_id");
	const bool list = o && json_object_is_type(o, json_type_array);
	const size_t n = !o ? 0 : list ? json_object_array_length(o) : 1;

	if (n > MODEL_EOS_MAX) {
		refuse(r, -ENOTSUP, "eos_token_id", "more end tokens than are known of");
		return;
	}
	for (size_t i = 0; i < n; i++) {
		struct json_object *id = list ? json_object_array_get_idx(o, i) : o;
		const int64_t token =
			json_object_is_type(id, json_type_int) ? json_object_get_int64(id) : -1;

		if (token < 0 || token >= c->vocab)
			refuse(r, -EBADMSG, "eos_token_id", "a token of the vocabulary is needed");
		c->eos[c->n_eos++] = (uint32_t)token;
	}
}

static void check_known(struct reader *r)
{
	struct json_object *act = find(r, "hidden_act");

	if (!is_text(find(r, "model_type"), "qwen3"))
		refuse(r, -ENOTSUP, "model_type", "only qwen3 is known");
	if (act && !is_text(act, "silu"))
		refuse(r, -ENOTSUP, "hidden_act", "only silu is known");
	if (is_true(r, "attention_bias"))
		refuse(r, -ENOTSUP, "attention_bias", "not known");
	if (is_true(r, "use_sliding_window"))
		refuse(r, -ENOTSUP, "use_sliding_window", "not known");
}

int model_config_parse(const char *json, struct model_config *ret, char *ret_why, size_t why_size)
{
	struct reader r = {.json = json_tokener_parse(json), .why = ret_why, .why_size = why_size};
	struct model_config c = {0};

	if (!r.json || !json_object_is_type(r.json, json_type_object)) {
		json_object_put(r.json);
		return why(ret_why, why_size, -EBADMSG, "not a JSON object");
	}
	check_known(&r);
	c.layers = number(&r, "num_hidden_layers", LAYERS_MAX);
	c.hidden = number(&r, "hidden_size", WIDTH_MAX);
	c.heads = number(&r, "num_attention_heads", HEADS_MAX);
	c.kv_heads = number(&r, "num_key_value_heads", HEADS_MAX);
	c.mlp = number(&r, "intermediate_size", WIDTH_MAX);
	c.vocab = number(&r, "vocab_size", VOCAB_MAX);
	c.head_dim = find(&r, "head_dim") ? number(&r, "head_dim", DIM_MAX) : c.hidden / c.heads;
	c.rms_eps = (float)real(&r, find(&r, "rms_norm_eps"), "rms_norm_eps");
	c.rope_theta = rope_theta(&r);
	c.tied = is_true(&r, "tie_word_embeddings");
	end_tokens(&r, &c);
	if (c.heads % c.kv_heads)
		refuse(&r, -EBADMSG, "num_attention_heads",
			"not a multiple of num_key_value_heads");
	else if (c.heads / c.kv_heads > ATTENTION_QUERIES_MAX)
		refuse(&r, -ENOTSUP, "num_attention_heads", "more than 64 query heads share KV");
	if (c.head_dim < 2 || c.head_dim % 2)
		refuse(&r, -EBADMSG, "head_dim", "rotary positions need an even one");
	json_object_put(r.json);
	if (r.error == 0)
		*ret = c;
	return r.error;
}
