#!/usr/bin/env python3
"""Golden values of `model`'s sampling: crates/model/tests/golden/sample.safetensors and sample.json.

Scores come from a fixed generator; transformers' own logits processors, built from a generation config as `generate` builds them, turn
them into probabilities; what they remove has probability 0.
"""
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
VOCAB = 777
SETTINGS = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 1.8},
    "top_k": {"temperature": 1.0, "top_k": 40},
    "top_k_ties": {"temperature": 1.0, "top_k": 3},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "top_p_wide": {"temperature": 2.5, "top_p": 0.97},
    "top_p_narrow": {"temperature": 0.6, "top_p": 0.05},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "penalty": {"temperature": 1.0, "repetition_penalty": 1.3},
    "reward": {"temperature": 1.0, "repetition_penalty": 0.8, "top_k": 50},
    "all": {"temperature": 0.8, "top_k": 100, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1},
}


def processors(settings):
    """In the order of GenerationMixin._get_logits_processor."""
    chain = LogitsProcessorList()
    if "repetition_penalty" in settings:
        chain.append(RepetitionPenaltyLogitsProcessor(penalty=settings["repetition_penalty"]))
    if settings["temperature"] != 1.0:
        chain.append(TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        chain.append(TopKLogitsWarper(top_k=settings["top_k"]))
    if "top_p" in settings:
        chain.append(TopPLogitsWarper(top_p=settings["top_p"]))
    if "min_p" in settings:
        chain.append(MinPLogitsWarper(min_p=settings["min_p"]))
    return chain


def main():
    generator = torch.Generator().manual_seed(20)
    logits = torch.randn(VOCAB, generator=generator) * 3
    # Equal scores around the third place; a score that is no option.
    order = logits.argsort(descending=True)
    logits[order[3]] = logits[order[4]] = logits[order[2]]
    logits[order[700]] = -torch.inf
    seen = torch.tensor([order[0], order[5], order[5], order[600], 3, 3, 9])
    tensors = {"logits": logits, "seen": seen}
    for name, settings in SETTINGS.items():
        GenerationConfig(do_sample=True, **settings).validate()
        scores = processors(settings)(seen[None], logits[None].clone())
        tensors[f"probabilities.{name}"] = scores[0].softmax(-1).contiguous()
    out = ROOT / "crates" / "model" / "tests" / "golden"
    save_file(tensors, out / "sample.safetensors")
    manifest = {
        "script": "tools/golden/sample.py",
        "packages": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seed": 20,
        "settings": SETTINGS,
    }
    (out / "sample.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
