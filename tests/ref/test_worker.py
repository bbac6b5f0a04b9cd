#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kvgate-worker beside transformers in f32: the same logits and the same text, computed and through a daemon.

KVGATE_BUILD_DIR has the programs; KVGATE_SEED repeats a run.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import time

try:
    import torch

    import worker_models as m
except ModuleNotFoundError as missing:
    print(f"SKIPPED: {missing}")
    sys.exit(77)

TOLERANCE = 2e-4
TOP_SAMPLES = os.path.join(m.LAB, "samples.jsonl")
SYSTEM = b"You read a text and then answer questions about it exactly.\n"
failed = 0


def check(what, ok, detail=""):
    global failed
    failed += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what} {detail}", flush=True)


def lab_prompt(sample, length):
    context, (question, _) = sample["context"][:length], sample["qa"][0]
    return [256, *SYSTEM, 257, *context.encode(), 258, *question.encode(), 259]


def samples():
    """One sample of every task."""
    found = {}
    with open(TOP_SAMPLES) as f:
        for line in f:
            s = json.loads(line)
            found.setdefault(s["task"], s)
    return list(found.values())


def compare_logits(what, model, got, prompts):
    """Rows of `got` are those of the last tokens of each prompt."""
    worst, same = 0.0, True
    for logits, ids in zip(got, prompts):
        expected = m.reference_logits(model, ids)[-logits.shape[0]:]
        worst = max(worst, float((logits - expected).abs().max()))
        same = same and bool((logits.argmax(-1) == expected.argmax(-1)).all())
    check(what, worst <= TOLERANCE and same, f"max difference {worst:.2e}, argmax {'same' if same else 'DIFFERS'}")


def greedy(folder, prompts, scratch, n, *args):
    tokens = os.path.join(scratch, "greedy")
    m.write_tokens(tokens, prompts)
    out = m.worker("--model", folder, "--tokens", tokens, "--json", "--max-tokens", str(n), *args)
    return [json.loads(line) for line in out.splitlines()]


def test_lab(model, scratch):
    prompts = [lab_prompt(s, n) for s, n in zip(samples(), (2048, 1, 300, 1999, 777, 64, 1024, 2048, 500))]
    compare_logits("lab model, 9 prompts, one of 2000 tokens", model,
                   m.worker_logits(m.LAB, prompts, scratch, "--no-cache"), prompts)
    compare_logits("the same in chunks of 100", model,
                   m.worker_logits(m.LAB, prompts, scratch, "--no-cache", "--chunk", "100"), prompts)
    expected = [m.reference_greedy(model, ids, 60, end=(260,)) for ids in prompts]
    answers = greedy(m.LAB, prompts, scratch, 60, "--no-cache")
    check("lab model, greedy text of a batch", [a["tokens"] for a in answers] == expected)


def test_shapes(scratch, seed):
    for i, (name, shape, dtype, shard) in enumerate(m.SHAPES):
        folder = os.path.join(scratch, f"model{i}")
        model = m.make(folder, seed + i, shape, dtype, shard)
        prompts = [[random.randrange(300) for _ in range(n)] for n in (1, 17, 200, 700)]
        compare_logits(name, model, m.worker_logits(folder, prompts, scratch, "--no-cache"), prompts)
        expected = [m.reference_greedy(model, ids, 30) for ids in prompts]
        answers = greedy(folder, prompts, scratch, 30, "--no-cache")
        check(f"{name}, greedy text", [a["tokens"] for a in answers] == expected)


def test_own_eviction(scratch):
    """The paper's eviction in the worker's own cache: at a fifth of the context the answers are still right."""
    gate = ["--gate", os.path.join(m.LAB, "gate_calibrated.safetensors")]
    chosen = samples()
    for i, s in enumerate(chosen):
        with open(os.path.join(scratch, f"context{i}"), "w") as f:
            f.write(s["context"])
    def prefill_limit(a):
        return 62 + 0.2 * 2048 + (a["prompt_tokens"] - 2110) + len(a["tokens"])

    def decode_limit(a):
        return 1000 + 128 if len(a["tokens"]) > 128 else a["prompt_tokens"] + len(a["tokens"])

    for name, args, limit in (("all at once", ["--evict", "0.2"], prefill_limit),
                              ("in chunks", ["--evict", "0.2", "--evict-chunk", "512", "--evict-window", "40"],
                               prefill_limit),
                              ("while decoding", ["--decode-budget", "1000"], decode_limit)):
        right, above = 0, 0
        for i, s in enumerate(chosen):
            out = m.worker("--model", m.LAB, "--format", "lab", "--context-file", os.path.join(scratch, f"context{i}"),
                           "--question", s["qa"][0][0], "--json", "--no-cache", *gate, *args)
            answer = json.loads(out)
            right += answer["text"] == s["qa"][0][1] or answer["text"][:128] == s["qa"][0][1]
            above += answer["own_rows"] / 32 > limit(answer) + 1
        check(f"eviction {name}: answers are right", right == len(chosen), f"{right} of {len(chosen)}")
        check(f"eviction {name}: rows are gone", above == 0)


