#!/usr/bin/env python3
"""Golden values of `text`'s other vocabularies: crates/text/tests/golden/{spm.model,small.tiktoken,vocabularies.json}.

A SentencePiece BPE model (byte fallback, no normalizer, like Llama 2's) is trained on the embedded model's text, and `sentencepiece`
encodes with it. The embedded model's first tokens make a small `tiktoken` vocabulary, and `tiktoken` encodes with it by the patterns
of Qwen's first generation (after NFC, special tokens at the end) and of Mistral Nemo (special tokens first).
"""
import base64
import importlib.metadata
import io
import json
import pathlib
import unicodedata

import sentencepiece
import tiktoken

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates" / "text" / "tests" / "golden"
RANKS = 600
QWEN = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "", " ", "  ", "The capital of Barcorland is lume.", "评论：昨天的服务真的舒服。\n情感：好评", "9 + 9 = 18, 1234567890",
    "I'll SHE'S we'Ve 'tis camelCaseWords HTTPServer a/b//c", "  two spaces\tand a tab \n\n\n  lines \r\n end ", "emoji 🦙🙂\u200d🌫️ and é e\u0301 \u00a0nbsp",
    "½ ² ³ ٣ Ⅷ", "نص عربي हिन्दी ქართული", "aaaaaaaaaaaaaaaa bbbbbbb the the  the", "\u2581x \u2581\u2581", "<0x0A> [INST]\u0000\u007f",
]
SPECIAL_TEXTS = ["<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|extra_7|> <|im_start| <|extra_205|>"]


def ranks():
    """The first tokens of the embedded model as bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    vocab = json.loads((ROOT / "assets/millet/model/tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)[:RANKS]
    return {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)}


def main():
    text = (ROOT / "assets/millet/text/eval.txt").read_text()
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=writer, model_type="bpe", vocab_size=700, byte_fallback=True,
        character_coverage=0.995, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, num_threads=1, user_defined_symbols=["<tool>"], minloglevel=2,
    )
    model = writer.getvalue()
    (OUT / "spm.model").write_bytes(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    mergeable = ranks()
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in mergeable.items()]
    (OUT / "small.tiktoken").write_bytes(b"".join(lines))
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    special = {text: RANKS + i for i, text in enumerate(special)}
    qwen = tiktoken.Encoding("Qwen", pat_str=QWEN, mergeable_ranks=mergeable, special_tokens=special)
    tekken = tiktoken.Encoding("tekken", pat_str=TEKKEN, mergeable_ranks=mergeable, special_tokens={})
    golden = {
        "script": "tools/golden/vocabularies.py",
        "packages": {name: importlib.metadata.version(name) for name in ("sentencepiece", "tiktoken")},
        "seed": None,
        "sentencepiece": {text: pieces.encode(text) for text in TEXTS},
        "qwen": {text: qwen.encode(unicodedata.normalize("NFC", text), allowed_special="all") for text in TEXTS + SPECIAL_TEXTS},
        "tekken_pattern": TEKKEN,
        "tekken": {text: [10 + rank for rank in tekken.encode_ordinary(text)] for text in TEXTS if "[INST]" not in text},
    }
    text = json.dumps(golden, ensure_ascii=False, indent=1)
    (OUT / "vocabularies.json").write_text(text.replace("\n   ", " ").replace("\n  ]", " ]") + "\n")


if __name__ == "__main__":
    main()
