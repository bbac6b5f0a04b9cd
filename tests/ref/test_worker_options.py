#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kvgate-worker's options by what comes out: rows that eviction leaves, seeds of a batch, KVzap's window, JSON, refusals.

Needs nothing but Python. Rows are counted as gates/README.md has the rules; scores of the lab's gate are distinct.
KVGATE_BUILD_DIR has the programs.
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAB = os.path.join(TOP, "client", "demo", "lab")
GATE = os.path.join(LAB, "gate_calibrated.safetensors")
BUILD = os.environ.get("KVGATE_BUILD_DIR") or os.path.join(TOP, "build", "gcc")
RUNS, PROTECT = 32, 62
failed = 0


def check(what, ok, detail=""):
    global failed
    failed += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what} {detail}", flush=True)


def run(*args):
    return subprocess.run([os.path.join(BUILD, "client", "worker", "kvgate-worker"), "--model", LAB, "--cache", "off", *args],
                          capture_output=True)


def answers(*args):
    done = run("--json", *args)
    if done.returncode:
        raise RuntimeError(f"kvgate-worker {' '.join(args)}: {done.stderr.decode()}")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def context(n):
    with open(os.path.join(LAB, "samples.jsonl")) as f:
        return json.loads(f.readline())["context"][:n]


def rows_left(n, question, chunk, window, r, floor=0, least=0):
    """Rows of a lab prompt of n bytes after the paper's chunked prefill; all of floor must be below what the rule leaves."""
    if n < chunk:
        window = int(.02 * n)
    if r * n < window:
        window, rest = int(r * n), 0
    else:
        rest = (r * n - window) / (n - window)
    if window < least:
        window, rest = least, max(0, (r * n - least) / (n - least))
    left, start = RUNS * (PROTECT + window + question), PROTECT
    for at in [*range(chunk, PROTECT + n, chunk), PROTECT + n]:
        ranked = RUNS * (at - window - start)
        if ranked > 0:
            left += max(int(ranked * rest) - 1, 0) if rest else RUNS * floor
            start = at - window
    return left


def test_prefill():
    lab = ["--format", "lab", "--prompt", context(1000), "--question", "?", "--max-tokens", "1", "--gate", GATE]
    for name, args, expected in (
            ("one chunk", ["--evict", "0.3"], rows_left(1000, 3, 16000, 4096, .3)),
            ("four chunks", ["--evict", "0.3", "--evict-chunk", "256", "--evict-window", "40"], rows_left(1000, 3, 256, 40, .3)),
            ("four chunks, computed in smaller ones", ["--evict", "0.3", "--evict-chunk", "256", "--evict-window", "40", "--chunk", "100"],
             rows_left(1000, 3, 256, 40, .3)),
            ("nothing but a window, and no floor", ["--evict", "0.3", "--evict-chunk", "256", "--evict-window", "400", "--evict-floor", "0"],
             rows_left(1000, 3, 256, 400, .3)),
            ("nothing but a window, and a floor", ["--evict", "0.3", "--evict-chunk", "256", "--evict-window", "400", "--evict-floor", "3"],
             rows_left(1000, 3, 256, 400, .3, floor=3))):
        floor = [] if "--evict-floor" in args else ["--evict-floor", "0"]
        got = answers(*lab, *args, *floor)[0]
        check(f"prefill, {name}", got["own_rows"] == expected, f"{got['own_rows']} rows, {expected} expected")
        check(f"prefill, {name}: retention", abs(got["retention"] - expected / (RUNS * 1065)) < 1e-9, f"{got['retention']:.3f}")


def test_decode():
    """The first eviction comes after 128 tokens, and then the last 128 and the first 4 of every head are left."""
    for n, expected in ((120, RUNS * (300 + 119)), (130, RUNS * (132 + 1))):
        got = answers("--prompt", context(300), "--temperature", "1", "--max-tokens", str(n), "--gate", GATE,
                      "--decode-budget", "50")[0]
        check(f"decoding {n} tokens", len(got["tokens"]) == n and got["own_rows"] == expected,
              f"{len(got['tokens'])} tokens, {got['own_rows']} rows, {expected} expected")


def test_seeds():
    args = ["--temperature", "1.5", "--max-tokens", "30"]
    text = context(40)
    batch = [a["tokens"] for a in answers(*args, "--seed", "5", *["--prompt", text] * 3)]
    alone = [answers(*args, "--seed", str(5 + i), "--prompt", text)[0]["tokens"] for i in range(3)]
    check("prompt i of a batch draws with seed + i", batch == alone and len({tuple(t) for t in batch}) == 3)


def test_json():
    """At this temperature any byte comes: the text is what the tokens read as, with what is not UTF-8 escaped."""
    special = {256: b"<bos>", 257: b"<ctx>", 258: b"<q>", 259: b"<a>", 260: b"<eos>"}
    zero = other = 0
    for i, got in enumerate(answers(*["--prompt", "x"] * 8, "--temperature", "1000", "--max-tokens", "200")):
        raw = b"".join(bytes([t]) if t < 256 else special.get(t, b" %d" % t) for t in got["tokens"])
        text = "".join(f"\\x{ord(c) & 255:02x}" if c in "\0\\" or 0xdc80 <= ord(c) <= 0xdcff else c
                       for c in raw.decode("utf-8", "surrogateescape"))
        zero, other = zero + (0 in raw), other + ("\\x" in text)
        check(f"JSON of any bytes, {i}", got["text"] == text and len(got["tokens"]) > 0)
    check("they were any bytes", zero and other)


def write_kvzap(path):
    """A linear KVzap gate of the lab model's shape."""
    rng = random.Random(1)
    header, data = {}, b""
    for layer in range(8):
        for name, shape in (("weight", [4, 256]), ("bias", [4])):
            values = [rng.uniform(-.1, .1) for _ in range(shape[0] * (shape + [1])[1])]
            raw = struct.pack(f"<{len(values)}f", *values)
            header[f"layers.{layer}.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + data)


def test_kvzap(scratch):
    gate = os.path.join(scratch, "kvzap.safetensors")
    write_kvzap(gate)
    lab = ["--format", "lab", "--prompt", context(1000), "--question", "?", "--max-tokens", "1", "--gate", gate, "--fast-gate",
           "--evict-floor", "0"]
    for r in ("0.1", "0.3"):
        got, expected = answers(*lab, "--evict", r)[0]["own_rows"], rows_left(1000, 3, 16000, 4096, float(r), least=128)
        check(f"KVzap at {r}: a window of 128", got == expected, f"{got} rows, {expected} expected")
    for option in ("--window", "--evict-window"):
        refused = run(*lab, "--evict", "0.3", option, "127")
        check(f"KVzap: {option} 127 is refused", refused.returncode == 1 and b"KVzap" in refused.stderr)
    check("KVzap: --window 128 is not", run(*lab, "--evict", "0.3", "--window", "128").returncode == 0)
    check("--window 127 is nothing to the other gates", run(*lab, "--window", "127", "--gate", GATE).returncode == 0)


def test_refused(scratch):
    tokens = os.path.join(scratch, "tokens")
    for what, text in (("an empty file", ""), ("a token above 32 bits", "4294967297\n")):
        with open(tokens, "w") as f:
            f.write(text)
        refused = run("--tokens", tokens)
        check(f"{what} is refused, and named", refused.returncode == 1 and tokens.encode() in refused.stderr and not refused.stdout)


def main():
    with tempfile.TemporaryDirectory(prefix="kvgate-ref-") as scratch:
        test_prefill()
        test_decode()
        test_seeds()
        test_json()
        test_kvzap(scratch)
        test_refused(scratch)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
