#!/usr/bin/env python3
"""Reference logits and greedy continuations for crates/model/tests/parity.rs, by transformers in f32.

  logits.py            writes crates/model/tests/golden/logits.{safetensors,json}
  logits.py FOLDER     instead writes the tiny models into FOLDER, each with ref.safetensors: input_ids i64 [2, 24], logits f32 [2, 24, vocab]

The tiny models come from bitmill-testkit (`cargo run -p bitmill-testkit --example write-tiny`), millet from assets/.
For each tiny model: token ids i64 [2, 24], logits f32 [2, 24, vocab / 5] (every fifth), and what follows the first 20 ids greedily. transformers no
longer has Qwen's first generation: its models are renamed to Qwen2 here, their dynamic NTK and log-n attention put in by hand
from the formulas of modeling_qwen.py. For millet: two windows of 64 tokens of its
evaluation text, logits at 8 positions of each; prompts and what `generate` follows them with.
The manifest records the SHA-256 of the weights that the logits belong to.
"""
import copy, hashlib, json, math, pathlib, shutil, subprocess, sys, tempfile
import safetensors, torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.qwen2 import modeling_qwen2

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/model/tests/golden"
SEED = 20250  # of the tiny models' token ids
POSITIONS = [0, 1, 7, 20, 33, 48, 62, 63]
PROMPTS = ["The capital of", "Once upon a time", "12 + 30 ="]
NEW_TOKENS = 32
TINY_PROMPT, TINY_NEW = 20, 12
TARGET = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None

tensors, weights = {}, {}
torch.manual_seed(SEED)
torch.set_grad_enabled(False)


def load(folder):
    weights[folder.name] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def first_generation(folder, length):
    """A Qwen2 that computes what the QWenLMHeadModel in `folder` does of prompts of `length` tokens."""
    weights[folder.name] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    config = json.loads((folder / "config.json").read_text())
    theta, trained, head_dim = config["rotary_emb_base"], config["seq_length"], config["kv_channels"]
    if config["use_dynamic_ntk"]:
        alpha = max(2 ** math.ceil(math.log(length / trained, 2) + 1) - 1, 1)
        theta *= alpha ** (head_dim / (head_dim - 2))
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace("transformer.wte", "model.embed_tokens").replace("transformer.ln_f", "model.norm")
        name = name.replace("transformer.h.", "model.layers.").replace("ln_1", "input_layernorm").replace("ln_2", "post_attention_layernorm")
        name = name.replace("attn.c_proj", "self_attn.o_proj").replace("mlp.c_proj", "mlp.down_proj")
        name = name.replace("mlp.w1", "mlp.up_proj").replace("mlp.w2", "mlp.gate_proj")
        if ".attn.c_attn." in name:
            for part, rows in zip("qkv", tensor.chunk(3)):
                tensors[name.replace(".attn.c_attn.", f".self_attn.{part}_proj.")] = rows.contiguous()
        else:
            tensors[name] = tensor
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=config["vocab_size"], hidden_size=config["hidden_size"], intermediate_size=config["intermediate_size"] // 2,
        num_hidden_layers=config["num_hidden_layers"], num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_attention_heads"], max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=config["layer_norm_epsilon"], rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, attn_implementation="eager")).eval()
    model.load_state_dict(tensors)
    plain = modeling_qwen2.eager_attention_forward

    def with_log_n(module, query, key, value, *args, **kwargs):
        first, last = key.shape[2] - query.shape[2], key.shape[2]
        factors = torch.tensor([max(math.log(i, trained), 1) for i in range(first + 1, last + 1)])
        return plain(module, query * factors[:, None], key, value, *args, **kwargs)

    if config["use_logn_attn"]:
        modeling_qwen2.eager_attention_forward = with_log_n
    return model, plain


with tempfile.TemporaryDirectory() as scratch:
    subprocess.run(["cargo", "run", "-q", "-p", "bitmill-testkit", "--example", "write-tiny", "--", scratch], cwd=ROOT, check=True)
    for folder in sorted(pathlib.Path(scratch).iterdir()):
        if folder.name.startswith("tiny-qwen-v1"):
            model, plain = first_generation(folder, TINY_PROMPT)
        else:
            model, plain = load(folder), modeling_qwen2.eager_attention_forward
        fresh = copy.deepcopy(model)
        ids = torch.randint(3, model.config.vocab_size, (2, 24))
        tensors[f"{folder.name}/ids"] = ids
        logits = model(ids).logits.contiguous()
        tensors[f"{folder.name}/logits"] = logits[..., ::5].contiguous()
        if TARGET:
            shutil.copytree(folder, TARGET / folder.name, dirs_exist_ok=True)
            save_file({"input_ids": ids, "logits": logits}, TARGET / folder.name / "ref.safetensors")
        prompt = ids[:1, :TINY_PROMPT]
        # Dynamic RoPE remembers the longest sequence it has seen: a fresh model each.
        out = fresh.generate(prompt, do_sample=False, max_new_tokens=TINY_NEW, attention_mask=torch.ones_like(prompt))
        tensors[f"{folder.name}/greedy"] = out[0, TINY_PROMPT:]
        modeling_qwen2.eager_attention_forward = plain
        print(folder.name, "logits' deviation %.3f" % tensors[f"{folder.name}/logits"].std())

if TARGET:
    sys.exit()

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
