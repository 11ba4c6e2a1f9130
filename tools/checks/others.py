#!/usr/bin/env python3
"""What llm-compressor makes of a model, as rows of `bitmill compare --also`: others.py BITMILL MODEL [WINDOWS]

Its schemes without data, each saved as its users save them, then read and measured as they lie. Needs the Python of `peers.sh llmc`.
"""
import os, subprocess, sys, tempfile
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

bitmill, source = sys.argv[1:3]
windows = sys.argv[3] if len(sys.argv) > 3 else "8"
asymmetric = {"num_bits": 8, "type": "int", "symmetric": False}
int8 = {
    "targets": ["Linear"],
    "weights": asymmetric | {"strategy": "channel"},
    "input_activations": asymmetric | {"strategy": "token", "dynamic": True},
}
schemes = ["W4A16", "W4A16_ASYM", "W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16", "MXFP8A16", "int8_asym"]
with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
    made = []
    for name in schemes:
        how = {"config_groups": {"all": int8}} if name == "int8_asym" else {"targets": "Linear", "scheme": name}
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
        oneshot(model=model, recipe=QuantizationModifier(ignore=["lm_head"], **how))
        model.save_pretrained(f"{work}/{name}", save_compressed=True)
        AutoTokenizer.from_pretrained(source).save_pretrained(f"{work}/{name}")
        made += ["--also", f"{work}/{name}"]
    report = ["--windows", windows, "--items", "20", "-o", f"{work}/report"]
    sys.exit(subprocess.run([bitmill, "compare", source, "--no-recipes", *made, *report]).returncode)
