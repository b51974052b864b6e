"""What it is worth that a pool's workers keep freed memory: processor time of a job, the system's and its own.

Ten clients of 60 images train the network of `peers/` with two convolutions for one epoch, in a pool of two workers
that keep their pages (`runtimes/child.py`) and in one whose workers do not. The pools take turns; the clock is the
workers' own, so that what else the machine does matters less.

    python benchmarks/pages.py [--passes 5] [--repeats 6]
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from executors import SEED, round_of, spread
from machine import describe

from partwise.algorithms import FedAvg
from partwise.core.metrics import Loss
from partwise.core.model import CrossEntropy, Model
from partwise.core.plan import Job
from partwise.core.workload import Workload
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation
from partwise.runtimes import child
from partwise.runtimes.executors import Pool

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from networks import network

KEEP = child.keep_pages


class Cost(NamedTuple):
    """Of a job: milliseconds of the worker's own and of the system's, and pages that were asked for."""

    own: float
    system: float
    faults: float


def jobs() -> list[Job]:
    rng = torch.Generator().manual_seed(SEED)
    columns = {"x": torch.rand(6000, 1, 28, 28, generator=rng), "y": torch.randint(10, (6000,), generator=rng)}
    model = Model(lambda: network("cnn"), CrossEntropy(), channels_last=True)
    work = Workload(model, ArrayPopulation(columns, torch.arange(101) * 60), (Loss(model.loss),))
    return round_of(work, FedAvg(LocalTraining(SGD(lr=0.05), batch_size=20)), 10)


def cost(some: Sequence[Job], repeats: int, keep: Callable[[], None]) -> Cost:
    """Of the children of this process until they have ended, their beginning included."""
    child.keep_pages = keep
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Pool(2).open({}) as pool:
        for _ in range(repeats):
            pool.run(some)
    after, per = resource.getrusage(resource.RUSAGE_CHILDREN), repeats * len(some)
    own, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return Cost(1e3 * own / per, 1e3 * system / per, (after.ru_minflt - before.ru_minflt) / per)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(describe(SEED))
    some, found = jobs(), {"given back": list[Cost](), "kept": list[Cost]()}
    for _ in range(args.passes):
        found["given back"].append(cost(some, args.repeats, lambda: None))
        found["kept"].append(cost(some, args.repeats, KEEP))
    for name, costs in found.items():
        own, system, faults = (spread(values, ".1f") for values in zip(*costs, strict=True))
        print(f"{name:10} {own} ms its own, {system} ms the system's, {faults} pages")
    pairs = zip(found["kept"], found["given back"], strict=True)
    print(f"kept / given back: {spread([(k.own + k.system) / (g.own + g.system) for k, g in pairs], '.2f')}")


if __name__ == "__main__":
    main()
