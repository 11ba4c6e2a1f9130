#!/usr/bin/env python3
"""Reference masks and block influence for crates/prune/tests/golden.rs, by numpy, torch and transformers.

  prune.py        writes crates/prune/tests/golden/prune.{safetensors,json}

Masks: numpy's stable argsort of magnitudes with many ties (what comes first goes first), in rows, in the tensor and in
groups of four; torch.nn.utils.prune.l1_unstructured on a tensor without ties. Influence: 1 - the mean cosine between what
enters and what leaves each decoder layer of millet, in f32, caught by forward hooks, over the first tokens of its
calibration text.
"""
import hashlib, json, pathlib
import numpy as np, safetensors, torch, transformers
from safetensors.torch import save_file
from torch.nn.utils import prune
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/prune/tests/golden"
SEED, ROWS, COLS, TOKENS = 403853, 24, 40, 256
torch.set_grad_enabled(False)
rng = np.random.default_rng(SEED)
tensors = {}


def stays(weights, removed):
    mask = np.ones(weights.size, dtype=bool)
    mask[np.argsort(np.abs(weights.ravel()), kind="stable")[:removed]] = False
    return mask.reshape(weights.shape)


tied = np.round(rng.standard_normal((ROWS, COLS)) * 8).astype(np.float32) / 8
tensors["tied"] = torch.from_numpy(tied)
for percent in (25, 50, 90):
    row, tensor = COLS * percent // 100, ROWS * COLS * percent // 100
    tensors[f"tied/row/{percent}"] = torch.from_numpy(np.stack([stays(w, row) for w in tied]))
    tensors[f"tied/tensor/{percent}"] = torch.from_numpy(stays(tied, tensor))
groups = tied.reshape(-1, 4)
tensors["tied/2of4"] = torch.from_numpy(np.stack([stays(w, 2) for w in groups]).reshape(tied.shape))

plain = torch.nn.Linear(COLS, ROWS, bias=False)
plain.weight.copy_(torch.from_numpy(rng.standard_normal((ROWS, COLS)).astype(np.float32)))
assert plain.weight.abs().unique().numel() == ROWS * COLS
tensors["plain"] = plain.weight.detach().clone()
prune.l1_unstructured(plain, "weight", amount=0.3)
tensors["plain/tensor/30"] = plain.weight_mask.bool()

folder = ROOT / "assets/millet/model"
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
text = (ROOT / "assets/millet/text/calib.txt").read_text()[:4000]
ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS])
influence = []


def hook(_, args, kwargs, output):
    entering = args[0] if args else kwargs["hidden_states"]
    leaving = output[0] if isinstance(output, tuple) else output
    cosine = torch.nn.functional.cosine_similarity(entering.double(), leaving.double(), dim=-1)
    influence.append(1 - cosine.mean())


for layer in model.model.layers:
    layer.register_forward_hook(hook, with_kwargs=True)
model(ids[None])
tensors["millet/ids"] = ids
tensors["millet/influence"] = torch.stack(influence).float()
print("influence", [round(float(x), 4) for x in influence])

OUT.mkdir(parents=True, exist_ok=True)
save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "prune.safetensors")
manifest = {
    "script": "tools/golden/prune.py",
    "packages": {m.__name__: m.__version__ for m in (np, torch, transformers, safetensors)},
    "seed": SEED,
    "weights_sha256": {"millet": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()},
}
(OUT / "prune.json").write_text(json.dumps(manifest, indent=2) + "\n")
