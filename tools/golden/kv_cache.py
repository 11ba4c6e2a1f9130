#!/usr/bin/env python3
"""Scales of an FP8 KV cache by llm-compressor, for crates/calib/tests/kv_cache.rs: writes crates/calib/tests/golden/kv_cache.json.

Tiny models come from bitmill-testkit (`cargo run -p bitmill-testkit --example write-tiny`). Of each: the largest |k| after RoPE and |v| in
f32 that its observer `static_minmax` sees on the same tokens, as scales times 448 (the default, `minmax`, is a moving average over batches in which
the first weighs 0.99 ** (batches - 1)), and for the Llama what is saved of a model in bf16: names, dtypes and
shapes of scales, and `quantization_config` of config.json.
"""
import importlib.metadata, json, pathlib, subprocess, sys, tempfile
sys.path.pop(0)  # transformers would take hqq.py in this folder for a package
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors import safe_open
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/calib/tests/golden"
SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True, "observer": "static_minmax"}
TOKENS = [[3 + (71 * row + 37 * at * at) % 280 for at in range(24)] for row in range(4)]
IntermediatesCache.pin_memory = lambda *_: None  # it takes a driver


def quantized(folder, dtype, out):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in TOKENS])
    oneshot(model=model, dataset=data, recipe=QuantizationModifier(targets=[], kv_cache_scheme=SCHEME),
            max_seq_length=24, num_calibration_samples=len(TOKENS))
    model.save_pretrained(out, save_compressed=True)
    with safe_open(out / "model.safetensors", "pt") as file:
        scales = {name: file.get_tensor(name) for name in file.keys() if name.endswith("_scale")}
    return scales, json.loads((out / "config.json").read_text())["quantization_config"]


golden = {"generator": "tools/golden/kv_cache.py", "tokens": TOKENS, "models": {}}
golden["packages"] = {name: importlib.metadata.version(name) for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")}
with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    subprocess.run(["cargo", "run", "-q", "-p", "bitmill-testkit", "--example", "write-tiny", "--", scratch / "in"], cwd=ROOT, check=True)
    for name in ("tiny-llama", "tiny-qwen2", "tiny-qwen3"):
        scales, _ = quantized(scratch / "in" / name, torch.float32, scratch / name)
        golden["models"][name] = {key: scale.item() * 448 for key, scale in sorted(scales.items())}
    scales, config = quantized(scratch / "in" / "tiny-llama", torch.bfloat16, scratch / "bf16")
    golden["saved"] = {key: {"dtype": str(scale.dtype), "shape": list(scale.shape)} for key, scale in sorted(scales.items())}
    golden["quantization_config"] = config
OUT.mkdir(parents=True, exist_ok=True)
(OUT / "kv_cache.json").write_text(json.dumps(golden, indent=1) + "\n")
print(json.dumps(golden, indent=1)[-3000:])
