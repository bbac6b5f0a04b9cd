#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Other workloads made from a trace in the Mooncake format: what an eviction policy gains must not be this trace's alone.

trace_transform.py KIND TRACE writes one to stdout; --list names the kinds.
"""
import argparse
import json
import random
import sys


def session(ids):
    """What requests of one session share: the first block that is not shared by everyone."""
    return ids[1] if len(ids) > 1 else ids[0]


def sessions(share, seed):
    def keep(requests):
        r = random.Random(seed)
        drawn = {}
        return [q for q in requests if drawn.setdefault(session(q), r.random()) < share]
    return keep


def part(first, last):
    return lambda requests: requests[int(first * len(requests)):int(last * len(requests))]


def coarse(requests):
    """Blocks of twice the size: an unfinished last one is new every time."""
    return [q[1::2] + ([q[-1]] if len(q) % 2 else []) for q in requests]


def folded(requests):
    """Two halves of the time at once: twice the sessions between two turns of one."""
    half = len(requests) // 2
    return [q for pair in zip(requests[:half], requests[half:]) for q in pair]


def shuffled(requests):
    """Neighbours change places within 300 requests, as when other machines take some of the load's order away."""
    r = random.Random(5)
    by_time = sorted((i + r.uniform(0, 300), i) for i in range(len(requests)))
    return [requests[i] for _, i in by_time]


def diluted(requests):
    """With as many one-shot prompts between them, of the same lengths."""
    r = random.Random(6)
    new = 1 << 40
    out = []
    for q in requests:
        other = len(r.choice(requests))
        out += [q, list(range(new, new + other))]
        new += other
    return out


def heads(requests):
    """Prompts cut after 12 blocks: short chats."""
    return [q[:12] for q in requests]


def long(requests):
    """Only the prompts longer than 24 blocks."""
    return [q for q in requests if len(q) > 24]


KINDS = {
    "half": sessions(.5, 1), "quarter": sessions(.25, 2), "first": part(0, .5), "last": part(.5, 1), "coarse": coarse,
    "folded": folded, "shuffled": shuffled, "diluted": diluted, "heads": heads, "long": long,
}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("kind", nargs="?", choices=sorted(KINDS))
    a.add_argument("trace", nargs="?")
    a.add_argument("--list", action="store_true")
    o = a.parse_args()
    if o.list or not o.trace:
        for name, f in KINDS.items():
            print(f"{name:10} {f.__doc__ or ''}".rstrip())
        return 0
    with open(o.trace, encoding="utf-8") as f:
        requests = [q for q in (json.loads(line)["hash_ids"] for line in f if line.strip()) if q]
    for i, q in enumerate(KINDS[o.kind](requests)):
        print(json.dumps({"timestamp": 300 * i, "input_length": 512 * len(q), "output_length": 100, "hash_ids": q}))
    return 0


sys.exit(main())
