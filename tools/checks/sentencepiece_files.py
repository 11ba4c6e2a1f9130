#!/usr/bin/env python3
"""Are the tokens of a SentencePiece model the same in every file that bitmill makes of it? `sentencepiece_files.py BITMILL [LLAMA_PERPLEXITY]`

Trains a small vocabulary with byte fallback, writes a random Llama folder around its tokenizer.model, and converts folder -> GGUF ->
folder. The sentencepiece library is held against transformers on the last folder, bitmill on all three, and llama-perplexity on the
GGUF file; logits of the last folder in transformers against those of the first. Exits 1 if anything differs.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

TEXT = pathlib.Path(__file__).resolve().parents[2] / "assets/millet/text/eval.txt"
VOCAB = 600
HARD = ["  two  spaces", "你好 world", "a\tb\nc", "123 4567", "x = [1,2]\n    return", " lead", "trail ", ""]
SETTINGS = {
    "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    "tokenizer_class": "LlamaTokenizer", "legacy": True,
}


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout


def main():
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bitmill, *perplexity = sys.argv[1:]
    text = TEXT.read_text()
    texts = [line for line in text.split("\n") if line][:200] + HARD
    ok = True
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        folder, gguf, back = work / "folder", work / "m.gguf", work / "back"
        folder.mkdir()
        sentencepiece.SentencePieceTrainer.train(
            input=str(TEXT), model_prefix=str(folder / "tokenizer"), vocab_size=VOCAB, model_type="bpe", byte_fallback=True, minloglevel=2,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=0.999,
        )
        torch.manual_seed(1)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=256, bos_token_id=1, eos_token_id=2, initializer_range=0.1,
        )).eval()
        model.save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
        run(bitmill, "convert", folder, "--to", "gguf", "-o", gguf)
        run(bitmill, "convert", gguf, "--to", "hugging-face", "-o", back)

        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        expected = lambda given: [1] + pieces.encode(given)
        tokenizer = AutoTokenizer.from_pretrained(back)
        equal = sum(tokenizer(given).input_ids == expected(given) for given in texts)
        ok &= equal == len(texts)
        print(f"transformers on the folder that came back: {equal} of {len(texts)} texts have sentencepiece's tokens")
        some = texts[:2] + HARD[:-1]
        for path in (folder, gguf, back):
            found = [json.loads(run(bitmill, "generate", path, "--prompt", given, "-n", 1, "--json"))["prompt_tokens"] for given in some]
            equal = sum(ids == expected(given) for ids, given in zip(found, some))
            ok &= equal == len(some)
            print(f"bitmill on {path.name}: {equal} of {len(some)}")
        ids = torch.tensor([expected(texts[0])])
        with torch.inference_mode():
            differ = (AutoModelForCausalLM.from_pretrained(back)(ids).logits - model(ids).logits).abs().max().item()
        ok &= differ == 0
        print(f"logits of the folder that came back differ by {differ}")
        if perplexity:
            run(*perplexity, "-m", gguf, "-f", TEXT, "-c", 64, "-b", 64, "--chunks", 8, "-t", 1, "--save-all-logits", work / "logits")
            found = np.frombuffer((work / "logits").read_bytes(), "<i4", 512, 20).reshape(8, 64)
            wanted = np.array(expected(text)[:512]).reshape(8, 64)
            equal = int((found == wanted)[:, 1:].sum())
            ok &= equal == 8 * 63
            print(f"llama.cpp: {equal} of {8 * 63} tokens, those that begin a window aside")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
