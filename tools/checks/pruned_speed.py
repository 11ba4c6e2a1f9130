#!/usr/bin/env python3
"""Times models in turn, so that what else the machine does falls on all alike: `pruned_speed.py BITMILL ROUNDS DENSE MODEL...`

Each round runs `BITMILL bench` on every model once. Printed for each: its bytes, and the median over rounds of its prefill
and decoding time as fractions of the dense model's in the same round, with the least and the largest.
"""
import json
import pathlib
import statistics
import subprocess
import sys


def main():
    bitmill, rounds, *models = sys.argv[1:]
    ratios = {model: {"prefill_ms": [], "decode_ms": []} for model in models}
    bytes_ = {}
    for _ in range(int(rounds)):
        times = {}
        for model in models:
            run = [bitmill, "bench", model, "--prefill", "256", "--decode", "16", "--repeats", "2", "--json"]
            found = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
            bytes_[model] = found["bytes"]
            times[model] = {key: found[key]["median"] for key in ratios[model]}
            for key, values in ratios[model].items():
                values.append(times[model][key] / times[models[0]][key])
        print(json.dumps({pathlib.Path(model).name: found for model, found in times.items()}), file=sys.stderr, flush=True)
    for model in models:
        line = f"{pathlib.Path(model).name:<18} {bytes_[model] / 1e6:7.1f} MB ({bytes_[model] / bytes_[models[0]]:.3f})"
        for key, values in ratios[model].items():
            line += f"  {key.removesuffix('_ms')} {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        print(line)


if __name__ == "__main__":
    main()
