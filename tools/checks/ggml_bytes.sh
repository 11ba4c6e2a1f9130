#!/bin/bash
# Is every tensor of our GGUF the bytes that llama-quantize makes of the same checkpoint? On smollm2-d768, for each mix, no width
# padded.
#   ggml_bytes.sh [MIX …]      default: all sixteen that need no importance matrix
# BITMILL names a binary to use instead of building one.
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama models
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
"$P"/venv/bin/python "$P"/src/llama.cpp/convert_hf_to_gguf.py "$P"/models/smollm2-d768 --outfile "$W"/f16.gguf --outtype f16 >"$W"/log 2>&1 || { cat "$W"/log; exit 1; }
for mix in ${@:-q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k iq4_nl iq4_xs}; do
  "$P"/build-llama/bin/llama-quantize "$W"/f16.gguf "$W"/theirs-$mix.gguf $mix >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
  "$BITMILL" compress "$P"/models/smollm2-d768 --recipe $mix --no-pad -o "$W"/ours-$mix.gguf >/dev/null
  "$P"/venv/bin/python "$HERE"/same_tensors.py "$W"/ours-$mix.gguf "$W"/theirs-$mix.gguf
  rm "$W"/*-$mix.gguf
done
