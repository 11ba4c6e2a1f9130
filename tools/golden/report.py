#!/usr/bin/env python3
"""Writes the sample documents of crates/report/tests/golden: `report.py FOLDER`.

The figures are invented, in the range of what the embedded model gives; what the samples pin is the documents'
shape and what the renderers make of it. Field names are written out here once more, apart from the Rust code.
"""
import json
import math
import pathlib
import sys

MACHINE = {"cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 2, "threads": 2, "memory_bytes": 8335949824,
           "isa": "avx2", "os": "linux x86_64"}
CREATED = "2026-11-22T18:02:30Z"
TASKS = {"facts": 600, "sentiment": 600, "sentiment_zh": 300, "story": 500, "sums": 400}
DENSE = {"facts": 600, "sentiment": 600, "sentiment_zh": 299, "story": 305, "sums": 370}


def latency(ms, spread):
    return {"median": ms, "p10": round(ms * (1 - spread), 4), "p90": round(ms * (1 + 2 * spread), 4)}


def mcnemar(gained, lost):
    n, k = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2 ** n) if n else 1.0


def speed(prefill, decode, peak):
    return {"prefill_ms": latency(prefill, 0.02), "prefill_tokens": 512, "decode_ms": latency(decode, 0.04),
            "decode_tokens": 160, "decode_context": 128, "repeats": 5, "peak_bytes": peak,
            "peak_scope": "measurement"}


def quality(perplexity, kl, flips):
    out = {"perplexity": perplexity, "perplexity_stderr": 0.0104, "perplexity_second_half": round(perplexity - 0.0521, 4),
           "perplexity_second_half_stderr": 0.0141, "targets": 44115, "windows": 173, "window": 256}
    if kl is not None:
        out |= {"kl_mean": kl, "kl_stderr": float(f"{kl / 60:.3g}"), "kl_median": float(f"{kl / 9:.3g}"),
                "kl_p90": float(f"{kl * 2.2:.3g}"), "kl_p99": float(f"{kl * 14:.3g}"),
                "top1_agreement": round(1 - 0.35 * math.sqrt(kl), 6)}
    tasks = {}
    for (name, n), (gained, lost) in zip(TASKS.items(), flips or [(0, 0)] * 5):
        right = DENSE[name] + gained - lost
        tasks[name] = {"accuracy": right / n, "accuracy_norm": max(right - 1, 0) / n, "n": n}
        if kl is not None:
            tasks[name] |= {"gained": gained, "lost": lost, "mcnemar_p": round(mcnemar(gained, lost), 6)}
    out["tasks"] = tasks
    out["accuracy"] = sum(t["accuracy"] for t in tasks.values()) / len(tasks)
    return out


DENSE_BYTES = 8787992
DENSE_QUALITY = quality(2.2695, None, None)


def row(strategy, form, size, prefill, decode, perplexity, kl, flips, fast, seconds, recipe, notes=()):
    q = quality(perplexity, kl, flips)
    return {"strategy": strategy, "format": form, "bytes": size, "ratio": DENSE_BYTES / size,
            "bits_per_weight": size * 8 / 4387072, **speed(prefill, decode, 31457280 + 4 * size), **q,
            "kl_fast_path": fast, "recovery": q["accuracy"] / DENSE_QUALITY["accuracy"], "predicted_kl": None,
            "compress_seconds": seconds, "recipe": recipe, "notes": list(notes)}


def gguf(mix):
    return f'name = "{mix}"\nformat = "gguf"\n\n[[step]]\nkind = "mix"\nmix = "{mix}"\n'


def groups(bits, size):
    grain = f"{{ group = {{ size = {size} }} }}" if size else '"channel"'
    return (f'format = "compressed-tensors"\n\n[[step]]\nkind = "rtn"\ntargets = ["*.self_attn.*.weight", '
            f'"*.mlp.*.weight"]\nskip = ["lm_head.weight"]\nbits = {bits}\ngranularity = {grain}\n'
            f'zero_point = "symmetric"\nscale = "bf16"\n')


