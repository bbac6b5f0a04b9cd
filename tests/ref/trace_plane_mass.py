#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Attention mass by plane, estimated from the lab model's gate scores; client/ctl/replay_kvgate.c has the result.

All (layer, head, token) scores of the reference prompt in descending order, cut where planes are cut; a plane's mass is its
share of their sum.
"""
import json
import os
import struct
import sys

import numpy as np

EDGES = (0, .05, .10, .20, .30, .50, .75, 1)


def main():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(top, "client/demo/lab/ref.safetensors")
    with open(path, "rb") as f:
        data = f.read()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    scores = []
    for name, tensor in header.items():
        if name.startswith("gate_score."):
            begin, end = tensor["data_offsets"]
            scores.append(np.frombuffer(data[8 + size + begin:8 + size + end], np.float32))
    s = np.sort(np.concatenate(scores))[::-1].astype(np.float64)
    cut = [int(e * len(s)) for e in EDGES]
    print(" ".join(f"{s[a:b].sum() / s.sum():.4f}" for a, b in zip(cut, cut[1:])))


main()
