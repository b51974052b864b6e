"""The framework against a plain hand-written loop of the same work: seconds per round and peak memory.

The loops below are what an engineer would write for one algorithm and one model and nothing else; the one for
`stdlib_code` already holds only the rows of each client. Every variant runs in a process of its own, the
variants take turns, and the first round of each is not counted.

    python benchmarks/overhead.py [--passes 5] [--rounds 6]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from machine import describe, mnist_folder

from partwise.algorithms import FedAvg, FedSubAvg
from partwise.channels import Plain
from partwise.core.runtime import Observer, World
from partwise.core.workload import Workload
from partwise.local import SGD, LocalTraining
from partwise.populations import Dirichlet
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from partwise.workloads import MNIST, StdlibCode

SEED = 1
WORK = {"stdlib_code": (30, 20, 32, 1.0), "mnist_cnn": (10, 0, 20, 0.05)}  # cohort, steps (0: one epoch), batch, lr


def workload(name: str) -> Workload:
    if name == "stdlib_code":
        return StdlibCode().build(SEED)
    return MNIST(folder=mnist_folder(), partition=Dirichlet(100, alpha=0.3)).build(SEED)


class Clock(Observer):
    """Notes when each round was committed."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def record(self, record: object, world: World) -> str | None:
        if getattr(record, "kind", "") == "commit":
            self.times.append(time.perf_counter())
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


def partwise_rounds(name: str, rounds: int) -> list[float]:
    cohort, steps, batch, lr = WORK[name]
    work = workload(name)
    local = LocalTraining(SGD(lr=lr), steps=steps, batch_size=batch)
    algorithm = FedSubAvg("count", local) if name == "stdlib_code" else FedAvg(local)
    star = Star(algorithm, Synchronous(cohort, rounds), work.model, work.population, Plain(), seed=SEED)
    clock = Clock()
    Simulate().run(star.programs(relays=True), work.population, clock)
    return clock.times


def batches(n: int, size: int, steps: int, rng: torch.Generator) -> Iterator[torch.Tensor]:
    left = steps or -(-n // size)
    while left:
        for at in torch.randperm(n, generator=rng).split(size)[:left]:
            left -= 1
            yield at


def loop_rounds(name: str, rounds: int) -> list[float]:
    cohort, steps, size, lr = WORK[name]
    work, rng = workload(name), torch.Generator().manual_seed(SEED)
    module = work.model.build(SEED)
    server = {n: p.detach().clone() for n, p in module.named_parameters()}
    tables = work.model.tables
    times = [time.perf_counter()]
    for _ in range(rounds):
        total = {n: torch.zeros_like(p) for n, p in server.items()}
        weight = {n: torch.zeros(p.shape[0] if n in tables else 1) for n, p in server.items()}
        for client in torch.randperm(len(work.population.clients), generator=rng)[:cohort].tolist():
            columns = dict(work.population.data(client).columns())
            held: dict[str, torch.Tensor] = {}
            for table, names in tables.items():
                rows = torch.unique(torch.cat([columns[c].reshape(-1) for c in names]))
                columns.update({c: torch.searchsorted(rows, columns[c]) for c in names})
                held[table] = rows
            start = {n: p[held[n]] if n in held else p for n, p in server.items()}
            for n, value in start.items():
                owner, _, key = n.rpartition(".")
                setattr(module.get_submodule(owner), key, torch.nn.Parameter(value.clone()))
            optimizer = torch.optim.SGD(module.parameters(), lr=lr)
            examples = len(columns["y"])
            for at in batches(examples, size, steps, rng):
                outputs = module(*(columns[c][at] for c in work.model.inputs))
                y = columns["y"][at]
                loss = (
                    F.cross_entropy(outputs, y)
                    if outputs.dim() > 1
                    else F.binary_cross_entropy_with_logits(outputs, y.float())
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            w = 1.0 if tables else float(examples)
            for n, p in module.named_parameters():
                delta = (p.data - start[n]) * w
                if n in held:
                    total[n].index_add_(0, held[n], delta)
                    weight[n].index_add_(0, held[n], torch.full((len(held[n]),), w))
                else:
                    total[n] += delta
                    weight[n] += w
        for n, p in server.items():
            server[n] = p + total[n] / weight[n].clamp(min=1e-9).reshape(-1, *[1] * (p.dim() - 1))
        times.append(time.perf_counter())
    return times


def child(kind: str, name: str, rounds: int) -> None:
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    times = (partwise_rounds if kind == "partwise" else loop_rounds)(name, rounds)
    spans = [b - a for a, b in pairwise(times[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": statistics.median(spans), "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child, arguments.rounds)
        return
    print(describe(SEED))
    for name in WORK:
        if name == "mnist_cnn" and mnist_folder() is None:
            print(f"{name:12} left out: MNIST is not here")
            continue
        found: dict[str, list[dict[str, float]]] = {"loop": [], "partwise": []}
        for _ in range(arguments.passes):
            for kind, results in found.items():
                command = [sys.executable, __file__, "--child", kind, name, "--rounds", str(arguments.rounds)]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        ratios = [p["seconds"] / q["seconds"] for p, q in zip(found["partwise"], found["loop"], strict=True)]
        for kind, results in found.items():
            seconds, peak = [r["seconds"] for r in results], [r["peak_mib"] for r in results]
            print(
                f"{name:12} {kind:9} {statistics.median(seconds):.3f} s a round "
                f"({min(seconds):.3f}-{max(seconds):.3f}), peak {statistics.median(peak):.0f} MiB"
            )
        print(f"{name:12} ratio     {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
