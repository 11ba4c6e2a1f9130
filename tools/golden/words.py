#!/usr/bin/env python3
"""Word-packed codes of compressed-tensors before 0.18, for crates/quant/tests/packings.rs.

  words.py     writes crates/quant/tests/golden/words.{safetensors,json}

Codes and zero points of the widths that do not divide 32, packed by the library's own `pack_to_int32`: codes along a row, zero points along
the rows.
"""
import importlib.metadata, json, pathlib, sys
sys.path.pop(0)  # transformers would take hqq.py in this folder for a package
import numpy as np, torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/quant/tests/golden"
SEED, ROWS, COLS, GROUP = 11, 37, 96, 32
rng = np.random.default_rng(SEED)
version = importlib.metadata.version("compressed-tensors")
assert tuple(map(int, version.split(".")[:2])) < (0, 18), version
tensors = {}
for bits in (3, 5, 6, 7):
    codes, zeros = (torch.from_numpy(rng.integers(0, 2**bits, shape)) for shape in ((ROWS, COLS), (ROWS, COLS // GROUP)))
    tensors |= {f"{bits}/codes": codes.to(torch.uint8), f"{bits}/zeros": zeros.to(torch.uint8)}
    signed = [(values - 2 ** (bits - 1)).to(torch.int8) for values in (codes, zeros)]
    tensors[f"{bits}/packed"] = pack_to_int32(signed[0], bits)
    tensors[f"{bits}/zero_point"] = pack_to_int32(signed[1], bits, packed_dim=0)
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "words.safetensors")
packages = {name: importlib.metadata.version(name) for name in ("compressed-tensors", "torch", "numpy", "safetensors")}
(OUT / "words.json").write_text(json.dumps({"script": "tools/golden/words.py", "packages": packages, "seed": SEED}, indent=2) + "\n")
