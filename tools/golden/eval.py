#!/usr/bin/env python3
"""Golden values of `eval`: crates/eval/tests/golden/eval.json, by transformers in f32 from the embedded model and its text.

    eval.py [OUT.json]

Windows: the first 4 of 256 tokens of eval.txt: the sum of each window's 255 negative log-likelihoods, and of those of its second half
(positions 128..254 against tokens 129..255). Divergence: KL(dense‖rounded) of the same targets, where `rounded` is the model with every
weight matrix of its layers rounded to bfloat16 with 3 bits of mantissa (an exact operation on bits, which the test repeats), and how often
both put the same token first. Tasks: the scores of every choice of the first 20 items of each task, context and choice encoded apart.
"""
import json
import pathlib
import sys

import tokenizers
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
MILLET = ROOT / "assets" / "millet"
WINDOW, WINDOWS, ITEMS = 256, 4, 20


def coarse(weight):
    """bfloat16 weights with the low 4 of their 7 mantissa bits cleared."""
    return (weight.bfloat16().view(torch.int16) & ~0xF).view(torch.bfloat16).float()


@torch.no_grad()
def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "crates" / "eval" / "tests" / "golden" / "eval.json"
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(MILLET / "model", dtype=torch.float32).eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(MILLET / "model" / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    dense = load()
    rounded = load()
    for name, parameter in rounded.named_parameters():
        if ".layers." in name and parameter.dim() == 2:
            parameter.copy_(coarse(parameter))

    ids = encode((MILLET / "text" / "eval.txt").read_text())
    windows = torch.tensor(ids[:WINDOW * WINDOWS]).view(WINDOWS, WINDOW)
    logp = dense(windows).logits[:, :-1].double().log_softmax(-1)
    logq = rounded(windows).logits[:, :-1].double().log_softmax(-1)
    nll = lambda logs: -logs.gather(2, windows[:, 1:, None]).squeeze(2)
    kl = (logp.exp() * (logp - logq)).sum(-1).flatten()

    tasks = {}
    for path in sorted((MILLET / "tasks").glob("*.jsonl")):
        tasks[path.stem] = []
        for line in path.read_text().splitlines()[:ITEMS]:
            item = json.loads(line)
            context, scores = encode(item["context"]), []
            for choice in item["choices"]:
                tail = encode(choice)
                logs = dense(torch.tensor([context + tail])).logits[0].double().log_softmax(-1)
                scores.append(sum(logs[len(context) - 1 + i, token].item() for i, token in enumerate(tail)))
            tasks[path.stem].append(scores)

    golden = {
        "script": "tools/golden/eval.py",
        "packages": {p.__name__: p.__version__ for p in (tokenizers, torch, transformers)},
        "seed": None,
        "text_tokens": len(ids),
        "window_nll": nll(logp).sum(1).tolist(),
        "window_nll_second_half": nll(logp)[:, WINDOW // 2:].sum(1).tolist(),
        "rounded_window_nll": nll(logq).sum(1).tolist(),
        "kl": {"mean": kl.mean().item(), **{f"p{q}": kl.quantile(q / 100).item() for q in (50, 90, 99)}},
        "top1_agreement": (logp.argmax(-1) == logq.argmax(-1)).double().mean().item(),
        "tasks": tasks,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
