"""Golden HQQ grids from a numpy implementation of half-quadratic splitting with integer zero points.

Writes crates/quant/tests/golden/hqq.json: weights of four distributions (bf16, as bits), and for each grid the sum of
|error| of every group after the search and after rounding to nearest. Also prints what is gained by |error|^0.7 and by
squares. Needs numpy.

    python tools/golden/hqq.py
"""

import json
import pathlib

import numpy as np

SEED = 6
GROUP = 64
ROWS = 24
POWER, BETA, KAPPA, ITERATIONS = 0.7, 10.0, 1.01, 20
f32 = np.float32


def bf16(x):
    bits = np.ascontiguousarray(x, f32).view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)).view(f32)


def distributions():
    rng = np.random.default_rng(SEED)
    shape = (ROWS, GROUP)
    return {
        "normal": rng.standard_normal(shape) * 0.03,
        "laplace": rng.laplace(size=shape) * 0.02,
        "student_4": rng.standard_t(4, shape) * 0.02,
        "student_2": rng.standard_t(2, shape) * 0.02,
    }


def total(x, axis=-1):
    return x.astype(np.float64).sum(axis)


class Grid:
    def __init__(self, bits, symmetric):
        self.low, self.high, self.symmetric = f32(-(2 ** (bits - 1))), f32(2 ** (bits - 1) - 1), symmetric

    def codes(self, w, scale, zero):
        return np.clip(np.rint(w / scale + zero), self.low, self.high).astype(f32)

    def values(self, w, scale, zero):
        return scale * (self.codes(w, scale, zero) - zero)

    def range(self, w):
        low, high = min(w.min(), f32(0)), max(w.max(), f32(0))
        steps = self.high - self.low
        if self.symmetric:
            return f32(max(-low, high) / (steps / f32(2))), f32(0)
        scale = f32((high - low) / steps)
        return scale, f32(self.low - low / scale)

    def nearest(self, w):
        scale, zero = self.range(w)
        return bf16(np.array([scale]))[0], np.clip(np.rint(zero), self.low, self.high).astype(f32)


def shrink(x, beta):
    size = np.abs(x)
    out = np.zeros_like(x)
    far = size > 0
    out[far] = np.sign(x[far]) * np.maximum(size[far] - size[far] ** f32(POWER - 1) / beta, 0)
    return out


def fit(codes, left, zero):
    step = (codes - zero).astype(np.float64)
    squares = (step * step).sum()
    return f32((step * left).sum() / squares) if squares > 0 else None


def search(grid, w):
    error = lambda scale, zero: np.abs(w - grid.values(w, scale, zero)).astype(np.float64).sum()
    best = grid.nearest(w)
    least = error(*best)
    scale, zero = grid.range(w)
    beta = f32(BETA)
    for _ in range(ITERATIONS):
        if not (scale > 0 and np.isfinite(scale) and np.isfinite(zero)):
            break
        codes = grid.codes(w, scale, zero)
        left = w - shrink(w - scale * (codes - zero), beta)
        if not grid.symmetric:
            zero = f32((codes - left / scale).astype(np.float64).sum() / len(w))
        fitted = fit(codes, left, zero)
        if fitted is not None and fitted > 0:
            scale = fitted
        for whole in dict.fromkeys([np.floor(zero), np.ceil(zero)]):
            whole = np.clip(whole, grid.low, grid.high).astype(f32)
            fitted = fit(grid.codes(w, scale, whole), left, whole)
            if fitted is None or not fitted > 0:
                continue
            stored = bf16(np.array([fitted]))[0]
            if stored > 0 and (here := error(stored, whole)) < least:
                best, least = (stored, whole), here
        beta *= f32(KAPPA)
    return grid.values(w, *best), grid.values(w, *grid.nearest(w))


def main():
    document = {"numpy": np.__version__, "seed": SEED, "group_size": GROUP, "weights": {}, "cases": []}
    for name, weight in distributions().items():
        weight = bf16(weight)
        document["weights"][name] = (weight.view(np.uint32) >> 16).reshape(-1).tolist()
        for bits in (2, 3, 4, 6, 8):
            for symmetric in (False, True):
                grid = Grid(bits, symmetric)
                found = [search(grid, row) for row in weight]
                searched, rounded = (np.stack(values) for values in zip(*found))
                sums = lambda values: [float(f"{s:.9g}") for s in total(np.abs(values - weight))]
                document["cases"].append(
                    {"weights": name, "bits": bits, "symmetric": symmetric, "hqq": sums(searched), "rtn": sums(rounded)}
                )
                gain = lambda p: total(np.abs(searched - weight) ** p).sum() / total(np.abs(rounded - weight) ** p).sum()
                print(f"{name} {bits} bits {'sym' if symmetric else 'asym'}: |e|^0.7 {gain(0.7):.3f}, e^2 {gain(2.0):.3f}")
    out = pathlib.Path("crates/quant/tests/golden/hqq.json")
    out.write_text(json.dumps(document) + "\n")


main()
