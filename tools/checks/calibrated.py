#!/usr/bin/env python3
"""What calibrated codes lose beside llm-compressor's, from the same tokens: calibrated.py BITMILL MODEL CALIBRATION_TEXT EVAL_TEXT [SEEDS]

Run with the Python of `peers.sh llmc`. For each seed, 8 documents of 512 tokens each are cut from the calibration text; both tools quantize MODEL
from them at 4 bits, groups of 128, symmetric; `bitmill eval` measures all outputs on 40 windows of 512 of the evaluation text. CPU seconds
are user and system of the whole process, peak memory its VmHWM."""
import json, os, random, resource, subprocess, sys, tempfile

bitmill, model, calibration, evaluation = sys.argv[1:5]
seeds = int(sys.argv[5]) if len(sys.argv) > 5 else 3
WINDOWS = os.environ.get("WINDOWS", "40")

PEER = r"""
import json, resource, sys
model_path, documents, out, method = sys.argv[1:5]
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from llmcompressor import oneshot
torch.set_num_threads(2)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map="cpu")
texts = [json.loads(line)["text"] for line in open(documents)]
rows = [tokenizer(text, add_special_tokens=False)["input_ids"][:512] for text in texts]
data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
if method == "gptq":
    try:
        from llmcompressor.modifiers.gptq import GPTQModifier
    except ImportError:
        from llmcompressor.modifiers.quantization import GPTQModifier
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
else:
    from llmcompressor.modifiers.awq import AWQModifier
    recipe = AWQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=512, num_calibration_samples=len(rows))
model.save_pretrained(out, save_compressed=True)
tokenizer.save_pretrained(out)
"""

def run(*command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, seconds

def timed(*command):
    out, seconds = run("/usr/bin/env", "python3", "-c", (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print('USED', used.ru_utime + used.ru_stime, used.ru_maxrss * 1024); sys.exit(code)"), *command)
    used = [line for line in out.splitlines() if line.startswith("USED")][-1].split()
    return float(used[1]), int(used[2])

def measure(folder):
    command = [bitmill, "eval", folder, "--against", model, "--text", evaluation, "--window", "512", "--windows", WINDOWS, "--no-tasks", "--json"]
    out, _ = run(*command)
    return json.loads(out)

RECIPES = {
    "gptq": 'format = "compressed-tensors"\n[calibration]\n{data}\n[[step]]\nkind = "gptq"\nbits = 4\ngranularity = {{ group = {{ size = 128 }} }}\n',
    "gptq, refined, aimed": 'format = "compressed-tensors"\n[calibration]\nasymmetry = 0.5\n{data}\n[[step]]\nkind = "gptq"\nbits = 4\ngranularity = {{ group = {{ size = 128 }} }}\nrefine = 2\n',
}
text = open(calibration).read()
print("| seed | | CPU s | peak MB | bits/weight | perplexity | KL to dense |\n|---|---|---|---|---|---|---|")
with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
    for seed in range(seeds):
        starts = random.Random(seed).sample(range(0, len(text) - 6000, 6000), 8)
        documents = f"{work}/{seed}.jsonl"
        with open(documents, "w") as out:
            for start in starts:
                out.write(json.dumps({"text": text[start:start + 6000]}) + "\n")
        def row(name, folder, used):
            found = measure(folder)
            print(f"| {seed} | {name} | {used[0]:.0f} | {used[1] / 1e6:.0f} | {found['bits_per_weight']:.3f} | {found['perplexity']:.3f} | {found['kl_mean']:.4f} |", flush=True)
        for name, recipe in RECIPES.items():
            data = f'source = "{documents}"\nsamples = 8\nlength = 512\nheld_out = 0\nfit = "truncate"\n'
            path = f"{work}/recipe.toml"
            open(path, "w").write(recipe.format(data=data))
            used = timed(bitmill, "compress", model, "--recipe", path, "-o", f"{work}/ours", "--force")
            row(f"bitmill {name}", f"{work}/ours", used)
        for method in os.environ.get("PEERS_OF", "gptq").split():
            used = timed(sys.executable, "-c", PEER, model, documents, f"{work}/theirs-{method}", method)
            row(f"llm-compressor {method}", f"{work}/theirs-{method}", used)
