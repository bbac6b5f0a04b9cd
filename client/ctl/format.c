/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers for people, objects for programs. */
#include "client/ctl/ctl.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct ctl_text ctl_bytes(double n)
{
	static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	struct ctl_text t;
	unsigned u = 0;

	for (; n >= 1024 && u + 1 < sizeof(unit) / sizeof(unit[0]); u++)
		n /= 1024;
	snprintf(t.s, sizeof(t.s), u && n < 100 ? "%.1f %s" : "%.0f %s", n, unit[u]);
	return t;
}

struct ctl_text ctl_count(double n)
{
	static const char *const unit[] = {"", "k", "M", "G", "T"};
	struct ctl_text t;
	unsigned u = 0;

	for (; n >= 10000 && u + 1 < sizeof(unit) / sizeof(unit[0]); u++)
		n /= 1000;
	snprintf(t.s, sizeof(t.s), u ? "%.1f%s" : "%.0f%s", n, unit[u]);
	return t;
}

struct ctl_text ctl_percent(double share)
{
	struct ctl_text t;

	snprintf(t.s, sizeof(t.s), "%.1f %%", 100 * share);
	return t;
}

int ctl_parse_size(const char *s, uint64_t *ret)
{
	static const char prefixes[] = "kmgtp";
	double n, scale = 1;
	char *end;

	errno = 0;
	n = strtod(s, &end);
	if (errno || end == s || !(n >= 0) || !isfinite(n))
		return -EINVAL;
	if (*end) {
		const char *p = strchr(prefixes, *end | 32);

		if (p) {
			scale = ldexp(1, 10 * (int)(p - prefixes + 1));
			end++;
			if (*end == 'i')
				end++;
		}
		if (!strcasecmp(end, "b"))
			end++;
		if (*end)
			return -EINVAL;
	}
	n *= scale;
	if (n >= 0x1p63)
		return -EINVAL;
	*ret = (uint64_t)n;
	return 0;
}

void ctl_bar(char *ret, size_t size, unsigned width, double share)
{
	unsigned full = share <= 0 ? 0 : share >= 1 ? width : (unsigned)(share * width + 0.5);
	size_t n = 0;

	for (unsigned i = 0; i < width && n + 1 < size; i++)
		ret[n++] = i < full ? '#' : '.';
	ret[n] = '\0';
}

const char *ctl_tier(uint32_t tier)
{
	static const char *const name[] = {"dropped", "host", "gpu", "disk"};

	return tier < sizeof(name) / sizeof(name[0]) ? name[tier] : "unknown";
}

const char *ctl_event(int kind)
{
	static const char *const name[] = {"lost", "committed", "shrunk", "evicted"};

	return kind >= 0 && kind < 4 ? name[kind] : "unknown";
}

void ctl_json(struct json_object *o)
{
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED));
	json_object_put(o);
}

void ctl_json_line(struct json_object *o)
{
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	fflush(stdout);
	json_object_put(o);
}

/* As short as seven digits allow: most of these were floats, and 0.95 should not become 0.94999998807907104. */
struct json_object *ctl_json_real(double n)
{
	char text[40];

	if (!isfinite(n))
		return NULL;
	snprintf(text, sizeof(text), fabs(n) < 1e15 && n == floor(n) ? "%.0f" : "%.7g", n);
	return json_object_new_double_s(n, text);
}

struct json_object *ctl_json_key(const struct kvg_key *k)
{
	char hex[65];

	kvg_key_to_hex(k, hex);
	return json_object_new_string(hex);
}

static struct json_object *number(uint64_t n)
{
	return json_object_new_int64((int64_t)n);
}

struct json_object *ctl_json_layout(const struct kvg_layout_entry *l)
{
	struct json_object *o = json_object_new_object(), *edges = json_object_new_array();
	const char *dtype = kvg_dtype_name(l->dtype);
	struct kvg_key fingerprint;

	memcpy(fingerprint.b, l->fingerprint, sizeof(fingerprint.b));
	for (uint32_t i = 0; i < l->n_edges; i++)
		json_object_array_add(edges, ctl_json_real(l->edges[i]));
	json_object_object_add(o, "layout", number(l->id));
	json_object_object_add(o, "model", json_object_new_string(l->model));
	json_object_object_add(o, "gate", json_object_new_string(l->gate));
	json_object_object_add(o, "layers", number(l->layers));
	json_object_object_add(o, "heads", number(l->heads));
	json_object_object_add(o, "k_dim", number(l->k_dim));
	json_object_object_add(o, "v_dim", number(l->v_dim));
	json_object_object_add(o, "dtype", json_object_new_string(dtype ? dtype : "opaque"));
	json_object_object_add(o, "block_tokens", number(l->block_tokens));
	json_object_object_add(o, "opaque_bytes", number(l->opaque_bytes));
	json_object_object_add(o, "page_bytes", number(l->page_bytes));
	json_object_object_add(o, "edges", edges);
	json_object_object_add(o, "floor", ctl_json_real(l->floor));
	json_object_object_add(o, "fingerprint", ctl_json_key(&fingerprint));
	return o;
}

static struct json_object *json_plane(const struct kvg_plane_entry *p)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "plane", number(p->plane));
	json_object_object_add(o, "tier", json_object_new_string(ctl_tier(p->tier)));
	json_object_object_add(o, "pairs", number(p->pairs));
	json_object_object_add(o, "bytes", number(p->bytes));
	json_object_object_add(o, "segment", number(p->segment));
	json_object_object_add(o, "page", number(p->page));
	json_object_object_add(o, "value", ctl_json_real(p->value));
	json_object_object_add(o, "verified", json_object_new_boolean(p->verified));
	return o;
}

struct json_object *ctl_json_block(const struct kvg_block_entry *b)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "key", ctl_json_key(&b->key));
	json_object_object_add(o, "parent", b->has_parent ? ctl_json_key(&b->parent) : NULL);
	json_object_object_add(o, "layout", number(b->layout));
	json_object_object_add(o, "slot", number(b->handle.slot));
	json_object_object_add(o, "generation", number(b->handle.gen));
	json_object_object_add(o, "depth", number(b->depth));
	json_object_object_add(o, "tokens", number(b->tokens));
	json_object_object_add(o, "retention", ctl_json_real(b->retention));
	json_object_object_add(o, "bytes", number(b->bytes));
	json_object_object_add(o, "value", ctl_json_real(b->value));
	json_object_object_add(o, "pins", number(b->pins));
	json_object_object_add(o, "children", number(b->children));
	if (b->n_planes) {
		struct json_object *planes = json_object_new_array();

		for (uint32_t i = 0; i < b->n_planes; i++)
			json_object_array_add(planes, json_plane(&b->planes[i]));
		json_object_object_add(o, "planes", planes);
	}
	return o;
}
