#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# ctl_e2e.sh BUILD SOURCE CC: kvgatectl against a real kvgated that holds the example's block - every command that reads, as text
# and as JSON that parses, the ones that change something, and what is said when the line or the daemon is wrong.
set -eu
build=$1 source=$2 cc=$3
ctl=$build/client/ctl/kvgatectl
dir=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill $pid; rm -rf "$dir"' EXIT
export KVGATE_SOCKET="$dir/sock"

fail()
{
	echo "$*"
	cat "$dir/out" "$dir/err"
	exit 1
}
ok() # ok ARGUMENT...: exit status 0, and something to read
{
	"$ctl" "$@" >"$dir/out" 2>"$dir/err" || fail "kvgatectl $* failed"
	[ -s "$dir/out" ] || fail "kvgatectl $* says nothing"
}
says() # says TEXT ARGUMENT...
{
	text=$1
	shift
	ok "$@"
	grep -q -e "$text" "$dir/out" || fail "kvgatectl $* does not say '$text'"
}
json() # json EXPRESSION ARGUMENT...: o is the document
{
	expression=$1
	shift
	ok "$@" --json
	python3 -c "import json, sys; o = json.load(sys.stdin); assert $expression, o" <"$dir/out" ||
		fail "kvgatectl $* --json: not $expression"
}
refused() # refused STATUS TEXT ARGUMENT...
{
	status=$1 text=$2 got=0
	shift 2
	"$ctl" "$@" >"$dir/out" 2>"$dir/err" || got=$?
	[ $got = "$status" ] || fail "kvgatectl $*: exit status $got instead of $status"
	grep -q -e "$text" "$dir/err" || fail "kvgatectl $* does not say '$text'"
}

refused 1 "is kvgated running" status
says "no daemon" version
refused 2 "no command 'frobnicate'" frobnicate
refused 2 "kvgatectl \[--socket" --json
says "take blocks" --help
for command in status top ls inspect events policy purge gate version; do
	says "$command" $command --help
done

# gates and traces need no daemon; the golden scores were made with PyTorch, from states rounded to bf16
lab=$source/client/demo/lab
for action in inspect convert calibrate score; do
	says "^  $action " gate --help
