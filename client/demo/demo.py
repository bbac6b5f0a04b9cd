# SPDX-License-Identifier: Apache-2.0
"""The demo behind client/demo/run: real processes, a real model, one daemon; ends with a table of what was measured.

demo.py BUILD LAB [CONTEXTS]: BUILD holds kvgated, kvgatectl and kvgate-worker; LAB the model, its gate and the samples;
so many contexts are put under pressure (48; the tests take fewer).
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BUILD, LAB = sys.argv[1], sys.argv[2]
CONTEXTS = int(sys.argv[3]) if len(sys.argv) > 3 else 48
PARALLEL = 2  # worker processes at a time
SEGMENT = "16MiB" if CONTEXTS >= 48 else "4MiB"  # 15 % of the KV is to be some segments
WORKER = os.path.join(BUILD, "client/worker/kvgate-worker")
CTL = os.path.join(BUILD, "client/ctl/kvgatectl")
DAEMON = os.path.join(BUILD, "daemon/kvgated")
GATE = os.path.join(LAB, "gate_calibrated.safetensors")
rows = []


def say(text=""):
    print(text, flush=True)


def row(what, value):
    rows.append((what, value))


class Daemon:
    """A kvgated of our own in a folder of its own."""

    def __init__(self, host_bytes, floor):
        self.dir = tempfile.mkdtemp(prefix="kvgate-demo-")
        self.socket = os.path.join(self.dir, "sock")
        config = os.path.join(self.dir, "conf")
        with open(config, "w") as f:
            f.write(f"[memory]\nhost_bytes = {host_bytes}\nsegment_bytes = {SEGMENT}\nindex_slots = 65536\nfloor = {floor}\n"
                    f"[gate lab]\nfile = {GATE}\n")
        self.log = open(os.path.join(self.dir, "log"), "w+")
        self.process = subprocess.Popen([DAEMON, "--config", config, "--socket", self.socket], stderr=self.log)
        for _ in range(1000):
            if os.path.exists(self.socket) or self.process.poll() is not None:
                break
            time.sleep(0.01)
        else:
            self.fail("does not start")

    def fail(self, why):
        self.log.seek(0)
        sys.exit(f"kvgated {why}:\n{self.log.read()}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(20) != 0:
            self.fail("did not end well")
        shutil.rmtree(self.dir)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def ctl(self, *args):
        out = subprocess.run([CTL, "--socket", self.socket, "--json", *args], capture_output=True, text=True)
        if out.returncode:
            sys.exit(f"kvgatectl {' '.join(args)}: {out.stderr}")
        return json.loads(out.stdout)

    def counters(self):
        """Counters summed over their labels, and the split ones by plane."""
        total, planes = {}, {}
        for c in self.ctl("status")["counters"]:
            total[c["name"]] = total.get(c["name"], 0) + c["value"]
            if c.get("plane", -1) >= 0:
                planes[(c["name"], c["plane"])] = planes.get((c["name"], c["plane"]), 0) + c["value"]
        return total, planes

    def start(self, context, question, *args):
        """A worker process on one context and question; `context` is a file."""
        return subprocess.Popen([WORKER, "--model", LAB, "--format", "lab", "--socket", self.socket, "--gate", GATE,
                                 "--context-file", context, "--question", question, "--json", *args],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def work(self, context, question, *args):
        return result_of(self.start(context, question, *args))


def result_of(process):
    out, err = process.communicate(timeout=120)
    if process.returncode:
        sys.exit(f"kvgate-worker: {err}")
    return json.loads(out)


def samples():
    """CONTEXTS contexts over all tasks but `copy`, whose answers have no end: each as a file, with a question and its answer."""
    by_task = {}
    with open(os.path.join(LAB, "samples.jsonl")) as f:
        for line in f:
            s = json.loads(line)
            by_task.setdefault(s["task"], []).append(s)
    tasks = [t for t in sorted(by_task) if t != "copy"]
    folder = tempfile.mkdtemp(prefix="kvgate-demo-contexts-")
    chosen = []
    for i in range(CONTEXTS):
        s = by_task[tasks[i % len(tasks)]][i // len(tasks)]
        path = os.path.join(folder, str(i))
        with open(path, "w") as f:
            f.write(s["context"])
        chosen.append((path, *s["qa"][0]))
    return folder, chosen


def several(daemon, chosen, *args):
    """One worker process for each context, PARALLEL at a time; results in order."""
    results = []
    for i in range(0, len(chosen), PARALLEL):
        running = [daemon.start(c, q, *args) for c, q, _ in chosen[i:i + PARALLEL]]
        results += [result_of(p) for p in running]
    return results


def answers(daemon, chosen):
    """Asks every context its question, in another order than they were put in. Returns results and number right."""
    order = list(chosen)
    random.Random(1).shuffle(order)
    results = several(daemon, order)
    return results, sum(r["text"] == a for r, (_, _, a) in zip(results, order))


def mib(n):
    return f"{n / (1 << 20):.1f} MiB"


def part_share(chosen):
    context, question, answer = chosen[0]
    with Daemon("256MiB", "1.0") as d:
        say("1. A cold worker reads a context of 2,048 tokens and answers; a second process asks the same.")
        cold = d.work(context, question)
        warm = d.work(context, question)
        say(f"   cold: first token after {cold['ttft_ms']:.1f} ms, {cold['tokens_reused']} tokens reused: {cold['text']!r}")
        say(f"   warm: first token after {warm['ttft_ms']:.1f} ms, {warm['tokens_reused']} tokens reused: {warm['text']!r}")
        if warm["text"] != cold["text"] or cold["text"] != answer:
            sys.exit(f"the answers differ; the right one is {answer!r}")
        row("time to first token, cold -> warm", f"{cold['ttft_ms']:.1f} -> {warm['ttft_ms']:.1f} ms "
            f"({cold['ttft_ms'] / warm['ttft_ms']:.1f} times faster)")

        say("2. Eight workers at once on the same blocks.")
        before = d.counters()[0]["kvgate_bytes"]
        eight = [result_of(p) for p in [d.start(context, question) for _ in range(8)]]
        after = d.counters()[0]["kvgate_bytes"]
        if any(r["text"] != answer for r in eight) or after != before:
            sys.exit("eight workers: wrong answers or more than one copy")
        mapped = sum(r["bytes_mapped"] for r in eight)
        say(f"   all eight right; they read {mib(mapped)} in all, the daemon holds {mib(after)}: one copy.")
        row("eight workers, KV attended to / memory held", f"{mib(mapped)} / {mib(after)}")

        say("3. A worker is killed (SIGKILL) while it holds pins and staged memory.")
        p = d.start(context, question, "--hold", "60")
        for _ in range(500):
            if d.counters()[0].get("kvgate_sessions", 0) > 1 and d.counters()[0].get("kvgate_staging_bytes", 0):
                break
            time.sleep(0.02)
        held = d.counters()[0]
        p.kill()
        start = time.monotonic()
        while True:
            now = d.counters()[0]
            if now.get("kvgate_sessions", 0) == 1 and not now.get("kvgate_staging_bytes", 0):
                break
            if time.monotonic() - start > 10:
                sys.exit("what the killed worker held did not come back")
        ms = (time.monotonic() - start) * 1e3
        p.communicate()
        say(f"   {mib(held.get('kvgate_staging_bytes', 0))} of staging and its pins were back within {ms:.0f} ms.")
        row("SIGKILL of a worker -> everything it held is back", f"{ms:.0f} ms (a kvgatectl process looking)")


def part_pressure(chosen, full_bytes, budget, floor, title):
    with Daemon(str(budget), floor) as d:
        say(title)
        several(d, chosen, "--put-only")
        _, planes = d.counters()
        results, right = answers(d, chosen)
        reused = sum(r["tokens_reused"] for r in results) / len(results)
        retention = [r["retention"] for r in results if r["tokens_reused"]]
        say(f"   {len(chosen)} contexts, {mib(full_bytes)} of KV, in {mib(budget)}: {right} of {len(chosen)} answers right, "
            f"{reused:.0f} of about 2,100 tokens reused per question,")
        say(f"   retention of what is held {min(retention, default=0):.2f} to {max(retention, default=0):.2f}.")
        dropped = {p: v for (n, p), v in planes.items() if n == "kvgate_evicted_bytes_total" and v}
        say("   evicted by plane: " + (", ".join(f"{p}: {mib(v)}" for p, v in sorted(dropped.items())) or "nothing"))
        row(f"{title.split('.')[0]}. floor {floor}, host budget {100 * budget / full_bytes:.0f} %",
            f"{right} of {len(chosen)} right, {100 * reused / 2110:.0f} % of the prompt from the cache")
        return right


def main():
    started = time.monotonic()
    folder, chosen = samples()
    try:
        part_share(chosen)
        with Daemon("1GiB", "1.0") as d:
            several(d, chosen, "--put-only")
            full_bytes = int(d.counters()[0]["kvgate_bytes"])
            _, full_right = answers(d, chosen)
        row("everything fits: answers right", f"{full_right} of {len(chosen)}")
        budget = (int(full_bytes * 0.15) >> 20) << 20
        lossy = part_pressure(chosen, full_bytes, budget, "0.1",
                              "4. Memory for 15 % of it, retention floor 0.1: the least important pairs go.")
        part_pressure(chosen, full_bytes, budget, "1.0",
                      "5. The same memory, lossless: whole blocks go, and what is missing is computed again.")
        if lossy < full_right - 1:
            sys.exit(f"under pressure {lossy} answers are right, {full_right} without")
    finally:
        shutil.rmtree(folder)
    say()
    width = max(len(a) for a, _ in rows)
    for what, value in rows:
        say(f"  {what:<{width}}  {value}")
    say(f"\n  The demo took {time.monotonic() - started:.0f} s.")


main()
