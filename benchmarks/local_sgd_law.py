"""The law of local SGD: does loss fall as a power of model size, and alike however seldom clusters exchange?

    python benchmarks/local_sgd_law.py --folder PLAYS [--tokens 2000000] [--clusters 4] [--seeds 3] [--rate 0.3]

Small GPTs of several sizes are trained on half of the plays, in `--clusters` clusters that take H steps of SGD between
two exchanges, H = 1 (data parallel), 10 and 50, on equally many characters. For each H a line is fitted to ln L over
ln N, L the loss a character on held-out text and N the parameters without embeddings: L = (N_c / N)^alpha. alpha has an
interval from a bootstrap over seeds. The line through all sizes but the largest is then asked for the largest.

Source: He, Zhuang, Wu, 2024, arXiv:2409.13198. A full run of 4 sizes (0.2 to 3 million parameters), 3 values of H and
3 seeds on 2 million characters is 36 trainings; the largest size takes most of the time. `--sizes 2 --seeds 1
--tokens 20000` is a smoke run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
from machine import describe

import partwise as pw

SIZES = [(64, 2), (64, 4), (128, 4), (256, 4)]  # width and layers
BATCH, CONTEXT = 16, 64


def parameters(width: int, layers: int) -> int:
    """Of the blocks and the last norm."""
    return 12 * layers * width**2 + 13 * layers * width + 2 * width


def loss(args: argparse.Namespace, size: tuple[int, int], local_steps: int, seed: int) -> float:
    workload = pw.ShakespeareGPT(
        args.folder, half="pretrain", clusters=args.clusters, width=size[0], layers=size[1], context=CONTEXT
    )
    rounds = max(1, args.tokens // (BATCH * CONTEXT * args.clusters * local_steps))
    local = pw.LocalTraining(pw.SGD(args.rate, momentum=0.0), batch_size=BATCH, steps=local_steps, max_norm=1.0)
    experiment = pw.Experiment(
        workload,
        pw.FedAvg(local, weights="uniform"),
        pw.Synchronous(args.clusters, rounds),
        evaluation=pw.Evaluation(every=rounds),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        found: float = experiment.run(Path(folder) / "run").table("loss", "pooled")[-1]["value"]
        return found


def fit(sizes: list[int], losses: list[float]) -> tuple[float, float]:
    """alpha and N_c of L = (N_c / N)^alpha, by least squares of ln L on ln N."""
    slope, height = np.polyfit(np.log(sizes), np.log(losses), 1)
    return -float(slope), math.exp(-height / slope)


def check() -> None:
    """The fit gives back what made its points."""
    sizes = [10**7, 10**8, 10**9]
    alpha, scale = fit(sizes, [(9e13 / n) ** 0.07 for n in sizes])
    if abs(alpha - 0.07) > 1e-9 or abs(scale / 9e13 - 1) > 1e-6:
        raise RuntimeError(f"the fit is wrong: {alpha}, {scale}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="the smallest so many")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--rate", type=float, default=0.3)
    args = parser.parse_args()
    check()
    sizes = SIZES[: args.sizes]
    counts = [parameters(*size) for size in sizes]
    print(f"{describe(1)}; {args.tokens:,} characters, {args.clusters} clusters, {args.seeds} seeds\n")
    print("| H | " + " | ".join(f"{n / 1e6:.2f} M" for n in counts) + " | alpha | interval | N_c | largest, foretold |")
    print("|---|" + "---|" * (len(counts) + 4))
    rng = np.random.default_rng(1)
    for steps in args.steps:
        runs = [[loss(args, size, steps, seed) for seed in range(1, args.seeds + 1)] for size in sizes]
        means = [statistics.mean(of) for of in runs]
        alpha, scale = fit(counts, means)
        drawn = [fit(counts, [float(rng.choice(of, len(of)).mean()) for of in runs])[0] for _ in range(500)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        foretold = ""
        if len(counts) > 2:
            a, n = fit(counts[:-1], means[:-1])
            foretold = f"{(n / counts[-1]) ** a:.4f}"
        cells = [*(f"{m:.4f}" for m in means), f"{alpha:.4f}", f"{low:.4f} to {high:.4f}", f"{scale:.3g}", foretold]
        print(f"| {steps} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
