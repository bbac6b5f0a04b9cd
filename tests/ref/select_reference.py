#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Selection written plainly, one rule a function, to hold gates/select.c against.

    select_reference.py OUT [SEED [CASES]]     writes cases with their answers; test_select reads them

The committed select_golden.bin is `select_reference.py tests/ref/select_golden.bin 1`. Format, little endian:
magic KVGSEL01, u32 cases, u32 windows, u32 decodes;
case:   u32 rule, floor, layers, heads, tokens, block_tokens, pack_floor, n_edges; f64 retained; f32 threshold;
        f32 edges[n_edges]; f32 scores[L][H][N]; u8 marks[L][H][N] (1 kept, 2 there, 4 all scores are halves: planes too)
window: u64 context, chunk, window; f64 r; u64 window'; f64 r'
decode: u64 rows, budget; f32 threshold; f32 scores[rows]
"""
import struct
import sys

import numpy as np

INF = np.float32(np.inf)
RULES = ("pair", "layer", "head", "adakv-layer", "kvpress", "absolute")


# ---- the rules. scores [L][H][N] f32; ranked: pairs that are there and not protected; answer: bool [L][H][N] ----

def above(scores, ranked, r):
    """Strictly above sorted_descending[max(int(N r) - 1, 0)]."""
    if r >= 1:
        return ranked.copy()
    values = np.sort(scores[ranked])[::-1]
    if len(values) == 0:
        return np.zeros_like(ranked)
    return ranked & (scores > values[max(int(len(values) * r) - 1, 0)])


def best(scores, ranked, n):
    """Token numbers of the n best of one head; the lower token wins a tie."""
    tokens = [int(t) for t in np.flatnonzero(ranked)]
    return sorted(tokens, key=lambda t: (-float(scores[t]), t))[:n]


def pair(scores, ranked, r):
    return above(scores, ranked, r)


def layer(scores, ranked, r):
    return np.stack([above(s, k, r) for s, k in zip(scores, ranked)])


def head(scores, ranked, r):
    keep = np.zeros_like(ranked)
    for at in np.ndindex(scores.shape[:2]):
        n = int(ranked[at].sum())
        keep[at][best(scores[at], ranked[at], n if r >= 1 else int(n * r))] = True
    return keep


def adakv_layer(scores, ranked, r):
    raised = scores.copy()
    for at in np.ndindex(scores.shape[:2]):
        safe = int(int(int(ranked[at].sum()) * r) * 0.2)
        raised[at][best(scores[at], ranked[at], safe)] = np.finfo(np.float32).max
    return layer(raised, ranked, r)


def kvpress(scores, ranked, r):
    """Removes exactly int(N (1 - r)) of the lowest; among equals the one that comes last in [L][H][N] goes first."""
    flat, keep = scores.reshape(-1), ranked.copy().reshape(-1)
    order = sorted((int(i) for i in np.flatnonzero(keep)), key=lambda i: (float(flat[i]), -i))
    keep[order[:max(int(len(order) * (1 - r)), 0)]] = False
    return keep.reshape(ranked.shape)


def absolute(scores, ranked, tau):
    return ranked & (scores >= np.float32(tau))


def floor(scores, ranked, pairs, block_tokens):
    keep = np.zeros_like(ranked)
    for at in np.ndindex(scores.shape[:2]):
        for start in range(0, scores.shape[2], block_tokens):
            part = slice(start, start + block_tokens)
            keep[at][part][best(scores[at][part], ranked[at][part], pairs)] = True
    return keep


def select(rule, scores, there, retained, threshold, floor_pairs, block_tokens):
    protected = there & (scores == INF)
    ranked = there & ~protected
    if rule == "absolute":
        keep = absolute(scores, ranked, threshold)
    else:
        keep = globals()[rule.replace("-", "_")](scores, ranked, retained)
    if floor_pairs:
        keep |= floor(scores, ranked, floor_pairs, block_tokens)
    return keep | protected


def window(context, chunk, window, r):
    if context < chunk:
        window = int(.02 * context)
    if r < 1:
        if r * context < window:
            return int(r * context), 0.0
        if context > window:
            r = (r * context - window) / (context - window)
    return window, float(r)


def decode(scores, budget):
    rows = len(scores)
    return float(np.sort(scores)[rows - budget]) if rows > budget else -float("inf")


# ---- planes, as blocks are packed ----

def bands(scores, edges, pack_floor, block_tokens):
    """The plane of every pair: the first band it reaches; the best few of a head in a block and +inf: plane 0."""
    plane = np.full(scores.shape, len(edges))
    for number in reversed(range(len(edges))):
        plane[scores >= np.float32(edges[number])] = number
    for at in np.ndindex(scores.shape[:2]):
        for start in range(0, scores.shape[2], block_tokens):
            part = slice(start, start + block_tokens)
            everything = np.ones(len(scores[at][part]), bool)
            plane[at][part][best(scores[at][part], everything, pack_floor)] = 0
    plane[scores == INF] = 0
    return plane


# ---- cases ----

def some_scores(rng, shape):
    kind = rng.integers(6)
    if kind == 0:
        s = rng.random(shape)
    elif kind == 1:
        s = rng.integers(0, 4, shape) / 4          # many ties
    elif kind == 2:
        s = rng.normal(-3, 4, shape)               # log scores
    elif kind == 3:
        s = np.full(shape, rng.random())           # all equal
    elif kind == 4:
        s = rng.random(shape) ** 8                 # most near 0, down to subnormal halves
    else:
        s = rng.integers(-1, 2, shape) * rng.choice([0.5, -0.5], shape)    # both zeros
    s = s.astype(np.float32)
    halves = bool(rng.integers(4))
    if halves:
        s = s.astype(np.float16).astype(np.float32)
    if rng.integers(3) == 0:
        s[rng.random(shape) < rng.choice([.02, .3])] = INF
    if rng.integers(6) == 0:
        s[rng.integers(shape[0]), rng.integers(shape[1])] = INF
    return s, halves


def one_case(rng, rule):
    layers, heads = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    tokens = int(rng.choice([1, 2, 7, 10, 16, 25, 40]))
    scores, halves = some_scores(rng, (layers, heads, tokens))
    retained = float(rng.choice([0, .05, .1, .2, .3, .5, .7, .75, .9, .999, 1, 1.5, rng.random()]))
    threshold = np.float32(rng.choice([0, .25, .5, rng.random(), -3.3, 1e-9, 7e4]))
    floor_pairs = int(rng.choice([0, 0, 1, 3, 100]))
    there = np.ones(scores.shape, bool)
    block_tokens, edges, pack_floor = tokens, [], 0
    if halves:
        block_tokens = int(rng.choice([tokens, max(tokens // 3, 1), 5]))
        edges = sorted(rng.choice(scores[scores < INF], 3).tolist() if (scores < INF).any() else [.5], reverse=True)
        edges = edges[:int(rng.integers(0, 4))]
        pack_floor = int(rng.choice([0, 0, 1, 2]))
        if rng.integers(3) == 0:
            plane = bands(scores, edges, pack_floor, block_tokens)
            block = np.broadcast_to(np.arange(tokens) // block_tokens, scores.shape)
            lost = rng.random((tokens // block_tokens + 1, len(edges) + 1)) < .3
            there = ~lost[block, plane]
    keep = select(rule, scores, there, retained, threshold, floor_pairs, block_tokens)
    marks = keep.astype(np.uint8) | there.astype(np.uint8) << 1 | np.uint8(4 * halves)
    return struct.pack("<8Idf", RULES.index(rule) + 1, floor_pairs, layers, heads, tokens, block_tokens, pack_floor,
                       len(edges), retained, threshold) + np.asarray(edges, "<f4").tobytes() + \
        scores.astype("<f4").tobytes() + marks.tobytes()


def one_window(rng):
    context = int(rng.choice([0, 1, 49, 50, 100, 4096, 15999, 16000, 16001, 32000, int(rng.integers(1, 200000))]))
    chunk, size = int(rng.choice([16000, 32000, 2000])), int(rng.choice([4096, 128, 0]))
    r = float(rng.choice([0, .01, .1, .2, .3, .5, .999, 1, 2, rng.random()]))
    return struct.pack("<3Qd", context, chunk, size, r) + struct.pack("<Qd", *window(context, chunk, size, r))


def one_decode(rng):
    rows = int(rng.integers(1, 60))
    budget = int(rng.integers(1, rows + 10))
    scores = rng.choice([0, .25, .5, 1, rng.random(), -2.5], rows).astype(np.float32)
    return struct.pack("<QQf", rows, budget, decode(scores, budget)) + scores.astype("<f4").tobytes()


def write(path, seed, cases):
    rng = np.random.default_rng(seed)
    others = max(cases // 4, 1)
    with open(path, "wb") as out:
        out.write(b"KVGSEL01" + struct.pack("<3I", cases, others, others))
        for i in range(cases):
            out.write(one_case(rng, RULES[i % len(RULES)]))
        for _ in range(others):
            out.write(one_window(rng))
        for _ in range(others):
            out.write(one_decode(rng))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    write(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1, int(sys.argv[3]) if len(sys.argv) > 3 else 180)
