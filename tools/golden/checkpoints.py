#!/usr/bin/env python3
"""Golden checkpoints from the formats' own Python libraries.

Writes crates/checkpoint/tests/golden/: `folder/` (safetensors, two shards, three dtypes), `tiny.gguf` (llama, rows of
q and k permuted by llama.cpp's own function, one matrix in Q8_0), `packed/` (the folder with its layer compressed by
compressed-tensors: attention 4 bits asymmetric by groups of 16, feed-forward 8 bits symmetric by channel) and `manifest.json` (every tensor's shape and CRC-32,
package versions). Element i of tensor number t is ((7 * i + 13 * t) % 256 - 128) / 16, exact in every dtype here, so the
reader's test computes the same from the names alone.

    LLAMA_CPP=path/to/llama.cpp python tools/golden/checkpoints.py

Needs safetensors, gguf, compressed-tensors, numpy and torch, and a llama.cpp source tree for its `conversion` package.
"""

import json
import os
import pathlib
import shutil
import sys
import zlib

import compressed_tensors
import gguf
import numpy as np
import safetensors
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

sys.path.insert(0, os.environ["LLAMA_CPP"])
from conversion.llama import LlamaModel  # noqa: E402

OUT = pathlib.Path(__file__).parent.parent.parent / "crates/checkpoint/tests/golden"
HIDDEN, FFN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 32, 64, 40, 4, 2, 8
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def values(t, shape):
    n = int(np.prod(shape))
    return (((7 * np.arange(n) + 13 * t) % 256 - 128) / 16).astype(np.float32).reshape(shape)


# Hugging Face name, GGUF name, shape, dtype in the folder.
TENSORS = [
    ("model.embed_tokens.weight", "token_embd.weight", [VOCAB, HIDDEN], "BF16"),
    ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", [HIDDEN], "F32"),
    ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", [HEADS * HEAD_DIM, HIDDEN], "F16"),
    ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", [KV_HEADS * HEAD_DIM, HIDDEN], "F16"),
    ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", [KV_HEADS * HEAD_DIM, HIDDEN], "BF16"),
    ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", [HIDDEN, HEADS * HEAD_DIM], "F32"),
    ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", [HIDDEN], "F32"),
    ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", [FFN, HIDDEN], "BF16"),
    ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", [FFN, HIDDEN], "F16"),
    ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", [HIDDEN, FFN], "BF16"),
    ("model.norm.weight", "output_norm.weight", [HIDDEN], "F32"),
]

shutil.rmtree(OUT, ignore_errors=True)
(OUT / "folder").mkdir(parents=True)

# The folder.
stored = {name: torch.from_numpy(values(t, shape)).to(DTYPES[dtype]) for t, (name, _, shape, dtype) in enumerate(TENSORS)}
names = [name for name, *_ in TENSORS]
shards = {"model-00001-of-00002.safetensors": names[:6], "model-00002-of-00002.safetensors": names[6:]}
for shard, members in shards.items():
    save_file({name: stored[name] for name in members}, OUT / "folder" / shard, metadata={"format": "pt"})
index = {
    "metadata": {"total_size": sum(t.numel() * t.element_size() for t in stored.values())},
    "weight_map": {name: shard for shard, members in shards.items() for name in members},
}
(OUT / "folder/model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
    "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
}
(OUT / "folder/config.json").write_text(json.dumps(config, indent=2) + "\n")

# The GGUF file.
writer = gguf.GGUFWriter(OUT / "tiny.gguf", "llama")
writer.add_type("model")
writer.add_name("tiny")
writer.add_block_count(1)
writer.add_context_length(256)
writer.add_embedding_length(HIDDEN)
writer.add_feed_forward_length(FFN)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV_HEADS)
writer.add_rope_freq_base(50000.0)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(VOCAB)
writer.add_rope_dimension_count(HEAD_DIM)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list([f"t{i}" for i in range(VOCAB)])
writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
writer.add_token_merges(["t 0", "t 1"])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_add_bos_token(True)
manifest = []
for t, (name, gguf_name, shape, dtype) in enumerate(TENSORS):
    array = values(t, shape)
    if gguf_name.endswith("attn_q.weight"):
        array = LlamaModel.permute(torch.from_numpy(array), HEADS, HEADS).numpy()
    if gguf_name.endswith("attn_k.weight"):
        array = LlamaModel.permute(torch.from_numpy(array), HEADS, KV_HEADS).numpy()
    kind = gguf.GGMLQuantizationType[dtype if len(shape) == 2 else "F32"]
    if gguf_name.endswith("ffn_down.weight"):
        kind = gguf.GGMLQuantizationType.Q8_0
    data = gguf.quants.quantize(np.ascontiguousarray(array), kind)
    writer.add_tensor(gguf_name, data, raw_dtype=kind)
    folder_bytes = stored[name].contiguous().view(torch.uint8).numpy().tobytes()
    manifest.append({
        "name": name, "shape": shape, "dtype": dtype, "crc32": zlib.crc32(folder_bytes),
        "gguf_type": kind.name, "gguf_crc32": zlib.crc32(data.tobytes()),
    })
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

# The packed folder: what the library's own compressor stores, and what it decompresses that to.
(OUT / "packed").mkdir()
schemes = {
    "self_attn": QuantizationScheme(
        targets=["re:.*self_attn.*"], format="pack-quantized",
        weights=QuantizationArgs(num_bits=4, symmetric=False, strategy="group", group_size=16),
    ),
    "mlp": QuantizationScheme(
        targets=["re:.*mlp.*"], format="pack-quantized", weights=QuantizationArgs(num_bits=8, symmetric=True, strategy="channel")
    ),
}
packed = {}
for entry in manifest:
    name = entry["name"]
    scheme = next((scheme for part, scheme in schemes.items() if f".{part}." in name), None)
    if scheme is None:
        packed[name] = stored[name].to(torch.bfloat16)
        continue
    weight = stored[name].to(torch.bfloat16)
    groups = weight.unflatten(1, (-1, scheme.weights.group_size or weight.shape[1])).float()
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    state = {"weight": weight, "weight_scale": scale.to(torch.bfloat16), "weight_zero_point": zero_point.to(torch.int8)}
    compressed = PackedQuantizationCompressor.compress(state, scheme)
    back = PackedQuantizationCompressor.decompress(compressed, scheme)["weight"]
    entry["packed_crc32"] = zlib.crc32(back.to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    packed |= {name.removesuffix("weight") + part: tensor.contiguous() for part, tensor in compressed.items()}
save_file(packed, OUT / "packed/model.safetensors", metadata={"format": "pt"})
quantization = QuantizationConfig(
    config_groups={f"group_{i}": scheme for i, scheme in enumerate(schemes.values())}, format="pack-quantized",
    quantization_status=QuantizationStatus.COMPRESSED, ignore=["lm_head"],
)
quantization = json.loads(quantization.model_dump_json())
(OUT / "packed/config.json").write_text(json.dumps(config | {"quantization_config": quantization}, indent=2) + "\n")

packages = {module.__name__: module.__version__ for module in (safetensors, torch, np, compressed_tensors)}
packages["gguf"] = __import__("importlib.metadata").metadata.version("gguf")
manifest = {"script": "tools/golden/checkpoints.py", "packages": packages, "seed": None, "tensors": manifest}
(OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
print(*(f"{path.relative_to(OUT)} {path.stat().st_size}" for path in sorted(OUT.rglob("*")) if path.is_file()), sep="\n")
