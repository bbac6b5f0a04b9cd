#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calibrates a gate of the lab model: calibrate_lab.py GATE OUT [--kvgatectl PATH] [--contexts N].

Runs the model over the first N contexts of each task (5), takes what each attention block gets as its input
(after the input layer norm) for the tokens of the context, and lets `kvgatectl gate calibrate` score them. The 62
tokens before the context are protected, so they are left out. Wants torch, transformers and safetensors.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

BOS, CTX = 256, 257
SYSTEM = "You read a text and then answer questions about it exactly.\n"


def contexts(path, per_task):
    seen = {}
    with open(path) as lines:
        for line in lines:
            sample = json.loads(line)
            seen[sample["task"]] = seen.get(sample["task"], 0) + 1
            if seen[sample["task"]] <= per_task:
                yield sample["context"]


def hidden_states(model, context):
    """[layer] -> [tokens of the context, D]"""
    import torch

    states = []
    hooks = [layer.input_layernorm.register_forward_hook(lambda _m, _i, out: states.append(out[0]))
             for layer in model.model.layers]
    prefix = [BOS] + list(SYSTEM.encode()) + [CTX]
    with torch.no_grad():
        model(torch.tensor([prefix + list(context.encode())]), use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return [s[len(prefix):].contiguous() for s in states]


def main():
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    lab = os.path.join(top, "client", "demo", "lab")
    build = os.environ.get("KVGATE_BUILD_DIR") or os.path.join(top, "build", "gcc")
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("gate")
    p.add_argument("out")
    p.add_argument("--kvgatectl", default=os.path.join(build, "client", "ctl", "kvgatectl"))
    p.add_argument("--contexts", type=int, default=5, help="of each task")
    p.add_argument("--model", default="lab", help="the name the gate is given")
    args = p.parse_args()

    try:
        import torch
        from safetensors.torch import save_file
        from transformers import Qwen3ForCausalLM
    except ImportError as e:
        sys.exit(f"calibrate_lab.py: {e}")
    model = Qwen3ForCausalLM.from_pretrained(lab, dtype=torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for context in contexts(os.path.join(lab, "samples.jsonl"), args.contexts):
            files.append(os.path.join(folder, f"{len(files)}.safetensors"))
            states = hidden_states(model, context)
            save_file({f"hidden.{i}": s for i, s in enumerate(states)}, files[-1])
        print(f"{len(files)} contexts")
        return subprocess.run([args.kvgatectl, "gate", "calibrate", args.gate, args.out, *files,
                               "--model", args.model]).returncode


if __name__ == "__main__":
    sys.exit(main())
