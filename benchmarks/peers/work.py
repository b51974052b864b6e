"""The work that every framework is given, and how it reports: NumPy only, so that it loads in each environment.

MNIST, 1000 clients of 60 images: one seeded permutation of the training images, cut into 1000 slices. Each round a
cohort trains one epoch in batches of 20 by plain SGD, and the server takes the mean, everybody weighing the same.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from importlib.metadata import version
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from machine import mnist_folder

CLIENTS, EXAMPLES, BATCH = 1000, 60, 20
LR = {"mlp": 0.1, "cnn": 0.05}


class Data(NamedTuple):
    """x: (1000, 60, 28, 28) float32 in 0 .. 1; y: (1000, 60) int64; x_test: (10000, 28, 28); y_test: (10000,)."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


class Task(NamedTuple):
    """What one process does: the model's name, clients a round, rounds, seed, threads and a choice of its own."""

    model: str
    cohort: int
    rounds: int
    seed: int
    threads: int
    variant: str

    @property
    def lr(self) -> float:
        return LR[self.model]


def task(variant: str = "") -> Task:
    """The task of the command line. variant: a runner's own choice where none is given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=list(LR), default="mlp")
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variant", default=variant)
    return Task(**vars(parser.parse_args()))


def load(seed: int) -> Data:
    folder = mnist_folder()
    if folder is None:
        raise SystemExit("mnist.npz: must be in ../shared/data or $PARTWISE_SHARED/data, got neither. Put it there.")
    with np.load(folder / "mnist.npz") as found:
        order = np.random.default_rng(seed).permutation(CLIENTS * EXAMPLES)
        x, x_test = (found[name].astype(np.float32) / 255 for name in ("x_train", "x_test"))
        y, y_test = (found[name].astype(np.int64) for name in ("y_train", "y_test"))
    shape = (CLIENTS, EXAMPLES)
    return Data(x[order].reshape(*shape, 28, 28), y[order].reshape(shape), x_test, y_test)


def cohorts(task: Task) -> list[list[int]]:
    """The clients of each round: what `partwise.schedulers.Synchronous` draws, written out for the others."""
    draws = [random.Random(f"{task.seed}|cohort|{n + 1}") for n in range(task.rounds)]
    return [sorted(draw.sample(range(CLIENTS), task.cohort)) for draw in draws]


class Watch:
    """Notes when each round was over; starts when it is made, with the data ready and nothing else."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]

    def lap(self) -> None:
        self._times.append(time.perf_counter())

    @property
    def rounds(self) -> list[float]:
        return [after - before for before, after in pairwise(self._times)]


def report(task: Task, package: str, watch: Watch, accuracy: float, threads: str) -> None:
    """Print what `compare.py` reads: the last line of a runner's output. package: whose version is given."""
    if len(watch.rounds) != task.rounds:
        raise RuntimeError(f"report(): must have seen {task.rounds} rounds, got {len(watch.rounds)}. Is a lap missing?")
    first, *seconds = watch.rounds
    print(
        json.dumps(
            {
                "version": f"{package} {version(package)}",
                "seconds": seconds,
                "first_seconds": first,
                "accuracy": accuracy,
                "threads": threads,
            }
        ),
        flush=True,
    )
