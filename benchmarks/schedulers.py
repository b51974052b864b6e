"""Seven ways of waiting, by the time to an accuracy on MNIST: 50 clients, two partitions, three distributions of speed.

    python benchmarks/schedulers.py [--seeds 5] [--target 0.9] [--limit 200 400] [--folder FOLDER] [--out FOLDER]

Each run is appended to a file (`--keep`) and not made again, so that a comparison that was interrupted goes on.

The protocol, fixed before the first run:

- 50 clients share MNIST's 60,000 training images by `ClassPartition` (3 to 5 classes each) or `DualDirichlet`
  (classes_alpha = 0.5). A perceptron of one hidden layer of 64 units, 50,890 parameters; local SGD, learning rate 0.1,
  batches of 32, every client's update counts alike.
- Seconds per local step: 0.1 for all (homogeneous); Normal(0.1, 0.03), at least 0.01; Exponential(0.1), at least 0.002.
  Links of 10 MB/s both ways. The same speeds for all schedulers; others for every seed, as are partition and batches.
- 40 local steps for everybody but FedCompass, which gives 8 to 40 (the released code's ratio of 0.2).
- All 50 clients at work: FedAvg; FedAvgM (server momentum 0.9, server learning rate 1);
  FedAsync (the mixing rule, alpha 0.6, polynomial staleness of exponent 0.5); FedBuff (K = 5, the same staleness);
  FedFix (a window of half a typical task, 2 s); FedAT (3 tiers, 10 clients in a round of a tier); FedCompass (alpha
  0.9, latest-time factor 1.5, speed momentum 0.9, the same staleness).
- Time is the simulated clock at the first commit after which the model has the target on 2,000 of the test images,
  always the same; it is looked at no more than five times in a second of that clock. A run that does not get there
  within the limit has not reached it: 200 s with the class partition, which are 50 tasks of a typical client, and 400 s
  with the dual Dirichlet one, which is harder (it had 200 s at first, in which many were close and few there).

A cell of the table: the median over the seeds of the time to the target over that of FedCompass in the same seed, with
range, where FedCompass has reached it; the median of the time itself, and how many seeds have reached it; the mean
staleness of what was committed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, mnist_folder
from torch import nn

import partwise as pw
from partwise.channels import Plain
from partwise.core.program import SERVER, Record
from partwise.core.runtime import Observer, World
from partwise.core.schedule import Scheduler
from partwise.populations import ClassPartition, DualDirichlet, ProfileArrays, from_partition
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Stacked

CLIENTS, STEPS, PACE, EVERY = 50, 40, 0.1, 0.2
PARTITIONS = {"class": ClassPartition(CLIENTS), "dual Dirichlet": DualDirichlet(CLIENTS)}
SPEEDS = ("homogeneous", "normal", "exponential")
LOCAL = pw.LocalTraining(pw.SGD(0.1), batch_size=32, steps=STEPS)
FEDAVG = pw.FedAvg(LOCAL, weights="uniform")
END: dict[str, Any] = {"versions": 10**6, "seconds": 1e6}


@dataclass(frozen=True)
class Method:
    scheduler: Scheduler
    algorithm: Any = FEDAVG
    server: Mapping[str, Any] = field(default_factory=dict)


METHODS = {
    "FedAvg": Method(pw.Synchronous(CLIENTS, 10**6, steps=STEPS)),
    "FedAvgM": Method(pw.Synchronous(CLIENTS, 10**6, steps=STEPS), server={"model": pw.ServerSGD(1.0, 0.9)}),
    "FedAsync": Method(pw.FedAsync(concurrency=CLIENTS, steps=STEPS, **END), pw.Mixing(FEDAVG)),
    "FedBuff": Method(pw.FedBuff(buffer=5, concurrency=CLIENTS, steps=STEPS, **END)),
    "FedFix": Method(pw.FedFix(period_seconds=STEPS * PACE / 2, steps=STEPS, **END)),
    "FedAT": Method(pw.Tiered(tiers=3, cohort=10, steps=STEPS, **END), pw.CrossTier(FEDAVG)),
    "FedCompass": Method(pw.FedCompass(min_steps=STEPS // 5, max_steps=STEPS, **END)),
}


def paces(speed: str, seed: int) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    if speed == "homogeneous":
        return np.full(CLIENTS, PACE)
    if speed == "normal":
        return np.maximum(draw.normal(PACE, 0.3 * PACE, CLIENTS), 0.1 * PACE)
    return np.maximum(draw.exponential(PACE, CLIENTS), 0.02 * PACE)


class Curve(Observer):
    """Accuracy on some test images after every commit, until the target."""

    def __init__(self, model: pw.Model, x: torch.Tensor, y: torch.Tensor, target: float) -> None:
        self.model, self.x, self.y, self.target = model, x, y, target
        self.points: list[tuple[float, float]] = []
        self.staleness: list[int] = []
        self.commits = 0

    def record(self, record: Record, world: World) -> str | None:
        if record.kind != "commit":
            return None
        self.commits += 1
        self.staleness += record.fields["staleness"]
        if self.points and world.now < self.points[-1][0] + EVERY:
            return None
        params = world.state(SERVER).streams["model"]
        with torch.no_grad():
            outputs = self.model.outputs(params, {"x": self.x}, training=False)
        accuracy = float((outputs.argmax(1) == self.y).double().mean())
        self.points.append((world.now, accuracy))
        return "reached" if accuracy >= self.target else None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def play(folder: str, ends: tuple[float, float], method: str, partition: str, speed: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    data = np.load(Path(folder) / "mnist.npz")
    images = {k: torch.from_numpy(data[f"x_{k}"]).float().div(255).reshape(-1, 784) for k in ("train", "test")}
    labels = {k: torch.from_numpy(data[f"y_{k}"]).long() for k in ("train", "test")}
    fast = 10e6 * np.ones(CLIENTS)
    population = from_partition(
        {"x": images["train"], "y": labels["train"]},
        PARTITIONS[partition],
        seed=seed,
        profiles=ProfileArrays(paces(speed, seed), fast, fast),
    )
    model, chosen = pw.Model(net, pw.CrossEntropy()), METHODS[method]
    star = Star(chosen.algorithm, chosen.scheduler, model, population, Plain(), server_chain=chosen.server, seed=seed)
    some = torch.from_numpy(np.random.default_rng(0).permutation(len(labels["test"]))[:2000])  # they come sorted
    curve, began = Curve(model, images["test"][some], labels["test"][some], ends[0]), time.process_time()
    Simulate(executor=Stacked()).run(star.programs(), population, curve, until=ends[1])
    reached = curve.points[-1][1] >= ends[0] if curve.points else False
    return {
        "method": method,
        "partition": partition,
        "speed": speed,
        "seed": seed,
        "seconds": curve.points[-1][0] if reached else math.inf,
        "commits": curve.commits,
        "staleness": statistics.fmean(curve.staleness) if curve.staleness else 0.0,
        "cpu": time.process_time() - began,
        "points": curve.points[:: max(1, len(curve.points) // 300)],
    }


def table(found: list[dict[str, Any]], partition: str) -> str:
    """Markdown: method by speed, time over FedCompass's in the same seed."""
    here = {(f["method"], f["speed"], f["seed"]): f for f in found if f["partition"] == partition}
    seeds = sorted({seed for _, _, seed in here})
    lines = ["| | " + " | ".join(SPEEDS) + " |", "|---" * (len(SPEEDS) + 1) + "|"]
    for method in METHODS:
        cells = []
        for speed in SPEEDS:
            base = [here["FedCompass", speed, s]["seconds"] for s in seeds]
            runs = [here[method, speed, s] for s in seeds]
            times = [r["seconds"] for r in runs]
            ratios = [t / b for t, b in zip(times, base, strict=True) if math.isfinite(b)]
            stale = statistics.fmean(r["staleness"] for r in runs)
            reached = sum(map(math.isfinite, times))
            typical = f"{statistics.median(times):.0f} s" if 2 * reached > len(times) else "not in time"
            spread = "-"
            if ratios:
                spread = f"{_number(statistics.median(ratios))} ({_number(min(ratios))} to {_number(max(ratios))})"
            cells.append(f"{spread}; {typical}, {reached} of {len(times)}; {stale:.1f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "more"


def draw(found: list[dict[str, Any]], path: Path, target: float) -> None:
    """Accuracy against time, one panel per partition and speed, the first seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = figure.subplots(len(PARTITIONS), len(SPEEDS), sharey=True)
    first = min(f["seed"] for f in found)
    for row, partition in enumerate(PARTITIONS):
        for column, speed in enumerate(SPEEDS):
            axes = panels[row, column]
            for method in METHODS:
                (f,) = (
                    f
                    for f in found
                    if (f["method"], f["partition"], f["speed"], f["seed"]) == (method, partition, speed, first)
                )
                times, scores = zip(*f["points"], strict=True)
                axes.plot(times, scores, label=method, linewidth=2.2 if method == "FedCompass" else 1.1)
            axes.set_title(f"{partition}, {speed}", fontsize=9)
            axes.axhline(target, color="gray", linewidth=0.6, linestyle=":")
            axes.grid(alpha=0.25)
            axes.set_xscale("log")
    for axes in panels[-1]:
        axes.set_xlabel("simulated seconds")
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    return run["method"], run["partition"], run["speed"], run["seed"]


def _played(case: list[Any]) -> dict[str, Any]:
    """One run, in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=mnist_folder())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target", type=float, default=0.9, help="accuracy")
    parser.add_argument(
        "--limit", type=float, nargs=2, default=[200.0, 400.0], help=f"simulated seconds: {', '.join(PARTITIONS)}"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("schedulers.jsonl"), help="runs that are not made again")
    parser.add_argument("--out", type=Path, help="folder for schedulers.svg")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(play(*json.loads(args.one))))
        return
    if args.folder is None:
        raise SystemExit("schedulers.py: needs mnist.npz; name its folder with --folder.")
    cases = [
        [str(args.folder), (args.target, limit), method, partition, speed, seed]
        for seed in range(1, args.seeds + 1)
        for partition, limit in zip(PARTITIONS, args.limit, strict=True)
        for speed in SPEEDS
        for method in METHODS
    ]
    known = [json.loads(line) for line in args.keep.read_text().splitlines()] if args.keep.exists() else []
    done = {_key(run) for run in known}
    with ThreadPoolExecutor(args.workers) as pool, args.keep.open("a") as file:
        for run in pool.map(_played, [case for case in cases if tuple(case[2:]) not in done]):
            print(json.dumps(run), file=file, flush=True)
            known.append(run)
    wanted = {tuple(case[2:]) for case in cases}
    found = [run for run in known if _key(run) in wanted]
    print(describe(1) + f" to {args.seeds}; {sum(f['cpu'] for f in found):.0f} s of CPU in all\n")
    for partition in PARTITIONS:
        print(f"{partition}\n\n{table(found, partition)}\n")
    if args.out is not None:
        draw(found, args.out / "schedulers.svg", args.target)


if __name__ == "__main__":
    main()
