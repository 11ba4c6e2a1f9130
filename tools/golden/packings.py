#!/usr/bin/env python3
"""What GPTQModel packs, for crates/quant/tests/packings.rs.

  packings.py     writes crates/quant/tests/golden/packings.{safetensors,json}

Codes and zero points of each width are packed by GPTQModel's own `pack_original` (GPTQ, second form), its
`convert_gptq_v2_to_v1_format_module` (the first form) and its `pack_awq` (AWQ's GEMM form).
"""
import importlib.metadata, json, pathlib
from types import SimpleNamespace
import numpy as np, torch
from safetensors.torch import save_file
from gptqmodel.nn_modules.qlinear import BaseQuantLinear, PackableQuantLinear
from gptqmodel.quantization.awq.utils.packing_utils import pack_awq
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/quant/tests/golden"
SEED, ROWS, COLS, GROUP = 7, 64, 96, 32
rng = np.random.default_rng(SEED)
tensors = {}


class Packer(BaseQuantLinear):
    """What `pack_original` reads of a layer, without a kernel's checks."""
    def __init__(self, bits):
        torch.nn.Module.__init__(self)
        self.bits, self.maxq, self.planar = bits, 2**bits - 1, False
        self.pack_dtype, self.pack_dtype_bits, self.pack_factor = torch.int32, 32, 32 // bits
        self.pack_np_math_dtype, self.pack_np_dtype = np.uint32, np.int32
        self.register_buffer("g_idx", torch.arange(COLS, dtype=torch.int32) // GROUP)

    def qzero_format(self, format=None):
        return 2


for bits in (2, 3, 4, 8):
    codes = torch.from_numpy(rng.integers(0, 2**bits, (ROWS, COLS)))
    # The first form holds no 0.
    zeros = torch.from_numpy(rng.integers(1, 2**bits, (ROWS, COLS // GROUP)))
    groups = torch.arange(COLS) // GROUP
    # A scale of one: weights are whole numbers, and packing rounds nothing.
    linear = torch.nn.Linear(COLS, ROWS, bias=False)
    linear.weight.data = (codes - zeros[:, groups]).float()
    layer = Packer(bits)
    PackableQuantLinear.pack_original(layer, linear, torch.ones(ROWS, COLS // GROUP), zeros.float(), None)
    tensors |= {f"{bits}/codes": codes.to(torch.uint8), f"{bits}/zeros": zeros.to(torch.uint8)}
    tensors |= {f"{bits}/gptq_v2/qweight": layer.qweight.clone(), f"{bits}/gptq_v2/qzeros": layer.qzeros.clone()}
    convert_gptq_v2_to_v1_format_module(layer, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
    tensors[f"{bits}/gptq/qzeros"] = layer.qzeros.clone()
    if bits == 4:
        qweight, qzeros = pack_awq(codes.T.contiguous(), zeros.T.contiguous(), 4)
        tensors |= {"4/awq/qweight": qweight, "4/awq/qzeros": qzeros}

save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "packings.safetensors")
packages = {name: importlib.metadata.version(name) for name in ("gptqmodel", "torch", "numpy", "safetensors")}
manifest = {"script": "tools/golden/packings.py", "packages": packages, "seed": SEED}
(OUT / "packings.json").write_text(json.dumps(manifest, indent=2) + "\n")
