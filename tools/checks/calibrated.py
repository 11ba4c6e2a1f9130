#!/usr/bin/env python3
"""What calibrated codes lose beside those of other tools, from the same tokens at the same bits.

calibrated.py BITMILL MODEL CALIBRATION_TEXT EVAL_TEXT [--seeds 3] [--bits 4,3,2] [--run NAME,…] [--windows 40] [--jobs 1] [--device cpu] [--table FILE] [--beside FILE …]

Run with the Python of `peers.sh llmc`; `--gptqmodel PYTHON` names that of `peers.sh gptq`. For each seed 8 documents are cut from the calibration text
and every tool takes the first 512 tokens of each; weights become symmetric codes in groups of 128. All outputs are unpacked by hand (`load_check.py`) into plain
models in f32, whose losses over windows of 512 of the evaluation text are compared window by window. CPU seconds are user and system
of the whole process, peak memory its VmHWM. With `--device cuda` the other tools quantize on the GPU, and seconds say nothing.
`--table` keeps what was measured, a line each, and `--beside` compares with what was kept before from the same texts."""
import argparse, concurrent.futures, json, os, random, subprocess, sys, tempfile, threading
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from load_check import by_hand

OURS = {"bitmill rtn": "w{}a16_g128", "bitmill gptq": "gptq_w{}a16_g128", "bitmill gptaq": "gptaq_w{}a16_g128",
        "bitmill awq": "awq_w{}a16_g128", "bitmill learned": "learned_w{}a16_g128", "bitmill rotated": "rotated_gptaq_w{}a16_g128", "bitmill autoround": "autoround_w{}a16_g128"}
THEIRS = ["llm-compressor gptq", "llm-compressor awq", "auto-round", "gptqmodel gptq"]
# What is compared with what: the same method first, then our best with all.
PAIRS = [("bitmill gptq", "llm-compressor gptq"), ("bitmill gptq", "gptqmodel gptq"), ("bitmill awq", "llm-compressor awq"), ("bitmill autoround", "auto-round")] + [
    (name, other) for name in ("bitmill gptaq", "bitmill learned", "bitmill rotated") for other in THEIRS]

PEER = r"""
import json, sys
who, bits, model_path, documents, out, device, seed = sys.argv[1:8]
bits, seed = int(bits), int(seed)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
if device == "cpu": torch.set_num_threads(2)
torch.manual_seed(seed)
tokenizer = AutoTokenizer.from_pretrained(model_path)
texts = [json.loads(line)["text"] for line in open(documents)]
rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:512] for text in texts]
if who == "gptqmodel gptq":
    from gptqmodel import GPTQModel, QuantizeConfig
    model = GPTQModel.load(model_path, QuantizeConfig(bits=bits, group_size=128, sym=True, desc_act=False, device=device))
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    model.save(out)
    sys.exit()
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map="cpu")
if who == "auto-round":
    from auto_round import AutoRound
    data = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in rows]
    AutoRound(model, tokenizer, scheme=f"W{bits}A16", bits=bits, group_size=128, sym=True, iters=200, seqlen=512, nsamples=len(rows), batch_size=8, dataset=data, seed=seed,
              device_map=device, enable_torch_compile=False).quantize_and_save(out, format="auto_gptq")
    sys.exit()
from datasets import Dataset
from llmcompressor import oneshot
if device == "cpu":  # it pins memory, which takes a driver
    from llmcompressor.pipelines.cache import IntermediatesCache
    IntermediatesCache.pin_memory = lambda *_: None
data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
if who == "llm-compressor gptq":
    from llmcompressor.modifiers.gptq import GPTQModifier
    recipe = GPTQModifier(config_groups=groups, ignore=["lm_head"])
else:
    from llmcompressor.modifiers.awq import AWQModifier
    recipe = AWQModifier(config_groups=groups, ignore=["lm_head"])
oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=512, num_calibration_samples=len(rows))
model.save_pretrained(out, save_compressed=True)
tokenizer.save_pretrained(out)
"""

TIMED = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print('USED', used.ru_utime + used.ru_stime, used.ru_maxrss * 1024); sys.exit(code)")


def timed(*command):
    done = subprocess.run([sys.executable, "-c", TIMED, *command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])[:80]} …\n{done.stdout[-500:]}\n{done.stderr[-2500:]}")
    used = [line for line in done.stdout.splitlines() if line.startswith("USED")][-1].split()
    return float(used[1]), int(used[2])


def ours(name, bits, documents, out):
    recipe = subprocess.run([args.bitmill, "recipes", OURS[name].format(bits)], capture_output=True, text=True, check=True).stdout
    if "gptq" in recipe or "awq" in recipe or "learned" in recipe:
        lines = [line for line in recipe.splitlines() if line.split(" ")[0] not in ("fit", "samples", "length", "held_out", "source")]
        if "[calibration]" not in lines:
            lines.insert(2, "[calibration]")
        at = lines.index("[calibration]") + 1
        lines[at:at] = [f'source = "{documents}"', "samples = 8", "length = 512", "held_out = 0", 'fit = "truncate"']
        recipe = "\n".join(lines)
    path = out + ".toml"
    with open(path, "w") as file:
        file.write(recipe)
    return timed(args.bitmill, "compress", args.model, "--recipe", path, "-o", out, "--force", *(["--threads", str(args.threads)] if args.threads else []))


def theirs(name, bits, seed, documents, out):
    python = args.gptqmodel if name.startswith("gptqmodel") else sys.executable
    return timed(python, "-c", PEER, name, str(bits), args.model, documents, out, args.device, str(seed))


