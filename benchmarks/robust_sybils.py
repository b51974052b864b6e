"""One party under many names: ten clients of one digit each, and Sybils who want ones taken for sevens. One command.

    python benchmarks/robust_sybils.py [--seeds 2] [--folder FOLDER]

What was made is kept in FOLDER/trials.jsonl and not made again, so that the same command goes on.

The protocol, that of Fung, Yoon, Beschastnikh (2018) as far as it is known, fixed before the first run: MNIST, a linear
model; client c of the first ten has all 6,000 or so training images of digit c, each Sybil 500 of the ones, labelled as
sevens. Five local steps of SGD, learning rate 0.1, batches of 50; all clients in each of 60 rounds, all with the same
weight. Krum is told of the Sybils as far as it can be, f = min(Sybils, ⌊(clients - 3) / 2⌋).
Accuracy, and the share of the test images of ones that are taken for sevens, after the last round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch
from machine import describe, mnist_folder
from robust import images
from torch import nn

import partwise as pw
from partwise.core.aggregate import Aggregator
from partwise.experiment.trials import Trial, make_trials, markdown
from partwise.runtimes.executors import Stacked

COUNTS = (0, 1, 2, 5, 30, 99)
RULES = ("Mean", "Median", "Krum", "FoolsGold", "SybilWall")
ABOUT = "sybils 1"


def rule_of(name: str, sybils: int) -> Aggregator:
    match name:
        case "Mean":
            return pw.Mean("holders")
        case "Median":
            return pw.Median()
        case "Krum":
            return pw.Krum(min(sybils, (7 + sybils) // 2))
        case "FoolsGold":
            return pw.FoolsGold(names=("1.weight",))
        case _:
            return pw.SybilWall(names=("1.weight",))


@lru_cache(maxsize=1)
def workload(folder: Path, sybils: int, seed: int) -> pw.Workload:
    data = images(folder)
    x, y = data["x_train"], data["y_train"]
    rng = torch.Generator().manual_seed(seed)
    digits = [(y == digit).nonzero().reshape(-1) for digit in range(10)]
    own = [digits[1][torch.randperm(len(digits[1]), generator=rng)[:500]] for _ in range(sybils)]
    parts = [*digits, *own]
    bounds = torch.tensor([0, *map(len, parts)]).cumsum(0)
    chosen = torch.cat(parts)
    test = pw.Examples({"x": data["x_test"], "y": data["y_test"]})
    population = pw.ArrayPopulation({"x": x[chosen], "y": y[chosen]}, bounds, central=test)
    model = pw.Model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), pw.CrossEntropy())
    return pw.Workload(model, population, (pw.Accuracy(),))


def experiment(folder: Path, trial: Trial) -> pw.Experiment:
    sybils = int(trial.attack.split()[0])
    return pw.Experiment(
        workload(folder, sybils, trial.seed),
        pw.FedAvg(pw.LocalTraining(pw.SGD(0.1), batch_size=50, steps=5), weights="uniform"),
        pw.Synchronous(cohort=10 + sybils, rounds=60),
        seed=trial.seed,
        aggregator=rule_of(trial.rule, sybils),
        hostile=pw.Hostile(pw.MultiLabelFlip((1,), 7), 0.0, tuple(range(10, 10 + sybils))),
        runtime=pw.Simulate(Stacked()),
    )


def grid(seeds: int) -> Iterator[Trial]:
    for seed, count, rule in product(range(1, seeds + 1), COUNTS, RULES):
        yield Trial("", rule, f"{count} Sybils", 0.0, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("robust-sybils"))
    args = parser.parse_args()
    data = mnist_folder()
    if data is None:
        raise SystemExit("needs MNIST: set PARTWISE_SHARED to the folder that holds data/mnist.npz")
    torch.set_num_threads(1)
    began, keep = time.monotonic(), args.folder / "trials.jsonl"
    say = partial(print, flush=True)
    rows = make_trials(grid(args.seeds), partial(experiment, data), keep, about=ABOUT, said=say)
    print(f"\n{describe(seed=1)}; {args.seeds} seeds; {time.monotonic() - began:.0f} s\n")
    print(f"Accuracy, %:\n\n{markdown(rows)}\n\nOnes taken for sevens, %:\n\n{markdown(rows, 'success')}")


if __name__ == "__main__":
    main()
