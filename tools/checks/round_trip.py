"""Helper of round_trip.sh.

  round_trip.py tensors A B            are the tensors of two folders equal, names, dtypes and bits?
  round_trip.py logits FOLDER L TEXT   transformers on FOLDER beside what llama-perplexity --save-all-logits wrote to L of TEXT
"""
import glob, os, struct, sys
import numpy as np
import torch
from safetensors.torch import load_file


def tensors(folder):
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        found.update(load_file(path))
    return found


def compare_tensors(a, b):
    a, b = tensors(a), tensors(b)
    a.pop("lm_head.weight", None) if "lm_head.weight" not in b else None
    same = [n for n in a if n in b and a[n].dtype == b[n].dtype and a[n].shape == b[n].shape
            and torch.equal(a[n].contiguous().view(torch.uint8), b[n].contiguous().view(torch.uint8))]
    extra = set(a) ^ set(b)
    print(f"{len(same)} of {len(a)} tensors equal" + (f", not in both: {sorted(extra)}" if extra else ""))


def saved(path):
    """tokens [chunks, context] and log-probabilities [chunks, context - 1 - context/2, vocabulary]; tools/perplexity/perplexity.cpp."""
    data = open(path, "rb").read()
    assert data[:8] == b"_logits_"
    context, vocab, chunks = struct.unpack("<3i", data[8:20])
    tokens = np.frombuffer(data, "<i4", context * chunks, 20).reshape(chunks, context)
    row = 2 * ((vocab + 1) // 2) + 4
    words = np.frombuffer(data, "<u2", -1, 20 + 4 * context * chunks).reshape(chunks, -1, row)
    scale = words[..., :2].copy().view("<f4")
    least = words[..., 2:4].copy().view("<f4")
    return tokens, words[..., 4:4 + vocab] * scale + least, float(scale.max())


def compare_logits(folder, path, text):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokens, theirs, step = saved(path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(open(text).read(), add_special_tokens=False)["input_ids"]
    same = list(tokens.reshape(-1)) == ids[:tokens.size]
    first = tokens.shape[1] // 2
    worst, top = 0.0, 0
    with torch.no_grad():
        for window, rows in zip(tokens, theirs):
            logits = model(torch.tensor(window[None].astype("int64"))).logits[0, first:first + len(rows)]
            ours = torch.log_softmax(logits.double(), -1).numpy()
            # Far below the likeliest, llama-perplexity cuts off.
            seen = rows > rows.min(-1, keepdims=True) + 1e-3
            worst = max(worst, float(np.abs(ours - rows)[seen].max()))
            top += int((ours.argmax(-1) == rows.argmax(-1)).sum())
    total = theirs.shape[0] * theirs.shape[1]
    print(f"log-probabilities differ by at most {worst:.1e} (steps of {step:.1e}), likeliest token equal at {top} of {total} "
          f"positions, tokens {'equal' if same else 'NOT EQUAL'}")


{"tensors": compare_tensors, "logits": compare_logits}[sys.argv[1]](*sys.argv[2:])