def bits_per_weight(folder):
    """Of the matrices of the layers, everything that belongs to their codes counted."""
    from safetensors import safe_open
    stored = weights = 0
    for file in os.listdir(folder):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(folder, file), "pt") as f:
                for name in f.keys():
                    if "_proj." in name and not name.endswith(("g_idx", "weight_shape", "bias")):
                        tensor = f.get_tensor(name)
                        stored += tensor.numel() * tensor.element_size() * 8
    return stored / LINEAR


def losses(model):
    model = model.to(args.device)
    nll, kl = [], []
    with torch.inference_mode():
        for at, ids in enumerate(WINDOWS):
            ids = ids[None].to(args.device)
            if len(DENSE_LOGITS) == at:
                DENSE_LOGITS.append(torch.log_softmax(DENSE(ids).logits[0, :-1].float(), -1))
            dense = DENSE_LOGITS[at]
            here = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
            nll.append(-here.gather(1, ids[0, 1:, None]).double().mean().item())
            kl.append((dense.exp() * (dense - here)).sum(-1).double().mean().item())
    return nll, kl


def one(name, bits, seed, work):
    documents, out = f"{work}/{seed}.jsonl", f"{work}/{name.replace(' ', '-')}-{bits}-{seed}"
    try:
        seconds, peak = ours(name, bits, documents, out) if name in OURS else theirs(name, bits, seed, documents, out)
        # AutoRound makes a folder of its own in the one that it is given.
        folder = next(here for here, _, files in os.walk(out) if "config.json" in files)
        with LOCK:
            nll, kl = losses(by_hand(folder)[0])
        row = {"name": name, "bits": bits, "seed": seed, "cpu_seconds": seconds, "peak_bytes": peak, "bits_per_weight": bits_per_weight(folder), "nll": nll, "kl": kl}
    except Exception as error:
        row = {"name": name, "bits": bits, "seed": seed, "error": f"{type(error).__name__}: {error}"}
    subprocess.run(["rm", "-rf", out])
    if args.table:
        with open(args.table, "a") as file:
            file.write(json.dumps(row) + "\n")
    if "error" in row:
        print(f"| {seed} | {bits} | {name} | failed: {row['error']} |", flush=True)
        return None
    mean = lambda values: sum(values) / len(values)
    print(f"| {seed} | {bits} | {name} | {seconds:.0f} | {peak / 1e6:.0f} | {row['bits_per_weight']:.3f} | {mean(nll):.4f} | {mean(kl):.4f} |", flush=True)
    return row


def report(rows):
    kept = [json.loads(line) for file in args.beside for line in open(file)]
    rows = {(row["name"], row["bits"], row["seed"]): row for row in kept + rows if row and "nll" in row}
    print("\n| bits | ours | theirs | nll, ours − theirs, paired (two standard errors) | kl, ours / theirs |\n|---|---|---|---|---|")
    for bits in sorted({key[1] for key in rows}, reverse=True):
        for our, their in PAIRS:
            seeds = [seed for seed in range(100) if (our, bits, seed) in rows and (their, bits, seed) in rows]
            if not seeds:
                continue
            # A window is one measurement, whatever the seeds: its difference is their mean.
            by_window = torch.tensor([[a - b for a, b in zip(rows[our, bits, s]["nll"], rows[their, bits, s]["nll"])] for s in seeds]).mean(0)
            error = 2 * by_window.std() / len(by_window) ** 0.5
            kl = [sum(sum(rows[name, bits, s]["kl"]) for s in seeds) for name in (our, their)]
            print(f"| {bits} | {our} | {their} | {by_window.mean():+.4f} ({error:.4f}), {len(seeds)} seeds | {kl[0] / kl[1]:.3f} |")


parser = argparse.ArgumentParser()
for name in ("bitmill", "model", "calibration", "evaluation"):
    parser.add_argument(name)
parser.add_argument("--seeds", default="0,1,2"); parser.add_argument("--bits", default="4"); parser.add_argument("--windows", type=int, default=40)
parser.add_argument("--run", default=",".join([*OURS, *THEIRS])); parser.add_argument("--jobs", type=int, default=1); parser.add_argument("--threads", type=int)
parser.add_argument("--device", default="cpu"); parser.add_argument("--gptqmodel", default=sys.executable); parser.add_argument("--table"); parser.add_argument("--beside", nargs="*", default=[])
args = parser.parse_args()
if os.path.exists(args.table or ""):
    sys.exit(f"{args.table} is there already")
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
LOCK = threading.Lock()
DENSE_LOGITS = []
DENSE = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval().to(args.device)
LINEAR = sum(parameter.numel() for name, parameter in DENSE.named_parameters() if "_proj.weight" in name)
tokens = AutoTokenizer.from_pretrained(args.model)(open(args.evaluation, encoding="utf-8").read(), return_tensors="pt").input_ids[0]
WINDOWS = tokens[: 512 * args.windows].view(-1, 512)
text = open(args.calibration, encoding="utf-8").read()
print("| seed | bits | | CPU s | peak MB | bits/weight | nll | KL to dense |\n|---|---|---|---|---|---|---|---|", flush=True)
with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
    seeds = [int(seed) for seed in args.seeds.split(",")]
    for seed in seeds:
        with open(f"{work}/{seed}.jsonl", "w") as file:
            for start in random.Random(seed).sample(range(0, len(text) - 6000, 6000), 8):
                file.write(json.dumps({"text": text[start:start + 6000]}) + "\n")
    jobs = [(name, int(bits), seed, work) for bits in args.bits.split(",") for seed in seeds for name in args.run.split(",")]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        report(list(pool.map(lambda job: one(*job), jobs)))
