#!/usr/bin/env python3
"""Synthetic checkpoint with exact Qwen2.5-72B layer shapes, streamed to disk in shards.

  make_72b_shaped.py OUT [--layers N=1] [--no-embed] [--vocab 152064] [--shard-gb 4] [--seed 0] [--headers]

hidden 8192, intermediate 29568, 64 heads, 8 kv heads (head_dim 128), vocab 152064, bf16, q/k/v bias,
untied lm_head. One layer is 877.7 M weights (1.755 GB bf16); embed + lm_head are 1.246 G weights each
(2.49 GB each): --vocab 2048 makes those small when only layer throughput is measured.
Weights: Student-t (df 5) * 0.02 * per-input-channel scale (log-normal, sigma 0.25, and 0.5 % of the
channels 4-12x larger) * per-output-row scale (log-normal, sigma 0.15). Norm weights log-normal around 1,
with a few channels 5-20x: enough for realistic block maxima; the network computes nothing sensible.
With --headers files have their size and no weights, which is enough to plan with and takes no disk: 80 layers of it.
Peak memory: one block of rows (about 100 MB). A sample block of Student-t values (16 M, drawn once) is reused
with random offsets and signs, so that writing runs at disk speed.
"""
import argparse, json, os
import numpy as np

ap = argparse.ArgumentParser()
ap.add_argument("out"); ap.add_argument("--layers", type=int, default=1)
ap.add_argument("--vocab", type=int, default=152064); ap.add_argument("--no-embed", action="store_true")
ap.add_argument("--shard-gb", type=float, default=4.0); ap.add_argument("--seed", type=int, default=0)
ap.add_argument("--headers", action="store_true")
ap.add_argument("--tokenizer-from", default=None, help="folder whose tokenizer files are copied")
a = ap.parse_args()
H, I, NH, NKV, HD, V, L = 8192, 29568, 64, 8, 128, a.vocab, a.layers
rng = np.random.default_rng(a.seed)
POOL = rng.standard_t(5, 1 << 24).astype(np.float32) * np.float32(0.02 / np.sqrt(5 / 3))


def bf16(x):
    u = x.view(np.uint32)
    return ((u + (0x7FFF + ((u >> 16) & 1))) >> 16).astype(np.uint16)


def chan(n):
    s = np.exp(rng.normal(0, .25, n)).astype(np.float32)
    k = max(1, n // 200)
    s[rng.choice(n, k, replace=False)] *= rng.uniform(4, 12, k).astype(np.float32)
    return s


def rows_of(shape):
    if len(shape) == 1: yield None; return
    step = max(1, (1 << 24) // shape[1])
    for r in range(0, shape[0], step): yield min(step, shape[0] - r)


def write(f, kind, shape):
    if kind == "norm":
        w = np.exp(rng.normal(0, .2, shape)).astype(np.float32); w[rng.choice(shape[0], 8, replace=False)] *= 10
        f.write(bf16(w).tobytes()); return
    if kind == "bias":
        f.write(bf16((rng.standard_t(4, shape) * .3).astype(np.float32)).tobytes()); return
    c = chan(shape[1])
    for n in rows_of(shape):
        need = n * shape[1]; o = int(rng.integers(0, len(POOL)))
        w = np.take(POOL, np.arange(o, o + need), mode="wrap").reshape(n, shape[1])
        w *= c; w *= (np.exp(rng.normal(0, .15, n)) * rng.choice([-1, 1], n)).astype(np.float32)[:, None]
        f.write(bf16(w).tobytes())


T = []
if not a.no_embed: T.append(("model.embed_tokens.weight", "w", (V, H)))
for i in range(L):
    p = f"model.layers.{i}."
    T += [(p + "input_layernorm.weight", "norm", (H,)),
          (p + "self_attn.q_proj.weight", "w", (NH * HD, H)), (p + "self_attn.q_proj.bias", "bias", (NH * HD,)),
          (p + "self_attn.k_proj.weight", "w", (NKV * HD, H)), (p + "self_attn.k_proj.bias", "bias", (NKV * HD,)),
          (p + "self_attn.v_proj.weight", "w", (NKV * HD, H)), (p + "self_attn.v_proj.bias", "bias", (NKV * HD,)),
          (p + "self_attn.o_proj.weight", "w", (H, NH * HD)),
          (p + "post_attention_layernorm.weight", "norm", (H,)),
          (p + "mlp.gate_proj.weight", "w", (I, H)), (p + "mlp.up_proj.weight", "w", (I, H)),
          (p + "mlp.down_proj.weight", "w", (H, I))]
T.append(("model.norm.weight", "norm", (H,)))
if not a.no_embed: T.append(("lm_head.weight", "w", (V, H)))

size = lambda s: 2 * int(np.prod(s))
shards, cur, acc = [], [], 0
for t in T:
    if cur and acc + size(t[2]) > a.shard_gb * 1e9: shards.append(cur); cur, acc = [], 0
    cur.append(t); acc += size(t[2])
shards.append(cur)
os.makedirs(a.out, exist_ok=True)
wm = {}
for k, ts in enumerate(shards):
    fn = f"model-{k+1:05d}-of-{len(shards):05d}.safetensors"
    hdr, off = {"__metadata__": {"format": "pt"}}, 0
    for n, _, s in ts:
        hdr[n] = {"dtype": "BF16", "shape": list(s), "data_offsets": [off, off + size(s)]}; off += size(s); wm[n] = fn
    h = json.dumps(hdr).encode(); h += b" " * (-len(h) % 8)
    with open(f"{a.out}/{fn}", "wb") as f:
        f.write(len(h).to_bytes(8, "little")); f.write(h)
        if a.headers: f.truncate(8 + len(h) + off); continue
        for n, kind, s in ts: write(f, kind, s)
total = sum(size(s) for _, _, s in T)
json.dump({"metadata": {"total_size": total}, "weight_map": wm}, open(f"{a.out}/model.safetensors.index.json", "w"), indent=1)
json.dump({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": V, "hidden_size": H,
           "intermediate_size": I, "num_hidden_layers": L, "num_attention_heads": NH, "num_key_value_heads": NKV,
           "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
           "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False, "sliding_window": None,
           "max_window_layers": L, "initializer_range": 0.02, "attention_dropout": 0.0, "use_cache": True,
           "bos_token_id": 1, "eos_token_id": 2}, open(f"{a.out}/config.json", "w"), indent=2)
if a.tokenizer_from:
    import shutil
    for n in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copy(f"{a.tokenizer_from}/{n}", a.out)
print(f"{a.out}: {len(T)} tensors in {len(shards)} shards, {total/1e9:.3f} GB")
