#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Traces of known structure in the Mooncake format, to see where an eviction policy breaks.

trace_synthetic.py KIND [--requests N] [--seed S] writes one to stdout; --list names the kinds.
"""
import argparse
import heapq
import json
import random
import sys


class Writer:
    """Equal names of blocks are equal hash ids; the name of a block contains everything before it."""

    def __init__(self, limit):
        self.ids = {}
        self.now = 0
        self.left = limit

    def put(self, path, at=None):
        """One request. path: names of its blocks, each meant relative to those before it."""
        self.now += 300
        hashes, parent = [], 0
        for name in path:
            parent = self.ids.setdefault((parent, name), len(self.ids) + 1)
            hashes.append(parent)
        print(json.dumps({"timestamp": self.now, "input_length": 512 * len(hashes), "output_length": 100,
                          "hash_ids": hashes}))
        self.left -= 1
        return self.left > 0


def fresh(n):
    fresh.next += n
    return list(range(fresh.next - n, fresh.next))


fresh.next = 1 << 20


def zipf(r, n, a):
    weights = zipf.known.get((n, a))
    if not weights:
        total, weights = 0, []
        for i in range(n):
            total += (i + 1) ** -a
            weights.append(total)
        zipf.known[n, a] = weights
    return r.choices(range(n), cum_weights=weights)[0]


zipf.known = {}


def agents(w, r):
    """Tool loops: one of 12 long system prompts, then steps that each extend the last, soon after one another."""
    systems = [fresh(r.randint(4, 40)) for _ in range(12)]
    loops = []
    while True:
        if len(loops) < 30:
            loops.append([systems[zipf(r, 12, 1.0)] + fresh(r.randint(1, 12)), 1 + int(r.expovariate(1 / 8))])
        loop = r.choice(loops)
        if not w.put(loop[0] + fresh(1)):
            return
        loop[0] = loop[0] + fresh(r.randint(1, 3))
        loop[1] -= 1
        if loop[1] <= 0:
            loops.remove(loop)


def rag(w, r):
    """A short system prompt, a document by popularity, sometimes a second one, then the question."""
    system = fresh(2)
    documents = [fresh(max(2, int(r.lognormvariate(2.3, .8)))) for _ in range(3000)]
    while w.put(system + documents[zipf(r, 3000, .9)] +
                (documents[zipf(r, 3000, .9)] if r.random() < .3 else []) + fresh(1)):
        pass


def batch(w, r):
    """Conversations, with a stream of one-shot prompts of equal volume running past them."""
    talks = []
    while True:
        if r.random() < .5:
            if not w.put(fresh(r.randint(10, 40))):
                return
            continue
        if len(talks) < 60 or r.random() < .2:
            talks.append(fresh(r.randint(2, 20)))
            talks = talks[-200:]
        i = r.randrange(len(talks))
        if not w.put(talks[i] + fresh(1)):
            return
        talks[i] = talks[i] + fresh(r.randint(1, 4))


def chat(w, r):
    """Users by Zipf, each with one conversation that grows, is edited now and then, and starts anew."""
    system = fresh(1)
    talk = {}
    while True:
        u = zipf(r, 4000, 1.1)
        t = talk.get(u, [])
        if r.random() < .1 or len(t) > 60:
            t = []
        elif t and r.random() < .15:
            t = t[:r.randrange(len(t))]
        t = t + fresh(r.randint(1, 6))
        talk[u] = t
        if not w.put(system + t):
            return


def scan(w, r):
    """12,000 blocks in a circle, as prompts of 20 blocks in a fixed order."""
    prompts = [fresh(20) for _ in range(600)]
    while True:
        for p in prompts:
            if not w.put(p):
                return


def shift(w, r):
    """Popular documents by Zipf; every 2,500 requests what is popular changes altogether."""
    while True:
        documents = [fresh(r.randint(4, 30)) for _ in range(1500)]
        for _ in range(2500):
            if not w.put(documents[zipf(r, 1500, .9)] + fresh(1)):
                return


def recency(w, r):
    """What LRU is made for: the next document is one of the last used, the nearer the likelier."""
    stack = []
    while True:
        if not stack or r.random() < .3:
            d = fresh(r.randint(5, 30))
        else:
            d = stack.pop(-1 - min(int(r.paretovariate(.7)) - 1, len(stack) - 1))
        stack.append(d)
        if not w.put(d + fresh(1)):
            return


def once(w, r):
    """Nothing ever comes again but the system prompt."""
    system = fresh(4)
    while w.put(system + fresh(r.randint(5, 40))):
        pass


def phases(w, r):
    """Conversations whose users answer after a typical pause, in a day that alternates with batch jobs over one corpus."""
    due, corpus, time = [], [fresh(10) for _ in range(800)], 0
    while True:
        time += 1
        if time // 1500 % 2:
            if not w.put(corpus[time % 800] + fresh(1)):
                return
            continue
        if r.random() < .35 or not due or due[0][0] > time:
            t = fresh(r.randint(3, 25))
        else:
            t = heapq.heappop(due)[2]
        if not w.put(t + fresh(1)):
            return
        if r.random() < .7:
            heapq.heappush(due, (time + int(r.lognormvariate(5, .5)), r.random(), t + fresh(r.randint(1, 3))))


KINDS = {f.__name__: f for f in (agents, rag, batch, chat, scan, shift, recency, once, phases)}


def main():
    a = argparse.ArgumentParser()
    a.add_argument("kind", nargs="?", choices=sorted(KINDS))
    a.add_argument("--requests", type=int, default=12000)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--list", action="store_true")
    o = a.parse_args()
    if o.list or not o.kind:
        for name, f in KINDS.items():
            print(f"{name:8} {f.__doc__}")
        return 0
    KINDS[o.kind](Writer(o.requests), random.Random(o.seed))
    return 0


sys.exit(main())
