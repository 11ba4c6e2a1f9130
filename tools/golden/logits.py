#!/usr/bin/env python3
"""Reference logits and greedy continuations for crates/model/tests/parity.rs, by transformers in f32.

  logits.py        writes crates/model/tests/golden/logits.{safetensors,json}

The tiny models come from bitmill-testkit (`cargo run -p bitmill-testkit --example write-tiny`), millet from assets/.
For each tiny model: token ids i64 [2, 24], logits f32 [2, 24, vocab]. For millet: two windows of 64 tokens of its
evaluation text, logits at 8 positions of each; prompts and what `generate` follows them with.
The manifest records the SHA-256 of the weights that the logits belong to.
"""
import hashlib, json, pathlib, subprocess, tempfile
import safetensors, torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/model/tests/golden"
SEED = 20250  # of the tiny models' token ids
POSITIONS = [0, 1, 7, 20, 33, 48, 62, 63]
PROMPTS = ["The capital of", "Once upon a time", "12 + 30 ="]
NEW_TOKENS = 32

tensors, weights = {}, {}
torch.manual_seed(SEED)
torch.set_grad_enabled(False)


def load(folder):
    weights[folder.name] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


with tempfile.TemporaryDirectory() as scratch:
    subprocess.run(["cargo", "run", "-q", "-p", "bitmill-testkit", "--example", "write-tiny", "--", scratch], cwd=ROOT, check=True)
    for folder in sorted(pathlib.Path(scratch).iterdir()):
        model = load(folder)
        ids = torch.randint(3, model.config.vocab_size, (2, 24))
        tensors[f"{folder.name}/ids"] = ids
        tensors[f"{folder.name}/logits"] = model(ids).logits.contiguous()
        print(folder.name, "logits' deviation %.3f" % tensors[f"{folder.name}/logits"].std())

millet = ROOT / "assets/millet"
model, tokenizer = load(millet / "model"), AutoTokenizer.from_pretrained(millet / "model")
weights["millet"] = weights.pop("model")
text = (millet / "text/eval.txt").read_text()[:4000]
ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:128]).reshape(2, 64)
tensors["millet/ids"] = ids
tensors["millet/positions"] = torch.tensor(POSITIONS)
tensors["millet/logits"] = model(ids).logits[:, POSITIONS].contiguous()
for i, prompt in enumerate(PROMPTS):
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS, attention_mask=torch.ones_like(ids))
    tensors[f"millet/prompt.{i}"], tensors[f"millet/greedy.{i}"] = ids[0], out[0, ids.shape[1]:]
    print(repr(tokenizer.decode(out[0])))

OUT.mkdir(parents=True, exist_ok=True)
save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "logits.safetensors")
manifest = {
    "script": "tools/golden/logits.py",
    "packages": {m.__name__: m.__version__ for m in (torch, transformers, safetensors)},
    "seed": SEED,
    "prompts": PROMPTS,
    "weights_sha256": weights,
}
(OUT / "logits.json").write_text(json.dumps(manifest, indent=2) + "\n")
