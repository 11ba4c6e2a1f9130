#!/usr/bin/env python3
"""loaded_perplexity.py FOLDER TEXT WINDOWS: perplexity in f32 of a folder as transformers itself loads it.

Windows of 512 tokens, non-overlapping, every target but a window's first. Tokens are tokenizer.json's own: the class that
transformers 5 builds for a `GPT2Tokenizer` splits line breaks before digits otherwise.
"""
import math
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, text, windows = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
ids = torch.tensor(tokenizer.encode(open(text, encoding="utf-8").read(), add_special_tokens=False).ids)
total, count = 0.0, 0
with torch.inference_mode():
    for i in range(min(windows, len(ids) // 512)):
        x = ids[None, 512 * i : 512 * (i + 1)]
        nll = torch.nn.functional.cross_entropy(model(x).logits[0, :-1].float(), x[0, 1:], reduction="none").double()
        total, count = total + nll.sum().item(), count + nll.numel()
print(f"{math.exp(total / count):.4f}")
