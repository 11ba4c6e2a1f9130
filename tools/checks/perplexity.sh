#!/bin/bash
# Do the runtimes that load our files see the quality that we report? On the same text:
#   llama-perplexity on our q8_0 and q4_k_m against `perplexity_second_half` of `bitmill eval` (bound: 0.5 %)
#   transformers + compressed-tensors on our w4a16 folder against `perplexity` (bound: 0.1 %)
#   perplexity.sh [TEXT] [WINDOWS]      TEXT without special tokens; default: the project's own evaluation text, its dividers taken out
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama ct models
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
TEXT=${1:-}; N=${2:-16}
if [ -z "$TEXT" ]; then TEXT=$W/text.txt; sed 's/<|[a-z_]*|>/\n/g' "$HERE"/../../assets/millet/text/eval.txt >"$TEXT"; fi
field() { "$P"/venv/bin/python -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
percent() { "$P"/venv/bin/python -c 'import sys; a, b = map(float, sys.argv[1:]); print(f"{100 * (a / b - 1):+.3f} %")' "$1" "$2"; }
for model in smollm2-qwen2 smollm2-d768; do
  for mix in q8_0 q4_k_m; do
    "$BITMILL" compress "$P"/models/$model --recipe $mix -o "$W"/m.gguf --force >/dev/null
    "$BITMILL" eval "$W"/m.gguf --text "$TEXT" --window 512 --windows "$N" --no-tasks --json >"$W"/eval.json
    "$P"/build-llama/bin/llama-perplexity -m "$W"/m.gguf -f "$TEXT" -c 512 -b 512 --chunks "$N" -t 2 >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
    ours=$(field "$W"/eval.json perplexity_second_half)
    theirs=$(sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$W"/log)
    echo "$model $mix: bitmill $ours, llama-perplexity $theirs, $(percent "$ours" "$theirs")"
  done
done
for model in smollm2-d768 smollm2-qwen2; do
  recipe=w4a16_g128; [ $model = smollm2-d768 ] || recipe=w4a16_g64
  "$BITMILL" compress "$P"/models/$model --recipe $recipe -o "$W"/folder --force >/dev/null
  "$BITMILL" eval "$W"/folder --text "$TEXT" --window 512 --windows "$N" --no-tasks --json >"$W"/eval.json
  theirs=$("$P"/v-ct/bin/python "$HERE"/loaded_perplexity.py "$W"/folder "$TEXT" "$N")
  ours=$(field "$W"/eval.json perplexity)
  echo "$model $recipe: bitmill $ours, transformers + compressed-tensors $theirs, $(percent "$ours" "$theirs")"
done
