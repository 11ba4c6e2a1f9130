"""Golden tensor types of GGUF mixes, from llama-quantize itself.

Writes crates/quant/tests/golden/mix.json: for models of many shapes, the type that `llama-quantize --dry-run` gives each
tensor. The models are sparse files: metadata and tensor names, and holes where weights would be.

    python tools/golden/mix.py LLAMA_QUANTIZE    (needs gguf)
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import gguf

# name: architecture, layers, hidden, ffn, heads, kv heads, vocabulary, tied
MODELS = {
    "qwen2.5-72b": ("qwen2", 80, 8192, 29568, 64, 8, 152064, False),
    "qwen1.5-72b": ("qwen2", 80, 8192, 24576, 64, 64, 152064, False),
    "qwen2.5-32b": ("qwen2", 64, 5120, 27648, 40, 8, 152064, False),
    "qwen2.5-7b": ("qwen2", 28, 3584, 18944, 28, 4, 152064, False),
    "qwen2.5-0.5b": ("qwen2", 24, 896, 4864, 14, 2, 151936, True),
    "llama-70b": ("llama", 80, 8192, 28672, 64, 8, 32000, False),
    "llama-65b": ("llama", 80, 8192, 22016, 64, 64, 32000, False),
    "llama-8b": ("llama", 32, 4096, 14336, 32, 8, 128256, False),
    "smollm2-135m": ("llama", 30, 576, 1536, 9, 3, 49152, True),
    "smollm2-d768": ("llama", 30, 768, 1536, 12, 4, 49152, True),
    "millet": ("qwen2", 4, 256, 896, 8, 1, 2048, False),
    "millet-tied": ("qwen2", 4, 256, 896, 8, 1, 2048, True),
    "tiny-80": ("qwen2", 80, 64, 128, 4, 2, 256, False),
    "tiny-80-llama": ("llama", 80, 256, 512, 4, 2, 256, True),
    "odd-width": ("llama", 2, 48, 80, 3, 3, 256, False),
    "odd-width-tied": ("qwen2", 2, 48, 80, 3, 3, 256, True),
    "one-layer": ("qwen2", 1, 256, 512, 4, 2, 256, False),
    "seven-layers": ("llama", 7, 256, 512, 4, 2, 256, False),
    "nine-layers": ("qwen2", 9, 256, 512, 4, 4, 256, True),
    "single-kv-row": ("llama", 2, 32, 32, 32, 1, 256, False),
}
MIXES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "IQ4_NL", "IQ4_XS",
]
F32, BF16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16


def tensors(arch, layers, hidden, ffn, heads, kv_heads, vocab, tied):
    """(name, shape) in PyTorch's order of dimensions."""
    kv = hidden // heads * kv_heads
    yield "token_embd.weight", (vocab, hidden)
    for i in range(layers):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", (hidden,)
        yield block + "attn_q.weight", (hidden, hidden)
        yield block + "attn_k.weight", (kv, hidden)
        yield block + "attn_v.weight", (kv, hidden)
        if arch == "qwen2":
            yield block + "attn_q.bias", (hidden,)
            yield block + "attn_k.bias", (kv,)
            yield block + "attn_v.bias", (kv,)
        yield block + "attn_output.weight", (hidden, hidden)
        yield block + "ffn_norm.weight", (hidden,)
        yield block + "ffn_gate.weight", (ffn, hidden)
        yield block + "ffn_up.weight", (ffn, hidden)
        yield block + "ffn_down.weight", (hidden, ffn)
    yield "output_norm.weight", (hidden,)
    if not tied:
        yield "output.weight", (vocab, hidden)


def write_sparse(path, model):
    arch, layers, hidden, ffn, heads, kv_heads, _, _ = model
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model[6])
    total = 0
    for name, shape in tensors(*model):
        kind = F32 if len(shape) == 1 else BF16
        elements = shape[0] * (shape[1] if len(shape) == 2 else 1)
        size = elements * (4 if kind == F32 else 2)
        writer.add_tensor_info(name, shape, None, size, raw_dtype=kind)
        total += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    begin = -(-os.path.getsize(path) // 32) * 32
    os.truncate(path, begin + total)


LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\S+), size = .*?(?:\((\w+)\))?$")


def types(quantize, path, mix):
    run = subprocess.run([quantize, "--dry-run", path, mix], capture_output=True, text=True, check=True)
    found = {}
    for line in (run.stdout + run.stderr).splitlines():
        if match := LINE.match(line.strip()):
            name, before, after = match.groups()
            found[name] = (after or before).lower()
    return found


def runs(values):
    """"q6_k*3 q4_k*2" for three layers of one and two of the other."""
    out = []
    for value in values:
        if out and out[-1][0] == value:
            out[-1][1] += 1
        else:
            out.append([value, 1])
    return " ".join(f"{value}*{count}" for value, count in out)


def main():
    quantize = sys.argv[1]
    golden = {}
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "sparse.gguf")
            write_sparse(path, model)
            entry = dict(zip(("architecture", "n_layers", "hidden", "ffn", "n_heads", "n_kv_heads", "vocab", "tied"), model))
            entry["mixes"] = {}
            for mix in MIXES:
                found = types(quantize, path, mix)
                assert set(found) == {name for name, _ in tensors(*model)}, (name, mix, len(found))
                kinds = {}
                for tensor, _ in tensors(*model):
                    kinds.setdefault(re.sub(r"^blk\.\d+\.", "blk.{}.", tensor), []).append(found[tensor])
                # The tensors of each course of types through the layers.
                courses = {}
                for kind, values in kinds.items():
                    courses.setdefault(runs(values), []).append(kind.replace("blk.{}.", ".").removesuffix(".weight"))
                entry["mixes"][mix.lower()] = {course: " ".join(kinds) for course, kinds in courses.items()}
            golden[name] = entry
    manifest = {
        "script": "tools/golden/mix.py",
        "packages": {"llama-cpp-python sdist": "0.3.36", "gguf": importlib.metadata.version("gguf")},
    }
    path = pathlib.Path(__file__).parents[2] / "crates/quant/tests/golden/mix.json"
    body = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in golden.items())
    path.write_text(f'{{"manifest": {json.dumps(manifest)},\n"models": {{\n{body}\n}}}}\n')


if __name__ == "__main__":
    main()
