/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key_chain_GBps: keys of a prompt of 128 blocks of 256 tokens, beside OpenSSL's SHA-256 over the same
 * number of bytes in 16 KiB messages through EVP, as `openssl speed -evp sha256` has it. Both are timed in
 * turns and the median of the turns' ratios is given. A block hashes 64 + 4 * 256 bytes; 17 compressions and
 * one for the padding, so that a perfect chain would reach .94 of the messages' speed.
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <openssl/evp.h>

#include "proto/key.h"
#include "tests/bench/figure.h"

enum {
	BLOCK_TOKENS = 256,
	BLOCKS = 128,
	CHAINS = 128,
	TURNS = 31,
	MESSAGE = 16384
};

static const double bytes = (double)CHAINS * BLOCKS * (64 + 4 * BLOCK_TOKENS);

/* Both return GB/s. */
static double time_chain(struct key_hasher *h, const uint32_t *tokens)
{
	static struct kvg_key keys[BLOCKS];
	const uint8_t fingerprint[32] = {1};
	double start = figure_cpu_us();

	for (int i = 0; i < CHAINS; i++)
		key_chain(h, i ? &keys[BLOCKS - 1] : NULL, fingerprint, tokens, BLOCK_TOKENS,
			BLOCKS, keys);
	return bytes / (figure_cpu_us() - start) * 1e-3;
}

static double time_messages(EVP_MD_CTX *ctx, const EVP_MD *md)
{
	static uint8_t message[MESSAGE], digest[32];
	double start = figure_cpu_us();

	for (double done = 0; done < bytes; done += MESSAGE)
		if (!EVP_DigestInit_ex2(ctx, md, NULL) ||
			!EVP_DigestUpdate(ctx, message, MESSAGE) ||
			!EVP_DigestFinal_ex(ctx, digest, NULL))
			abort();
	return bytes / (figure_cpu_us() - start) * 1e-3;
}

int main(void)
{
	uint32_t *tokens = malloc((size_t)BLOCKS * BLOCK_TOKENS * sizeof(*tokens));
	double chain[TURNS], messages[TURNS], ratio[TURNS];
	EVP_MD *md = EVP_MD_fetch(NULL, "SHA256", NULL);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	struct key_hasher *h = NULL;

	if (!tokens || !md || !ctx || key_hasher_new(&h) < 0)
		return 1;
	for (uint32_t i = 0; i < BLOCKS * BLOCK_TOKENS; i++)
		tokens[i] = i * 2654435761u % 151936;
	time_chain(h, tokens);
	time_messages(ctx, md);
	for (int i = 0; i < TURNS; i++) {
		chain[i] = time_chain(h, tokens);
		messages[i] = time_messages(ctx, md);
		ratio[i] = chain[i] / messages[i];
	}
	figure_print(
		&(struct figure_line){"core", "key_chain_GBps", "GB/s", figure_median(chain, TURNS),
			figure_median(messages, TURNS), figure_median(ratio, TURNS)},
		"OpenSSL SHA-256, 16 KiB messages");
	key_hasher_free(h);
	EVP_MD_CTX_free(ctx);
	EVP_MD_free(md);
	free(tokens);
	return figure_status();
}
