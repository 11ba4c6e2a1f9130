#!/bin/bash
# CPU seconds (user and system) that compressing takes on one thread, llama-quantize's beside ours, from the same f16 GGUF of
# smollm2-d768, and their ratio; the last rows with an importance matrix.
#   encode_speed.sh [MIX …]      default: q8_0 q4_0 q4_k_m q6_k q3_k_m q2_k iq4_xs
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama models
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
"$P"/venv/bin/python "$P"/src/llama.cpp/convert_hf_to_gguf.py "$P"/models/smollm2-d768 --outfile "$W"/f16.gguf --outtype f16 >"$W"/log 2>&1 || { cat "$W"/log; exit 1; }
"$P"/build-llama/bin/llama-imatrix -m "$W"/f16.gguf -f "$HERE"/../../assets/millet/text/eval.txt -o "$W"/imatrix.gguf -c 512 --chunks 4 >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
cpu() { # seconds of the command, on one core
  local TIMEFORMAT='%U %S'
  { time taskset -c 0 "$@" >"$W"/log 2>&1; } 2>"$W"/time || { tail "$W"/log >&2; exit 1; }
  awk '{ print $1 + $2 }' "$W"/time
}
megabytes=$(($(stat -c %s "$W"/f16.gguf) / 1000000))
row() { awk -v name="$1" -v theirs="$2" -v ours="$3" -v mb="$megabytes" 'BEGIN { printf "| %s | %.2f | %.2f | %.0f | %.0f | %.1f |\n", name, theirs, ours, mb / theirs, mb / ours, theirs / ours }'; }
grep -m1 'model name' /proc/cpuinfo
echo "| $megabytes MB of f16 | llama-quantize, s | bitmill, s | MB/s | MB/s | ratio |"
echo "|---|---|---|---|---|---|"
for mix in ${@:-q8_0 q4_0 q4_k_m q6_k q3_k_m q2_k iq4_xs}; do
  theirs=$(cpu "$P"/build-llama/bin/llama-quantize "$W"/f16.gguf "$W"/theirs.gguf $mix 1)
  ours=$(cpu "$BITMILL" compress "$W"/f16.gguf --recipe $mix -o "$W"/ours.gguf --force --threads 1)
  row $mix "$theirs" "$ours"
done
for mix in ${@:-q4_0 q4_k_m q6_k q3_k_m q2_k iq4_xs}; do
  theirs=$(cpu "$P"/build-llama/bin/llama-quantize --imatrix "$W"/imatrix.gguf "$W"/f16.gguf "$W"/theirs.gguf $mix 1)
  ours=$(cpu "$BITMILL" compress "$W"/f16.gguf --recipe $mix --imatrix "$W"/imatrix.gguf -o "$W"/ours.gguf --force --threads 1)
  row "$mix, imatrix" "$theirs" "$ours"
done
