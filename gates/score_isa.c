/* SPDX-License-Identifier: Apache-2.0 */
/* Which instructions this processor has and this process may use. */
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gates/score.h"

static const char *const names[] = {
	[GATE_ISA_AUTO] = "auto",
	[GATE_ISA_SCALAR] = "scalar",
	[GATE_ISA_AVX2] = "avx2",
	[GATE_ISA_AVX512] = "avx512",
	[GATE_ISA_AVX512_BF16] = "avx512-bf16",
	[GATE_ISA_AMX_BF16] = "amx-bf16",
};
#define N_NAMES (sizeof(names) / sizeof(names[0]))

const char *gate_isa_name(enum gate_isa isa)
{
	return (unsigned)isa < N_NAMES ? names[isa] : NULL;
}

int gate_isa_from_name(const char *name)
{
	for (unsigned i = 0; i < N_NAMES; i++)
		if (strcmp(names[i], name) == 0)
			return (int)i;
	return -1;
}

#ifdef SCORE_X86
#include <cpuid.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* asm/prctl.h of Linux 5.16 */
#define XFEATURE_XTILEDATA  18
#define AMX_BITS            ((1u << 22) | (1u << 24)) /* of leaf 7, EDX: bf16 products, tiles */

/* The kernel saves 8 KiB of tiles at every switch, and so wants to be asked. */
static bool amx_granted(void)
{
	unsigned a, b, c, d;

	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & AMX_BITS) != AMX_BITS)
		return false;
	return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

/* Intel's vdpbf16ps takes longer than the two multiply-adds in f32 it replaces; AMD's is twice as fast. */
static bool slow_bf16(void)
{
	return __builtin_cpu_is("intel");
}

bool gate_isa_supported(enum gate_isa isa)
{
	bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512vl");

	switch (isa) {
	case GATE_ISA_AUTO:
	case GATE_ISA_SCALAR:
		return true;
	case GATE_ISA_AVX2:
		return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
	case GATE_ISA_AVX512:
		return avx512;
	case GATE_ISA_AVX512_BF16:
		return avx512 && __builtin_cpu_supports("avx512bf16");
	case GATE_ISA_AMX_BF16:
		return avx512 && __builtin_cpu_supports("avx512bf16") && amx_granted();
	}
	return false;
}
#else
static bool slow_bf16(void)
{
	return false;
}

bool gate_isa_supported(enum gate_isa isa)
{
	return isa == GATE_ISA_AUTO || isa == GATE_ISA_SCALAR;
}
#endif

enum gate_isa score_best_isa(uint32_t dtype)
{
	enum gate_isa best = dtype == KVG_DTYPE_BF16 ? GATE_ISA_AMX_BF16 : GATE_ISA_AVX512;

	for (enum gate_isa isa = best; isa > GATE_ISA_SCALAR; isa--)
		if (gate_isa_supported(isa) && !(isa == GATE_ISA_AVX512_BF16 && slow_bf16()))
			return isa;
	return GATE_ISA_SCALAR;
}
