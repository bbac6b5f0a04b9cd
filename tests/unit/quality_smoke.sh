#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# quality_smoke.sh BUILD SOURCE: three contexts of the quality bench, whole: the gate loses no answer on them at any ratio, and
# chance loses most.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for task in niah_multikey kv facts; do
	grep -m 1 "\"task\": \"$task\"" "$2/client/demo/lab/samples.jsonl"
done >"$dir/samples.jsonl"
"$1/tests/bench/bench_quality" --samples "$dir/samples.jsonl" >"$dir/out"
python3 -c '
import json, sys
r = {x["name"]: x["value"] for x in map(json.loads, sys.stdin)}
assert all(r[f"quality_r{p}"] == 100 for p in (50, 30, 20, 10)), r
assert r["quality_r50_random"] < 60 and r["quality_r10_random"] < 40, r
' <"$dir/out"
