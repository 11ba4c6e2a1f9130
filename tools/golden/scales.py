"""Golden AWQ scales and clips, and SmoothQuant scales, from numpy implementations of the authors' formulas.

Writes crates/quant/tests/golden/scales.json: two matrices that read the same 32 features, 96 inputs of which some features are
far out, and the scales, errors by alpha and clips that AutoAWQ's search finds on the linear layers' outputs, in double
precision. Needs numpy.

    python tools/golden/scales.py
"""

import json
import pathlib

import numpy as np

f32 = np.float32
SEED, FEATURES, TOKENS, GROUP, STEPS = 11, 32, 96, 16, 20


def nearest(w, bits):
    """Round to nearest on an asymmetric grid with zero in its range, in f32: clipped groups put zero points and weights on ties."""
    groups = w.reshape(-1, GROUP).astype(f32)
    low, high = np.minimum(groups.min(1), f32(0))[:, None], np.maximum(groups.max(1), f32(0))[:, None]
    first, last = f32(-(2 ** (bits - 1))), f32(2 ** (bits - 1) - 1)
    scale = (high - low) / (last - first)
    zero = np.clip(np.rint(first - low / scale), first, last)
    codes = np.clip(np.rint(groups / scale + zero), first, last)
    return (scale.astype(np.float64) * (codes - zero)).reshape(w.shape)


def scales_of(alpha, mean_x, mean_w, duo):
    s = mean_x**alpha
    s = s / (mean_w ** (1 - alpha) + 1e-4) if duo else s
    s = np.maximum(s, 1e-4)
    return s / np.sqrt(s.max() * s.min())


def awq(matrices, x, bits, duo):
    mean_x = np.abs(x).mean(0)
    relative = []
    for w in matrices:
        groups = np.abs(w).reshape(-1, GROUP)
        relative.append((groups / (groups.max(1, keepdims=True) + 1e-6)).reshape(w.shape))
    mean_w = np.concatenate(relative).mean(0)
    error = lambda s: sum((((nearest(w * s, bits) / s - w) @ x.T) ** 2).sum() for w in matrices)
    errors = [error(scales_of(i / STEPS, mean_x, mean_w, duo)) for i in range(STEPS)]
    best = int(np.argmin(errors))
    return best / STEPS, scales_of(best / STEPS, mean_x, mean_w, duo), errors, error(np.ones(FEATURES))


def clips(w, x, bits):
    rows = len(w)
    groups = w.reshape(rows, -1, GROUP)
    inputs = x.reshape(len(x), -1, GROUP)
    whole = np.abs(groups).max(-1).astype(f32)
    best, least = whole.copy(), np.full(whole.shape, np.inf)
    outputs = lambda q: np.einsum("rgk,tgk->rtg", q.reshape(groups.shape), inputs)
    wanted = outputs(w)
    for step in range(10):
        most = whole * (f32(1) - f32(step) / f32(20))
        clipped = np.clip(groups, -most[..., None], most[..., None]).reshape(w.shape)
        error = ((outputs(nearest(clipped, bits)) - wanted) ** 2).sum(1)
        better = error < least
        best[better], least[better] = most[better], error[better]
    return best


def main():
    rng = np.random.default_rng(SEED)
    stored = lambda a: a.astype(f32).astype(np.float64)
    matrices = [stored(rng.standard_t(4, (rows, FEATURES)) * 0.05) for rows in (24, 8)]
    x = stored(rng.standard_normal((TOKENS, FEATURES)) * np.exp(rng.standard_normal(FEATURES)))
    x[:, [3, 17]] *= 12
    flat = lambda a: [float(v) for v in np.asarray(a).reshape(-1)]
    document = {"numpy": np.__version__, "seed": SEED, "features": FEATURES, "group_size": GROUP}
    document |= {"matrices": [flat(w) for w in matrices], "x": flat(x), "awq": [], "clips": [], "smooth": []}
    for bits in (2, 3, 4):
        for duo in (False, True):
            alpha, scales, errors, unscaled = awq(matrices, x, bits, duo)
            case = {"bits": bits, "duo": duo, "alpha": alpha, "scales": flat(scales)}
            document["awq"].append(case | {"error": min(errors), "unscaled": unscaled})
            print(f"{bits} bits, duo {duo}: alpha {alpha}, {min(errors) / unscaled:.3f} of the error without")
        document["clips"].append({"bits": bits, "clips": flat(clips(matrices[0], x, bits))})
    largest = np.abs(np.concatenate(matrices)).max(0)
    for alpha in (0.3, 0.5, 0.8):
        scales = np.maximum(np.abs(x).max(0) ** alpha / np.maximum(largest, 1e-5) ** (1 - alpha), 1e-5)
        document["smooth"].append({"alpha": alpha, "scales": flat(scales)})
    pathlib.Path("crates/quant/tests/golden/scales.json").write_text(json.dumps(document) + "\n")


main()
