/* SPDX-License-Identifier: Apache-2.0 */
/* A gate whose scores are easy to say: of head h, x[h] of every token's hidden state. */
#ifndef KVGATE_TESTS_FAKE_GATE_H
#define KVGATE_TESTS_FAKE_GATE_H

#include "gates/gate.h"

struct gate *fake_gate_new(uint32_t layers, uint32_t heads, uint32_t hidden);
void fake_gate_become(struct gate *g, uint32_t layers, uint32_t heads,
	uint32_t hidden);       /* another one, at the same address */
extern int fake_gate_scratches; /* alive */

#endif
