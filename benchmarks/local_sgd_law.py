"""The law of local SGD: does loss fall as a power of model size, and alike however seldom clusters exchange?

    python benchmarks/local_sgd_law.py --folder PLAYS [--tokens 409600] [--clusters 2] [--seeds 3] [--rate 0.5]

Small GPTs of several sizes are trained on half of the plays, in `--clusters` clusters that take H steps of SGD between
two exchanges, H = 1 (data parallel), 10 and 50, on equally many characters. For each H a line is fitted to ln L over
ln N, L the loss a character on held-out text and N the parameters without embeddings: L = (N_c / N)^alpha. alpha has an
interval from a bootstrap over seeds. The line through all sizes but the largest is then asked for the largest, and so
is the mean of the smaller ones, which says that size does not matter.

Source: He, Zhuang, Wu, 2024, arXiv:2409.13198. `--sizes` says how many of the sizes (2 thousand to 3 million
parameters), the smallest first: the default of 4 takes some 6 minutes of one core, all seven many hours. `--runs FILE`
keeps every training's loss, seed after seed, and goes on from there. `--sizes 2 --seeds 1 --tokens 20480 --steps 10` is
a smoke run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path

import numpy as np
from machine import describe

import partwise as pw

SIZES = [(8, 2), (16, 2), (32, 2), (64, 2), (64, 4), (128, 4), (256, 4)]  # width and layers
CONTEXT = 64


def parameters(width: int, layers: int) -> int:
    """Of the blocks and the last norm."""
    return 12 * layers * width**2 + 13 * layers * width + 2 * width


def loss(args: argparse.Namespace, size: tuple[int, int], local_steps: int, seed: int) -> float:
    workload = pw.ShakespeareGPT(
        args.folder, half="pretrain", clusters=args.clusters, width=size[0], layers=size[1], context=CONTEXT
    )
    rounds = max(1, args.tokens // (args.batch * CONTEXT * args.clusters * local_steps))
    local = pw.LocalTraining(pw.SGD(args.rate, momentum=0.0), batch_size=args.batch, steps=local_steps, max_norm=1.0)
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
    """alpha and ln N_c * alpha of L = (N_c / N)^alpha, by least squares of ln L on ln N."""
    slope, height = np.polyfit(np.log(sizes), np.log(losses), 1)
    return -float(slope), float(height)


def check() -> None:
    """The fit gives back what made its points."""
    sizes = [10**7, 10**8, 10**9]
    alpha, height = fit(sizes, [(9e13 / n) ** 0.07 for n in sizes])
    if abs(alpha - 0.07) > 1e-9 or abs(math.exp(height / alpha) / 9e13 - 1) > 1e-6:
        raise RuntimeError(f"the fit is wrong: {alpha}, {height}")


def trained(args: argparse.Namespace) -> dict[tuple[int, int, int], float]:
    """Size, steps, seed -> loss; what a file knows already is not trained again."""
    setting = [args.tokens, args.clusters, args.batch, args.rate]
    known = {}
    if args.runs is not None and args.runs.exists():
        for line in args.runs.read_text(encoding="utf-8").splitlines():
            of, *key, value = json.loads(line)
            if of == setting:
                known[tuple(key)] = value
    for seed in range(1, args.seeds + 1):
        for steps in args.steps:
            for at in range(args.sizes):
                if (at, steps, seed) not in known:
                    known[at, steps, seed] = value = loss(args, SIZES[at], steps, seed)
                    if args.runs is not None:
                        with args.runs.open("a", encoding="utf-8") as file:
                            file.write(json.dumps([setting, at, steps, seed, value]) + "\n")
    return known


def row(counts: list[int], runs: list[list[float]]) -> list[str]:
    """The cells of one H: the mean losses, the law, and what the smaller sizes say of the largest."""
    means = [statistics.mean(of) for of in runs]
    cells = [f"{m:.4f}" for m in means]
    if len(counts) < 2:
        return [*cells, "", "", "", "", ""]
    alpha, height = fit(counts, means)
    rng = np.random.default_rng(1)
    drawn = [fit(counts, [float(rng.choice(of, len(of)).mean()) for of in runs])[0] for _ in range(500)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    foretold = by_mean = ""
    if len(counts) > 2:
        slope, at = fit(counts[:-1], means[:-1])
        foretold = f"{math.exp(at - slope * math.log(counts[-1])):.4f}"
        by_mean = f"{statistics.mean(means[:-1]):.4f}"
    scale = f"{math.exp(height / alpha):.3g}" if alpha > 0 and height / alpha < 600 else ""
    return [*cells, f"{alpha:.4f}", f"{low:.4f} to {high:.4f}", scale, foretold, by_mean]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=409_600)
    parser.add_argument("--clusters", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, default=4, help="the smallest so many")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--runs", type=Path)
    args = parser.parse_args()
    check()
    known = trained(args)
    counts = [parameters(*size) for size in SIZES[: args.sizes]]
    print(
        f"{describe(1)}; {args.tokens:,} characters, {args.clusters} clusters, batches of {args.batch}, rate "
        f"{args.rate:g}, {args.seeds} seeds\n"
    )
    sizes = " | ".join(f"{n / 1e3:,.0f} k" for n in counts)
    print(f"| H | {sizes} | alpha | interval | N_c | largest by the law | by the mean |")
    print("|---|" + "---|" * (len(counts) + 5))
    for steps in args.steps:
        runs = [[known[at, steps, seed] for seed in range(1, args.seeds + 1)] for at in range(args.sizes)]
        print(f"| {steps} | " + " | ".join(row(counts, runs)) + " |")


if __name__ == "__main__":
    main()
