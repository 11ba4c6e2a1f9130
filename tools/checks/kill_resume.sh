#!/bin/bash
# Does a run that is killed at random moments end in the same file? KILLS runs of a checkpoint of LAYERS layers in the shapes of
# Qwen2.5-72B (HIDDEN narrower, for a quick look), each killed with SIGKILL once at a random moment and run again to its end, against
# one that was left alone.
#   kill_resume.sh [KILLS] [LAYERS] [RECIPE]        MODEL=FOLDER takes that checkpoint instead
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
KILLS=${1:-20}; LAYERS=${2:-2}; RECIPE=${3:-q4_k_m}
W=$(mktemp -d -p "${TMPDIR:-/var/tmp}"); trap 'rm -rf "$W"' EXIT
if [ -z "$MODEL" ]; then
  "$HERE"/peers.sh models
  MODEL=$W/model
  "$P"/venv/bin/python "$HERE"/make_72b_shaped.py "$MODEL" --layers "$LAYERS" --tokenizer-from "$P"/models/smollm2-qwen2
fi
began=$(date +%s%N)
"$BITMILL" compress "$MODEL" --recipe "$RECIPE" -o "$W"/whole.gguf
took=$((($(date +%s%N) - began) / 1000000))
whole=$(sha256sum <"$W"/whole.gguf); record=$(sha256sum <"$W"/whole.gguf.bitmill.json)
rm "$W"/whole.gguf
same=0; killed=0; resumed=0
for ((kill = 1; kill <= KILLS; kill++)); do
  "$BITMILL" compress "$MODEL" --recipe "$RECIPE" -o "$W"/m.gguf >/dev/null 2>&1 &
  run=$!
  # Over the whole of the run and a little more.
  moment=$(((RANDOM * 32768 + RANDOM) % (took * 21 / 20 + 1)))
  sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
  kill -KILL $run 2>/dev/null && killed=$((killed + 1))
  wait $run 2>/dev/null || true
  after=0
  if [ -e "$W"/.m.gguf.bitmill-partial ] || [ ! -e "$W"/m.gguf ]; then
    after=$("$BITMILL" compress "$MODEL" --recipe "$RECIPE" -o "$W"/m.gguf --json | "$P"/venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["resumed_tensors"])')
  fi
  [ "$after" -gt 0 ] && resumed=$((resumed + 1))
  equal=different
  [ "$(sha256sum <"$W"/m.gguf)" = "$whole" ] && [ "$(sha256sum <"$W"/m.gguf.bitmill.json)" = "$record" ] && equal=equal && same=$((same + 1))
  left=$(find "$W" -name '.*bitmill*' | wc -l)
  echo "killed after $moment of $took ms, went on after $after tensors: $equal, $left leftovers"
  rm -rf "$W"/m.gguf "$W"/m.gguf.bitmill.*
done
echo "$same of $KILLS files and records equal; $killed killed, $resumed went on after tensors that were finished"
