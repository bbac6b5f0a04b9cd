#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/unit/golden_worker.txt: some logits of the lab model in f32, as transformers computes them.

After a line of licence the prompt's token ids; then `position token logit`, the eight likeliest tokens of some positions and a few
others. Needs torch and transformers; test_model.c reads the file without them.
"""
import os

import torch
from transformers import Qwen3ForCausalLM

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAB = os.path.join(TOP, "client", "demo", "lab")
SYSTEM = b"You read a text and then answer questions about it exactly.\n"
CONTEXT = (b"The old road runs around the lion. The special magic code for heavy-tunnel is: 21291524. "
           b"There is a tulip across the glacier.\n")
QUESTION = b"What is the special magic code for heavy-tunnel?"


def main():
    ids = [256, *SYSTEM, 257, *CONTEXT, 258, *QUESTION, 259, *b"2129"]
    model = Qwen3ForCausalLM.from_pretrained(LAB, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    with open(os.path.join(TOP, "tests", "unit", "golden_worker.txt"), "w") as f:
        print("# SPDX-License-Identifier: Apache-2.0", file=f)
        print(*ids, file=f)
        for position in (0, 1, 61, 62, 150, len(ids) - 6, len(ids) - 5, len(ids) - 1):
            likeliest = logits[position].topk(8).indices.tolist()
            for token in [*likeliest, 0, 10, 200, 260, 271]:
                print(position, token, f"{logits[position, token]:.6f}", file=f)


if __name__ == "__main__":
    main()
