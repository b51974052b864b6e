"""MUD-HoG on MNIST: 19 hostile clients of 40 in four kinds, and 4 unreliable ones; precision and recall.

    python benchmarks/robust_detection.py [--seeds 3] [--rounds 12] [--alpha 10]

40 clients share MNIST by Dirichlet(alpha); 5 flip signs, 6 add noise, 4 flip 1 to 7, 4 flip {1, 2, 3} to 7, and 4 are
not hostile but train on few, blurred images. All 40 in every round, one epoch of batches of 32, learning rate 0.05. A
client counts as found if it is confirmed in the last round, in whatever kind; `in its kind` if the kind is right too.
Accuracy with those left out whom the observer would leave out, beside the mean that keeps all, and the mean without any
hostile client.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe, mnist_folder
from robust import images

import partwise as pw
from partwise.aggregators import Watch
from partwise.attacks import AdditiveNoise, Hostile, Mixture, MultiLabelFlip, PoorData, SignFlip
from partwise.core.aggregate import Aggregator
from partwise.core.program import SERVER, Record
from partwise.core.runtime import Observer, World
from partwise.observers import MUDHoG
from partwise.populations import Dirichlet, from_partition
from partwise.runtimes.executors import Stacked
from partwise.workloads.models import ImageMLP

CLIENTS, SIZES = 40, {"sign flip": 5, "noise": 6, "targeted": 8, "unreliable": 4}


class Told(Observer):
    """The last word of an observer."""

    def __init__(self) -> None:
        self.suspects: list[dict[str, Any]] = []

    def record(self, record: Record, world: World) -> str | None:
        if record.kind == "told":
            self.suspects = list(record.fields["suspects"])
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


def groups(seed: int) -> dict[str, tuple[int, ...]]:
    order = torch.randperm(CLIENTS, generator=torch.Generator().manual_seed(seed)).tolist()
    found, start = {}, 0
    for kind, size in SIZES.items():
        found[kind] = tuple(sorted(order[start : start + size]))
        start += size
    return found


def run(
    folder: Path, seed: int, rule: Aggregator, args: argparse.Namespace, *, is_attacked: bool
) -> tuple[float, Told]:
    data, kinds = images(folder), groups(seed)
    half = len(kinds["targeted"]) // 2
    attack = Mixture(
        (SignFlip(), AdditiveNoise(args.noise), MultiLabelFlip((1,), 7), MultiLabelFlip((1, 2, 3), 7), PoorData()),
        (kinds["sign flip"], kinds["noise"], kinds["targeted"][:half], kinds["targeted"][half:], kinds["unreliable"]),
    )
    population = from_partition(
        {"x": data["x_train"], "y": data["y_train"]},
        Dirichlet(CLIENTS, alpha=args.alpha),
        seed=seed,
        central_test=pw.Examples({"x": data["x_test"], "y": data["y_test"]}),
    )
    model = pw.Model(lambda: ImageMLP(784, 64, 10), pw.CrossEntropy())
    experiment = pw.Experiment(
        pw.Workload(model, population, (pw.Accuracy(),)),
        pw.FedAvg(pw.LocalTraining(pw.SGD(0.05), batch_size=32, epochs=args.epochs), weights="uniform"),
        pw.Synchronous(cohort=CLIENTS, rounds=args.rounds),
        seed=seed,
        aggregator=rule,
        hostile=Hostile(attack, clients=attack.members()) if is_attacked else None,
        runtime=pw.Simulate(Stacked()),
    )
    star, workload = experiment.build()
    told = Told()
    states, _ = experiment.runtime.run(star.programs(), workload.population, told)
    test = population.central_test()
    assert test is not None
    outputs = model.outputs(states[SERVER].streams["model"], test.columns())
    return float((outputs.argmax(1) == test.columns()["y"]).double().mean()), told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=10.0)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--eps", type=float, default=1.0)
    parser.add_argument("--silhouette", type=float, default=0.1)
    parser.add_argument("--min-gap", type=float, default=0.05)
    args = parser.parse_args()
    folder = mnist_folder()
    if folder is None:
        raise SystemExit("needs MNIST: set PARTWISE_SHARED to the folder that holds data/mnist.npz")
    torch.set_num_threads(1)
    print(f"{describe(seed=1)}\n{vars(args)}\n")
    print(
        "| seed | precision | recall | in its kind | unreliable found | honest accused | left out | kept | clean | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in range(1, args.seeds + 1):
        began, kinds = time.monotonic(), groups(seed)
        watch = Watch(
            MUDHoG(eps=args.eps, silhouette=args.silhouette, min_gap=args.min_gap), pw.Mean("holders"), exclude=True
        )
        left_out, told = run(folder, seed, watch, args, is_attacked=True)
        kept, _ = run(folder, seed, pw.Mean("holders"), args, is_attacked=True)
        clean, _ = run(folder, seed, pw.Mean("holders"), args, is_attacked=False)
        sure = {s["client"]: s["kind"] for s in told.suspects if s["confirmed"]}
        bad = {c: kind for kind, members in kinds.items() if kind != "unreliable" for c in members}
        blamed = {c for c, kind in sure.items() if kind != "unreliable"}
        hits = blamed & bad.keys()
        right = sum(sure[c] == bad[c] for c in hits)
        poor = sum(sure.get(c) == "unreliable" for c in kinds["unreliable"])
        honest = blamed - bad.keys() - set(kinds["unreliable"])
        cells = [
            f"{len(hits) / max(1, len(blamed)):.2f}",
            f"{len(hits) / len(bad):.2f}",
            f"{right} of {len(bad)}",
            f"{poor} of {len(kinds['unreliable'])}",
            str(len(honest)),
            *(f"{100 * a:.1f}" for a in (left_out, kept, clean)),
            f"{time.monotonic() - began:.0f}",
        ]
        print(f"| {seed} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
