#!/usr/bin/env python3
"""Holds the logits of small checkpoints against reference logits that lie beside them.

    tiny_models.py FOLDER...

Each FOLDER holds folders of models with ref.safetensors: input_ids i64 [n, tokens], logits f32 [n, tokens, vocab], by another
implementation. `python tools/golden/logits.py FOLDER` writes such ones, one of each kind that bitmill reads, with transformers' logits.
Every model runs as it is and, up to the context that the file says it has, as the GGUF file that bitmill makes of it; every sequence
alone. Figures are the largest difference of logits, relative to the largest logit. Exit code 1 if one is above 1e-4 or a model
cannot be run. Models of experts (named *-moe) run as folders alone: `rewrap` copies tensors as they are, and GGUF merges experts;
`tiny_llama_cpp.py` checks their GGUF files.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 1e-4


def examples():
    """The two programs that this runs."""
    paths = {}
    for package, name in (("bitmill-model", "logits"), ("bitmill-checkpoint", "rewrap")):
        command = ["cargo", "build", "-q", "-p", package, "--example", name, "--message-format=json"]
        built = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        for line in map(json.loads, built.splitlines()):
            if line.get("executable") and line["target"]["name"] == name:
                paths[name] = line["executable"]
    return paths


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.decode().strip().splitlines()[-1])
    return done.stdout


def difference(program, model, ids, expected):
    found = [np.frombuffer(run(program, model, ",".join(map(str, row))), "<f4") for row in ids]
    expected = expected.reshape(len(ids), -1)
    return max(np.abs(a - b).max() for a, b in zip(found, expected)) / np.abs(expected).max()


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    programs, worst, failed, models = examples(), 0.0, [], 0
    folders = [folder for root in sys.argv[1:] for folder in sorted(pathlib.Path(root).iterdir())]
    for folder in folders:
        if not (folder / "ref.safetensors").is_file():
            continue
        models += 1
        reference = load_file(folder / "ref.safetensors")
        ids, expected = reference["input_ids"], reference["logits"]
        with tempfile.TemporaryDirectory() as scratch:
            # The reference lies where weights lie, and is none of them.
            alone = pathlib.Path(scratch) / folder.name
            alone.mkdir()
            for file in folder.iterdir():
                if file.name != "ref.safetensors":
                    os.symlink(file.resolve(), alone / file.name)
            forms = [("folder", alone, ids.shape[1])]
            try:
                if not folder.name.endswith("-moe"):
                    run(programs["rewrap"], alone, pathlib.Path(scratch) / "out")
                config = json.loads((alone / "config.json").read_text())
                kind = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type")
                stretched = config.get("use_dynamic_ntk") or config.get("use_logn_attn")
                original = config["seq_length"] if stretched else config["max_position_embeddings"] if kind == "dynamic" else ids.shape[1]
                if (pathlib.Path(scratch) / "out").is_dir():
                    forms.append(("gguf", pathlib.Path(scratch) / "out/model.gguf", min(original, ids.shape[1])))
                for form, path, tokens in forms:
                    wanted = expected
                    if tokens < ids.shape[1]:
                        # A text that is not stretched: the reference has none, but the folder was held against it.
                        rows = [run(programs["logits"], alone, ",".join(map(str, row[:tokens]))) for row in ids]
                        wanted = np.stack([np.frombuffer(row, "<f4") for row in rows])
                    ratio = difference(programs["logits"], path, ids[:, :tokens], wanted)
                    worst = max(worst, ratio)
                    print(f"{folder.name:<24} {form:<7} {tokens:>3} tokens  {ratio:.1e}{'' if ratio <= TOLERANCE else '  TOO FAR'}")
                    if ratio > TOLERANCE:
                        failed.append(f"{folder.name} as {form}")
            except RuntimeError as error:
                print(f"{folder.name:<24} {error}")
                failed.append(folder.name)
    print(f"{models} models, largest difference {worst:.1e}, failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed) or models == 0)


if __name__ == "__main__":
    main()
