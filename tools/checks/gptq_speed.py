"""What the factor that GPTQ solves with costs through LAPACK, in seconds of one core, beside bitmill's.

    cargo build --release -p bitmill-quant --example gptq_speed
    python tools/checks/gptq_speed.py [IN_FEATURES …]

Cholesky, inverse, Cholesky of the inverse, as the papers' code does it with torch. Needs torch.
"""

import os
import pathlib
import subprocess
import sys
import time

import torch


def lapack(n):
    x = torch.randn(n + 100, n, generator=torch.Generator().manual_seed(1))
    hessian = x.T @ x / n + 0.01 * torch.eye(n)
    begin = time.process_time()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    torch.linalg.cholesky(inverse, upper=True)
    return time.process_time() - begin


def main():
    torch.set_num_threads(1)
    sizes = sys.argv[1:] or ["2048", "4096"]
    example = pathlib.Path(__file__).parents[2] / "target/release/examples/gptq_speed"
    for size in sizes:
        print(f"{size}: factor by torch {torch.__version__} {lapack(int(size)):.2f} s", flush=True)
        subprocess.run([example, size], check=True, env={**os.environ, "RAYON_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
