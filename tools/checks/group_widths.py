#!/usr/bin/env python3
"""Does compressed-tensors decompress what we packed, at every width, to the values that we read from it?

    python tools/checks/group_widths.py BITMILL MODEL

For each width from 2 to 8, with and without zero points and clipping: `BITMILL compress` packs the folder MODEL in groups of
32, and unpacks the result to f32; the library (0.18 or newer) unpacks the same file. Every value must be equal to the bit.
"""

import pathlib
import subprocess
import sys
import tempfile

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file

FLOATS = 'format = "hugging-face"\n[[step]]\nkind = "float"\ntype = "f32"\n'


def tensors(folder):
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def unpacked(stored, module, bits, symmetric):
    shape = torch.Size(stored[module + ".weight_shape"].tolist())
    scale = stored[module + ".weight_scale"].float()
    codes = unpack_from_int32(stored[module + ".weight_packed"], bits, shape)
    if symmetric:
        zeros = torch.zeros(scale.shape, dtype=torch.int8)
    else:
        zeros = unpack_from_int32(stored[module + ".weight_zero_point"], bits, scale.shape, packed_dim=0)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=32)
    return dequantize(x_q=codes, scale=scale, zero_point=zeros, args=args)


def main():
    bitmill, model = sys.argv[1:]
    failed = False
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        (work / "floats.toml").write_text(FLOATS)
        for bits in range(2, 9):
            for suffix in ["", "_asym", "_clip", "_asym_clip"]:
                recipe = f"w{bits}a16_g32{suffix}"
                for source, name, out in [(model, recipe, "packed"), (work / "packed", work / "floats.toml", "floats")]:
                    subprocess.run([bitmill, "compress", source, "--recipe", name, "-o", work / out, "--force"], check=True, capture_output=True)
                stored, floats = tensors(work / "packed"), tensors(work / "floats")
                modules = [name.removesuffix(".weight_packed") for name in stored if name.endswith(".weight_packed")]
                values = [(unpacked(stored, module, bits, "_asym" not in suffix), floats[module + ".weight"]) for module in modules]
                equal = sum(torch.equal(theirs, ours) for theirs, ours in values)
                failed |= not modules or equal < len(modules)
                print(f"{recipe}: {equal} of {len(modules)} matrices equal")
    print("compressed-tensors", compressed_tensors.__version__)
    sys.exit(failed)


if __name__ == "__main__":
    main()
