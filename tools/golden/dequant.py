#!/usr/bin/env python3
"""Golden values for unpacking GGUF blocks: random blocks of each type, and what the gguf package reads from them.

Writes crates/kernels/tests/golden/dequant.safetensors and its manifest. Run from the repository's root:

    python tools/golden/dequant.py

Needs gguf, numpy and safetensors. Every byte of a block is random but the f16 scales, which are random finite ones
(subnormal, negative and zero among them), so that each bit of each layout takes both values.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import save_file

SEED = 20
# Where the f16 scales of each type lie.
SCALES = {
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "iq4_nl": [0], "iq4_xs": [0],
    # The scale of MXFP4 is any byte; IQ1_M's f16 is the top four bits of four words.
    "iq1_s": [0], "iq1_m": [], "iq2_xxs": [0], "iq2_xs": [0], "iq2_s": [0], "iq3_xxs": [0], "iq3_s": [0], "tq1_0": [52],
    "tq2_0": [64], "mxfp4": [],
}
# Types of which fewer blocks will do: each looks up 32 points or more.
FEW = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "tq1_0", "tq2_0"}
OUT = Path("crates/kernels/tests/golden")


def main():
    random = np.random.default_rng(SEED)
    tensors = {}
    for name in SCALES:
        kind = GGMLQuantizationType[name.upper()]
        size = quants.GGML_QUANT_SIZES[kind][1]
        count = 24 if quants.GGML_QUANT_SIZES[kind][0] == 32 else 3 if name in FEW else 6
        blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
        for at in SCALES[name]:
            scales = (random.normal(0, 0.05, count)).astype(np.float16)
            if name not in FEW:
                scales[0], scales[1] = 0.0, 6e-8
            scales[2] = -65504.0 if len(SCALES[name]) == 1 else -100.0
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
        if name == "iq1_m":
            blocks[:, 55] &= 0xBF  # no infinity
        if name == "mxfp4":
            blocks[0, 0], blocks[1, 0], blocks[2, 0], blocks[3:, 0] = 0, 1, 2, 100 + blocks[3:, 0] % 40
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = quants.dequantize(blocks, kind).astype(np.float32)
    save_file(tensors, OUT / "dequant.safetensors")
    manifest = {
        "script": "tools/golden/dequant.py",
        "seed": SEED,
        "packages": {package: version(package) for package in ["gguf", "numpy", "safetensors"]},
    }
    (OUT / "dequant.manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
