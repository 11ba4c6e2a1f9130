#!/bin/bash
# Golden importance matrices, by llama-imatrix: crates/checkpoint/tests/golden/imatrix.{gguf,dat} and imatrix.manifest.json.
# Of testkit's tiny-qwen2-moe over the first 4 windows of 64 tokens of millet's calibration text, on an f32 GGUF with an f32
# cache and without flash attention, so that crates/calib can be held against them too.
# Needs LLAMA_BUILD, a build of llama.cpp.
set -e
here=$(cd "$(dirname "$0")" && pwd); root=$here/../..
build=${LLAMA_BUILD:?a build of llama.cpp}
out=$root/crates/checkpoint/tests/golden
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd "$root"
cargo run --quiet -p bitmill-testkit --example write-tiny -- "$work"
${BITMILL:-cargo run --quiet -p bitmill-cli --} convert "$work/tiny-qwen2-moe" --to gguf --dtype f32 -o "$work/model.gguf" >/dev/null
cp assets/millet/text/calib.txt "$work/calib.txt"
cd "$work"
for form in gguf dat; do
  "$build/bin/llama-imatrix" -m model.gguf -f calib.txt -c 64 -b 64 -ub 64 --chunks 4 -fa off -ctk f32 -ctv f32 -t 1 \
    --output-format $form -o imatrix.$form >log 2>&1 || { tail log; exit 1; }
  cp imatrix.$form "$out/imatrix.$form"
done
cat > "$out/imatrix.manifest.json" <<EOM
{
  "files": ["imatrix.gguf", "imatrix.dat"],
  "script": "tools/golden/imatrix.sh",
  "packages": { "llama.cpp": "${LLAMA_VERSION:?which llama.cpp it is}" },
  "model": "testkit tiny-qwen2-moe, f32",
  "text": "assets/millet/text/calib.txt, 4 windows of 64 tokens"
}
EOM
