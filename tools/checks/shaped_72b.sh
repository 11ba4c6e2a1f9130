#!/bin/bash
# A checkpoint of LAYERS layers in the exact shapes of Qwen2.5-72B (vocabulary and all) to GGUF: seconds, peak memory, size.
# Needs 9 GB of disk for 2 layers, and as much again for the output's copy in the page cache.
#   shaped_72b.sh [LAYERS] [RECIPE]
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh models
LAYERS=${1:-2}; RECIPE=${2:-q4_k_m}
W=$(mktemp -d -p "${TMPDIR:-/var/tmp}"); trap 'rm -rf "$W"' EXIT
"$P"/venv/bin/python "$HERE"/make_72b_shaped.py "$W"/model --layers "$LAYERS" --tokenizer-from "$P"/models/smollm2-qwen2
"$BITMILL" plan "$W"/model --recipe "$RECIPE"
"$BITMILL" compress "$W"/model --recipe "$RECIPE" -o "$W"/out.gguf --json >"$W"/record.json
"$P"/venv/bin/python - "$W"/record.json "$LAYERS" <<'PY'
import json, sys
r, layers = json.load(open(sys.argv[1])), int(sys.argv[2])
print(f"{layers} layers, {r['strategy']}: {r['source_bytes'] / 1e9:.2f} GB -> {r['bytes'] / 1e9:.2f} GB ({r['bits_per_weight']:.2f} bits/weight), "
      f"{r['seconds']:.0f} s with reading back ({r['source_bytes'] / 1e6 / r['seconds']:.0f} MB/s), peak memory {r['peak_bytes'] / 1e6:.0f} MB")
PY
