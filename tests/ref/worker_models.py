# SPDX-License-Identifier: Apache-2.0
"""Random models of shapes that the lab model does not have, and runs of kvgate-worker beside transformers."""
import os
import subprocess

import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAB = os.path.join(TOP, "client", "demo", "lab")
BUILD = os.environ.get("KVGATE_BUILD_DIR") or os.path.join(TOP, "build", "gcc")
WORKER = os.path.join(BUILD, "client", "worker", "kvgate-worker")

# name, config, dtype of the weights, largest shard
SHAPES = (
    ("untied, f32, G 2", dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                              tie_word_embeddings=False), torch.float32, "1GB"),
    ("bf16, H 1, G 8", dict(hidden_size=96, num_attention_heads=8, num_key_value_heads=1, head_dim=24,
                            tie_word_embeddings=True), torch.bfloat16, "1GB"),
    ("head_dim above hidden / heads, G 1", dict(hidden_size=48, num_attention_heads=2, num_key_value_heads=2,
                                                head_dim=64, tie_word_embeddings=False), torch.float32, "1GB"),
    ("f16, odd widths, in shards", dict(hidden_size=40, num_attention_heads=6, num_key_value_heads=2, head_dim=10,
                                        tie_word_embeddings=True), torch.float16, "20KB"),
)


def make(folder, seed, shape, dtype, shard):
    """A random model with outputs as spread as a trained one's; returns it in f32, as its file reads."""
    torch.manual_seed(seed)
    config = Qwen3Config(vocab_size=300, num_hidden_layers=3, intermediate_size=112, rope_theta=10000.0,
                         max_position_embeddings=8192, initializer_range=0.15, **shape)
    model = Qwen3ForCausalLM(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return load(folder)


def load(folder):
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def worker(*args):
    """Standard output of kvgate-worker; raises with its complaint."""
    run = subprocess.run([WORKER, *args], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"kvgate-worker {' '.join(args)}: {run.stderr}")
    return run.stdout


def write_tokens(path, prompts):
    with open(path, "w") as f:
        for ids in prompts:
            print(*ids, file=f)


def worker_logits(folder, prompts, scratch, *args):
    """Logits of every prompt: of all tokens, or of the last ones when the first were cached."""
    tokens, out = os.path.join(scratch, "tokens"), os.path.join(scratch, "logits")
    write_tokens(tokens, prompts)
    worker("--model", folder, "--tokens", tokens, "--dump-logits", out, *args)
    logits = load_file(out)
    return [logits[f"logits.{i}"] for i in range(len(prompts))]


def reference_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def reference_greedy(model, ids, n, end=()):
    """Greedy continuation without a cache of its own: n tokens, or up to an end token."""
    out = []
    with torch.no_grad():
        past = None
        step = torch.tensor([ids])
        while len(out) < n:
            result = model(step, past_key_values=past, use_cache=True)
            past = result.past_key_values
            token = int(result.logits[0, -1].argmax())
            if token in end:
                break
            out.append(token)
            step = torch.tensor([[token]])
    return out
