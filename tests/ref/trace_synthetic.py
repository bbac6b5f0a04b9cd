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


def tools(w, r):
    """Agents' tool calls: 60 prompts of instructions by popularity, some huge; short tails, few of them continued."""
    prompts = [fresh(min(120, 2 + int(r.lognormvariate(2.2, 1)))) for _ in range(60)]
    steps = []
    while True:
        if steps and r.random() < .35:
            t = steps.pop(r.randrange(len(steps)))
        else:
            t = prompts[zipf(r, 60, 1.1)]
        t = t + fresh(r.randint(1, 4))
        if not w.put(t):
            return
        if r.random() < .4:
            steps = steps[-40:] + [t]


def talks(w, r):
    """Conversations that begin all the time and are answered after a while; first prompts of very different lengths."""
    system, due, time = fresh(1), [], 0
    while True:
        time += r.expovariate(1)
        if due and due[0][0] < time:
            time, _, t = heapq.heappop(due)
        else:
            t = fresh(1 + min(200, int(r.lognormvariate(2, 1.2))))
        if not w.put(system + t + fresh(1)):
            return
        if r.random() < .55:
            heapq.heappush(due, (time + r.lognormvariate(4.5, 1.3), r.random(), t + fresh(r.randint(1, 3))))


def retry(w, r):
    """Prompts sent again at once, word by word or from some point on, and few of them ever later."""
    system = [fresh(r.randint(1, 3)) for _ in range(8)]
    late = []
    while True:
        t = late.pop(r.randrange(len(late))) if late and r.random() < .15 else r.choice(system) + fresh(r.randint(2, 30))
        while True:
            if not w.put(t):
                return
            x = r.random()
            if x < .15:
                continue
            if x > .3:
                break
            t = t[:r.randint(1, len(t))] + fresh(r.randint(1, 4))
        late = late[-300:] + [t]


def tenants(w, r):
    """80 tenants, each with instructions of its own and conversations; they come and go in bursts."""
    own = [fresh(r.randint(1, 12)) for _ in range(80)]
    talk = {}
    busy = [[zipf(r, 80, .8), int(r.expovariate(1 / 60))] for _ in range(6)]
    while True:
        b = r.choice(busy)
        t = talk.setdefault(b[0], [])
        i = r.randrange(len(t)) if t and r.random() < .5 else len(t)
        if i == len(t):
            t.append(own[b[0]] + fresh(r.randint(1, 25)))
        if not w.put(t[i] + fresh(1)):
            return
        t[i] = t[i] + fresh(r.randint(1, 3))
        talk[b[0]] = t[-12:]
        b[1] -= 1
        if b[1] <= 0:
            b[:] = [zipf(r, 80, .8), int(r.expovariate(1 / 60))]


def papers(w, r):
    """Long documents, each asked about some times within a while; a stream of short chats beside them."""
    open_, system = [], fresh(1)
    while True:
        if r.random() < .6:
            if not w.put(system + fresh(r.randint(1, 8))):
                return
            continue
        if not open_ or r.random() < .25:
            open_.append([fresh(r.randint(20, 200)), 1 + int(r.expovariate(1 / 3))])
        d = r.choice(open_)
        if not w.put(d[0] + fresh(1)):
            return
        d[1] -= 1
        if d[1] <= 0:
            open_.remove(d)


def samples(w, r):
    """Several answers to each prompt at once, from a set of tasks that is gone through again and again, in any order."""
    tasks = [fresh(r.randint(2, 16)) for _ in range(700)]
    shots = fresh(12)
    while True:
        r.shuffle(tasks)
        for t in tasks:
            for _ in range(r.randint(1, 4)):
                if not w.put(shots + t + fresh(1)):
                    return


class Share:
    """A writer's share: what comes through it is mixed with what comes through others."""

    def __init__(self):
        self.paths = []

    def put(self, path):
        self.paths.append(path)
        return len(self.paths) < self.want


def mixed(w, r):
    """Tool calls, conversations, documents and one-shot prompts on one machine, each kind now more and now less."""
    shares = []
    for kind in (tools, talks, papers, once, retry):
        share = Share()
        share.want = w.left
        kind(share, r)
        shares.append(iter([[kind.__name__] + p for p in share.paths]))
    weights = [1] * len(shares)
    while True:
        if r.random() < .005:
            weights = [r.random() ** 2 for _ in shares]
        if not w.put(next(r.choices(shares, weights)[0])):
            return


KINDS = {f.__name__: f for f in (agents, rag, batch, chat, scan, shift, recency, once, phases,
                                    tools, talks, retry, tenants, papers, samples, mixed)}


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
