"""Votes beside numbers on MNIST: FRL against the mean and the trimmed mean, with 0, 10 and 20 % of clients hostile.

    python benchmarks/rank_learning.py [--seeds 1 2] [--rounds 20] [--only FRL ...]

The protocol, fixed before the first run: 20 clients share MNIST by Dirichlet(1.0), all of them in every round; a
perceptron of two hidden layers of 100 units; 10 local steps on batches of 32. The mean and the trimmed mean, which is
told how many are hostile and 4 where none are, train by SGD with learning rate 0.1. FRL trains scores with the paper's
learning rate 0.4, momentum 0.9 and weight decay 1e-4, and keeps half of the edges. Each rule meets what was made
against its kind: the mean and the trimmed mean `SignFlip(10)` and `ALittleIsEnough`, FRL `ReversedVote`, the attack of
its paper, and `VulnerableEdges`, which sees the honest votes. Accuracy on the test images after the last round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from machine import describe, mnist_folder, spread
from robust import images

import partwise as pw
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.attack import Attack
from partwise.populations import Dirichlet, from_partition
from partwise.runtimes.executors import Stacked
from partwise.workloads.models import ImageMLP

CLIENTS = 20
NUMBERS: Mapping[str, Attack] = {
    "SignFlip(10)": pw.SignFlip(10.0),
    "ALittleIsEnough": pw.ALittleIsEnough(is_omniscient=True),
}
VOTES: Mapping[str, Attack] = {"ReversedVote": pw.ReversedVote(), "VulnerableEdges": pw.VulnerableEdges()}
RULES = {"Mean": NUMBERS, "TrimmedMean": NUMBERS, "FRL": VOTES}
SHARES = (0.1, 0.2)


def workload(folder: Path, seed: int) -> pw.Workload:
    data = images(folder)
    train = {"x": data["x_train"], "y": data["y_train"]}
    test = pw.Examples({"x": data["x_test"], "y": data["y_test"]})
    clients = from_partition(train, Dirichlet(CLIENTS, alpha=1.0), seed=seed, central_test=test)
    return pw.Workload(pw.Model(partial(ImageMLP, 784, 100, 10), pw.CrossEntropy()), clients, (pw.Accuracy(),))


def algorithm(rule: str) -> Algorithm:
    if rule != "FRL":
        return pw.FedAvg(pw.LocalTraining(pw.SGD(0.1), batch_size=32, steps=10), weights="uniform")
    scores = pw.SGD(0.4, momentum=0.9, weight_decay=1e-4)
    return pw.FedRank(pw.LocalTraining(scores, batch_size=32, steps=10, lr_decay=0.999))


def aggregator(rule: str, share: float) -> Aggregator | None:
    if rule == "FRL":
        return None
    return pw.TrimmedMean(trim_count=round(share * CLIENTS) or 4) if rule == "TrimmedMean" else pw.Mean()


def accuracy(work: pw.Workload, rule: str, hostile: pw.Hostile | None, rounds: int, seed: int) -> float:
    """Per cent; what chance gives where the run diverges."""
    made = pw.Experiment(
        work,
        algorithm(rule),
        pw.Synchronous(cohort=CLIENTS, rounds=rounds),
        seed=seed,
        aggregator=aggregator(rule, hostile.share if hostile else 0.0),
        hostile=hostile,
        evaluation=pw.Evaluation(every=rounds, per_client=False),
        runtime=pw.Simulate(Stacked()),
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            return 100 * made.run(root=folder).value("accuracy", "central")
        except pw.DivergedError:
            return 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(RULES), default=list(RULES))
    args = parser.parse_args()
    data = mnist_folder()
    if data is None:
        raise SystemExit("needs MNIST: set PARTWISE_SHARED to the folder that holds data/mnist.npz")
    began = time.monotonic()
    seeds: list[int] = args.seeds
    works = {seed: workload(data, seed) for seed in seeds}
    print("| rule | attack | " + " | ".join(f"{share:.0%}" for share in (0.0, *SHARES)) + " |\n|---|---|---|---|---|")
    for rule in args.only:
        clean = spread([accuracy(works[s], rule, None, args.rounds, s) for s in seeds], ".1f")
        for name, attack in RULES[rule].items():
            cells = [
                spread([accuracy(works[s], rule, pw.Hostile(attack, share), args.rounds, s) for s in seeds], ".1f")
                for share in SHARES
            ]
            print(f"| {rule} | {name} | {clean} | {' | '.join(cells)} |", flush=True)
    print(f"\n{describe(seeds[0])} of {seeds}, {args.rounds} rounds, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
