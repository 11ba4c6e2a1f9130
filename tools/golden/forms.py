#!/usr/bin/env python3
"""Matrices in compressed-tensors' rarer forms, for crates/checkpoint/tests/forms.rs.

  forms.py     writes crates/checkpoint/tests/golden/forms{,_legacy}.{safetensors,json}

Each form's parts are what the library's own compressor makes of a matrix, and `crc32` is of what the library makes of them again, in f32. Run
it with a library from 0.20 on, and once more with 0.12, the last that has the forms of `forms_legacy`: there is no reader of its
`marlin-24`, for which the values are those that went in.
"""
import importlib.metadata, json, pathlib, sys, zlib
sys.path.pop(0)  # transformers would take hqq.py in this folder for a package
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/checkpoint/tests/golden"
SEED, ROWS = 5, 64
torch.manual_seed(SEED)
version = importlib.metadata.version("compressed-tensors")
is_old = tuple(map(int, version.split(".")[:2])) <= (0, 12)
tensors, manifest = {}, {}


def parameters(weight, args, dtype=torch.float32):
    """Scales and zero points by the library's rule. Of f32, so that its products with codes are not rounded."""
    size = {"group": args.group_size, "channel": weight.shape[1], "tensor": weight.numel()}[args.strategy]
    groups = weight.reshape(-1, size) if args.strategy == "tensor" else weight.unflatten(1, (-1, size))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    return scale.to(dtype), zero.to(torch.int8)


def keep(name, parts, dense, weights, inputs=None, **config):
    for part, tensor in parts.items():
        tensor = tensor.detach().contiguous().clone()
        tensors[f"{name}/{part}"] = tensor
    dense = dense.float().contiguous() + 0.0
    group = {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json()) if weights else None}
    groups = {"config_groups": {"group_0": group}} if weights else {}
    manifest[name] = {
        "shape": list(dense.shape),
        "crc32": zlib.crc32(dense.numpy().tobytes()),
        "config": {"quant_method": "compressed-tensors", "version": version, "quantization_status": "compressed"} | groups | config,
    }


def matrix(columns):
    return (torch.randn(ROWS, columns) * torch.rand(ROWS, 1) * 0.1).to(torch.bfloat16)


def halved(columns):
    """Two of each four weights, some of them too small for a code of their own."""
    weight = matrix(columns).unflatten(1, (-1, 4))
    weight.scatter_(-1, weight.abs().topk(2, -1, largest=False).indices, 0)
    return weight.flatten(1)


