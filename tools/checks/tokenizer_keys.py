#!/usr/bin/env python3
"""Holds the tokenizer keys that bitmill would write for MODEL against those of llama.cpp's own converter.

    cargo run -q -p bitmill-text --example gguf_keys -- MODEL | tokenizer_keys.py LLAMA_CPP MODEL [PRE]

PRE names the pre-tokenizer where the converter does not know the vocabulary by its hash. Exit code 1 if they differ in more than
add_bos_token, which bitmill writes always and the converter where a file speaks of it, and add_space_prefix, which llama.cpp reads
for SentencePiece alone.
"""
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "golden"))
from text import converter_keys  # noqa: E402


def main():
    ours = json.load(sys.stdin)
    theirs = converter_keys(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
    wrong = 0
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if a == b:
            print(f"same      {key} {len(a) if isinstance(a, list) else repr(a)[:60]}")
            continue
        tolerated = key == "tokenizer.ggml.add_bos_token" and b is None or key == "tokenizer.ggml.add_space_prefix" and a is None
        wrong += not tolerated
        if isinstance(a, list) and isinstance(b, list):
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            a, b = (f"[{len(v)}], at {at}: {v[at:at + 3]}" for v in (a, b))
        print(f"{'tolerated' if tolerated else 'DIFFERS  '} {key}: {a!r} where the converter has {b!r}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
