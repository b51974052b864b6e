"""The demo's runs against plain loops of the same work: seconds a round, stated both ways.

`partwise demo` runs FedSubAvg and FedAvg on StdlibCode: 30 clients a round, 20 steps each, every fifth version is
evaluated on every client. `run` is such a run of FedSubAvg as it is, with its record, evaluation and `Stacked`;
`trained` is the same without evaluation. The loop (`overhead.py`, one client after another, its rows alone) is timed
without evaluation, and with one that an engineer would add: each client's test set in one pass, its loss, accuracy and
area under the curve.

    python benchmarks/demo_speed.py [--passes 3] [--rounds 31] [--threads 0]

Every variant runs in a process of its own, and they take turns; the mean over rounds after the first is taken, for
evaluations are not in every round. threads: of torch in the run, 0 for torch's own choice; the loop is given one, with
which its small steps are fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import describe
from overhead import SEED, loop_rounds, workload

from partwise.cli.demo import demo_spec
from partwise.core.model import Values
from partwise.core.workload import Workload
from partwise.experiment.recorder import Silent
from partwise.experiment.spec import load

EVERY = 5
VARIANTS = ("loop", "loop, evaluated", "trained", "run")


class Laps(Silent):
    """Notes when each version was committed, and evaluated where it was."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def committed(self, version: int, loss: float, world: Any, scores: Sequence[Any] = ()) -> None:
        self.times.append(time.perf_counter())


def ours(rounds: int, threads: int, *, is_evaluated: bool) -> float:
    """Mean seconds a round, from the end of the first one."""
    settings = [f"scheduler.rounds={rounds}", "workload.cache=true", *([f"threads={threads}"] if threads else [])]
    settings.append(f"evaluation.every={EVERY if is_evaluated else rounds + 1}")
    laps = Laps()
    with tempfile.TemporaryDirectory() as folder:
        load(demo_spec("demo-fedsubavg.toml"), settings).run(folder, progress=laps)
    return (laps.times[-1] - laps.times[0]) / (rounds - 1)


def loop(rounds: int) -> float:
    times = loop_rounds("stdlib_code", rounds)[1:]
    return (times[-1] - times[0]) / (rounds - 1)


@torch.no_grad()
def evaluated(work: Workload, params: Values) -> list[tuple[float, float, float]]:
    """Loss, accuracy and area under the curve of every client."""
    module, found = work.model.build(SEED), []
    module.load_state_dict(params)
    for client in work.population.clients:
        data = work.population.test_data(client)
        if data is None or not len(data):
            continue
        columns = data.columns()
        logits, y = module(columns["history"], columns["candidate"]), columns["y"]
        loss = float(F.binary_cross_entropy_with_logits(logits, y.float()))
        accuracy = float(((logits > 0) == (y == 1)).float().mean())
        ranks = np.empty(len(y))
        ranks[np.argsort(logits.numpy(), kind="stable")] = np.arange(1, len(y) + 1)
        positive = y.numpy() == 1
        pairs = positive.sum() * (~positive).sum()
        above = ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
        found.append((loss, accuracy, above / pairs if pairs else float("nan")))
    return found


def evaluation(repeats: int = 5) -> float:
    """Seconds of one evaluation, the median."""
    work = workload("stdlib_code")
    params, seconds = work.model.init(SEED), []
    for _ in range(repeats):
        began = time.perf_counter()
        evaluated(work, params)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def child(variant: str, rounds: int, threads: int) -> float:
    if variant.startswith("loop"):
        torch.set_num_threads(1)
        seconds = loop(rounds)
        return seconds + evaluation() / EVERY if variant == "loop, evaluated" else seconds
    return ours(rounds, threads, is_evaluated=variant == "run")


def spread(values: Sequence[float], form: str) -> str:
    return f"{format(statistics.median(values), form)} ({format(min(values), form)}-{format(max(values), form)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=31, help="the first one is not counted")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--child", choices=VARIANTS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.rounds, args.threads)))
        return
    print(f"{describe(SEED)}, {args.threads or torch.get_num_threads()} threads of the run")
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.passes):
        for variant, seconds in found.items():
            command = [sys.executable, __file__, "--child", variant, "--rounds", str(args.rounds)]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
            seconds.append(json.loads(done.stdout.splitlines()[-1]))
    for variant, seconds in found.items():
        print(f"{variant:16} {spread([1e3 * s for s in seconds], '.0f')} ms a round")
    for name, one, other in (
        ("trained, loop / ours", "loop", "trained"),
        ("evaluated, loop / ours", "loop, evaluated", "run"),
        ("loop without evaluation / run with it", "loop", "run"),
    ):
        print(f"{name}: {spread([a / b for a, b in zip(found[one], found[other], strict=True)], '.2f')}")


if __name__ == "__main__":
    main()