if is_old:
    from compressed_tensors.compressors.quantized_compressors.naive_quantized import NaiveQuantizationCompressor
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask import Sparse24BitMaskTensor
    from compressed_tensors.compressors.sparse_quantized_compressors.marlin_24 import Marlin24Compressor

    for bits in (4, 3):
        args = QuantizationArgs(num_bits=bits, strategy="group", group_size=32, actorder="group")
        weight, order = matrix(128), torch.randperm(128)
        group_of = torch.empty(128, dtype=torch.int32)
        group_of[order] = torch.arange(128, dtype=torch.int32) // 32
        scale, zero = parameters(weight[:, order], args)
        parts = PackedQuantizationCompressor().compress_weight(weight, scale, args, zero, group_of)
        parts |= {"weight_scale": scale, "weight_g_idx": group_of}
        dense = PackedQuantizationCompressor().decompress_weight(parts, args)
        keep(f"ordered_{bits}", parts, dense, args, format="pack-quantized")
    args = QuantizationArgs(num_bits=8, strategy="group", group_size=32, actorder="group", symmetric=False)
    scale, zero = parameters(weight[:, order], args)
    codes = quantize(weight, scale, zero, args, dtype=torch.int8, g_idx=group_of)
    dense = dequantize(codes, scale, zero, args, g_idx=group_of)
    parts = {"weight": codes, "weight_scale": scale, "weight_zero_point": zero, "weight_g_idx": group_of}
    keep("ordered_int8", parts, dense, args, format="int-quantized")

    sparse = {"sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": []}}
    weight = halved(100)
    parts = Sparse24BitMaskTensor.from_dense(weight).dict("m.weight")
    parts = {name.removeprefix("m."): tensor for name, tensor in parts.items()}
    keep("sparse_24", parts, Sparse24BitMaskTensor.from_compressed_data(**parts).decompress(), None, **sparse)
    assert torch.equal(weight, Sparse24BitMaskTensor.from_compressed_data(**parts).decompress())
    for name, kind in (("fp8", "float"), ("int8", "int")):
        args = QuantizationArgs(num_bits=8, type=kind, strategy="channel")
        weight = halved(128)
        scale, zero = parameters(weight, args)
        codes = quantize(weight, scale, None, args, dtype=args.pytorch_dtype())
        parts = Sparse24BitMaskTensor.from_dense(codes).dict("m.weight")
        parts = {name.removeprefix("m."): tensor for name, tensor in parts.items()}
        back = Sparse24BitMaskTensor.from_compressed_data(**parts)
        # The library's own reader leaves 8-bit floats to their bytes.
        values = back.compressed.view(torch.int8)
        codes = Sparse24BitMaskTensor(back.shape, values, back.bitmask).decompress().view(codes.dtype)
        dense = dequantize(codes, scale, None, args)
        keep(f"sparse_24_{name}", parts | {"weight_scale": scale}, dense, args, format=f"{kind}-quantized", **sparse)

    for name, args in {
        "marlin_24": QuantizationArgs(num_bits=4, strategy="group", group_size=128),
        "marlin_24_short": QuantizationArgs(num_bits=4, strategy="group", group_size=128),
        "marlin_24_rows": QuantizationArgs(num_bits=8, strategy="channel"),
    }.items():
        weight = halved(512 if name == "marlin_24" else 256)
        scale, zero = parameters(weight, args, torch.float16)
        scheme = {"m": QuantizationScheme(targets=["Linear"], weights=args)}
        state = {"m.weight": weight, "m.weight_scale": scale, "m.weight_zero_point": zero}
        parts = Marlin24Compressor().compress(dict(state), scheme)
        parts = {part.removeprefix("m."): tensor for part, tensor in parts.items()}
        codes = quantize(weight.half(), scale, zero, args).float()
        dense = codes * scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        keep(name, parts, dense, args, format="marlin-24")
else:
    from compressed_tensors.compressors.mxfp6.base import MXFP6PackedCompressor
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization.quant_scheme import MXFP6A16, MXFP8A16

    def pack(name, compressor, args, columns, format):
        weight = matrix(columns)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        scale, zero = parameters(weight, args)
        state = {"weight": weight, "weight_scale": scale} | ({} if args.symmetric else {"weight_zero_point": zero})
        parts = compressor.compress(state, scheme)
        dense = compressor.decompress(dict(parts), scheme)["weight"]
        keep(name, parts, dense, args, format=format)

    for strategy, columns in (("tensor", 96), ("channel", 96), ("group", 96)):
        args = QuantizationArgs(num_bits=8, strategy=strategy, group_size=32 if strategy == "group" else None, symmetric=False)
        pack(f"int8_{strategy}", IntQuantizationCompressor, args, columns, "int-quantized")
    for symmetric in (True, False):
        args = QuantizationArgs(num_bits=4, strategy="tensor", symmetric=symmetric)
        pack(f"packed_tensor{'' if symmetric else '_asym'}", PackedQuantizationCompressor, args, 96, "pack-quantized")
    pack("mxfp6", MXFP6PackedCompressor, MXFP6A16["weights"], 128, "mxfp6-pack-quantized")
    pack("mxfp8", MXFP8QuantizationCompressor, MXFP8A16["weights"], 128, "mxfp8-quantized")

name = "forms_legacy" if is_old else "forms"
save_file(tensors, OUT / f"{name}.safetensors")
packages = {name: importlib.metadata.version(name) for name in ("compressed-tensors", "torch", "safetensors")}
whole = {"script": "tools/golden/forms.py", "packages": packages, "seed": SEED, "forms": manifest}
(OUT / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
