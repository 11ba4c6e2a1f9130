"""Golden tensor types of GGUF mixes, from llama-quantize itself.

Writes crates/quant/tests/golden/mix.json: for models of many shapes, the type that `llama-quantize --dry-run` gives each
tensor. The models are sparse files: metadata and tensor names, and holes where weights would be.

    python tools/golden/mix.py LLAMA_QUANTIZE [MODEL ...]   (needs gguf; with names: only those anew, the others as they are)
"""

import importlib.metadata
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import gguf
import numpy

# name: architecture, layers, hidden, ffn, heads, kv heads, vocabulary, tied; experts, those of a token, their width, the shared one's
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
    "qwen1.5-moe-a2.7b": ("qwen2moe", 24, 2048, 5632, 16, 16, 151936, False, 60, 4, 1408, 5632),
    "qwen3-30b-a3b": ("qwen3moe", 48, 2048, 6144, 32, 4, 151936, False, 128, 8, 768, 0),
    "eight-experts": ("qwen3moe", 9, 256, 512, 4, 2, 256, False, 8, 2, 256, 0),
    "single-kv-row": ("llama", 2, 32, 32, 32, 1, 256, False),
}
MIXES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "MXFP4_MOE",
]
F32, BF16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.BF16


def tensors(arch, layers, hidden, ffn, heads, kv_heads, vocab, tied, experts=0, used=0, width=0, shared=0):
    """(name, shape) in PyTorch's order of dimensions."""
    kv = hidden // heads * kv_heads
    yield "token_embd.weight", (vocab, hidden)
    for i in range(layers):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", (hidden,)
        yield block + "attn_q.weight", (hidden, hidden)
        yield block + "attn_k.weight", (kv, hidden)
        yield block + "attn_v.weight", (kv, hidden)
        if arch in ("qwen2", "qwen2moe"):
            yield block + "attn_q.bias", (hidden,)
            yield block + "attn_k.bias", (kv,)
            yield block + "attn_v.bias", (kv,)
        yield block + "attn_output.weight", (hidden, hidden)
        yield block + "ffn_norm.weight", (hidden,)
        if experts:
            yield block + "ffn_gate_inp.weight", (experts, hidden)
            yield block + "ffn_gate_exps.weight", (experts, width, hidden)
            yield block + "ffn_up_exps.weight", (experts, width, hidden)
            yield block + "ffn_down_exps.weight", (experts, hidden, width)
            if shared:
                yield block + "ffn_gate_inp_shexp.weight", (hidden,)
                yield block + "ffn_gate_shexp.weight", (shared, hidden)
                yield block + "ffn_up_shexp.weight", (shared, hidden)
                yield block + "ffn_down_shexp.weight", (hidden, shared)
            continue
        yield block + "ffn_gate.weight", (ffn, hidden)
        yield block + "ffn_up.weight", (ffn, hidden)
        yield block + "ffn_down.weight", (hidden, ffn)
    yield "output_norm.weight", (hidden,)
    if not tied:
        yield "output.weight", (vocab, hidden)


def write_sparse(path, model):
    arch, layers, hidden, ffn, heads, kv_heads = model[:6]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model[6])
    if len(model) > 8:
        writer.add_expert_count(model[8])
        writer.add_expert_used_count(model[9])
        writer.add_expert_feed_forward_length(model[10])
        writer.add_expert_shared_feed_forward_length(model[11])
    total = 0
    for name, shape in tensors(*model):
        kind = F32 if len(shape) == 1 or "ffn_gate_inp" in name else BF16
        elements = math.prod(shape)
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


def write_imatrix(path):
    """Of one tensor: in a dry run only its being there counts."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", numpy.ones((1, 32), numpy.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", numpy.ones((1, 1), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(quantize, path, mix, imatrix=None):
    options = ["--imatrix", imatrix] if imatrix else []
    run = subprocess.run([quantize, "--dry-run", *options, path, mix], capture_output=True, text=True, check=True)
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


def courses(model, found, what):
    """The tensors of each course of types through the layers."""
    assert set(found) == {name for name, _ in tensors(*model)}, (what, len(found))
    kinds = {}
    for tensor, shape in tensors(*model):
        if len(shape) == 1:
            # Not worth their place in the file.
            assert found[tensor] == "f32", (what, tensor)
            continue
        kinds.setdefault(re.sub(r"^blk\.\d+\.", "blk.{}.", tensor), []).append(found[tensor])
    courses = {}
    for kind, values in kinds.items():
        courses.setdefault(runs(values), []).append(kind.replace("blk.{}.", ".").removesuffix(".weight"))
    return {course: " ".join(kinds) for course, kinds in courses.items()}


def main():
    quantize, names = sys.argv[1], sys.argv[2:]
    path = pathlib.Path(__file__).parents[2] / "crates/quant/tests/golden/mix.json"
    before = json.loads(path.read_text())["models"] if names else {}
    golden = {}
    for name, model in MODELS.items():
        if names and name not in names:
            golden[name] = before[name]
            continue
        with tempfile.TemporaryDirectory() as folder:
            sparse = os.path.join(folder, "sparse.gguf")
            write_sparse(sparse, model)
            keys = "architecture n_layers hidden ffn n_heads n_kv_heads vocab tied n_experts n_used expert_width shared_width"
            entry = dict(zip(keys.split(), model))
            entry["mixes"] = {}
            imatrix = os.path.join(folder, "imatrix.gguf")
            write_imatrix(imatrix)
            for mix in MIXES:
                plain = courses(model, types(quantize, sparse, mix), (name, mix))
                entry["mixes"][mix.lower()] = plain
                weighed = courses(model, types(quantize, sparse, mix, imatrix), (name, mix))
                # Most mixes take no notice of an importance matrix.
                if weighed != plain:
                    entry["mixes"][mix.lower() + "+imatrix"] = weighed
            golden[name] = entry
    manifest = {
        "script": "tools/golden/mix.py",
        "packages": {"llama-cpp-python sdist": "0.3.36", "gguf": importlib.metadata.version("gguf")},
    }
    body = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in golden.items())
    path.write_text(f'{{"manifest": {json.dumps(manifest)},\n"models": {{\n{body}\n}}}}\n')


if __name__ == "__main__":
    main()
