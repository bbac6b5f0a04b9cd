#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gates written plainly in PyTorch, the rounding points where tensors of the gate's dtype put them.

    gate_reference.py OUT      writes cases with their scores; test_gate_golden reads them

The committed gate_golden.bin is `gate_reference.py tests/ref/gate_golden.bin`. Weights and hidden states are not in it:
both sides make them from a hash (uniform() here, fixture_uniform() in gate_fixture.c). Format, little endian:
magic KVGGAT02, u32 cases; case: u32 kind, dtype, layers, heads, groups, hidden, dim, sinks, mlp, tokens, seed;
f32 [layers][heads][tokens] four times: exact and fast from bf16 hidden states, fast and exact from f32 ones
"""
import math
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F

FAST_KVZIP, KVZAP_LINEAR, KVZAP_MLP = 1, 2, 3
BF16, F16, F32 = 1, 2, 3
DTYPES = {BF16: torch.bfloat16, F16: torch.float16, F32: torch.float32}
EPS = 1e-6


# ---- gates ----

def rms(v, w, exact):
    given, v = v.dtype, v.float()
    n = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + EPS)
    return w * (n.to(given).float() if exact else n)


def linear(x, w, b, exact):
    """The weights' dtype in and out, as the model computes it, or f32 throughout."""
    if exact:
        return F.linear(x.to(w.dtype), w, b)
    return F.linear(x.float(), w.float(), None if b is None else b.float())


def fast_kvzip(t, x, exact):
    """t: one layer's tensors by their official names; x [N, D] -> [H, N]"""
    heads, _, groups = t["b"].shape
    dim = t["k_base"].shape[-1]
    q = linear(x, t["q_proj.weight"], t["q_proj.bias"], exact).view(-1, heads, groups, dim)
    k = linear(x, t["k_proj.weight"], None, exact).view(-1, heads, dim)
    q, k = rms(q, t["q_norm.weight"], exact), rms(k, t["k_norm.weight"], exact)
    logit = torch.einsum("nhd,nhgd->nhg", k, q) / math.sqrt(dim) + t["b"][:, 0].float()
    sinks = torch.einsum("hsd,nhgd->nhgs", t["k_base"][:, 0].float(), q) / math.sqrt(dim)
    score = 1 / (1 + torch.exp(sinks - logit[..., None]).sum(-1))
    return score.mean(-1).T.contiguous()


def kvzap(t, x, exact):
    if "weight" in t:
        return linear(x, t["weight"], t["bias"], exact).float().T.contiguous()
    h = F.gelu(linear(x, t["0.weight"], t["0.bias"], exact))
    return linear(h, t["2.weight"], t["2.bias"], exact).float().T.contiguous()


def score(kind, tensors, x, exact):
    return (fast_kvzip if kind == FAST_KVZIP else kvzap)(tensors, x, exact)


# ---- numbers from a hash ----

def mix(x):
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9e3779b97f4a7c15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        return x ^ (x >> np.uint64(31))


def uniform(seed, tensor, n):
    with np.errstate(over="ignore"):
        h = mix(mix(np.array([seed << 8 | tensor], np.uint64)) + np.arange(n, dtype=np.uint64))
    return (h >> np.uint64(40)).astype(np.float32) / np.float32(8388608) - np.float32(1)


def parts(kind, heads, groups, hidden, dim, sinks, mlp):
    if kind == FAST_KVZIP:
        return (("q_proj.weight", (heads * groups * dim, hidden)), ("q_proj.bias", (heads * groups * dim,)),
                ("k_proj.weight", (heads * dim, hidden)), ("b", (heads, 1, groups)),
                ("k_base", (heads, 1, sinks, dim)), ("q_norm.weight", (dim,)), ("k_norm.weight", (dim,)))
    if kind == KVZAP_LINEAR:
        return (("weight", (heads, hidden)), ("bias", (heads,)))
    return (("0.weight", (mlp, hidden)), ("0.bias", (mlp,)), ("2.weight", (heads, mlp)), ("2.bias", (heads,)))


