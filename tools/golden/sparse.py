#!/usr/bin/env python3
"""A matrix as compressed-tensors 0.12 stores it in its `sparse-bitmask` form, for crates/checkpoint/src/sparse_bitmask.rs.

  sparse.py        writes crates/checkpoint/tests/golden/sparse.{safetensors,json}

The dense matrix (`dense`, f32) is beside its parts. The library dropped the form after 0.12, hence the old version; its
compressor is called alone, so newer torch and safetensors do.
"""
import json, pathlib
import compressed_tensors, safetensors, torch
from compressed_tensors.compressors.sparse_compressors.sparse_bitmask import BitmaskTensor
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/checkpoint/tests/golden"
SEED = 24
torch.manual_seed(SEED)
dense = torch.randn(7, 45).to(torch.bfloat16)
dense[dense.abs() < 0.7] = 0
dense[3] = 0  # a row without a value
tensors = {"dense": dense.float()} | BitmaskTensor.from_dense(dense).dict("m")
save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "sparse.safetensors")
manifest = {
    "script": "tools/golden/sparse.py",
    "packages": {m.__name__: m.__version__ for m in (compressed_tensors, torch, safetensors)},
    "seed": SEED,
}
(OUT / "sparse.json").write_text(json.dumps(manifest, indent=2) + "\n")
