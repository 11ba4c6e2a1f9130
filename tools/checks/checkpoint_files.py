#!/usr/bin/env python3
"""Opens what bitmill's writers wrote with the formats' own libraries, and compares it with the source.

    LLAMA_CPP=path/to/llama.cpp python tools/checks/checkpoint_files.py MODEL...

For each Hugging Face folder MODEL (llama or qwen2, not quantized): `cargo run --example rewrap` copies its weights into
a sharded folder and a GGUF file; then
- Python's safetensors reads the shards by the index: names, dtypes, shapes and bytes equal the source's;
- llama.cpp's own converter (`conversion/`, vocabulary left out) writes the same model, Python's gguf reads both files, and
  tensors (names, types, shapes, bytes) and architecture metadata (keys, types, values) are compared;
- bitmill opens the converter's file.
Exits 1 if anything differs.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
from safetensors import safe_open

LLAMA_CPP = pathlib.Path(os.environ["LLAMA_CPP"])
REPOSITORY = pathlib.Path(__file__).parent.parent.parent
CONVERT = """
import sys, pathlib, torch
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import gguf
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
folder = pathlib.Path(sys.argv[2])
hparams = ModelBase.load_hparams(folder, False)
model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
model_class.set_vocab = lambda self: None
with torch.inference_mode():
    model_class(folder, getattr(gguf.LlamaFileType, sys.argv[4]), pathlib.Path(sys.argv[3]), eager=True).write()
"""
# Descriptions of the model that the converter takes from model cards, and the size label.
SKIPPED = ("general.size_label", "general.name", "general.basename", "general.finetune", "general.version", "general.sampling")
failed = False


def report(ok, text):
    global failed
    failed |= not ok
    print("ok  " if ok else "FAIL", text)


def safetensors_of(folder):
    """Name → (dtype, shape, bytes), by the index if there is one."""
    index = folder / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"] if index.exists() else None
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == "ref.safetensors":
            continue
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():
                assert where is None or where[name] == path.name, name
                tensor = shard.get_tensor(name)
                tensors[name] = (tensor.dtype, tuple(tensor.shape), tensor)
    assert where is None or set(where) == set(tensors)
    return tensors


def fields_of(reader):
    skip = lambda key: key.startswith(("GGUF.", "tokenizer.")) or key.startswith(SKIPPED)
    return {key: ([t.name for t in field.types], field.contents()) for key, field in reader.fields.items() if not skip(key)}


for argument in sys.argv[1:]:
    model = pathlib.Path(argument).resolve()
    print(f"== {model.name}")
    with tempfile.TemporaryDirectory() as out:
        out = pathlib.Path(out)
        run = ["cargo", "run", "-q", "-p", "bitmill-checkpoint", "--example", "rewrap", "--", str(model), str(out)]
        subprocess.run(run, cwd=REPOSITORY, check=True)
        source, copy = safetensors_of(model), safetensors_of(out / "folder")
        same = source.keys() == copy.keys() and all(
            source[name][:2] == copy[name][:2] and source[name][2].equal(copy[name][2]) for name in source
        )
        shards = len(list((out / "folder").glob("*.safetensors")))
        report(same, f"safetensors: {len(copy)} tensors in {shards} shards equal the source's")

        dtype = {"torch.float32": "ALL_F32", "torch.float16": "MOSTLY_F16", "torch.bfloat16": "MOSTLY_BF16"}[
            str(source["model.embed_tokens.weight"][0])
        ]
        run = [sys.executable, "-c", CONVERT, str(LLAMA_CPP), str(model), str(out / "theirs.gguf"), dtype]
        done = subprocess.run(run, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            report(False, "llama.cpp's converter: " + done.stderr.strip().splitlines()[-1])
            continue
        ours, theirs = gguf.GGUFReader(out / "model.gguf"), gguf.GGUFReader(out / "theirs.gguf")
        describe = lambda reader: {t.name: (t.tensor_type.name, t.shape.tolist(), t.data) for t in reader.tensors}
        a, b = describe(ours), describe(theirs)
        report(a.keys() == b.keys(), f"gguf: {len(a)} tensor names equal the converter's {sorted(a.keys() ^ b.keys())}")
        for name in sorted(a.keys() & b.keys()):
            if a[name][:2] != b[name][:2]:
                report(False, f"gguf: {name} is {a[name][:2]}, the converter's {b[name][:2]}")
            elif not np.array_equal(a[name][2].view(np.uint8), b[name][2].view(np.uint8)):
                if a[name][0] == "F32":
                    worst = np.max(np.abs(a[name][2] - b[name][2]) / np.abs(b[name][2]))
                    report(worst < 1e-6, f"gguf: {name} differs by {worst:.1e} of its values")
                else:
                    report(False, f"gguf: {name} differs")
        report(True, f"gguf: {len(a)} tensors compared byte for byte")
        a, b = fields_of(ours), fields_of(theirs)
        arch = a["general.architecture"][1]
        for key in sorted(a.keys() | b.keys()):
            # The converter repeats a head_dim that config.json names; without the key readers derive the same.
            derived = (["UINT32"], a[f"{arch}.embedding_length"][1] // a[f"{arch}.attention.head_count"][1])
            if key.endswith(("key_length", "value_length")) and key not in a and b[key] == derived:
                continue
            if a.get(key) != b.get(key) and key != "general.file_type":
                report(False, f"gguf: {key} is {a.get(key)}, the converter's {b.get(key)}")
        report(True, f"gguf: {len(a)} keys compared")
        run = ["cargo", "run", "-q", "-p", "bitmill-checkpoint", "--example", "rewrap", "--", str(out / "theirs.gguf"), str(out)]
        report(subprocess.run(run, cwd=REPOSITORY).returncode == 0, "gguf: bitmill opens the converter's file")
sys.exit(failed)
