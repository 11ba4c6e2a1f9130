#!/bin/bash
# Golden GGUF blocks from ggml's own code, and a longer comparison.
#   tools/golden/ggml_blocks.sh golden                  rewrites crates/quant/tests/golden/ggml_blocks*
#   tools/golden/ggml_blocks.sh stress [SEED [WEIGHTS]] compares that many weights of every distribution (default 2^22)
#   tools/golden/ggml_blocks.sh weighed [SEED [ROWS]]   the same with every distribution of importance, in rows of 896 (default 2048)
# Needs LLAMA_CPP, a llama.cpp source tree (that of PyPI's llama-cpp-python sdist, vendor/llama.cpp), and LLAMA_BUILD, a
# default Release build of it: its libggml-base.a holds the code that llama-quantize runs.
set -e
here=$(cd "$(dirname "$0")" && pwd); root=$here/../..
source=${LLAMA_CPP:?a llama.cpp source tree}; build=${LLAMA_BUILD:?its build folder}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
# IQ3_S as it is read: ggml's own does not step over the place of a sub-block of zeros, so that what follows decodes as what came before.
sed '/^static void quantize_row_iq3_s_impl/,/^}/ s/scales\[ib\] = 0;/scales[ib] = 0; qs += bs4; signs += bs8;/' \
  "$source/ggml/src/ggml-quants.c" > "$work/ggml-quants.c"
cmp -s "$work/ggml-quants.c" "$source/ggml/src/ggml-quants.c" && { echo "IQ3_S is mended already, or written differently"; exit 1; }
cc -O3 -DNDEBUG -ffp-contract=off -w -I"$source/ggml/include" -I"$source/ggml/src" -c "$work/ggml-quants.c" -o "$work/ggml-quants.o"
cc -O2 -ffp-contract=off -I"$source/ggml/include" "$here/ggml_blocks.c" "$work/ggml-quants.o" "$build/ggml/src/libggml-base.a" \
  -o "$work/ggml_blocks" -lstdc++ -lm -lpthread -fopenmp
case ${1:-golden} in
golden)
  out=$root/crates/quant/tests/golden
  "$work/ggml_blocks" 1 4096 > "$out/ggml_blocks.txt"
  "$work/ggml_blocks" 1 5376 896 > "$out/ggml_blocks_weighed.txt"
  cat > "$out/ggml_blocks.manifest.json" <<EOF
{
  "files": ["ggml_blocks.txt", "ggml_blocks_weighed.txt"],
  "script": "tools/golden/ggml_blocks.sh golden",
  "packages": { "llama-cpp-python sdist": "${LLAMA_CPP_PYTHON:-0.3.36}" },
  "compiler": "$(cc --version | head -1), -O3, x86-64 baseline (no FMA)",
  "seed": 1,
  "weights": [4096, 5376],
  "columns": [null, 896]
}
EOF
  ;;
stress)
  seed=${2:-7}; weights=${3:-4194304}
  "$work/ggml_blocks" "$seed" "$weights" > "$work/theirs"
  (cd "$root" && cargo run --quiet --release -p bitmill-quant --example ggml_blocks -- "$seed" "$weights") > "$work/ours"
  diff "$work/theirs" "$work/ours" && echo "$(wc -l < "$work/ours") lines equal, $weights weights each, seed $seed"
  ;;
weighed)
  seed=${2:-7}; weights=$((896 * ${3:-2048}))
  "$work/ggml_blocks" "$seed" "$weights" 896 > "$work/theirs"
  (cd "$root" && cargo run --quiet --release -p bitmill-quant --example ggml_blocks -- "$seed" "$weights" 896) > "$work/ours"
  diff "$work/theirs" "$work/ours" && echo "$(wc -l < "$work/ours") lines of 22 types equal, $weights weights each, seed $seed"
  ;;
esac
