#!/usr/bin/env python3
"""Does llama.cpp compute what we compute from the GGUF files that we write of every family and kind of position?

    tiny_llama_cpp.py BITMILL LLAMA_PERPLEXITY FOLDER...

Each FOLDER holds folders of small models, as for `tiny_models.py`, of 320 tokens and without a tokenizer. Each gets a byte-level
one, `BITMILL convert --to gguf` makes a file of it, and llama-perplexity saves its log-probabilities of a text, with an f32 KV
cache: they are held against ours of the same file and tokens. Contexts end where llama.cpp, which knows no sliding window of
Mistral's and no stretching by length, would part from the model. It stores log-probabilities in 16 bits: the step is printed beside the
largest difference. Exits 1 where that is above two steps.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

import json
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, decoders, trainers

import tiny_models

TEXT = tiny_models.ROOT / "assets/millet/text/eval.txt"
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def saved(path):
    """Tokens, log-probabilities of each window's later half, and the step: tools/perplexity/perplexity.cpp."""
    data = path.read_bytes()
    assert data[:8] == b"_logits_"
    context, vocab, chunks = np.frombuffer(data, "<i4", 3, 8)
    tokens = np.frombuffer(data, "<i4", context * chunks, 20).reshape(chunks, context)
    words = np.frombuffer(data, "<u2", -1, 20 + 4 * context * chunks).reshape(chunks, -1, 2 * ((vocab + 1) // 2) + 4)
    scale, least = (words[..., at:at + 2].copy().view("<f4") for at in (0, 2))
    return tokens, words[..., 4:4 + vocab] * scale + least, float(scale.max())


def log_softmax(logits):
    logits = logits.astype("f8")
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def write_tokenizer(folder, text, vocab):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def main():
    bitmill, perplexity, *roots = sys.argv[1:]
    logits, failed = tiny_models.examples()["logits"], []
    text = TEXT.read_text()[:6000]
    for folder in (folder for root in roots for folder in sorted(pathlib.Path(root).iterdir())):
        if not (folder / "ref.safetensors").is_file():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            scratch = pathlib.Path(scratch)
            alone, gguf = scratch / folder.name, scratch / "model.gguf"
            alone.mkdir()
            for file in folder.iterdir():
                if file.name != "ref.safetensors":
                    os.symlink(file.resolve(), alone / file.name)
            config = json.loads((alone / "config.json").read_text())
            write_tokenizer(alone, text, config["vocab_size"])
            (scratch / "text.txt").write_text(text)
            kind = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type")
            window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
            limits = [48, window, config["max_position_embeddings"] if kind == "dynamic" else None]
            if config.get("use_dynamic_ntk") or config.get("use_logn_attn"):
                limits.append(config["seq_length"])
            context = min(limit for limit in limits if limit)
            try:
                tiny_models.run(bitmill, "convert", alone, "--to", "gguf", "-o", gguf)
                tiny_models.run(
                    perplexity, "-m", gguf, "-f", scratch / "text.txt", "-c", context, "-b", context, "--chunks", 4, "-t", 1,
                    "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--save-all-logits", scratch / "logits",
                )
                tokens, theirs, step = saved(scratch / "logits")
                worst = top = 0
                first = tokens.shape[1] // 2
                for ids, rows in zip(tokens, theirs):
                    ours = np.frombuffer(tiny_models.run(logits, gguf, ",".join(map(str, ids))), "<f4").reshape(len(ids), -1)
                    ours = log_softmax(ours)[first:first + len(rows)]
                    worst = max(worst, np.abs(ours - rows).max())
                    top += (ours.argmax(-1) == rows.argmax(-1)).sum()
                ok = worst <= 2 * step
                positions = theirs.shape[0] * theirs.shape[1]
                print(f"{folder.name:<24} windows of {tokens.shape[1]:>3}  {worst:.1e} (steps of {step:.1e}), likeliest token equal at {top} of {positions}"
                      f"{'' if ok else '  TOO FAR'}", flush=True)
            except RuntimeError as error:
                ok = False
                print(f"{folder.name:<24} {error}", flush=True)
            if not ok:
                failed.append(folder.name)
    print(f"failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
