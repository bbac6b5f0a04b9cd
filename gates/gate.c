/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a file is, is told by its first bytes: "PK" is torch.save's zip, all else must be safetensors. A
 * folder is KVzap's: model.safetensors with a config.json that must agree with it.
 *
 * The file is read into memory, not mapped: somebody may cut it short while it is being read, and the
 * process that loads a gate may be the daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gates/gate_private.h"
#include "gates/why.h"

#define CONFIG_BYTES_MAX (1u << 20) /* KVzap's has 200 */

static int read_fd(
	int fd, uint64_t limit, void **ret, size_t *ret_bytes, char *ret_why, size_t why_size)
{
	struct stat s;
	size_t done = 0;
	char *data;

	if (fstat(fd, &s) < 0)
		return why(ret_why, why_size, -errno, "%s", strerror(errno));
	if (!S_ISREG(s.st_mode))
		return why(ret_why, why_size, -EBADMSG, "not a regular file");
	if ((uint64_t)s.st_size > limit)
		return why(ret_why, why_size, -EBADMSG, "%llu bytes, at most %llu are read",
			(unsigned long long)s.st_size, (unsigned long long)limit);
	data = malloc((size_t)s.st_size + 1);
	if (!data)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	while (done < (size_t)s.st_size) {
		ssize_t n = read(fd, data + done, (size_t)s.st_size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			int r = n < 0 ? -errno : -EBADMSG;

			free(data);
			return why(ret_why, why_size, r, "%s",
				n < 0 ? strerror(-r) : "the file became shorter while it was read");
		}
		done += (size_t)n;
	}
	data[done] = '\0';
	*ret = data;
	*ret_bytes = done;
	return 0;
}

static int read_file(const char *path, uint64_t limit, void **ret, size_t *ret_bytes, char *ret_why,
	size_t why_size)
{
	int fd, r;

	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return why(ret_why, why_size, -errno, "%s", strerror(errno));
	r = read_fd(fd, limit, ret, ret_bytes, ret_why, why_size);
	close(fd);
	return r;
}

static int read_safetensors(
	const void *data, size_t bytes, struct gate **ret, char *ret_why, size_t why_size)
{
	struct safetensors *st;
	struct gate *g = NULL;
	int r;

	r = safetensors_parse(data, bytes, &st, ret_why, why_size);
	if (r < 0)
		return r;
	r = -EINVAL;
	if (safetensors_count(st) == 0)
		why_print(ret_why, why_size, "no tensors in it");
	else
		r = gate_build(safetensors_at(st, 0), safetensors_count(st), &g, ret_why, why_size);
	if (r == 0)
		r = gate_read_metadata(st, g, ret_why, why_size);
	safetensors_close(st);
	if (r < 0) {
		gate_free(g);
		return r;
	}
	*ret = g;
	return 0;
}

static int load_file(const char *path, struct gate **ret, char *ret_why, size_t why_size)
{
	void *data = NULL;
	size_t bytes = 0;
	int r;

	r = read_file(path, GATE_FILE_MAX, &data, &bytes, ret_why, why_size);
	if (r < 0)
		return r;
	if (bytes >= 4 && memcmp(data, "PK\3\4", 4) == 0)
		r = gate_read_pt(data, bytes, ret, ret_why, why_size);
	else
		r = read_safetensors(data, bytes, ret, ret_why, why_size);
	free(data);
	return r;
}

/* ---- KVzap folder ---- */

static int check_number(struct json_object *config, const char *key, uint32_t wanted, char *ret_why,
	size_t why_size)
{
	struct json_object *value = json_object_object_get(config, key);
	int64_t number = value ? json_object_get_int64(value) : 0; /* null stands for 0 */

	if (value && !json_object_is_type(value, json_type_int))
		return why(ret_why, why_size, -EBADMSG, "%s is not a whole number", key);
	if (number == wanted)
		return 0;
	return why(ret_why, why_size, -EINVAL, "%s is %lld, the tensors say %u", key,
		(long long)number, wanted);
}

static int check_config(
	const char *path, const struct gate_info *info, char *ret_why, size_t why_size)
{
	struct json_object *config;
	void *text = NULL;
	size_t bytes = 0;
	int r;

	r = read_file(path, CONFIG_BYTES_MAX, &text, &bytes, ret_why, why_size);
	if (r < 0)
		return r;
	config = json_tokener_parse(text);
	free(text);
	if (!config || !json_object_is_type(config, json_type_object)) {
		json_object_put(config);
		return why(ret_why, why_size, -EBADMSG, "not a JSON object");
	}
	r = check_number(config, "input_dim", info->hidden, ret_why, why_size);
	if (r == 0)
		r = check_number(config, "output_dim", info->heads, ret_why, why_size);
	if (r == 0)
		r = check_number(config, "hidden_dim", info->mlp, ret_why, why_size);
	if (r == 0)
		r = check_number(config, "n_modules", info->layers, ret_why, why_size);
	json_object_put(config);
	return r;
}

/* The weights make the gate; the configuration, read when there is one, is checked against it. */
static int load_member(
	const char *folder, const char *name, struct gate **g, char *ret_why, size_t why_size)
{
	char reason[256] = "", *path;
	int r;

	if (asprintf(&path, "%s/%s", folder, name) < 0)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	if (*g)
		r = check_config(path, &(*g)->info, reason, sizeof(reason));
	else
		r = load_file(path, g, reason, sizeof(reason));
	free(path);
	return r < 0 ? why(ret_why, why_size, r, "%s: %s", name, reason) : 0;
}

static int load_folder(const char *path, struct gate **ret, char *ret_why, size_t why_size)
{
	struct gate *g = NULL;
	int r;

	r = load_member(path, "model.safetensors", &g, ret_why, why_size);
	if (r == 0 && g->info.kind == GATE_FAST_KVZIP)
		r = why(ret_why, why_size, -EINVAL,
			"a folder is a KVzap gate, this one holds a Fast KVzip gate: name the "
			"file");
	if (r == 0)
		r = load_member(path, "config.json", &g, ret_why, why_size);
	if (r < 0) {
		gate_free(g);
		return r;
	}
	*ret = g;
	return 0;
}

int gate_load(const char *path, struct gate **ret, char *ret_why, size_t why_size)
{
	struct stat s;

	if (stat(path, &s) == 0 && S_ISDIR(s.st_mode))
		return load_folder(path, ret, ret_why, why_size);
	return load_file(path, ret, ret_why, why_size);
}

const char *gate_kind_name(enum gate_kind kind)
{
	switch (kind) {
	case GATE_FAST_KVZIP:
		return "fast-kvzip";
	case GATE_KVZAP_LINEAR:
		return "kvzap-linear";
	case GATE_KVZAP_MLP:
		return "kvzap-mlp";
	}
	return NULL;
}
