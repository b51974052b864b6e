"""MNIST with privacy for every client: 10,000 clients of 6 images, Poisson samples of 250, epsilon = 2, 4, 8 and none.

    python benchmarks/dp_mnist.py [--folder FOLDER_WITH_MNIST] [--rounds 100] [--seeds 1] [--out FILE]

The guarantee is central, for clients, at delta = 1e-5, below one over the clients. Noise is on every coordinate, and
its norm grows with the root of their number: so the model is a small one, of 5,746 parameters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

from machine import describe, mnist_folder
from torch import Tensor, nn

import partwise as pw
from partwise.core.aggregate import Aggregator
from partwise.runtimes.executors import Stacked

CLIENTS, COHORT, DELTA = 10_000, 250, 1e-5
CLIP, LR, STEPS, MOMENTUM = 0.5, 0.2, 5, 0.7
LEVELS: tuple[float | None, ...] = (2.0, 4.0, 8.0, None)


class Small(nn.Module):
    """Two convolutions and one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 7 * 7, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def experiment(folder: Path, epsilon: float | None, rounds: int, seed: int) -> pw.Experiment:
    """One level of privacy; without one, the same clipped mean and no noise."""
    mnist = pw.MNIST(folder=folder, partition=pw.Shards(CLIENTS)).build(seed)
    workload = replace(mnist, model=pw.Model(Small, pw.CrossEntropy(), inputs=mnist.model.inputs))
    local = pw.LocalTraining(pw.SGD(lr=LR), batch_size=0, steps=STEPS)
    privacy = None if epsilon is None else pw.ClientDP(CLIP, epsilon=epsilon, delta=DELTA)
    plain: Aggregator | None = pw.FixedMean(COHORT) if privacy is None else None
    return pw.Experiment(
        workload,
        pw.FedAvg(local),
        pw.Synchronous(cohort=COHORT, rounds=rounds, choice=pw.Poisson()),
        client=() if privacy else (pw.CapWeight(1.0), pw.Clip(CLIP)),
        server=(pw.ServerSGD(lr=1.0, momentum=MOMENTUM),),
        aggregator=plain,
        privacy=privacy,
        evaluation=pw.Evaluation(every=10, per_client=False),
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(executor=Stacked()),
        seed=seed,
        name=f"dp-mnist-{epsilon or 'none'}-{seed}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=mnist_folder(), help="where mnist.npz or the four original files are")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--root", default="runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.folder is None:
        print("MNIST is not here. Name its folder: --folder FOLDER")
        return
    where = describe(seed=1)
    print(where)
    lines = [
        "| epsilon | spent | noise multiplier | accuracy after 25 % | 50 % | 100 % | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for epsilon in LEVELS:
        rows = []
        for seed in range(1, arguments.seeds + 1):
            made = experiment(arguments.folder, epsilon, arguments.rounds, seed)
            _, workload = made.build()
            z = made.privacy.setting(made.scheduler, workload).noise_multiplier if made.privacy else 0.0
            began = time.perf_counter()
            result = made.run(root=arguments.root)
            seconds = time.perf_counter() - began
            found = {row["version"]: row["value"] for row in result.table("accuracy", "central")}
            at = [min(found, key=lambda v: abs(v - arguments.rounds * share)) for share in (0.25, 0.5, 1.0)]
            spent = result.table("epsilon", "privacy")[-1]["value"] if epsilon else float("inf")
            rows.append((spent, z, *(found[v] for v in at), seconds))
        middle = [statistics.mean(values) for values in zip(*rows, strict=True)]
        spread = f" ({min(r[4] for r in rows):.4f} to {max(r[4] for r in rows):.4f})" if len(rows) > 1 else ""
        name = f"{epsilon:g}" if epsilon else "no noise"
        cells = [name, f"{middle[0]:.3f}", f"{middle[1]:.3f}", f"{middle[2]:.4f}", f"{middle[3]:.4f}"]
        lines.append("| " + " | ".join([*cells, f"{middle[4]:.4f}{spread}", f"{middle[5]:.0f}"]) + " |")
        print(lines[-1], flush=True)
    if arguments.out:
        size = sum(p.numel() for p in Small().parameters())
        about = (
            f"`python benchmarks/dp_mnist.py --rounds {arguments.rounds} --seeds {arguments.seeds}` on {where}.\n\n"
            f"{CLIENTS:,} clients with 6 images each, mostly of two classes (two shards); each is drawn with "
            f"probability {COHORT / CLIENTS:g} a round, {arguments.rounds} rounds. {STEPS} steps of SGD {LR} on all "
            "its images; "
            f"updates clipped to norm {CLIP}, a fixed divisor of {COHORT}, server momentum {MOMENTUM}; a model of "
            f"{size:,} parameters. The guarantee is for a client's whole participation, add or remove, at delta = "
            f"{DELTA:g}; noise simulated from the seed. Accuracy on MNIST's 10,000 test images. The last line has the "
            "same clip and no noise."
        )
        title = "# Privacy: MNIST with a guarantee for every client"
        arguments.out.write_text("\n".join([title, "", about, "", *lines, ""]))


if __name__ == "__main__":
    main()
