#!/usr/bin/env python3
"""What bitsandbytes stores of weights in 4 bits, for crates/quant/tests/nf4.rs.

  nf4.py          writes crates/quant/tests/golden/nf4.{safetensors,json}

Weights with a wide range and blocks of zeros, by the library's `quantize_4bit`: NF4 in blocks of 64, doubly quantized too, and
FP4; and what they stand for, in f32. Scales of scales come from the kernel of its `default` backend, whose rule is that of its
kernels for GPUs: the one for CPUs looks codes up in a table of 65536 and is a place off now and then, which is printed.
"""
import importlib.metadata, json, pathlib, types
import numpy as np, torch
import bitsandbytes._ops as registry, bitsandbytes.functional as F
from bitsandbytes.backends.default import ops as default
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/quant/tests/golden"
SEED, ROWS, COLS = 13, 33, 512

kernels, real = {}, registry.register_kernel
registry.register_kernel = lambda name, backend: lambda kernel: kernels.setdefault(name.split("::")[1], kernel)
again = types.ModuleType("again")
again.__package__, again.__file__ = "bitsandbytes.backends.default", default.__file__
exec(compile(open(default.__file__).read(), default.__file__, "exec"), again.__dict__)
registry.register_kernel = real

rng = np.random.default_rng(SEED)
# Magnitudes within 2^5 of each other: their sum is exact in f32, and so is the order of adding them.
weight = rng.standard_normal((ROWS, COLS)) * 2.0 ** rng.integers(-4, 1, (ROWS, COLS // 64)).repeat(64, 1) * 0.25
weight[3], weight[10, 64:192] = 0, 0
weight[20, :64] = F.get_4bit_type("nf4", device="cpu").numpy().repeat(4) * 0.375
weight = torch.from_numpy(weight).to(torch.bfloat16).float() + 0.0
tensors = {"weight": weight}
for name, quant_type, double in (("nf4", "nf4", False), ("double", "nf4", True), ("fp4", "fp4", False)):
    codes, state = F.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type=quant_type)
    tensors[f"{name}/weight"] = codes
    if double:
        plain = tensors["nf4/absmax"]
        absmax, own = kernels["quantize_blockwise"](plain - state.offset, state.state2.code, 256)
        print("double:", (absmax != state.absmax).sum().item(), "of", absmax.numel(), "scales are another place on CPUs")
        assert own.equal(state.state2.absmax)
        tensors |= {"double/nested_absmax": own, "double/nested_quant_map": state.state2.code, "double/nested_offset": state.offset[None]}
        state.absmax = absmax
    tensors |= {f"{name}/absmax": state.absmax, f"{name}/quant_map": state.code, f"{name}/decided": F.dequantize_4bit(codes, state)}

save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "nf4.safetensors")
packages = {name: importlib.metadata.version(name) for name in ("bitsandbytes", "torch", "numpy", "safetensors")}
manifest = {"script": "tools/golden/nf4.py", "packages": packages, "seed": SEED}
(OUT / "nf4.json").write_text(json.dumps(manifest, indent=2) + "\n")
