#!/usr/bin/env python3
"""Function-preserving padding of a small Llama checkpoint to 256-divisible widths.

  pad_hidden.py SRC OUT [--hidden 768] [--heads 12] [--kv 4] [--seed 7]

SmolLM2-135M has hidden 576: not a multiple of 128 or 256, so 128-wide groups and all 256-wide k-quants
fall back to something else on it. Here residual channels are spread over a wider hidden size by a seeded
permutation (the extra ones stay zero) and whole zero heads are added; RMSNorm weights are scaled by sqrt(576/768)
and eps by 576/768, which leaves every logit as it was (up to rounding of the stored norm weights).
"""
import argparse, json, math, os, shutil
import torch
from safetensors.torch import load_file, save_file

ap = argparse.ArgumentParser()
ap.add_argument("src"); ap.add_argument("out"); ap.add_argument("--hidden", type=int, default=768)
ap.add_argument("--heads", type=int, default=12); ap.add_argument("--kv", type=int, default=4); ap.add_argument("--seed", type=int, default=7)
a = ap.parse_args()
c = json.load(open(f"{a.src}/config.json")); t = load_file(f"{a.src}/model.safetensors")
H, nh, nk = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]; hd = H // nh
assert a.heads // a.kv == nh // nk and a.hidden == a.heads * hd, "keep heads per kv head, and hidden = heads * head_dim"
g = torch.Generator().manual_seed(a.seed)
pos = torch.randperm(a.hidden, generator=g)[:H].sort().values          # where the real channels go
kvpos = torch.tensor([i for i in range(a.kv) if i != a.kv // 2][:nk])   # the zero group sits in the middle
qpos = torch.cat([torch.arange(k * (nh // nk), (k + 1) * (nh // nk)) for k in kvpos])
rows = lambda hp: (hp[:, None] * hd + torch.arange(hd)).flatten()
qr, kr = rows(qpos), rows(kvpos); r = H / a.hidden


def put(w, r_idx, n_r, c_idx, n_c):
    o = torch.zeros(n_r, n_c, dtype=w.dtype) if n_c else torch.zeros(n_r, dtype=w.dtype)
    if n_c: o[r_idx[:, None], c_idx[None]] = w
    else: o[r_idx] = w
    return o


out, all_i = {}, torch.arange(c["intermediate_size"])
for k, w in t.items():
    n = k.rsplit(".", 2)[-2]; I = c["intermediate_size"]
    if "norm" in k:
        o = torch.full((a.hidden,), float((w.float().mean() * math.sqrt(r))), dtype=torch.float32); o[pos] = w.float() * math.sqrt(r); o = o.to(w.dtype)
    elif n in ("embed_tokens", "lm_head"): o = put(w, torch.arange(w.shape[0]), w.shape[0], pos, a.hidden)
    elif n == "q_proj": o = put(w, qr, a.heads * hd, pos, a.hidden)
    elif n in ("k_proj", "v_proj"): o = put(w, kr, a.kv * hd, pos, a.hidden)
    elif n == "o_proj": o = put(w, pos, a.hidden, qr, a.heads * hd)
    elif n in ("gate_proj", "up_proj"): o = put(w, all_i, I, pos, a.hidden)
    elif n == "down_proj": o = put(w, pos, a.hidden, all_i, I)
    else: raise SystemExit(k)
    out[k] = o.contiguous()
os.makedirs(a.out, exist_ok=True)
save_file(out, f"{a.out}/model.safetensors", metadata={"format": "pt"})
c |= {"hidden_size": a.hidden, "num_attention_heads": a.heads, "num_key_value_heads": a.kv, "rms_norm_eps": c["rms_norm_eps"] * r, "head_dim": hd}
json.dump(c, open(f"{a.out}/config.json", "w"), indent=2)
for n in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"): shutil.copy(f"{a.src}/{n}", a.out)
print(a.out, sum(v.numel() for v in out.values()) / 1e6, "M values")
