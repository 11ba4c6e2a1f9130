#!/usr/bin/env python3
"""Learned rounding by auto-round's own grids, torch's autograd and its signed descent, for crates/quant/tests/learned.rs.

  learned.py           writes crates/quant/tests/golden/learned.{safetensors,json}

For each of 2, 3 and 4 bits, symmetric and asymmetric: 40 steps on the outputs' squared error of a [6, 96] matrix in groups of 32 over 24 inputs, scales
in f32, a rate of 1/40 falling to nothing. What is kept: the losses of all steps, and the values after the last.
"""
import json, pathlib, sys

sys.path.pop(0)  # hqq.py lies beside this file, and packages would take it for the library
import auto_round, auto_round.data_type.int, safetensors, torch
from auto_round.data_type.int import quant_tensor_asym, quant_tensor_sym
from safetensors.torch import save_file


class Round(torch.autograd.Function):
    """Its own `(x.round() - x).detach() + x` may be a last bit off a whole number, and a code at an end is then taken for a clipped one."""

    @staticmethod
    def forward(context, x):
        return x.round()

    @staticmethod
    def backward(context, grad):
        return grad


def clamp(x, min=None, max=None, plain=torch.clamp):
    """With gradients of codes that are at an end and not beyond it, which torch passed on up to 2.9 and does no more."""
    if min is None or max is None:
        return plain(x, min=min, max=max)
    return torch.where((x < min) | (x > max), plain(x.detach(), min, max), x)


auto_round.data_type.int.round_ste, torch.clamp = Round.apply, clamp
OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/quant/tests/golden"
SEED, STEPS, GROUP = 20252, 40, 32
torch.manual_seed(SEED)
weight, x = torch.randn(6, 96), torch.randn(24, 96) + torch.randn(24, 1)
tensors = {"weight": weight, "x": x}
for bits in (2, 3, 4):
    for name, quantize in (("symmetric", quant_tensor_sym), ("asymmetric", quant_tensor_asym)):
        v = torch.zeros(6 * 96 // GROUP, GROUP, requires_grad=True)
        low, high = (torch.ones(6 * 96 // GROUP, requires_grad=True) for _ in range(2))
        losses = []
        for step in range(STEPS + 1):
            decided = quantize(weight, bits, GROUP, v, low, high, scale_dtype=torch.float32)[0]
            loss = ((decided - weight) @ x.T).square().sum() / 2
            losses.append(loss.item())
            if step == STEPS:
                break
            grads = torch.autograd.grad(loss, (v, low, high))
            rate = (1 - step / STEPS) / STEPS
            with torch.no_grad():
                for parameter, grad in zip((v, low, high), grads):
                    parameter -= rate * grad.sign()
                low.clamp_(0, 1), high.clamp_(0, 1)
        tensors[f"{name}/{bits}/losses"] = torch.tensor(losses)
        tensors[f"{name}/{bits}/decided"] = decided.detach()
        print(name, bits, "%.2f -> %.2f, least %.2f" % (losses[0], losses[-1], min(losses)))

save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "learned.safetensors")
packages = {"auto-round": auto_round.__version__, "torch": torch.__version__, "safetensors": safetensors.__version__}
manifest = {"script": "tools/golden/learned.py", "packages": packages, "seed": SEED}
(OUT / "learned.json").write_text(json.dumps(manifest, indent=2) + "\n")
