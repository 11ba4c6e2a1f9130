#!/usr/bin/env python3
"""What compressed-tensors stores of small numbers, for crates/quant/tests/scaled.rs.

  scaled.py       writes crates/quant/tests/golden/scaled.{safetensors,json}

Weights with a wide range, a row and a block of zeros, compressed by the library's own scales and compressors: int8 and fp8 by
row, fp8 by block, NVFP4, MXFP4, MXFP6 and MXFP8; and what they stand for by its own dequantization, in f32.
"""
import importlib.metadata, json, pathlib, sys
sys.path.pop(0)  # transformers would take hqq.py in this folder for a package
import numpy as np, torch
from safetensors.torch import save_file
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.mxfp6.base import MXFP6PackedCompressor
from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.quant_scheme import FP8_BLOCK, FP8_DYNAMIC, INT8_W8A8, MXFP4A16, MXFP6A16, MXFP8A16, NVFP4A16
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/quant/tests/golden"
SEED, ROWS, COLS = 11, 160, 256
rng = np.random.default_rng(SEED)
weight = rng.standard_normal((ROWS, COLS)) * 2.0 ** rng.integers(-9, 1, (ROWS, COLS // 32)).repeat(32, 1) * 0.05
weight[3] = 0
weight[:, 32:64] *= rng.random((ROWS, 1)) > 0.3
# Powers of two, and what lies a rounding away from them.
weight[5, :64] = np.array([1.75, 1.7499, 1.0, 3.5] * 16) * 0.03125
# No zero has a sign: the library's symmetric zero point, added, takes it away.
weight = torch.from_numpy(weight).to(torch.bfloat16).float() + 0.0
tensors = {"weight": weight}


def store(name, scheme, compressor, scale, global_scale=None):
    scheme = QuantizationScheme(targets=["Linear"], **scheme)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": torch.zeros_like(scale)}
    if global_scale is not None:
        state["weight_global_scale"] = global_scale
    out = compressor.compress(state, scheme)
    for part in ("weight", "weight_packed", "weight_scale", "weight_global_scale"):
        if part in out:
            tensors[f"{name}/{part}"] = out[part].view(torch.uint8) if out[part].element_size() == 1 else out[part]


by = lambda size: (weight.unflatten(1, (-1, size)).amin(-1), weight.unflatten(1, (-1, size)).amax(-1))
for name, preset in (("int8", INT8_W8A8), ("fp8", FP8_DYNAMIC)):
    # Scales are stored in bf16, and codes chosen for what is stored.
    low, high = (end.to(torch.bfloat16) for end in (weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)))
    scale, _ = calculate_qparams(low, high, preset["weights"])
    store(name, preset, NaiveQuantizationCompressor, scale.float())
padded = torch.nn.functional.pad(weight, (0, 0, 0, 256 - ROWS)).reshape(2, 128, COLS // 128, 128)
low, high = (end.to(torch.bfloat16) for end in (padded.amin((1, 3)), padded.amax((1, 3))))
scale, _ = calculate_qparams(low, high, FP8_BLOCK["weights"])
store("fp8_block", FP8_BLOCK, NaiveQuantizationCompressor, scale.float())
global_scale = generate_gparam(weight.min(), weight.max())
scale, _ = calculate_qparams(*by(16), NVFP4A16["weights"], global_scale=global_scale)
store("nvfp4", NVFP4A16, NVFP4PackedCompressor, scale, global_scale)
scale, _ = calculate_qparams(*by(32), MXFP4A16["weights"])
store("mxfp4", MXFP4A16, MXFP4PackedCompressor, scale)
for name, preset, compressor in (("mxfp6", MXFP6A16, MXFP6PackedCompressor), ("mxfp8", MXFP8A16, MXFP8QuantizationCompressor)):
    scale, _ = calculate_qparams(*by(32), preset["weights"])
    store(name, preset, compressor, scale)
numbers = unpack_fp4_from_uint8(tensors["nvfp4/weight_packed"], ROWS, COLS, torch.float32)
local = tensors["nvfp4/weight_scale"].view(torch.float8_e4m3fn).float() / global_scale
tensors["nvfp4/decided"] = numbers * local.repeat_interleave(16, 1)

save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "scaled.safetensors")
packages = {name: importlib.metadata.version(name) for name in ("compressed-tensors", "torch", "numpy", "safetensors")}
manifest = {"script": "tools/golden/scaled.py", "packages": packages, "seed": SEED}
(OUT / "scaled.json").write_text(json.dumps(manifest, indent=2) + "\n")
