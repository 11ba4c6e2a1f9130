#!/bin/bash
# GPTQ on LAYERS layers in the exact shapes of Qwen2.5-72B (a small vocabulary, 8 windows of 512 tokens): peak memory, seconds of a layer
# and where they go, the same for all 80 layers as seconds go with layers; then the run again, killed with kill -9 once it has
# finished a layer, and gone on with: are the files the same?
# Needs 5.1 GB of disk, and 2.5 GB for the outputs; about ten processor minutes a layer, twice.
#   calibrated_72b.sh [LAYERS] [RECIPE]        MODEL=FOLDER takes that checkpoint, TEXT=FILE that calibration text
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh models
LAYERS=${1:-2}; RECIPE=${2:-gptq_w4a16_g128}
W=$(mktemp -d -p "${TMPDIR:-/var/tmp}"); trap 'rm -rf "$W"' EXIT
[ -n "$MODEL" ] || { MODEL=$W/model; "$P"/venv/bin/python "$HERE"/make_72b_shaped.py "$MODEL" --layers "$LAYERS" --vocab 49152 --tokenizer-from "$P"/models/smollm2-qwen2; }
run() { "$BITMILL" compress "$MODEL" --recipe "$RECIPE" ${TEXT:+--calibration "$TEXT"} --samples 8 --length 512 --held-out 0 --json -o "$W/$1"; }
TIMEFORMAT='{"real": %R, "cpu": %U}'
{ time run whole >"$W"/record.json; } 2>"$W"/time.json
(cd "$W"/whole && sha256sum *.safetensors) >"$W"/sums
rm -rf "$W"/whole
run killed >/dev/null 2>&1 & victim=$!
until [ -e "$W"/.killed.bitmill-partial/states-00001 ]; do sleep 0.2; kill -0 $victim; done
sleep 5; pkill -9 -P $victim bitmill || kill -9 $victim; wait $victim 2>/dev/null || true
[ ! -e "$W"/killed ]
run killed >"$W"/resumed.json
(cd "$W"/killed && sha256sum --quiet -c "$W"/sums) && same=equal || same=DIFFERENT
"$P"/venv/bin/python - "$W" $same <<'PY'
import json, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
record, time, resumed = read("record"), read("time"), read("resumed")
took = record["layer_seconds"]
parts = ", ".join(f"{part} {took[part]:.0f}" for part in ("forward", "statistics", "factor", "codes"))
print(f"peak memory {record['peak_bytes'] / 1e9:.2f} GB (planned {record['planned_peak_bytes'] / 1e9:.2f} GB), {time['real']:.0f} s, {time['cpu']:.0f} CPU seconds")
print(f"a layer: {took['whole']:.0f} s ({parts}); 80 layers: {80 * took['whole'] / 3600:.1f} h, {80 * time['cpu'] / took['layers'] / 3600:.1f} CPU hours")
print(f"killed and gone on with after {resumed['resumed_tensors']} tensors, {resumed['layer_seconds']['layers']} layers run: files {sys.argv[2]}")
PY
