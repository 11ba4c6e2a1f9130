#!/bin/bash
# A checkpoint of LAYERS layers in the exact shapes of Qwen2.5-72B (vocabulary and all) to GGUF, its feed-forward width padded to
# 29696 and as it is: size, peak memory, seconds; and for all 80 layers: the size that `plan` gives from headers alone, seconds as
# bytes of source go. The first table is measured, the second is not.
# Needs 5 GB of disk and 1.75 GB a layer, and as much again for the outputs' copies in the page cache.
#   shaped_72b.sh [LAYERS] [RECIPE]        MODEL=FOLDER takes that checkpoint instead of making one
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh models
LAYERS=${1:-2}; RECIPE=${2:-q4_k_m}
W=$(mktemp -d -p "${TMPDIR:-/var/tmp}"); trap 'rm -rf "$W"' EXIT
shaped() { "$P"/venv/bin/python "$HERE"/make_72b_shaped.py "$@" --tokenizer-from "$P"/models/smollm2-qwen2; }
[ -n "$MODEL" ] || { MODEL=$W/model; shaped "$MODEL" --layers "$LAYERS"; }
shaped "$W"/whole --layers 80 --headers
for pad in "" --no-pad; do
  "$BITMILL" plan "$W"/whole --recipe "$RECIPE" $pad --json >"$W"/plan$pad.json
  TIMEFORMAT='{"real": %R, "cpu": %U}'
  { time "$BITMILL" compress "$MODEL" --recipe "$RECIPE" $pad -o "$W"/out.gguf --json >"$W"/record$pad.json; } 2>"$W"/time$pad.json
  rm -rf "$W"/out.gguf*
done
"$P"/venv/bin/python - "$W" <<'PY'
import json, sys
read = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
print("| layers | width | source | output | bits/weight | peak memory (planned) | seconds with reading back | CPU seconds |")
print("|---|---|---|---|---|---|---|---|")
for whole in (False, True):
    for pad, width in (("", 29696), ("--no-pad", 29568)):
        record, plan, time = read(f"record{pad}"), read(f"plan{pad}"), read(f"time{pad}")
        of = plan if whole else record
        times = of["source_bytes"] / record["source_bytes"]
        layers = sum(t["name"].endswith("down_proj.weight") for t in of["tensors"])
        peak = f"({plan['peak_bytes'] / 1e6:.0f} MB)" if whole else \
            f"{record['peak_bytes'] / 1e6:.0f} MB ({record['planned_peak_bytes'] / 1e6:.0f} MB)"
        print(f"| {layers} | {width} | {of['source_bytes'] / 1e9:.2f} GB | {of['bytes'] / 1e9:.3f} GB | {of['bits_per_weight']:.3f} | "
              f"{peak} | {time['real'] * times:.0f} | {time['cpu'] * times:.0f} |")
PY
