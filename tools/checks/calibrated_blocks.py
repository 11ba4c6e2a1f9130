#!/usr/bin/env python3
"""What GGUF blocks lose when their errors make up for each other, beside an importance matrix of the same tokens:
calibrated_blocks.py BITMILL MODEL MIX[,MIX…] WINDOWS CALIBRATION_TEXT… -- EVAL_TEXT…

From each calibration text WINDOWS documents of 512 tokens are drawn (SEED, default 0). Each mix is made by an importance matrix of them, as
llama-quantize makes it, and as `gptaq_MIX`; `bitmill watch` measures both against the dense model on EVAL_WINDOWS (default 8) windows
of each evaluation text. Needs the Python of `peers.sh llama`."""
import json, os, random, resource, subprocess, sys, tempfile
from pathlib import Path
from tokenizers import Tokenizer

bitmill, model, mixes, count, *texts = sys.argv[1:]
split = texts.index("--")
calibration, evaluation = texts[:split], texts[split + 1:]
draw = random.Random(int(os.environ.get("SEED", "0")))
eval_windows = os.environ.get("EVAL_WINDOWS", "8")

def run(*command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
documents = []
for path in calibration:
    ids = tokenizer.encode(Path(path).read_text(errors="replace"), add_special_tokens=False).ids
    places = draw.sample(range(len(ids) // 512), min(int(count), len(ids) // 512))
    documents += [tokenizer.decode(ids[512 * at:512 * at + 512]) for at in places]

with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
    work = Path(work)
    (work / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (work / "text").write_text("\n".join(documents))
    _, imatrix_seconds = run(bitmill, "imatrix", model, "--text", work / "text", "--windows", len(documents), "-o", work / "imatrix.gguf")
    for at, path in enumerate(evaluation):
        run(bitmill, "eval", model, "--text", path, "--windows", eval_windows, "--no-tasks", "--save-baseline", work / f"{at}.baseline")
    print(f"{len(documents)} documents; the importance matrix takes {imatrix_seconds:.0f} CPU s")
    names = " | ".join(Path(path).stem for path in evaluation)
    print(f"| mix | made by | CPU s | bits/weight | KL on {names} |\n|{'---|' * (4 + len(evaluation))}")
    for mix in mixes.split(","):
        found = {}
        for name, how in {
            "imatrix": ["--recipe", mix, "--imatrix", work / "imatrix.gguf"],
            "gptaq": ["--recipe", f"gptaq_{mix}", "--calibration", work / "documents.jsonl", "--samples", len(documents), "--length", 512, "--held-out", 0],
        }.items():
            file = work / "model.gguf"
            out, seconds = run(bitmill, "compress", model, *how, "-o", file, "--force", "--json")
            figures = [json.loads(run(bitmill, "watch", file, "--baseline", work / f"{place}.baseline", "--json")[0]) for place in range(len(evaluation))]
            found[name] = [figure["kl_mean"] for figure in figures]
            cells = " | ".join(f"{figure['kl_mean']:.4f} ± {figure['kl_stderr']:.4f}" for figure in figures)
            print(f"| {mix} | {name} | {seconds:.0f} | {json.loads(out)['bits_per_weight']:.3f} | {cells} |", flush=True)
        ratios = [ours / theirs - 1 for ours, theirs in zip(found["gptaq"], found["imatrix"])]
        print(f"| {mix} | change | | | {' | '.join(f'{100 * ratio:+.0f} %' for ratio in ratios)} |", flush=True)
