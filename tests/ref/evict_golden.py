#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/unit/golden_evict.txt: which tokens of each head are left after eviction in an own cache, by the paper's rules.

Plain Python from gates/README.md, and from nothing in C. `prefill PROTECT CONTEXT CHUNK WINDOW RETAINED FLOOR LEAST` or
`decode PROMPT TOKENS BUDGET BEST`, then a line for each of 6 heads: 1 for every token that is left. test_evict.c reads it.
"""
import os

RUNS = 6
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREFILL = ((5, 300, 1000, 64, .3, 0, 0), (0, 400, 100, 30, .5, 0, 0), (20, 350, 128, 64, .25, 0, 0), (3, 200, 64, 100, .2, 0, 0),
           (3, 200, 64, 10, 1., 0, 0), (5, 300, 1000, 64, .1, 8, 0), (7, 390, 100, 20, .1, 3, 0), (5, 600, 1000, 64, .3, 0, 128),
           (5, 600, 150, 40, .1, 2, 128), (5, 90, 1000, 64, .3, 0, 128))
DECODE = ((50, 400, 200, "1"), (300, 300, 160, "1"), (300, 127, 160, "1"), (300, 128, 160, "1"), (100, 256, 1000, "1"),
          (200, 384, 140, "inf"))


def score(run, token):
    """0 to 999 thousandths; ties happen."""
    return ((run * 1000003 + token * 7919 + token * token * 31 + 12345) * 2654435761 % 2**32 >> 12) % 1000


def prefill(protect, context, chunk, window, r, floor, least):
    if context < chunk:
        window = int(.02 * context)
    rest = r
    if r < 1:
        if r * context < window:
            window, rest = int(r * context), 0
        else:
            rest = (r * context - window) / (context - window)
        least = min(least, context)
        if window < least:
            window, rest = least, max(0, (r * context - least) / (context - least)) if context > least else 0
    left = [[True] * (protect + context) for _ in range(RUNS)]
    start = protect
    for at in [*range(chunk, protect + context, chunk), protect + context]:
        end = at - window
        if end <= start or r >= 1:
            continue
        everything = sorted((score(h, t) for h in range(RUNS) for t in range(start, end)), reverse=True)
        threshold = everything[max(int(len(everything) * rest) - 1, 0)]
        for h in range(RUNS):
            best = sorted(range(start, end), key=lambda t: (-score(h, t), t))
            for rank, t in enumerate(best):
                left[h][t] = rank < floor or score(h, t) > threshold
        start = end
    return left


def decode(prompt, tokens, budget, best):
    """Every row is ranked again each time; the last 128 of a head, and the first time its tokens 0 to 3, count as the best."""
    best = 1000 if best == "1" else float("inf")
    held = [[(t, score(h, t)) for t in range(prompt)] for h in range(RUNS)]
    first = True
    for token in range(prompt, prompt + tokens):
        for h in range(RUNS):
            held[h].append((token, score(h, token)))
        if (token + 1 - prompt) % 128:
            continue
        if first:
            held = [[(t, best if i < 4 else s) for i, (t, s) in enumerate(rows)] for rows in held]
        first = False
        ranked = [[best if i >= len(rows) - 128 else s for i, (_, s) in enumerate(rows)] for rows in held]
        everything = sorted(s for rows in ranked for s in rows)
        if len(everything) <= budget * RUNS:
            continue
        threshold = everything[len(everything) - budget * RUNS]
        held = [[row for row, s in zip(rows, ranks) if s >= threshold] for rows, ranks in zip(held, ranked)]
    left = [[False] * (prompt + tokens) for _ in range(RUNS)]
    for h in range(RUNS):
        for t, _ in held[h]:
            left[h][t] = True
    return left


def render():
    yield "# SPDX-License-Identifier: Apache-2.0"
    for name, cases, rule in (("prefill", PREFILL, prefill), ("decode", DECODE, decode)):
        for case in cases:
            yield " ".join([name, *map(str, case)])
            for row in rule(*case):
                yield "".join("01"[k] for k in row)


if __name__ == "__main__":
    with open(os.path.join(TOP, "tests", "unit", "golden_evict.txt"), "w") as f:
        f.write("\n".join(render()) + "\n")
