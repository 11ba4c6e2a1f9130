#!/usr/bin/env python3
"""Gradients of single decoder layers for crates/model/tests/layer.rs, by torch's autograd through transformers' layers in f32.

  layer.py             writes crates/model/tests/golden/layer.{safetensors,json}

The tiny models come from bitmill-testkit (`cargo run -p bitmill-testkit --example write-tiny`). For the last layer of each: states x that enter
it and what a loss says of its output, dy, both f32 [2, 24, 64] from a fixed seed; its output, and what the loss Σ output·dy says of x and of
every parameter, each flattened and every seventh element kept. The manifest records the SHA-256 of the weights.
"""
import hashlib, json, pathlib, subprocess, sys, tempfile

sys.path.pop(0)  # hqq.py lies beside this file, and transformers would take it for the package
import safetensors, torch, transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/model/tests/golden"
SEED = 20251
# Biases; a window in this layer; norms of heads; scaled RoPE; a window and no biases; YaRN, whose factor scales what is turned.
MODELS = ["tiny-qwen2", "tiny-qwen2-window", "tiny-qwen3", "tiny-llama-llama3", "tiny-mistral", "tiny-qwen3-yarn"]

tensors, weights = {}, {}
torch.manual_seed(SEED)

with tempfile.TemporaryDirectory() as scratch:
    subprocess.run(["cargo", "run", "-q", "-p", "bitmill-testkit", "--example", "write-tiny", "--", scratch], cwd=ROOT, check=True)
    for name in MODELS:
        folder = pathlib.Path(scratch) / name
        weights[name] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        index = model.config.num_hidden_layers - 1
        layer = model.model.layers[index]
        # Other states than this layer's own: what comes before the layer is cut out, positions and masks stay those of the model.
        model.model.layers = torch.nn.ModuleList([layer])
        layer.self_attn.layer_idx = 0
        model.config.num_hidden_layers = model.model.config.num_hidden_layers = 1
        if getattr(model.config, "layer_types", None):
            model.model.config.layer_types = [model.config.layer_types[index]]
        model.model.norm = torch.nn.Identity()
        x = torch.randn(2, 24, model.config.hidden_size, requires_grad=True)
        dy = torch.randn(2, 24, model.config.hidden_size)
        output = model.model(inputs_embeds=x, use_cache=False).last_hidden_state
        (output * dy).sum().backward()
        tensors[f"{name}/x"], tensors[f"{name}/dy"] = x.detach(), dy
        found = {"output": output.detach(), "dx": x.grad} | {parameter: value.grad for parameter, value in layer.named_parameters()}
        for what, value in found.items():
            tensors[f"{name}/{what}"] = value.flatten()[::7].contiguous()
        print(name, "gradients of", len(found) - 2, "parameters")

save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "layer.safetensors")
manifest = {
    "script": "tools/golden/layer.py",
    "packages": {m.__name__: m.__version__ for m in (torch, transformers, safetensors)},
    "seed": SEED,
    "weights_sha256": weights,
}
(OUT / "layer.json").write_text(json.dumps(manifest, indent=2) + "\n")