def held_share(n, retained, block=256):
    """Of n tokens that are shared: system prompt, window and the ends of blocks, and so many of the others."""
    window = n - int(0.02 * (n - 62))
    protected = sum(t < 62 or t >= window or t % block >= block - 8 or t >= n - 8 for t in range(n)) / n
    return protected + retained * (1 - protected)


class Daemon:
    def __init__(self, scratch):
        self.socket = os.path.join(scratch, "sock")
        config = os.path.join(scratch, "conf")
        with open(config, "w") as f:
            f.write("[memory]\nhost_bytes = 256MiB\nsegment_bytes = 32MiB\nindex_slots = 65536\n"
                    f"[gate lab]\nfile = {os.path.join(m.LAB, 'gate_calibrated.safetensors')}\n")
        self.log = open(os.path.join(scratch, "log"), "w+")
        self.process = subprocess.Popen([os.path.join(m.BUILD, "daemon", "kvgated"), "--config", config,
                                         "--socket", self.socket], stderr=self.log)
        while not os.path.exists(self.socket) and self.process.poll() is None:
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            check("the daemon ends well", self.process.wait(20) == 0)


def test_daemon_dies(model, scratch):
    """Killed while a worker computes: what the worker mapped stays readable, the rest is computed, the text is right."""
    chosen = [lab_prompt(s, 1500) for s in samples()]
    tokens = os.path.join(scratch, "tokens")
    m.write_tokens(tokens, chosen)
    expected = [m.reference_greedy(model, ids, 20, end=(260,)) for ids in chosen]
    with Daemon(scratch) as d:
        greedy(m.LAB, chosen[:2], scratch, 1, "--socket", d.socket, "--block-tokens", "64")
        worker = subprocess.Popen([m.WORKER, "--model", m.LAB, "--tokens", tokens, "--json", "--max-tokens", "20",
                                   "--block-tokens", "64", "--socket", d.socket], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        time.sleep(0.7)
        check("the worker is still at it", worker.poll() is None)
        d.process.kill()
        d.process.wait()
        out, err = worker.communicate(timeout=120)
        answers = [json.loads(line) for line in out.splitlines()]
        check("a worker outlives its daemon", worker.returncode == 0 and bool(err))
        check("and writes what it would have written", [a["tokens"] for a in answers] == expected)
    os.unlink(d.socket)


def test_daemon(model, scratch):
    gate = ["--gate", os.path.join(m.LAB, "gate_calibrated.safetensors")]
    chosen = [lab_prompt(s, 2048) for s in samples()[:4]]
    expected = [m.reference_greedy(model, ids, 60, end=(260,)) for ids in chosen]
    with Daemon(scratch) as d:
        use = ["--cache", "required", "--socket", d.socket, "--protect", "62"]
        for name, args in (("f32", ["--kv-dtype", "f32", *gate]), ("bf16", ["--kv-dtype", "bf16", *gate]),
                           ("f16, no gate", ["--kv-dtype", "f16"]), ("f16, the daemon's gate", ["--kv-dtype", "f16", "--gate-name", "lab"]),
                           ("f32, small blocks", ["--kv-dtype", "f32", "--block-tokens", "64", *gate])):
            cold = greedy(m.LAB, chosen, scratch, 60, *use, *args)
            warm = greedy(m.LAB, chosen, scratch, 60, *use, *args)
            check(f"{name}: a cold process puts", all(a["blocks_put"] > 0 for a in cold))
            check(f"{name}: a warm one reuses", all(a["tokens_reused"] >= 2048 and a["retention"] == 1.0 for a in warm))
            check(f"{name}: both write what transformers writes",
                  [a["tokens"] for a in cold] == expected and [a["tokens"] for a in warm] == expected)
            if name.startswith("f32"):
                compare_logits(f"{name}: logits over planes", model,
                               m.worker_logits(m.LAB, chosen, scratch, *use, *args), chosen)
        best = greedy(m.LAB, chosen, scratch, 60, *use, *gate, "--retention", "0.3")
        shares = [held_share(len(ids) // 256 * 256, 0.3) for ids in chosen]
        check("the best 30 % are attended to, and what is protected",
              all(e - 0.005 < a["retention"] <= e for a, e in zip(best, shares)))
        check("and say the same", [a["tokens"] for a in best] == expected)


def main():
    seed = int(os.environ.get("KVGATE_SEED") or int.from_bytes(os.urandom(3), "little"))
    print(f"KVGATE_SEED={seed}")
    random.seed(seed)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    model = m.load(m.LAB)
    with tempfile.TemporaryDirectory(prefix="kvgate-ref-") as scratch:
        test_lab(model, scratch)
        test_shapes(scratch, seed)
        test_own_eviction(scratch)
        test_daemon(model, scratch)
        test_daemon_dies(model, scratch)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
