#!/bin/bash
# Is every tensor of our GGUF the bytes that llama-quantize makes of the same checkpoint? For each mix, no width padded.
#   ggml_bytes.sh [MIX …]      default: all; those that need an importance matrix only where IMATRIX names one
# MODEL names a folder (default smollm2-d768), IMATRIX a file of llama-imatrix's for it, which both then weigh by. With
# IMATRIX=make one is made of the project's own text. BITMILL names a binary to use instead of building one.
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama models
MODEL=${MODEL:-$P/models/smollm2-d768}
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
"$P"/venv/bin/python "$P"/src/llama.cpp/convert_hf_to_gguf.py "$MODEL" --outfile "$W"/f16.gguf --outtype f16 >"$W"/log 2>&1 || { cat "$W"/log; exit 1; }
if [ "$IMATRIX" = make ]; then
  IMATRIX=$W/imatrix.gguf
  cat "$HERE"/../../assets/millet/text/*.txt | head -c 40000 >"$W"/text
  "$P"/build-llama/bin/llama-imatrix -m "$W"/f16.gguf -f "$W"/text -o "$IMATRIX" -c 128 --chunks 8 >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
fi
ALL="q8_0 q4_0 q4_1 q5_0 q5_1 q2_k q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k iq4_nl iq4_xs iq3_s iq3_m tq1_0 tq2_0 mxfp4_moe"
NEEDY="q2_k_s iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m iq3_xxs iq3_xs"
for mix in ${@:-$ALL ${IMATRIX:+$NEEDY}}; do
  "$P"/build-llama/bin/llama-quantize ${IMATRIX:+--imatrix "$IMATRIX"} "$W"/f16.gguf "$W"/theirs-$mix.gguf $mix >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
  "$BITMILL" compress "$MODEL" --recipe $mix --no-pad ${IMATRIX:+--imatrix "$IMATRIX"} -o "$W"/ours-$mix.gguf >/dev/null
  "$P"/venv/bin/python "$HERE"/same_tensors.py "$W"/ours-$mix.gguf "$W"/theirs-$mix.gguf || differ="$differ $mix"
  rm "$W"/*-$mix.gguf
done
# IQ3_S blocks with a sub-block of zeros between others differ: ggml shifts what follows it, see docs/decisions/iq3-s-keeps-places.md.
echo "other bytes:${differ:- none}"
[ -z "$differ" ]