done
refused 2 "wants an action" gate
refused 2 "score wants FILE" gate score "$lab/gate.pt"
refused 1 "wants hidden.0" gate score "$lab/gate.pt" "$lab/model.safetensors"
json "o['wrote'] == '$dir/gate.safetensors'" gate convert "$lab/gate.pt" "$dir/gate.safetensors" --model converted
digest=$("$ctl" --json gate inspect "$lab/gate.safetensors" | sed -n 's/.*"digest": *"\(.*\)".*/\1/p')
[ ${#digest} = 64 ] || fail "no digest: '$digest'"
json "o['digest'] == '$digest' and o['model'] == 'converted' and o['edges'] == []" gate inspect "$dir/gate.safetensors"
says "4 heads of 2 queries" gate inspect "$dir/gate.safetensors"
python3 "$source/tests/unit/ctl_files.py" kvzap "$dir/kvzap"
says "2 layers, 3 heads, hidden size 8" gate inspect "$dir/kvzap/model.safetensors"
for fast in "" --fast; do
	json "o['tokens'] == 403 and len(o['layers']) == 8" gate score $fast "$dir/gate.safetensors" "$lab/ref.safetensors" "$dir/scores"
	python3 "$source/tests/unit/ctl_files.py" scores "$dir/scores" "$lab/ref.safetensors" || fail "gate score $fast: other scores"
done
says "best 20.0 %" gate calibrate "$lab/gate.pt" "$dir/calibrated" "$lab/ref.safetensors" --retained .2,.5 --model lab
"$ctl" --json gate inspect "$dir/calibrated" >"$dir/out"
python3 "$source/tests/unit/ctl_files.py" edges "$dir/out" "$dir/scores" || fail "gate calibrate: other edges"
json "[round(e['score'], 4) for e in o['edges']] == [0.5, 0.25]" gate calibrate "$lab/gate.pt" "$dir/given" --retained .2,.5 --edges .5,.25
printf '%s\n' '{"hash_ids": [1, 2]}' '{"hash_ids": [1, 3]}' '{"hash_ids": [1, 2]}' >"$dir/trace"
json "[r['hits'] for r in o if r['capacity'] == 3] == [3] * 4" replay "$dir/trace" --capacity 1,2,3
json "[(r['policy'], r['hits']) for r in o] == [('optimum', 2), ('optimum', 3)]" replay "$dir/trace" --capacity 1,2 --policy optimum
json "[r['hits'] for r in o] == [2]" replay "$dir/trace" --capacity 2 --policy lru
says "3 requests, 6 blocks, 3 of them different" replay "$dir/trace" --capacity 2 --floor .3
refused 1 "nowhere" replay "$dir/nowhere"
refused 2 "no policy 'fifo'" replay "$dir/trace" --policy fifo
refused 2 "capacity is a list" replay "$dir/trace" --capacity 0

printf '[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\n' >"$dir/conf"
"$build/daemon/kvgated" --config "$dir/conf" --socket "$dir/sock" 2>"$dir/log" &
pid=$!
for i in $(seq 200); do [ ! -S "$dir/sock" ] || break; sleep 0.05; done
"$cc" "$source/client/demo/example.c" -I"$source/client/include" -I"$source/proto" -o "$dir/example" \
	-L"$build/client/lib" -lkvgate -Wl,-rpath,"$build/client/lib"
"$ctl" events --count 2 --json >"$dir/events" &
watcher=$!
sleep 0.3
"$dir/example" | grep -q 'holding 100 %' || fail "the example does not find its block"

says "64.0 MiB" status
says "blocks in the index" status --counters
json "o['layouts'][0]['model'] == 'example' and o['policy']['floor'] == 1" status
json "o['blocks'] == 1" top --once --interval 0.1
says "plane" top --once --interval 0.1
json "len(o) == 1 and o[0]['tokens'] == 16 and o[0]['parent'] is None" ls
key=$("$ctl" ls --full-keys | sed -n '2s/ .*//p')
[ ${#key} = 64 ] || fail "ls --full-keys: '$key'"
json "o['planes'][0]['verified'] and o['key'] == '$key'" inspect "$key" --verify
says "right" inspect "$(echo "$key" | cut -c1-7)" --verify
refused 1 "no block begins like that" inspect 0000000000
refused 2 "is no key" inspect xyz
refused 1 "no such block" inspect "$(echo "$key" | tr 0123456789abcdef 123456789abcdef0)"
json "o['high_watermark'] == 0.95" policy
says "0.30  for example" policy --model example floor=0.3
json "o['model_floors']['example'] == 0.3 and o['host_bytes'] == 32 << 20" policy host_bytes=32MiB
refused 2 "no setting 'flour'" policy flour=0.3
refused 2 "above 0 and at most 1" policy floor=1.5
refused 1 "high" policy high=0.5 low=0.9
refused 2 "wants KEYs, or --all" purge
refused 2 "no option '--frobnicate'" ls --frobnicate
refused 2 "wants a number" ls --limit many
json "o['blocks'] == 1" purge "$key"
json "o == []" ls
says "no blocks" ls
json "o['daemon'].startswith('kvgated')" version
for i in $(seq 100); do kill -0 $watcher 2>/dev/null || break; sleep 0.05; done
[ "$(python3 -c 'import json, sys; print([json.loads(l)["event"] for l in sys.stdin])' <"$dir/events")" = \
	"['committed', 'evicted']" ] || fail "events: $(cat "$dir/events")"
kill $pid
wait $pid || fail "kvgated ended with an error"
pid=
