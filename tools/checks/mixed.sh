#!/bin/bash
# Does a search beat what needs no search? Mixed precision at 4.5 and 3.5 bits per weight beside every uniform block type and every llama.cpp
# mix, by KL to the dense model on the evaluation text (the search sees the calibration text only). Mixes that bitmill does not write are
# llama-quantize's own files.
#   mixed.sh [MODEL …]      folders; default: millet (embedded), smollm2 and smollm2-d768 of $PEERS
# WINDOWS (default 16): windows of the evaluation text. BUDGETS (default "4.5 3.5"): bits per weight.
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
[ -n "$1" ] || { "$HERE"/peers.sh llama models; set -- millet "$P"/models/smollm2 "$P"/models/smollm2-d768; }
WINDOWS=${WINDOWS:-16}; BUDGETS=${BUDGETS:-4.5 3.5}
W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
PY=$P/venv/bin/python; [ -x "$PY" ] || PY=python3
UNIFORM="q2_k q3_k q4_0 q4_1 q4_k q5_0 q5_1 q5_k q6_k q8_0 iq4_nl iq4_xs"
MIXES="q2_k q3_k_s q3_k_m q3_k_l q4_0 q4_1 q4_k_s q4_k_m q5_0 q5_1 q5_k_s q5_k_m q6_k q8_0 iq4_nl iq4_xs"
# row MODEL FILE NAME: bits per weight and KL of a file, onto the table
row() {
  "$BITMILL" eval "$2" --against "$1" --windows "$WINDOWS" --no-tasks --json >"$W"/eval.json
  "$PY" -c 'import json, sys; e = json.load(open(sys.argv[1])); print(e["bits_per_weight"], e["kl_mean"], e["kl_stderr"], sys.argv[2], sep="\t")' "$W"/eval.json "$3" >>"$W"/table
}
for model in "$@"; do
  name=$(basename "$model"); : >"$W"/table
  for bits in $BUDGETS; do
    if "$BITMILL" search "$model" --budget "${bits}bpw" -o "$W"/mixed.toml --force >"$W"/said 2>"$W"/error; then
      echo "== $name, searched for $bits:"; cat "$W"/said
      "$BITMILL" compress "$model" --recipe "$W"/mixed.toml -o "$W"/out.gguf --force >/dev/null
      row "$model" "$W"/out.gguf "mixed_$bits"
    else
      echo "== $name, $bits bits:"; cat "$W"/error
    fi
  done
  for type in $UNIFORM; do
    printf 'format = "gguf"\npad = "off"\n[[step]]\nkind = "block"\ntargets = ["*_proj.weight", "model.embed_tokens.weight", "lm_head.weight"]\ntype = "%s"\n' "$type" >"$W"/$type.toml
    grep -q '"tie_word_embeddings": *false' "$model"/config.json 2>/dev/null || [ "$name" = millet ] || sed -i 's/, "lm_head.weight"//' "$W"/$type.toml
    if "$BITMILL" compress "$model" --recipe "$W"/$type.toml -o "$W"/out.gguf --force >/dev/null 2>"$W"/error; then
      row "$model" "$W"/out.gguf "uniform $type"
    fi
  done
  for mix in $MIXES; do
    if "$BITMILL" recipes $mix >/dev/null 2>&1; then
      # As llama-quantize makes them: no width padded.
      "$BITMILL" compress "$model" --recipe $mix --no-pad -o "$W"/out.gguf --force >/dev/null
    else
      [ -f "$W"/$name-dense.gguf ] || { printf 'format = "gguf"\n[[step]]\nkind = "keep"\n' >"$W"/keep.toml; "$BITMILL" compress "$model" --recipe "$W"/keep.toml -o "$W"/$name-dense.gguf >/dev/null; }
      "$P"/build-llama/bin/llama-quantize "$W"/$name-dense.gguf "$W"/out.gguf $mix >"$W"/log 2>&1 || { tail -3 "$W"/log; continue; }
    fi
    row "$model" "$W"/out.gguf "mix $mix"
  done
  echo "== $name: bits/weight, KL to dense on $WINDOWS windows of the evaluation text"
  sort -n "$W"/table | "$PY" -c '
import sys
rows = [line.rstrip("\n").split("\t") for line in sys.stdin]
mixed = [(float(b), float(k), n) for b, k, _, n in rows if n.startswith("mixed")]
for bits, kl, err, name in rows:
    print(f"{float(bits):7.3f}  {float(kl):.6f} ± {float(err):.6f}  {name}")
for bits, kl, name in mixed:
    others = [(float(b), float(k), n) for b, k, _, n in rows if not n.startswith("mixed")]
    smaller = [o for o in others if o[0] <= bits]
    larger = [o for o in others if o[0] > bits]
    best = min((o for o in smaller), key=lambda o: o[1], default=None)
    beaten = [o for o in larger if o[1] >= kl]
    lost = [o for o in smaller if o[1] < kl]
    print(f"{name}: loses to {len(lost)} of {len(smaller)} of its size or smaller" + (f" ({lost})" if lost else "")
          + (f"; the best of those has {best[1] / kl:.2f} times its KL" if best else "")
          + (f"; beats larger ones up to {max(beaten)[0]:.2f} bits/weight ({max(beaten)[2]})" if beaten else "; beats none that is larger"))'
done
