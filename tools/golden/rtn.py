"""Golden round-to-nearest rows from the compressed-tensors library.

Writes crates/quant/tests/golden/rtn.json: a few small matrices, and for each grid what the library's
`calculate_qparams` and `PackedQuantizationCompressor` make of them. Needs torch and compressed-tensors 0.18 or newer
(older ones pack widths that do not divide 32 differently).

    python tools/golden/rtn.py
"""

import json
import pathlib
import struct

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams

SEED = 3
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def matrices():
    generator = torch.Generator().manual_seed(SEED)
    plain = torch.randn(5, 64, generator=generator).mul(0.03).bfloat16().float()
    # One row a case, 32 columns in two halves.
    ramp = torch.arange(32, dtype=torch.float32)
    special = torch.stack(
        [
            torch.zeros(32),
            torch.cat([torch.zeros(16), plain[0, :16]]),
            torch.full((32,), 0.25),
            torch.full((32,), -0.25),
            ramp + 1,  # all positive
            -ramp - 3,  # all negative
            (ramp - 16) / 2,  # ties
            torch.where(ramp == 7, 900.0, 0.001),  # an outlier
            plain[1, :32] * 1e-7,  # scales that round to zero or to few bits in f16
            plain[2, :32] * 1e-30,
            plain[3, :32] * 1e6,
        ]
    )
    return {"plain": plain, "special": special}


def grids():
    for bits in (4, 8):
        for group in (16, 32, None):
            for symmetric in (True, False):
                for dtype in DTYPES:
                    yield bits, group, symmetric, dtype
    for bits in (2, 3, 5, 6, 7):
        for symmetric in (True, False):
            yield bits, 32, symmetric, "bf16"


def hexed(tensor):
    # Copied: views of one row keep strides that torch will not reinterpret.
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat.copy_(tensor.reshape(-1))
    return flat.view(torch.uint8).numpy().tobytes().hex()


def fnv1a(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{state:016x}"


def case(name, weight, bits, group, symmetric, dtype):
    args = QuantizationArgs(
        num_bits=bits,
        type="int",
        symmetric=symmetric,
        strategy="channel" if group is None else "group",
        group_size=group,
        scale_dtype=DTYPES[dtype],
        zp_dtype=torch.int8,
    )
    grouped = weight.unflatten(-1, (-1, group or weight.shape[1]))
    scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
    compressed = PackedQuantizationCompressor.compress(state, scheme)
    # Not decompress(): its 4-bit unpacking of zero points fails on one word (8 rows or fewer) in 0.20.
    codes = unpack_from_int32(compressed["weight_packed"], bits, weight.shape)
    decoded = dequantize(x_q=codes, scale=scale, zero_point=zero_point, args=args)
    assert decoded.dtype == torch.float32 and decoded.isfinite().all()
    zeros = compressed.get("weight_zero_point")
    return {
        "weight": name,
        "bits": bits,
        "group_size": group,
        "symmetric": symmetric,
        "scale_dtype": dtype,
        "packed": hexed(compressed["weight_packed"]),
        "scales": hexed(scale.to(DTYPES[dtype])),
        "zero_points": "" if zeros is None else hexed(zeros),
        "decoded_fnv1a": fnv1a(bytes.fromhex(hexed(decoded))),
    }


def main():
    weights = matrices()
    golden = {
        "manifest": {
            "script": "tools/golden/rtn.py",
            "packages": {"compressed-tensors": compressed_tensors.__version__, "torch": torch.__version__},
            "seed": SEED,
        },
        "weights": {name: {"in_features": w.shape[1], "f32": hexed(w)} for name, w in weights.items()},
        "cases": [case(name, w, *grid) for name, w in weights.items() for grid in grids()],
    }
    assert struct.pack("=I", 1) == struct.pack("<I", 1), "hexed() assumes a little-endian machine"
    path = pathlib.Path(__file__).parents[2] / "crates/quant/tests/golden/rtn.json"
    lines = ["{", f'"manifest": {json.dumps(golden["manifest"])},', f'"weights": {json.dumps(golden["weights"])},', '"cases": [']
    lines += [",\n".join(json.dumps(c) for c in golden["cases"]), "]", "}"]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
