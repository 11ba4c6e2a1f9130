#!/usr/bin/env python3
"""Greedy tokens beside transformers and llama.cpp: `greedy.py BITMILL GGUF LLAMA_COMPLETION`.

GGUF is a llama file, or a wheel that holds one. `gguf_to_hf.py` unpacks it by Python's gguf to a folder in f32, and that folder
becomes an f32 GGUF file by `bitmill convert`. Five prompts, 64 tokens each:

- the folder and GGUF on our exact path, against transformers in f32 on the folder;
- the f32 file on the exact path, against llama-completion with an f32 KV cache;
- GGUF on the fast path, against llama-completion: both round activations to 8 bits, in blocks of 32, and not alike to the last bit.

Where two part, the gap between the two best scores there is printed as transformers sees it in f32; before 64 tokens the model ends
a text. Exits 1 if an exact path parts from another at a gap above 0.001, or a fast one above 1.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "The three primary colors are", "Water boils at"]
TOKENS = 64
EXACT, FAST = 1e-3, 1.0
HERE = pathlib.Path(__file__).resolve().parent


def bitmill(binary, model, prompt, *flags):
    run = [binary, "generate", model, "--prompt", prompt, "-n", str(TOKENS), *flags, "--json"]
    return json.loads(subprocess.run(run, capture_output=True, check=True).stdout)


def llama(binary, model, prompt, *flags):
    run = [binary, "-m", model, "-p", prompt, "-n", str(TOKENS), "-t", "1", "--temp", "0", "-no-cnv", "--no-display-prompt", *flags]
    text = subprocess.run(run, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout.decode()
    # It says where the model ended a text, and ends its output with line breaks of its own.
    return text.split(" [end of text]")[0].rstrip("\n")


def first_difference(ours, theirs):
    at = next((at for at, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
    return min(len(ours), len(theirs)) if at is None and len(ours) != len(theirs) else at


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    binary, source, completion = sys.argv[1:]
    worst = {EXACT: 0.0, FAST: 0.0}
    with tempfile.TemporaryDirectory() as work:
        folder, floats, gguf = f"{work}/folder", f"{work}/f32.gguf", source
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                gguf = archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), work)
        subprocess.run([sys.executable, HERE / "gguf_to_hf.py", gguf, folder, "--dtype", "f32"], check=True, capture_output=True)
        subprocess.run([binary, "convert", folder, "--to", "gguf", "-o", floats], check=True, capture_output=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

        def gap(prompt, tokens):
            with torch.inference_mode():
                best = model(torch.tensor([prompt + tokens])).logits[0, -1].topk(2).values
            return (best[0] - best[1]).item()

        def verdict(prompt, ours, at, bound):
            if at is None:
                return f"{len(ours['tokens'])} tokens equal"
            found = gap(prompt, ours["tokens"][:at])
            worst[bound] = max(worst[bound], found)
            return f"{at} tokens equal, then a gap of {found:.5f} between the two best"

        def to_text(prompt, ours, theirs, bound):
            at = first_difference(ours["text"].rstrip("\n"), theirs)
            if at is not None:
                # The token that the first differing character belongs to.
                decode = lambda count: tokenizer.decode(ours["tokens"][:count])
                at = next((count for count in range(len(ours["tokens"])) if len(decode(count + 1)) > at), len(ours["tokens"]))
            return verdict(prompt, ours, at, bound)

        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            first = ids[0].tolist()
            with torch.inference_mode():
                theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
            theirs = theirs[0, len(first):].tolist()
            for name, path in (("folder", folder), ("GGUF", gguf)):
                ours = bitmill(binary, path, prompt, "--exact")
                if ours["prompt_tokens"] != first:
                    raise SystemExit(f"{prompt!r}: our tokens are {ours['prompt_tokens']}, transformers' {first}")
                at = first_difference(ours["tokens"], theirs)
                print(f"transformers, {name:<7} {prompt!r}: {verdict(first, ours, at, EXACT)}", flush=True)
            ours, other = bitmill(binary, floats, prompt, "--exact"), llama(completion, floats, prompt, "-ctk", "f32", "-ctv", "f32", "-fa", "off")
            print(f"llama.cpp, f32 file   {prompt!r}: {to_text(first, ours, other, EXACT)}", flush=True)
            ours, other = bitmill(binary, gguf, prompt), llama(completion, gguf, prompt)
            print(f"llama.cpp, GGUF fast  {prompt!r}: {to_text(first, ours, other, FAST)}", flush=True)
    print(f"largest gap where two part: exact {worst[EXACT]:.5f}, fast {worst[FAST]:.5f}")
    sys.exit(any(found > bound for bound, found in worst.items()))


if __name__ == "__main__":
    main()
