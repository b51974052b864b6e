"""FedLaAvg against FedAvg on clients that come in two blocks: MNIST, one digit each, logistic regression.

    python benchmarks/fedlaavg.py [--folder FOLDER_WITH_MNIST] [--full] [--rounds N] [--blocks 1,5] [--seeds 3]

The clients of the first D digits are available in the first E rounds of every 2 E, those of the other digits in the
second half. Each round asks K of those that are available: FedAvg at random, FedLaAvg those that were asked longest
ago. The accuracy is that on a test set held by nobody, in the last quarter of the rounds: its mean there, as mean and
range over the seeds; its least and greatest of all seeds. Data, cohorts and batches are others for every seed.

By default the data are MNIST's test file, 8,000 digits for 200 clients and 2,000 to test on, K = 20, E = 100 and 2,000
rounds; with `--full`, all of MNIST, 1,000 clients, K = 100 and 4,000 rounds, which takes an hour.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, mnist_folder
from torch import Tensor, nn

import partwise as pw
from partwise.core.schedule import ReplyInfo, Roster
from partwise.schedulers.choices import Choice

DIGITS, PERIOD = 10, 100


@dataclass(frozen=True)
class InBlocks(Choice):
    """Clients of the block whose turn it is, at random or those that were asked longest ago.

    Args:
        first: so many clients, from 0 on, are the first block.
        period: rounds of a block.
        is_stalest_first: False: at random.
    """

    first: int
    period: int = PERIOD
    is_stalest_first: bool = False

    def init(self, roster: Roster) -> dict[int, int]:
        return {}

    def pick(
        self, state: Any, count: int, *, turn: int, now: float, roster: Roster, busy: Collection[int] = ()
    ) -> tuple[tuple[int, ...], Any]:
        is_first = turn // self.period % 2 == 0
        here = [c for c in roster.clients if (c < self.first) == is_first and c not in busy]
        random.Random(f"{roster.seed}|blocks|{turn}").shuffle(here)  # which also breaks ties
        if self.is_stalest_first:
            here.sort(key=lambda client: state.get(client, -1))
        cohort = tuple(sorted(here[:count]))
        return cohort, {**state, **dict.fromkeys(cohort, turn)}

    def heard(self, state: Any, reply: ReplyInfo, seconds: float) -> Any:
        return state


class Logistic(nn.Module):
    """784 pixels to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(784, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x)
        return logits


@dataclass(frozen=True)
class OneDigitEach:
    """The workload: clients in the order of their digits, sizes proportional to clamp(5 + N(0, 1), 3, 7).

    Args:
        folder: holds `mnist.npz`.
        num_clients: a multiple of 10.
        is_full: all of MNIST; else its test file, four fifths of it to train on.
    """

    folder: Path
    num_clients: int = 200
    is_full: bool = False
    _built: dict[int, pw.Workload] = field(default_factory=dict, repr=False, compare=False)

    def build(self, seed: int) -> pw.Workload:
        if seed not in self._built:
            self._built[seed] = self._workload(np.random.default_rng(seed))
        return self._built[seed]

    def _workload(self, rng: np.random.Generator) -> pw.Workload:
        (x, y), (test_x, test_y) = self._images(rng)
        order, sizes = [], []
        for digit in range(DIGITS):
            own = rng.permutation(np.flatnonzero(y == digit))
            shares = np.clip(5 + rng.standard_normal(self.num_clients // DIGITS), 3, 7).cumsum()
            ends = np.round(shares / shares[-1] * len(own)).astype(np.int64)
            order.append(own)
            sizes.append(np.diff(ends, prepend=0))
        at = np.concatenate(order)
        offsets = torch.from_numpy(np.concatenate([[0], *sizes])).cumsum(0)
        population = pw.ArrayPopulation(_columns(x[at], y[at]), offsets, central=pw.Examples(_columns(test_x, test_y)))
        return pw.Workload(pw.Model(Logistic, pw.CrossEntropy()), population, (pw.Accuracy(),))

    def _images(self, rng: np.random.Generator) -> Any:
        with np.load(self.folder / "mnist.npz", allow_pickle=False) as arrays:
            test = arrays["x_test"], arrays["y_test"]
            if self.is_full:
                return (arrays["x_train"], arrays["y_train"]), test
        at = rng.permutation(len(test[0]))
        cut = len(at) * 4 // 5
        return tuple((test[0][part], test[1][part]) for part in (at[:cut], at[cut:]))


def _columns(x: Any, y: Any) -> dict[str, Tensor]:
    pixels = torch.from_numpy(x.reshape(len(x), -1)).float().div_(255)
    return {"x": pixels, "y": torch.from_numpy(y.astype(np.int64))}


def run(source: OneDigitEach, digits: int, method: str, rounds: int, cohort: int, seed: int) -> dict[str, float]:
    """Mean, least and greatest accuracy in the last quarter of the rounds, and what the run took."""
    local = pw.LocalTraining(pw.SGD(0.01), batch_size=5, steps=10)
    algorithm = pw.FedLaAvg(local) if method == "FedLaAvg" else pw.FedAvg(local)
    first = digits * source.num_clients // DIGITS
    experiment = pw.Experiment(
        source,
        algorithm,
        pw.Synchronous(cohort, rounds, choice=InBlocks(first, is_stalest_first=method == "FedLaAvg")),
        evaluation=pw.Evaluation(every=10, per_client=False),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(pw.Stacked()),
        seed=seed,
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        rows = experiment.run(root=root).table("accuracy", "central")
    last = [row["value"] for row in rows if row["version"] > rounds * 3 // 4]
    seconds = time.perf_counter() - began
    return {"mean": sum(last) / len(last), "least": min(last), "greatest": max(last), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=mnist_folder(), help="where mnist.npz is")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--blocks", default="1,5", help="values of D")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.folder is None:
        print("MNIST is not here. Name its folder: --folder FOLDER")
        return
    source = OneDigitEach(arguments.folder, 1000 if arguments.full else 200, arguments.full)
    rounds, seeds = arguments.rounds or (4000 if arguments.full else 2000), range(1, arguments.seeds + 1)
    print(describe(1) + f" to {arguments.seeds}")
    print(f"{source.num_clients} clients, K = {source.num_clients // 10}, E = {PERIOD}, {rounds} rounds")
    print("| D | method | mean accuracy (range over seeds) | least | greatest | seconds |\n|---|---|---|---|---|---|")
    for digits in map(int, arguments.blocks.split(",")):
        for method in ("FedAvg", "FedLaAvg"):
            found = [run(source, digits, method, rounds, source.num_clients // 10, seed) for seed in seeds]
            means = [f["mean"] for f in found]
            spread = f"{sum(means) / len(means):.3f} ({min(means):.3f} to {max(means):.3f})"
            least, greatest = min(f["least"] for f in found), max(f["greatest"] for f in found)
            seconds = sum(f["seconds"] for f in found)
            print(f"| {digits} | {method} | {spread} | {least:.3f} | {greatest:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
