#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""ctl_files.py: reads and writes safetensors for ctl_e2e.sh, with nothing but what Python brings.

kvzap FOLDER: a linear KVzap gate of 2 layers, 3 heads, hidden size 8.
scores OURS REFERENCE: score.{l} [H, tokens] against gate_score.{l} [tokens, H].
edges INSPECTED SCORES: each edge's share of the scores is what it says.
"""
import array
import json
import os
import sys


def read(path):
    with open(path, "rb") as f:
        head = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    return {k: (v["shape"], array.array("f", data[slice(*v["data_offsets"])]))
            for k, v in head.items() if k != "__metadata__" and v["dtype"] == "F32"}


def kvzap(folder):
    tensors, head, data = {}, {}, b""
    for layer in range(2):
        tensors[f"layers.{layer}.weight"] = [3, 8]
        tensors[f"layers.{layer}.bias"] = [3]
    for name, shape in tensors.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += bytes(size)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    os.mkdir(folder)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + data)


def scores(ours, reference):
    ours, reference, worst, total, n = read(ours), read(reference), 0, 0, 0
    for layer in range(8):
        (heads, tokens), a = ours[f"score.{layer}"]
        shape, b = reference[f"gate_score.{layer}"]
        if shape != [tokens, heads]:
            return f"layer {layer}: {shape}"
        for h in range(heads):
            for t in range(tokens):
                apart = abs(a[h * tokens + t] - b[t * heads + h])
                worst, total, n = max(worst, apart), total + apart, n + 1
    return None if worst < 3e-3 and total / n < 1e-4 else f"{worst} at most, {total / n} in the mean"


def edges(inspected, ours):
    with open(inspected) as f:
        rows = json.load(f)["edges"]
    every = [x for _, a in read(ours).values() for x in a]
    for e in rows:
        share = sum(x >= e["score"] for x in every) / len(every)
        if abs(share - e["retained"]) > 2e-3:
            return f"{share} of the pairs score at least {e['score']}, not {e['retained']}"
    return None if [e["retained"] for e in rows] == [.2, .5] else f"{rows}"


sys.exit({"kvzap": kvzap, "scores": scores, "edges": edges}[sys.argv[1]](*sys.argv[2:]))
