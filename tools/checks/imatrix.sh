#!/bin/bash
# Are our importance matrices llama-imatrix's? The same model in f32, the same tokens, an f32 KV cache, no flash attention: relative
# errors of the sums, entry by entry. Then both ways: does llama-quantize take ours, does `compress --imatrix` make of theirs the
# bytes that llama-quantize does?
#   imatrix.sh [MODEL [WINDOWS [MIX …]]]      a folder; default: smollm2-d768 of $PEERS, 8 windows of 512, q4_k_m q2_k
# BITMILL names a binary to use instead of building one.
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
[ -n "$1" ] || { "$HERE"/peers.sh llama models; set -- "$P"/models/smollm2-d768; }
MODEL=$1; WINDOWS=${2:-8}; shift; shift || true
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
PY=$P/venv/bin/python; TEXT=$HERE/../../assets/millet/text/calib.txt
"$BITMILL" convert "$MODEL" --to gguf --dtype f32 -o "$W"/f32.gguf >/dev/null
for form in gguf dat; do
  "$BITMILL" imatrix "$W"/f32.gguf --text "$TEXT" --windows "$WINDOWS" -o "$W"/ours.$form
  "$P"/build-llama/bin/llama-imatrix -m "$W"/f32.gguf -f "$TEXT" -c 512 --chunks "$WINDOWS" --parse-special -fa off -ctk f32 -ctv f32 \
    --no-ppl --output-format $form -o "$W"/theirs.$form >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
done
"$PY" - "$W"/ours.gguf "$W"/theirs.gguf <<'PY'
import sys
import numpy
from gguf import GGUFReader
ours, theirs = ({t.name: numpy.asarray(t.data, dtype=numpy.float64).ravel() for t in GGUFReader(path).tensors} for path in sys.argv[1:3])
assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:5]
counts = [name for name in theirs if name.endswith(".counts")]
print(f"{len(counts)} entries; counts equal in {sum((ours[n] == theirs[n]).all() for n in counts)}")
errors = {n: abs(ours[n] - theirs[n]) / numpy.maximum(theirs[n], 1e-30) for n in theirs if n.endswith(".in_sum2")}
every = numpy.concatenate(list(errors.values()))
worst = max(errors, key=lambda n: numpy.median(errors[n]))
print(f"relative error of {every.size} sums: median {numpy.median(every):.2e}, 99 % below {numpy.quantile(every, 0.99):.2e}, largest {every.max():.2e}; "
      f"worst entry {worst}: median {numpy.median(errors[worst]):.2e}")
sys.exit(int(numpy.median(every) > 1e-3))
PY
"$P"/venv/bin/python "$P"/src/llama.cpp/convert_hf_to_gguf.py "$MODEL" --outfile "$W"/f16.gguf --outtype f16 >"$W"/log 2>&1 || { cat "$W"/log; exit 1; }
for mix in ${@:-q4_k_m q2_k}; do
  for imatrix in ours.gguf theirs.gguf ours.dat theirs.dat; do
    "$P"/build-llama/bin/llama-quantize --imatrix "$W"/$imatrix "$W"/f16.gguf "$W"/quantized.gguf $mix >"$W"/log 2>&1 || { tail "$W"/log; exit 1; }
    "$BITMILL" compress "$MODEL" --recipe $mix --no-pad --imatrix "$W"/$imatrix -o "$W"/$mix-$imatrix.gguf --force >/dev/null
    "$PY" "$HERE"/same_tensors.py "$W"/$mix-$imatrix.gguf "$W"/quantized.gguf
  done
done
