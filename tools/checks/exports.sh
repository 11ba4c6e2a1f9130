#!/bin/bash
# exports.sh [MODEL …]: do transformers (with compressed-tensors and with bitsandbytes) and GPTQModel load every kind of folder that we write, and compute what is stored there?
# MODEL: a Hugging Face folder; default the embedded model and smollm2 (peers.sh models). Needs peers.sh ct gptq bnb.
set -e
P=${PEERS:-$HOME/.cache/bitmill-peers}; HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
[ $# -gt 0 ] || set -- "$HERE"/../../assets/millet/model "$P"/models/smollm2
for MODEL in "$@"; do
  OUT=$(mktemp -d); trap 'rm -rf "$OUT"' EXIT
  # 576 columns are no whole groups of 128.
  G=64
  put() { "$BITMILL" compress "$MODEL" --recipe "$1" ${2:+--to "$2"} -o "$OUT/$1${2:+-$2}" > /dev/null; }
  for recipe in w8a8_int8 w8a8_fp8 w8a8_fp8_block w8a16_fp8 nvfp4 mxfp4 mxfp6 mxfp8 w4a16_g$G w4a16_g${G}_asym nf4 nf4_double; do put $recipe; done
  for recipe in w4a16_g$G w4a16_g${G}_asym w2a16_g$G w3a16_g${G}_asym w8a16 w8a16_g$G; do put $recipe gptq; done
  for recipe in w4a16_g$G w4a16_g${G}_asym; do put $recipe awq; done
  # What runs over text, from few tokens.
  run() { "$BITMILL" compress "$MODEL" --recipe "$1" --samples 4 --length 128 ${2:+--to "$2"} -o "$OUT/$1${2:+-$2}" > /dev/null; }
  for recipe in gptaq_w4a16_g$G learned_w3a16_g$G awq_w4a16_g$G rotated_gptq_w4a16_g$G smoothquant_w8a8_int8 w8a8_fp8_static; do run $recipe; done
  run gptaq_w4a16_g$G gptq; run learned_w4a16_g$G gptq; run awq_w4a16_g${G}_asym awq
  # What takes a recipe file: its name, its head, its steps.
  made() { printf 'format = "%s"\n%b\n[[step]]\nkind = %b\n' "$2" "$3" "$4" > "$OUT/$1.toml"
    "$BITMILL" compress "$MODEL" --recipe "$OUT/$1.toml" -o "$OUT/$1" > /dev/null; rm "$OUT/$1.toml"; }
  GROUP="granularity = { group = { size = $G } }" FEW='[calibration]\nsamples = 4\nlength = 128'
  made cache compressed-tensors "[kv_cache]\ntype = \"fp8\"\n$FEW" "\"gptq\"\nbits = 4\n$GROUP"
  made wide compressed-tensors '' "\"pad\"\nffn = 1024\n[[step]]\nkind = \"rtn\"\nbits = 5\n$GROUP"
  made mixture compressed-tensors '' "\"scaled\"\ntype = \"fp8\"\n[[step]]\nkind = \"rtn\"\nbits = 6\n$GROUP\ntargets = [\"*.mlp.*.weight\"]"
  made rounded compressed-tensors "$FEW" "\"learned\"\niterations = 10\nbits = 4\n$GROUP"
  made ordered-gptq gptq "$FEW" "\"gptq\"\norder = \"full\"\nbits = 4\n$GROUP"
  "$P"/v-ct/bin/python "$HERE"/load_check.py $(find "$OUT" -mindepth 1 -maxdepth 1 ! -name '*-gptq' ! -name '*-awq' ! -name 'nf4*' | sort)
  "$P"/v-bnb/bin/python "$HERE"/load_check.py "$OUT"/nf4 "$OUT"/nf4_double
  "$P"/v-gptq/bin/python "$HERE"/load_check.py $(find "$OUT" -mindepth 1 -maxdepth 1 \( -name '*-gptq' -o -name '*-awq' \) | sort)
  rm -rf "$OUT"
done
