#!/usr/bin/env python3
"""Greedy tokens beside transformers and llama.cpp: `greedy.py BITMILL MODEL [LLAMA_COMPLETION GGUF]`.

Five prompts, 64 tokens each, on the exact path against transformers in f32. Where they part, the gap between the two best scores
there is printed, as transformers sees it: below 0.01 it is a near-tie. With llama-completion and a GGUF file of the same weights, its text
is compared with ours of that file as well.
"""
import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "The three primary colors are", "Water boils at"]
TOKENS = 64


def bitmill(binary, model, prompt):
    run = subprocess.run(
        [binary, "generate", model, "--prompt", prompt, "-n", str(TOKENS), "--exact", "--json"], capture_output=True, check=True,
    )
    return json.loads(run.stdout)


def first_difference(ours, theirs):
    pairs = zip(ours, theirs)
    shorter = min(len(ours), len(theirs))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), None if len(ours) == len(theirs) else shorter)


def main():
    binary, folder, *llama = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in PROMPTS:
        ours = bitmill(binary, folder, prompt)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
            theirs = found[0, ids.shape[1]:].tolist()
            at = first_difference(ours["tokens"], theirs)
            if ours["prompt_tokens"] != ids[0].tolist():
                verdict = "the prompt's tokens differ"
            elif at is None:
                verdict = f"{len(theirs)} tokens equal"
            else:
                best = model(found[:, : ids.shape[1] + at]).logits[0, -1].topk(2).values
                verdict = f"{at} tokens equal, then a gap of {best[0] - best[1]:.5f} between the two best"
        print(f"transformers  {prompt!r}: {verdict}", flush=True)
        if llama:
            completion, gguf = llama
            text = bitmill(binary, gguf, prompt)["text"]
            run = subprocess.run(
                [completion, "-m", gguf, "-p", prompt, "-n", str(TOKENS), "--temp", "0", "-no-cnv", "--no-display-prompt"],
                capture_output=True, check=True, stdin=subprocess.DEVNULL,
            )
            other = run.stdout.decode().removesuffix(" [end of text]\n\n").rstrip("\n")
            at = first_difference(text, other)
            verdict = "equal" if at is None else f"equal for {at} characters: {text[at:at + 20]!r}, {other[at:at + 20]!r}"
            print(f"llama.cpp     {prompt!r}: {verdict}", flush=True)


if __name__ == "__main__":
    main()
