"""Rules by coordinate beside rules by client, where single values are bad: MNIST, 20 clients, one command.

    python benchmarks/robust_faults.py [--seeds 3] [--settings NAME ...] [--rules NAME ...] [--folder FOLDER]

What was made is kept in FOLDER/trials.jsonl and not made again, so that the same command goes on.

The protocol, that of Xie, Koyejo, Gupta (2018), §6, as far as it is known:

- 20 clients share MNIST IID; a perceptron of two hidden layers; SGD, learning rate 0.1, batches
  of 32. `64 units`, 55,050 parameters, and `256 units`, 269,322: 40 rounds of 10 local steps; `one step`: 64 units, the
  gradient of one batch in each of 400 rounds, as there. The score is the accuracy on the test images after the last
  round, or when a run ends early because what honest clients compute is no longer finite.
- Every rule is told 6 faulty of 20, also without an attack. Gaussian and omniscient: 6 clients send N(0, 200²), or the
  sum of what the other 14 computed, times -1e20. Bit flip: in each of the model's first 1000 coordinates one client's
  value, of all 20, has bits 22, 30, 31 and 32 inverted. Gambler: one of 20 shards, the first, multiplies each entry of
  what it receives by -1e20 with probability .05 %: on average 1.4 of a client's entries, and 6.7 with 256 units.
- For comparison, `bit flip, 6`: flips among the values of 6 clients only.
- Fixed before the tables were made, and after a look at Krum and the mean of seed 1 with 64 units: since the gambler
  left Krum whole there, 256 units were added.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from machine import describe, mnist_folder
from robust import RULES, workload

import partwise as pw
from partwise.core.attack import Attack
from partwise.experiment.trials import Trial, make_trials, markdown
from partwise.runtimes.executors import Stacked
from partwise.workloads.models import ImageMLP

CLIENTS, FAULTY = 20, 6


class Setting(NamedTuple):
    units: int
    rounds: int
    steps: int


SETTINGS = {"64 units": Setting(64, 40, 10), "256 units": Setting(256, 40, 10), "one step": Setting(64, 400, 1)}
NAMES = ("Mean", "Median", "MeanAroundMedian", "Phocas", "TrimmedMean", "Krum", "Multi-Krum", "GeometricMedian")
ATTACKS: dict[str, tuple[Attack, float]] = {
    "Gaussian": (pw.GaussianReplace(200.0), FAULTY / CLIENTS),
    "omniscient": (pw.InnerProduct(1e20 * (CLIENTS - FAULTY)), FAULTY / CLIENTS),
    "bit flip": (pw.BitFlip(), 1.0),
    "gambler": (pw.Gambler(), 1.0),
    "bit flip, 6": (pw.BitFlip(), FAULTY / CLIENTS),
}
ABOUT = f"faults 1: {SETTINGS}, {ATTACKS}"


def experiment(folder: Path, trial: Trial) -> pw.Experiment:
    kind = SETTINGS[trial.setting]
    attack = ATTACKS.get(trial.attack)
    model = pw.Model(partial(ImageMLP, 784, kind.units, 10), pw.CrossEntropy())
    return pw.Experiment(
        replace(workload(folder, "IID", trial.seed), model=model),
        pw.FedAvg(pw.LocalTraining(pw.SGD(0.1), batch_size=32, steps=kind.steps), weights="uniform"),
        pw.Synchronous(cohort=CLIENTS, rounds=kind.rounds),
        seed=trial.seed,
        aggregator=RULES[trial.rule](FAULTY),
        hostile=pw.Hostile(*attack) if attack else None,
        runtime=pw.Simulate(Stacked()),
    )


def grid(seeds: int, settings: Sequence[str], rules: Sequence[str]) -> Iterator[Trial]:
    """Seed by seed, so that what is there after a while is the whole table once."""
    cells = {"none": 0.0, **{name: share for name, (_, share) in ATTACKS.items()}}
    for seed, setting, rule in product(range(1, seeds + 1), settings, rules):
        yield from (Trial(setting, rule, attack, share, seed) for attack, share in cells.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--rules", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--folder", type=Path, default=Path("robust-faults"))
    args = parser.parse_args()
    data = mnist_folder()
    if data is None:
        raise SystemExit("needs MNIST: set PARTWISE_SHARED to the folder that holds data/mnist.npz")
    torch.set_num_threads(1)
    began, trials = time.monotonic(), list(grid(args.seeds, args.settings, args.rules))
    say = partial(print, flush=True)
    rows = make_trials(trials, partial(experiment, data), args.folder / "trials.jsonl", about=ABOUT, said=say)
    print(f"\n{describe(seed=1)}; {args.seeds} seeds\n")
    for setting in args.settings:
        print(f"## {setting}\n\n{markdown([row for row in rows if row['setting'] == setting])}\n")
    took = [row["seconds"] for row in rows]
    print(
        f"{len(rows)} trials, {statistics.median(took):.1f} s each (median); this time {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
