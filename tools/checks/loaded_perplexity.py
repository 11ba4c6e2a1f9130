#!/usr/bin/env python3
"""loaded_perplexity.py FOLDER TEXT WINDOWS: perplexity in f32 of a compressed-tensors folder as transformers itself loads it.

Windows of 512 tokens, non-overlapping, every target but a window's first.
"""
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, text, windows = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
ids = tokenizer(open(text, encoding="utf-8").read(), add_special_tokens=False, return_tensors="pt").input_ids[0]
total, count = 0.0, 0
with torch.inference_mode():
    for i in range(min(windows, len(ids) // 512)):
        x = ids[None, 512 * i : 512 * (i + 1)]
        nll = torch.nn.functional.cross_entropy(model(x).logits[0, :-1].float(), x[0, 1:], reduction="none").double()
        total, count = total + nll.sum().item(), count + nll.numel()
print(f"{math.exp(total / count):.4f}")
