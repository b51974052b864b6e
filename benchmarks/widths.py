"""What to do where most clients are too weak for the model: widths on MNIST.

    python benchmarks/widths.py [--seeds 1 2 3] [--rounds 100] [--jobs 2] [--only FjORD ...]

The protocol, fixed before the first run: 100 clients share MNIST by Dirichlet(0.3). Of ten, one has room for the whole
model, a perceptron of two hidden layers of 200 units, two for half of every layer, three for a quarter, four for an
eighth. Ten clients a round, 30 local steps on batches of 20, SGD with learning rate 0.1. The score is the accuracy on
the test images after the last round, of the server's model and of its first half, quarter and eighth, which is all that
most clients can use; `a client` is the mean over clients, each with the model that it has room for.

What differs: everybody trains the whole model, as if there were room; the ten strong clients train it by themselves;
everybody trains the model that all have room for; HeteroFL; FjORD, without and with distillation; Federated Dropout,
whose clients all hold an eighth of each layer, drawn anew for every task. HeteroFL without its scaler was added after
the first run, in which the thinnest models diverged: there are no batch norms here, as the paper has them behind it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from machine import describe, mnist_folder, spread
from robust import images

import partwise as pw
from partwise.core.algorithm import Algorithm
from partwise.populations import ArrayPopulation, from_partition
from partwise.workloads.models import ImageMLP

CLIENTS, COHORT, HIDDEN = 100, 10, 200
SHARES = {1.0: 0.1, 0.5: 0.2, 0.25: 0.3, 0.125: 0.4}  # width -> of the clients
LEAST = min(SHARES)
LOCAL = pw.LocalTraining(pw.SGD(lr=0.1), batch_size=20, steps=30)

WHOLE, STRONG, SMALL = "FedAvg, all hold the whole model", "FedAvg, the strong alone", "FedAvg, a model that fits all"
METHODS: Mapping[str, Callable[[], Algorithm]] = {
    WHOLE: partial(pw.FedAvg, LOCAL),
    STRONG: partial(pw.FedAvg, LOCAL),
    SMALL: partial(pw.FedAvg, LOCAL),
    "HeteroFL": partial(pw.HeteroFL, LOCAL),
    "HeteroFL without its scaler": partial(pw.HeteroFL, LOCAL, scaler=False),
    "FjORD": partial(pw.FjORD, tuple(sorted(SHARES)), LOCAL),
    "FjORD, distilled": partial(pw.FjORD, tuple(sorted(SHARES)), LOCAL, distill=True),
    "Federated Dropout": partial(pw.FederatedDropout, LEAST, LOCAL),
}


def population(folder: Path, seed: int) -> ArrayPopulation:
    data = images(folder)
    return from_partition(
        {"x": data["x_train"], "y": data["y_train"]},
        pw.Dirichlet(CLIENTS, alpha=0.3),
        seed=seed,
        profiles=pw.Widths(tuple(SHARES), tuple(SHARES.values()), seed=seed),
        central_test=pw.Examples({"x": data["x_test"], "y": data["y_test"]}),
    )


def of_the_strong(people: ArrayPopulation) -> ArrayPopulation:
    parts = [people.data(c).columns() for c in people.clients if people.profile(c).width == 1]
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    sizes = torch.tensor([0, *(len(part["y"]) for part in parts)])
    return ArrayPopulation(columns, sizes.cumsum(0), central=people.central)


def run(task: tuple[str, Path, int, int]) -> tuple[str, dict[float, float], float]:
    """Method, accuracy by width, and bytes both ways."""
    name, folder, seed, rounds = task
    torch.set_num_threads(1)
    people = population(folder, seed)
    if name == STRONG:
        people = of_the_strong(people)
    hidden = round(HIDDEN * LEAST) if name == SMALL else HIDDEN
    model = pw.Model(partial(ImageMLP, 784, hidden, 10), pw.CrossEntropy(), widths=ImageMLP.widths())
    experiment = pw.Experiment(
        pw.Workload(model, people, (pw.Accuracy(),)),
        METHODS[name](),
        pw.Synchronous(cohort=COHORT, rounds=rounds),
        evaluation=pw.Evaluation(every=rounds, per_client=False, widths=() if name == SMALL else tuple(SHARES)),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        threads=1,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as root:
        result = experiment.run(root=root)
        last = result.table("accuracy", "central")[-1]
        found = {LEAST if name == SMALL else 1.0: last["value"]}
        if name != SMALL:
            found |= {r: result.value("accuracy", f"central@{r:g}") for r in SHARES if r < 1}
    return name, found, last["uplink_bytes"] + last["downlink_bytes"]


def of_a_client(found: Mapping[float, float]) -> float:
    """The mean over clients, each with the model that it has room for."""
    return sum(share * (found[width] if width in found else found[LEAST]) for width, share in SHARES.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    folder = mnist_folder()
    if folder is None:
        parser.error("needs MNIST: `mnist.npz` in ../shared/data, or in $PARTWISE_SHARED/data")
    print(f"{describe(arguments.seeds[0])}; seeds {arguments.seeds}, {arguments.rounds} rounds\n")
    tasks = [(name, folder, seed, arguments.rounds) for name in arguments.only for seed in arguments.seeds]
    found: dict[str, list[dict[float, float]]] = {}
    sent: dict[str, list[float]] = {}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for name, scores, total in pool.map(run, tasks):
            found.setdefault(name, []).append(scores)
            sent.setdefault(name, []).append(total)
    print(f"| method |{'|'.join(f' {w:g} ' for w in SHARES)}| a client | MB both ways |")
    print(f"|---|{'---:|' * (len(SHARES) + 2)}")
    for name, runs in found.items():
        by_width = [spread([100 * r[w] for r in runs], ".1f") if w in runs[0] else "" for w in SHARES]
        mean = spread([100 * of_a_client(r) for r in runs], ".1f")
        print("| " + " | ".join([name, *by_width, mean, f"{sum(sent[name]) / len(runs) / 1e6:.0f}"]) + " |")


if __name__ == "__main__":
    main()
