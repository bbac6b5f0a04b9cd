#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kvgatectl's scores of fresh random gates, and of the lab's, against PyTorch, from every container.

KVGATE_SEED repeats a run; KVGATE_BUILD_DIR has client/ctl/kvgatectl. Exit status 77: skipped, the last line says why.
"""
import collections
import json
import os
import subprocess
import sys
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAB = os.path.join(TOP, "client", "demo", "lab")
KVGATECTL = os.environ.get("KVGATECTL") or os.path.join(
    os.environ.get("KVGATE_BUILD_DIR") or os.path.join(TOP, "build", "gcc"), "client", "ctl", "kvgatectl")

try:
    import torch
    from safetensors.torch import load_file, save_file
    import gate_reference as ref
except ImportError as e:
    print(f"SKIPPED: {e}")
    sys.exit(77)

# (most, loose, kept): largest error; share of scores with one above 2e-5; share kept differently at r = .3. Where a bf16
# falls to the other side, a score moves by up to a percent or two; that happens to one in a hundred. f16 is eight times as
# fine, so that happens oftener and moves less. In f32 nothing is rounded.
LIMITS = {torch.bfloat16: (3e-2, .03, .003), torch.float16: (4e-3, .08, .003), torch.float32: (3e-5, .001, .001)}


def gate_command(*args):
    run = subprocess.run([KVGATECTL, "--json", "gate", *args], capture_output=True, text=True)
    if run.returncode:
        raise AssertionError(f"kvgatectl gate {' '.join(args)}: {run.stderr.strip()}")
    return json.loads(run.stdout) if run.stdout else None


def kept(scores, r=.3):
    """The rule "pair": strictly above sorted_descending[max(int(N r) - 1, 0)]."""
    flat = scores.flatten()
    return flat > flat.sort(descending=True).values[max(int(flat.numel() * r) - 1, 0)]


def compare(what, kind, rounded, got, wanted):
    """rounded: the dtype of the rounding points, float32 when there are none"""
    size = wanted.abs() + (0 if kind == ref.FAST_KVZIP else 1)
    error = (got - wanted).abs() / size
    found = error.max().item(), (error > 2e-5).float().mean().item(), (kept(got) != kept(wanted)).float().mean().item()
    good = all(f <= limit for f, limit in zip(found, LIMITS[rounded])) and not got.isnan().any()
    if not good:
        print("%s: most %.1e, loose %.4f, kept differently %.4f; limits %s" % (what, *found, LIMITS[rounded]))
    return good


# ---- containers ----

def as_pt(tensors, folder):
    path = os.path.join(folder, "gate.pt")
    torch.save({"module": [collections.OrderedDict(t) for t in tensors], "loss": 0.5, "steps": 3}, path)
    return path


def as_safetensors(tensors, folder):
    path = os.path.join(folder, "gate.safetensors")
    save_file({f"layers.{l}.{n}": v for l, t in enumerate(tensors) for n, v in t.items()}, path, {"format": "pt"})
    return path


def as_kvzap(tensors, folder):
    path = os.path.join(folder, "kvzap")
    os.makedirs(path, exist_ok=True)
    os.rename(as_safetensors(tensors, folder), os.path.join(path, "model.safetensors"))
    last = "weight" if "weight" in tensors[0] else "2.weight"
    first = tensors[0].get("0.weight")
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump({"input_dim": (tensors[0]["weight"] if first is None else first).shape[1],
                   "output_dim": tensors[0][last].shape[0], "n_modules": len(tensors),
                   "hidden_dim": None if first is None else first.shape[0]}, f)
    return path


def check(what, kind, path, tensors, hidden, folder, isas):
    """hidden: [layer] [N, D]"""
    given, out = os.path.join(folder, "hidden.safetensors"), os.path.join(folder, "scores.safetensors")
    save_file({f"hidden.{i}": x for i, x in enumerate(hidden)}, given)
    good, dtype = True, next(t for n, t in tensors[0].items() if n.endswith("weight") and "norm" not in n).dtype
    for exact in (True, False):
        wanted = torch.stack([ref.score(kind, t, x, exact) for t, x in zip(tensors, hidden)])
        for isa in isas:
            gate_command("score", path, given, out, "--isa", isa, *([] if exact else ["--fast"]))
            scores = load_file(out)
            got = torch.stack([scores[f"score.{i}"] for i in range(len(tensors))])
            good &= compare(f"{what}, {isa}, {'exact' if exact else 'fast'}", kind,
                            dtype if exact else torch.float32, got, wanted)
    return good


def supported(path, hidden, folder):
    """Instruction sets of this machine."""
    given = os.path.join(folder, "hidden.safetensors")
    save_file({f"hidden.{i}": x for i, x in enumerate(hidden)}, given)
    return [isa for isa in ("scalar", "avx2", "avx512", "avx512-bf16", "amx-bf16")
            if subprocess.run([KVGATECTL, "gate", "score", path, given, "--isa", isa],
                              capture_output=True).returncode == 0]


def check_random(seed, folder, isas):
    bf16, f32 = torch.bfloat16, torch.float32
    shapes = (  # kind, dtype, layers, heads, groups, hidden, dim, sinks, mlp; tokens, their dtype, how the gate is stored
        ((ref.FAST_KVZIP, ref.BF16, 1, 8, 4, 4096, 16, 16, 0), 300, bf16, as_pt),  # Qwen3-8B
        ((ref.FAST_KVZIP, ref.BF16, 3, 2, 6, 1536, 16, 32, 0), 100, bf16, as_safetensors),
        ((ref.KVZAP_LINEAR, ref.BF16, 2, 8, 0, 4096, 0, 0, 0), 200, bf16, as_kvzap),
        ((ref.KVZAP_MLP, ref.BF16, 2, 8, 0, 4096, 0, 0, 512), 150, bf16, as_kvzap),
        ((ref.FAST_KVZIP, ref.F16, 1, 8, 4, 2048, 16, 16, 0), 150, f32, as_pt),
        ((ref.FAST_KVZIP, ref.F32, 1, 8, 4, 2048, 16, 16, 0), 150, f32, as_pt),
        ((ref.FAST_KVZIP, ref.F32, 2, 2, 6, 1536, 16, 32, 0), 100, bf16, as_safetensors),
        ((ref.KVZAP_MLP, ref.F16, 2, 8, 0, 1024, 0, 0, 512), 150, f32, as_kvzap),
        ((ref.KVZAP_LINEAR, ref.F32, 2, 8, 0, 1024, 0, 0, 0), 150, f32, as_kvzap),
    )
    good = True
    for number, (shape, tokens, dtype, store) in enumerate(shapes):
        tensors = ref.gate(*shape, seed + number)
        hidden = [ref.hidden_states(seed + 10 * l, tokens, shape[5]).to(dtype) for l in range(shape[2])]
        good &= check(f"shape {shape}", shape[0], store(tensors, folder), tensors, hidden, folder, isas)
    return good


def check_lab(folder, isas):
    weights, states = load_file(os.path.join(LAB, "gate.safetensors")), load_file(os.path.join(LAB, "ref.safetensors"))
    tensors = [{n.split(".", 2)[2]: t for n, t in weights.items() if n.startswith(f"layers.{l}.")} for l in range(8)]
    hidden = [states[f"hidden.{l}"] for l in range(8)]
    good = all(check(name, ref.FAST_KVZIP, os.path.join(LAB, name), tensors, hidden, folder, isas)
               for name in ("gate.pt", "gate_t211.pt", "gate.safetensors"))
    digests = {gate_command("inspect", os.path.join(LAB, name))["digest"]
               for name in ("gate.pt", "gate_t211.pt", "gate.safetensors", "gate_calibrated.safetensors")}
    if len(digests) != 1:
        print(f"one gate with several digests: {digests}")
    return good and len(digests) == 1


def check_convert_and_calibrate(folder):
    out, given = os.path.join(folder, "out.safetensors"), os.path.join(LAB, "ref.safetensors")
    gate_command("calibrate", os.path.join(LAB, "gate.pt"), out, given, "--retained", ".1,.5", "--model", "m")
    about = gate_command("inspect", out)
    gate_command("score", out, given, os.path.join(folder, "s.safetensors"))
    scores = torch.cat([t.flatten() for t in load_file(os.path.join(folder, "s.safetensors")).values()])
    # equal tokens score the same in layer 0, so an edge can lie on a tie
    shares = [((scores > e["score"] * (1 + 1e-5)).float().mean().item(), e["retained"],
               (scores >= e["score"] * (1 - 1e-5)).float().mean().item()) for e in about["edges"]]
    good = about["model"] == "m" and len(shares) == 2 and all(a - 1e-3 < r < b + 1e-3 and b - a < .02
                                                               for a, r, b in shares)
    if not good:
        print(f"calibration: {about}, shares {shares}")
    return good


def main():
    if not os.access(KVGATECTL, os.X_OK):
        print(f"SKIPPED: {KVGATECTL} is not built")
        return 77
    torch.set_num_threads(1)
    seed = int(os.environ.get("KVGATE_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"KVGATE_SEED={seed}")
    with tempfile.TemporaryDirectory() as folder:
        states = load_file(os.path.join(LAB, "ref.safetensors"))
        isas = supported(os.path.join(LAB, "gate.pt"), [states[f"hidden.{l}"][:3].contiguous() for l in range(8)], folder)
        print("paths:", ", ".join(isas))
        good = bool(isas)
        for part in (lambda: check_lab(folder, isas), lambda: check_random(seed, folder, isas),
                     lambda: check_convert_and_calibrate(folder)):
            good &= part()
    print("scores agree" if good else "scores differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
