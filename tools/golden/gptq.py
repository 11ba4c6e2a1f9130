"""Golden GPTQ, also from weights that aim at dense outputs, written plainly: one column after another, in f64, through
the inverse.

Writes crates/quant/tests/golden/gptq.json: for small layers whose inputs and weights the test makes too, the codes,
scales and errors. Scales come from compressed-tensors' `calculate_qparams`. What differs from the papers' code is what
crates/quant/src/gptq.rs says: dead columns stay, and scales see all errors before their group. Needs numpy, torch and compressed-tensors.

    python tools/golden/gptq.py
"""

import json
import pathlib

import compressed_tensors
import numpy
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
MASK = (1 << 64) - 1
F32 = numpy.float32

# rows, in_features, tokens, bits, group (0: channel), symmetric, scale, act-order, scales, damping, dead, strength
CASES = [
    (5, 96, 200, 4, 32, True, "bf16", False, "updated", 0.01, True, None),
    (7, 160, 300, 3, 32, False, "bf16", False, "updated", 0.01, False, None),
    (4, 128, 100, 2, 64, False, "f16", False, "updated", 0.01, False, None),
    (6, 144, 300, 4, 0, True, "f32", False, "updated", 0.05, False, None),
    (5, 160, 300, 4, 32, True, "bf16", True, "original", 0.01, True, None),
    (5, 160, 300, 4, 32, False, "f16", True, "updated", 0.01, True, None),
    (6, 96, 200, 8, 16, True, "bf16", False, "updated", 0.01, False, None),
    (6, 96, 200, 6, 48, False, "f32", False, "original", 0.1, False, None),
    (3, 512, 600, 4, 256, True, "bf16", False, "updated", 0.01, False, None),
    (130, 64, 120, 3, 32, True, "bf16", True, "updated", 0.01, False, None),
    (5, 128, 300, 4, 32, True, "bf16", False, "updated", 0.01, True, 0.25),
    (5, 160, 300, 3, 32, False, "bf16", True, "original", 0.01, True, 1.0),
]


def uniform(seed):
    state = (seed * 0x9E3779B97F4A7C15 + 1) & MASK
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        yield F32(state >> 40) / F32(1 << 23) - F32(1)


def activations(tokens, features, seed, dead):
    noise = uniform(seed)
    out = numpy.zeros((tokens, features), F32)
    for token in range(tokens):
        before = F32(0)
        for feature in range(features):
            before = F32(0.7) * before + F32(0.5) * next(noise)
            out[token, feature] = F32(10) * before if feature % 11 == 5 else before
    if dead:
        out[:, 3] = 0
    return out


def weights(rows, features, seed):
    noise = uniform(seed)
    return numpy.array([[next(noise) for _ in range(features)] for _ in range(rows)], F32)


def scale_and_zero(group, bits, symmetric, dtype):
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group.shape[1],
        scale_dtype=DTYPES[dtype], zp_dtype=torch.int8,
    )
    values = torch.from_numpy(group.astype(F32))
    scale, zero = calculate_qparams(values.amin(-1), values.amax(-1), args)
    return scale.float().numpy(), zero.float().numpy()


def case(rows, n, tokens, bits, group, symmetric, dtype, act_order, scales_are, damping, dead, strength):
    group = group or n
    x32 = activations(tokens, n, 1, dead)
    x = x32.astype(numpy.float64)
    original = weights(rows, n, 2)
    hessian = 2 * x.T @ x / tokens
    diagonal = numpy.diag(hessian)
    order = numpy.argsort(-numpy.diag(hessian).astype(F32), kind="stable") if act_order else numpy.arange(n)
    damped = hessian + numpy.diag(numpy.where(diagonal == 0, 1, 0) + damping * diagonal[diagonal > 0].mean())
    damped = damped[order][:, order]
    upper = numpy.linalg.cholesky(numpy.linalg.inv(damped)).T
    if strength is not None:
        dense = activations(tokens, n, 3, dead)
        cross = 2 * (dense - x32).astype(numpy.float64).T @ x / tokens
        damped_in_place = numpy.empty_like(damped)
        damped_in_place[numpy.ix_(order, order)] = damped
        aim = original @ cross @ numpy.linalg.inv(damped_in_place)
        original = (original + strength * aim).astype(F32)

    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weight = original.astype(numpy.float64)[:, order]
    group_of = (order if scales_are == "original" else numpy.arange(n)) // group
    scale, zero = numpy.zeros((rows, n // group), F32), numpy.zeros((rows, n // group), F32)
    if scales_are == "original":
        for g in range(n // group):
            columns = original[:, g * group : (g + 1) * group]
            scale[:, g], zero[:, g] = scale_and_zero(columns, bits, symmetric, dtype)
    codes = numpy.zeros((rows, n), numpy.int64)
    decided = numpy.zeros((rows, n))
    for at in range(n):
        if scales_are == "updated" and at % group == 0:
            found = scale_and_zero(weight[:, at : at + group], bits, symmetric, dtype)
            scale[:, at // group], zero[:, at // group] = found
        s, z = scale[:, group_of[at]], zero[:, group_of[at]]
        column = weight[:, at].copy()
        signed = numpy.clip(numpy.rint(column.astype(F32) / s + z), low, high)
        codes[:, order[at]] = signed - low
        value = (s * (signed - z)).astype(numpy.float64)
        decided[:, order[at]] = value
        error = (column - value) / upper[at, at]
        weight[:, at + 1 :] -= numpy.outer(error, upper[at, at + 1 :])

    delta = original - decided
    fitted = None
    if act_order and scales_are == "updated":
        fitted = numpy.zeros(n, int)
        fitted[order] = group_of
        fitted = fitted.tolist()
    return {
        "rows": rows, "in_features": n, "tokens": tokens, "bits": bits, "group_size": group, "symmetric": symmetric,
        "scale_dtype": dtype, "act_order": act_order, "scales_are": scales_are, "damping": damping, "dead": dead,
        "strength": strength,
        "codes": codes.astype(numpy.uint8).tobytes().hex(),
        "scales": scale.tobytes().hex(),
        "zeros": (zero - low).astype(numpy.uint8).tobytes().hex(),
        "group_of_column": fitted,
        "output_error": float(numpy.einsum("ri,ij,rj->", delta, hessian, delta) / 2),
        "weight_error": float((delta**2).sum()),
    }


def main():
    manifest = {
        "script": "tools/golden/gptq.py",
        "packages": {
            "compressed-tensors": compressed_tensors.__version__,
            "numpy": numpy.__version__,
            "torch": torch.__version__,
        },
        "seeds": {"inputs": 1, "weights": 2, "dense inputs": 3},
    }
    path = pathlib.Path(__file__).parents[2] / "crates/quant/tests/golden/gptq.json"
    lines = ["{", f'"manifest": {json.dumps(manifest)},', '"cases": [']
    lines += [",\n".join(json.dumps(case(*c)) for c in CASES), "]", "}"]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
