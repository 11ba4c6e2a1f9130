#!/usr/bin/env python3
"""Golden values of `text`: crates/text/tests/golden/text.json, from the embedded model's tokenizer.

    text.py LLAMA_CPP [OUT.json]

Ids: what `tokenizers` makes of some texts, special tokens recognised and none added. Keys: what llama.cpp's own converter
(conversion/base.py of the checkout LLAMA_CPP) writes for the model, with its name for the pre-tokenizer given, since it knows
vocabularies by a hash; arrays as their length and the FNV-1a hash of their elements, each followed by a line feed.
"""
import contextlib
import json
import pathlib
import sys
import tempfile

import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = [
    "", "The capital of Barcorland is lume.", "评论：昨天的服务真的舒服。\n情感：好评", "9 + 9 = 18, 1234567890", "I'll SHE'S we'Ve 'tis",
    "  two spaces\tand a tab \n\n\n  lines \r\n end ", "<|im_start|>user\nHi<|im_end|><|endoftext|> <|im_start|", "emoji 🦙🙂\u200d🌫️ and é e\u0301 \u00a0nbsp",
    "[PAD1925] <|not_a_token|>", "½ ² ³ ٣ Ⅷ", "نص عربي हिन्दी ქართული",
]


def fnv(items):
    value = 0xCBF29CE484222325
    for byte in b"".join(str(item).encode() + b"\n" for item in items):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def converter_keys(llama_cpp, model, pre):
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    with contextlib.redirect_stdout(sys.stderr):
        import gguf
        from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
        hparams = ModelBase.load_hparams(model, False)
        cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        if pre:
            cls.get_vocab_base_pre = lambda self, tokenizer: pre
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "vocab.gguf"
            cls(model, gguf.LlamaFileType.ALL_F32, out).write_vocab()
            fields = gguf.GGUFReader(out).fields
            return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def digest(keys):
    return {name: {"len": len(value), "fnv": fnv(value)} if isinstance(value, list) else value for name, value in keys.items()}


def main():
    llama_cpp = pathlib.Path(sys.argv[1])
    out = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "crates" / "text" / "tests" / "golden" / "text.json"
    model = ROOT / "assets" / "millet" / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    golden = {
        "script": "tools/golden/text.py",
        "packages": {"tokenizers": tokenizers.__version__, "llama.cpp": "as in the sdist of llama-cpp-python 0.3.36"},
        "seed": None,
        "ids": {text: " ".join(map(str, tokenizer.encode(text, add_special_tokens=False).ids)) for text in TEXTS},
        "keys": digest(converter_keys(llama_cpp, model, "qwen2")),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
