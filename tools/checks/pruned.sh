#!/bin/bash
# Do pruned models load elsewhere with the quality that we report, and what do they save? On smollm2:
#   transformers on our prune_50, prune_2of4 and depth_25 folders against `perplexity` (bound: 0.1 %)
#   llama-perplexity on a GGUF with a quarter of the layers gone, in bf16 and q8_0, against `perplexity_second_half` (bound: 0.5 %)
#   bytes, prefill and decode of each beside the dense model, and of the layers alone in proportion
#   pruned.sh [TEXT] [WINDOWS]      TEXT without special tokens; default: the project's own evaluation text, its dividers taken out
# BITMILL names a binary to use instead of building one.
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama models
MODEL=$P/models/smollm2
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
TEXT=${1:-}; N=${2:-8}
if [ -z "$TEXT" ]; then TEXT=$W/text.txt; sed 's/<|[a-z_]*|>/\n/g' "$HERE"/../../assets/millet/text/eval.txt >"$TEXT"; fi
field() { "$P"/venv/bin/python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
percent() { "$P"/venv/bin/python -c 'import sys; a, b = map(float, sys.argv[1:]); print(f"{100 * (a / b - 1):+.3f} %")' "$1" "$2"; }
evaluate() { "$BITMILL" eval "$1" --text "$TEXT" --window 512 --windows "$N" --no-tasks --json >"$W"/eval.json; }
speed() { # NAME PATH: bytes and medians, beside the dense model's once those are known
  "$BITMILL" bench "$2" --repeats 5 --json >"$W"/bench.json
  "$P"/venv/bin/python - "$W" "$1" <<'PY'
import json, pathlib, sys
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
run = json.load(open(folder / "bench.json"))
now = {"MB": run["bytes"] / 1e6, "prefill ms": run["prefill_ms"]["median"], "decode ms": run["decode_ms"]["median"]}
base = folder / "dense.json"
if not base.exists():
    base.write_text(json.dumps(now))
dense = json.loads(base.read_text())
print(f"{name:<22}" + "".join(f"{key} {value:8.2f} ({value / dense[key]:.3f})  " for key, value in now.items()))
PY
}
speed dense "$MODEL"
for recipe in prune_50 prune_2of4 depth_25; do
  "$BITMILL" compress "$MODEL" --recipe $recipe -o "$W"/folder --force >/dev/null
  evaluate "$W"/folder
  theirs=$("$P"/venv/bin/python "$HERE"/loaded_perplexity.py "$W"/folder "$TEXT" "$N")
  ours=$(field "$W"/eval.json perplexity)
  echo "$recipe: bitmill $ours, transformers $theirs, $(percent "$ours" "$theirs")"
  speed $recipe "$W"/folder
done
for storing in 'kind = "float"\ntype = "bf16"' 'kind = "block"\ntype = "q8_0"'; do
  printf 'format = "gguf"\n[[step]]\nkind = "depth"\nremove = 0.25\n[[step]]\n'"$storing"'\n' >"$W"/r.toml
  "$BITMILL" compress "$MODEL" --recipe "$W"/r.toml -o "$W"/m.gguf --force >/dev/null
  evaluate "$W"/m.gguf
  "$P"/build-llama/bin/llama-perplexity -m "$W"/m.gguf -f "$TEXT" -c 512 -b 512 --chunks "$N" -t 2 >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
  ours=$(field "$W"/eval.json perplexity_second_half)
  theirs=$(sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$W"/log)
  echo "depth 0.25 as ${storing##*= }: bitmill $ours, llama-perplexity $theirs, $(percent "$ours" "$theirs")"
  speed "depth ${storing##*= }" "$W"/m.gguf
done
