#!/bin/bash
# Prefill of 512 tokens and decoding, ours beside llama-bench's, in turn, on smollm2-d768: ms and tokens/s, medians.
#   decode_speed.sh [THREADS]
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama models
T=${1:-$(nproc)}; MODEL=$P/models/smollm2-d768
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
row() { "$P"/venv/bin/python - "$W" "$1" <<'PY'
import json, statistics, sys
folder, name = sys.argv[1:]
r = json.load(open(f"{folder}/ours.json"))
line = f"{name:<12} {r['bytes'] / 1e6:7.1f} MB  bitmill: prefill {1e3 * r['prefill_tokens'] / r['prefill_ms']['median']:7.0f} t/s, decode {1e3 / r['decode_ms']['median']:6.1f} t/s"
try:
    runs = json.load(open(f"{folder}/theirs.json"))
    speed = {("decode" if run["n_gen"] else "prefill"): statistics.median(run["samples_ts"]) for run in runs}
    line += f"  llama-bench: prefill {speed['prefill']:7.0f} t/s, decode {speed['decode']:6.1f} t/s"
except FileNotFoundError:
    pass
print(line)
PY
}
"$P"/venv/bin/python "$P"/src/llama.cpp/convert_hf_to_gguf.py "$MODEL" --outfile "$W"/f16.gguf --outtype f16 >"$W"/log 2>&1 || { cat "$W"/log; exit 1; }
grep -m1 'model name' /proc/cpuinfo
"$BITMILL" bench "$MODEL" --threads "$T" --repeats 5 --json >"$W"/ours.json
"$P"/build-llama/bin/llama-bench -m "$W"/f16.gguf -p 512 -n 32 -d 128 -t "$T" -r 5 -o json >"$W"/theirs.json 2>/dev/null
row dense
for mix in q8_0 q4_0 q4_k_m; do
  "$BITMILL" compress "$MODEL" --recipe $mix -o "$W"/m.gguf --force >/dev/null
  "$BITMILL" bench "$W"/m.gguf --threads "$T" --repeats 5 --json >"$W"/ours.json
  "$P"/build-llama/bin/llama-bench -m "$W"/m.gguf -p 512 -n 32 -d 128 -t "$T" -r 5 -o json >"$W"/theirs.json 2>/dev/null
  row $mix
done
rm "$W"/theirs.json
for recipe in w8a16 w4a16_g128; do
  "$BITMILL" compress "$MODEL" --recipe $recipe -o "$W"/folder --force >/dev/null
  "$BITMILL" bench "$W"/folder --threads "$T" --repeats 5 --json >"$W"/ours.json
  row $recipe
done