FALLBACK = "24 of 29 tensors: rows of 256 and 896 weights do not divide into blocks of 256, stored as q5_0 instead"
ROWS = [
    row("none", "hugging-face", DENSE_BYTES, 41.3, 1.412, 2.2695, None, None, None, None, None),
    row("q8_0", "gguf", 4712416, 29.8, 0.871, 2.2696, 0.0000421, [(0, 0), (0, 0), (0, 0), (1, 1), (0, 1)], 0.0000187, 0.04, gguf("q8_0")),
    row("q4_k_m", "gguf", 3014272, 33.1, 0.702, 2.2711, 0.00312, [(0, 0), (0, 1), (1, 1), (6, 8), (4, 7)], 0.0000201, 0.31, gguf("q4_k_m"), [FALLBACK]),
    row("q4_0", "gguf", 2513408, 30.2, 0.598, 2.2739, 0.00644, [(0, 2), (0, 1), (1, 2), (9, 12), (5, 13)], 0.0000214, 0.05, gguf("q4_0")),
    row("w8a16", "compressed-tensors", 5201152, 34.0, 0.951, 2.2696, 0.0000533, [(0, 0), (0, 0), (0, 0), (2, 1), (1, 0)], 0.0000179, 0.05, groups(8, 0)),
    row("w4a16_g128", "compressed-tensors", 3312640, 35.9, 0.744, 2.2716, 0.00391, [(0, 1), (0, 0), (1, 2), (7, 10), (4, 9)], 0.0000192, 0.06, groups(4, 128)),
    row("w4a16_g32", "compressed-tensors", 3486208, 36.4, 0.769, 2.2704, 0.00268, [(0, 0), (0, 0), (1, 1), (6, 6), (3, 6)], 0.0000190, 0.06, groups(4, 32)),
    row("w2_g64.toml", "compressed-tensors", 2709504, 37.2, 0.688, 2.5239, 0.121, [(0, 9), (0, 6), (2, 16), (31, 76), (12, 72)], 0.0000188, 0.06, groups(2, 64)),
]
FAILED = [{"strategy": "w4a16_g96.toml",
           "error": "`model.layers.0.self_attn.q_proj.weight`: 256 input features do not divide into groups of 96",
           "hint": "group sizes that divide 256: 16, 32, 64, 128, 256"}]


def main(folder):
    compare = {"schema": "bitmill.compare/1", "version": "0.1.0", "created": CREATED, "model": "millet",
               "weights": 4387072, "machine": MACHINE,
               "settings": {"text": "the embedded evaluation text", "window": 256, "windows": None, "items": None, "full": True,
                            "seed": 1, "threads": 2},
               "rows": ROWS, "failed": FAILED}
    r = ROWS[2]
    kept = {k: r[k] for k in ("bytes", "ratio", "bits_per_weight")}
    q = {k: r[k] for k in r if k.startswith(("perplexity", "targets", "window", "kl_mean", "kl_stderr", "kl_median", "kl_p", "top1", "tasks", "accuracy"))}
    evaluation = {"schema": "bitmill.eval/1", "version": "0.1.0", "created": CREATED, "model": "millet-q4_k_m.gguf",
                  "against": "millet", "text": "eval.txt", **kept, **q, "kl_fast_path": r["kl_fast_path"],
                  "recovery": r["recovery"], "machine": MACHINE}
    bench = {"schema": "bitmill.bench/1", "version": "0.1.0", "created": CREATED, "model": "millet",
             "bytes": DENSE_BYTES, "bits_per_weight": ROWS[0]["bits_per_weight"], **speed(41.3, 1.412, 66000000),
             "seed": 1, "machine": MACHINE}
    for name, document in ("compare", compare), ("eval", evaluation), ("bench", bench):
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        pathlib.Path(folder, f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