def spread(name, shape):
    if "norm" in name:
        return np.float32(.5), np.float32(1.5)
    if "bias" in name:
        return np.float32(.25), np.float32(0)
    if name == "k_base":
        return np.float32(1.5), np.float32(0)
    return (np.float32(2) / np.sqrt(np.float32(shape[1])) if len(shape) == 2 else np.float32(1)), np.float32(0)


def gate(kind, dtype, layers, heads, groups, hidden, dim, sinks, mlp, seed):
    made, number = [], 0
    for _ in range(layers):
        tensors = {}
        for name, shape in parts(kind, heads, groups, hidden, dim, sinks, mlp):
            scale, offset = spread(name, shape)
            t = torch.from_numpy(scale * uniform(seed, number, math.prod(shape)) + offset).view(shape)
            tensors[name] = t if name in ("k_base", "q_norm.weight", "k_norm.weight") else t.to(DTYPES[dtype])
            number += 1
        made.append(tensors)
    return made


def hidden_states(seed, tokens, hidden):
    x = np.float32(2) * uniform(seed, 255, tokens * hidden).reshape(tokens, hidden)
    x[:, ::97] *= 10
    return torch.from_numpy(x)


# ---- golden file ----

CASES = (  # kind, dtype, layers, heads, groups, hidden, dim, sinks, mlp, tokens, seed
    (FAST_KVZIP, BF16, 1, 8, 4, 4096, 16, 16, 0, 64, 1),  # Qwen3-8B
    (FAST_KVZIP, BF16, 1, 4, 7, 3584, 16, 16, 0, 40, 2),  # Qwen2.5-7B
    (FAST_KVZIP, BF16, 2, 2, 1, 96, 16, 1, 0, 33, 3),
    (FAST_KVZIP, BF16, 2, 3, 5, 250, 20, 7, 0, 19, 4),  # nothing fits a vector
    (KVZAP_LINEAR, BF16, 2, 8, 0, 2560, 0, 0, 0, 37, 5),
    (KVZAP_MLP, BF16, 1, 8, 0, 4096, 0, 0, 512, 50, 6),
    (KVZAP_MLP, BF16, 2, 5, 0, 130, 0, 0, 75, 21, 7),
    (FAST_KVZIP, F16, 1, 8, 4, 1024, 16, 16, 0, 64, 8),
    (FAST_KVZIP, F32, 1, 8, 4, 1024, 16, 16, 0, 64, 9),
    (FAST_KVZIP, F16, 2, 3, 5, 250, 20, 7, 0, 19, 10),
    (FAST_KVZIP, F32, 2, 3, 5, 250, 20, 7, 0, 19, 11),
    (KVZAP_LINEAR, F16, 2, 8, 0, 2560, 0, 0, 0, 37, 12),
    (KVZAP_LINEAR, F32, 2, 8, 0, 2560, 0, 0, 0, 37, 13),
    (KVZAP_MLP, F16, 2, 5, 0, 130, 0, 0, 75, 21, 14),
    (KVZAP_MLP, F32, 2, 5, 0, 130, 0, 0, 75, 21, 15),
)


def main():
    with open(sys.argv[1], "wb") as out:
        out.write(b"KVGGAT02" + struct.pack("<I", len(CASES)))
        for case in CASES:
            *shape, tokens, seed = case
            kind, hidden = shape[0], shape[5]
            tensors = gate(*shape, seed)
            x = hidden_states(seed, tokens, hidden)
            out.write(struct.pack("<11I", *case))
            for given, exact in ((x.bfloat16(), True), (x.bfloat16(), False), (x, False), (x, True)):
                for t in tensors:
                    out.write(score(kind, t, given, exact).numpy().astype("<f4").tobytes())


if __name__ == "__main__":
    main()
