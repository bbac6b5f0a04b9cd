#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# quality_samples.sh BUILD SOURCE: bench_quality on files that are no samples says which line and field; on samples of other
# lengths and numbers than the lab's it measures.
set -eu
bench=$1/tests/bench/bench_quality lab=$2/client/demo/lab/samples.jsonl
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
file=$dir/samples.jsonl

refused() # refused STATUS TEXT: the file's samples are
{
	got=0
	"$bench" --samples "$file" --jobs 1 >"$dir/out" 2>"$dir/err" || got=$?
	[ $got = "$1" ] && grep -q -e "$2" "$dir/err" && [ ! -s "$dir/out" ] || {
		echo "exit status $got, not $1 with '$2':"
		cat "$dir/out" "$dir/err"
		exit 1
	}
}
line() # line TEXT: a good sample, then this one
{
	head -n 1 "$lab" >"$file"
	printf '%s\n' "$1" >>"$file"
}

line 'no JSON'; refused 2 'samples.jsonl:2: this is no JSON object'
line '[]'; refused 2 ':2: this is no JSON object'
line '{"context": "c", "qa": [["q", "a"]]}'; refused 2 ':2: task is null or missing'
line '{"task": 7, "context": "c", "qa": [["q", "a"]]}'; refused 2 ':2: task is int, not a text'
line '{"task": "t", "context": "", "qa": [["q", "a"]]}'; refused 2 ':2: context is empty'
line '{"task": "t", "context": "c", "qa": []}'; refused 2 ':2: qa holds no questions'
line '{"task": "t", "context": "c", "qa": {}}'; refused 2 ':2: qa holds no questions'
line '{"task": "t", "context": "c", "qa": [["q", "a"], ["q"]]}'; refused 2 ':2: qa\[1\] is not a question and an answer'
line '{"task": "t", "context": "c", "qa": [[null, "a"]]}'; refused 2 ':2: qa\[0\]\[0\], the question, is null'
line '{"task": "t", "context": "c", "qa": [["q", null]]}'; refused 2 ':2: qa\[0\]\[1\], the answer, is null'
line '{"task": "t", "context": "c", "qa": [["q", ""]]}'; refused 2 ':2: qa\[0\]\[1\], the answer, is empty'
printf '\n \n' >"$file"; refused 2 'holds no samples'
rm "$file"; refused 2 'cannot open'
printf '{"task": "t", "context": "c", "qa": [["q", "nothing a model could know"]]}\n' >"$file"
refused 1 'the full cache answers no question right'

# Blank lines, one text twice in two processes, contexts with a common beginning, an answer longer than a chunk,
# 70 questions, a NUL.
python3 - "$lab" >"$file" <<'END'
import json, sys
with open(sys.argv[1]) as f:
    s = json.loads(f.readline())
at = s["context"].index(s["qa"][0][1])
s["context"] = s["context"][at - 200:at + 100]
s["qa"] = s["qa"][:1]
long = dict(s, qa=[["q", "a" * 1100]])
many = dict(s, qa=[["q", "a"]] * 70)
tail = dict(s, context=s["context"] + "other \0 words")
print(*map(json.dumps, (s, s, long, many, tail)), sep="\n\n", end="\n\n  \n")
END
status=0
"$bench" --samples "$file" --jobs 2 >"$dir/out" 2>"$dir/err" || status=$?
asked=$(python3 -c 'import json, sys; print(sum(len(json.loads(l)["qa"]) for l in open(sys.argv[1]) if l.strip()))' "$file")
# a bound may be missed on so little text; that is said, and everything is measured
[ $status -le 1 ] && grep -q " $asked asked" "$dir/err" && grep -q '"quality_r10"' "$dir/out" || {
	echo "exit status $status, $asked questions"
	cat "$dir/out" "$dir/err"
	exit 1
}
