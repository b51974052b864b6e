"""Executors against each other and against a plain training loop: seconds for the local training of one round.

    python benchmarks/executors.py [--passes 7] [--threads 2] [--only mlp] [--device cuda] [--out executors.md]

Every variant gets the same jobs: held values, localized data, seeds. The variants take turns in one process, and the
first turn of each is not counted. `loop` is what an engineer would write: one module, `torch.optim.SGD`, one client
after another, over the same batches. Ratios are of one pass each, to `loop` and to `Plain`; CPU seconds count all
threads, and tell more than wall seconds where other programs share the cores. The largest difference from the end
values of `Plain`, relative to the largest entry of a parameter, shows that the work is the same. With `--device` each
variant also trains there, by `OnDevice`: jobs are copied there and back in every round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from machine import describe
from torch import nn

from partwise.algorithms import FedAvg, FedSubAvg
from partwise.core.algorithm import Algorithm, Site, Task
from partwise.core.metrics import Loss
from partwise.core.model import CrossEntropy, Model, Values, like
from partwise.core.plan import Executor, Job, Trained
from partwise.core.population import Profile
from partwise.core.workload import Workload
from partwise.local import SGD, LocalTraining
from partwise.populations import ArrayPopulation
from partwise.runtimes.executors import OnDevice, Plain, Stacked
from partwise.runtimes.executors.plain import batches
from partwise.workloads import SparseLogistic, StdlibCode

SEED = 1


def images() -> Workload:
    """As many pixels as MNIST: 100 clients of 60 images, an MLP 784-200-10."""
    rng = torch.Generator().manual_seed(SEED)
    columns = {"x": torch.rand(6000, 1, 28, 28, generator=rng), "y": torch.randint(10, (6000,), generator=rng)}
    layers = nn.Sequential(nn.Flatten(1), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    model = Model(layers, CrossEntropy())
    return Workload(model, ArrayPopulation(columns, torch.arange(101) * 60), (Loss(model.loss),))


def round_of(workload: Workload, algorithm: Algorithm, cohort: int) -> list[Job]:
    params = workload.model.init(SEED)
    shapes = like(params)
    drawn = np.random.default_rng(SEED).choice(len(workload.population.clients), cohort, replace=False)
    jobs = []
    for client in sorted(drawn.tolist()):
        site = Site(client, workload.model, shapes, workload.population.data(client), Profile(), SEED)
        task = Task(client, 0, 0, 0)
        index = algorithm.select(task, None, site)
        held = {"model": index.gather(params)}
        plan = algorithm.plan(held, index, task, None, site)
        jobs.append(Job(plan, held["model"], site.localized(index), site.derive("work", task)))
    return jobs


def rounds() -> dict[str, Callable[[], list[Job]]]:
    epoch = FedAvg(LocalTraining(SGD(lr=0.1), batch_size=20))
    code = FedSubAvg("count", LocalTraining(SGD(lr=1.0), batch_size=32, steps=20))
    full = FedSubAvg("count", LocalTraining(SGD(lr=1.0), batch_size=0, steps=5))
    return {
        "mlp, 10 clients": lambda: round_of(images(), epoch, 10),
        "mlp, 50 clients": lambda: round_of(images(), epoch, 50),
        "stdlib_code, 30 clients": lambda: round_of(StdlibCode().build(SEED), code, 30),
        "sparse_logistic, 50 clients": lambda: round_of(SparseLogistic().build(SEED), full, 50),
    }


class Loop:
    """The yardstick."""

    def run(self, jobs: Sequence[Job]) -> list[Trained]:
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trained:
        model: Model = job.plan.loss.model  # type: ignore[attr-defined]
        module = model.build(SEED)
        for name, value in job.start.items():
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, nn.Parameter(value.clone()))
        optimizer = torch.optim.SGD(module.parameters(), lr=job.plan.optimizer.lr)
        columns, total, steps = job.data.columns(), 0.0, 0
        for at in batches(job.plan, len(job.data), job.seed):
            outputs = module(*(columns[name][at] for name in model.inputs))
            y = columns["y"][at]
            if outputs.dim() > 1:
                loss = F.cross_entropy(outputs, y)
            else:
                loss = F.binary_cross_entropy_with_logits(outputs, y.to(outputs.dtype))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            steps += 1
        change = {n: p.data - job.start[n] for n, p in module.named_parameters()}
        return Trained(change, steps, total / steps)


def difference(jobs: Sequence[Job], found: Sequence[Trained], expected: Sequence[Trained]) -> float:
    def gap(start: Values, one: Values, other: Values) -> float:
        return max(float((one[n] - t).abs().max() / (start[n] + t).abs().max()) for n, t in other.items())

    return max(gap(job.start, a.change, b.change) for job, a, b in zip(jobs, found, expected, strict=True))


def spread(values: Sequence[float], form: str) -> str:
    return f"{format(statistics.median(values), form)} ({format(min(values), form)}-{format(max(values), form)})"


def variants_of(device: str) -> dict[str, Executor]:
    found: dict[str, Executor] = {"loop": Loop(), "Plain": Plain(), "Stacked": Stacked()}
    return found | ({f"{name} on {device}": OnDevice(device, one) for name, one in found.items()} if device else {})


def measure(jobs: list[Job], passes: int, device: str) -> list[tuple[str, ...]]:
    variants = variants_of(device)
    ends = {name: variant.run(jobs) for name, variant in variants.items()}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(passes):
        for name, variant in variants.items():
            began, busy = time.perf_counter(), time.process_time()
            variant.run(jobs)
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - busy)
    rows = []
    for name in variants:
        ratios = {
            (kind, base): [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
            for kind, seconds in (("wall", wall), ("cpu", cpu))
            for base in ("loop", "Plain")
        }
        rows.append(
            (
                name,
                spread([1e3 * s for s in wall[name]], ".1f"),
                *(spread(ratios["wall", base], ".2f") for base in ("loop", "Plain")),
                *(spread(ratios["cpu", base], ".2f") for base in ("loop", "Plain")),
                format(difference(jobs, ends[name], ends["Plain"]), ".0e"),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own choice")
    parser.add_argument("--only", default="", help="workloads whose names begin so")
    parser.add_argument("--device", default="", help="where each variant also trains: cuda, say")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    where = f"{describe(SEED)}, {torch.get_num_threads()} threads"
    print(where)
    head = ("workload", "executor", "ms a round", "wall / loop", "wall / Plain", "CPU / loop", "CPU / Plain", "gap")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, make in rounds().items():
        if not name.startswith(arguments.only):
            continue
        jobs = make()
        print(f"{name}: {'; '.join(Stacked().explain(jobs))}", flush=True)
        lines += ["| " + " | ".join((name, *row)) + " |" for row in measure(jobs, arguments.passes, arguments.device)]
    print("\n".join(lines))
    if arguments.out:
        text = (
            "# Executors",
            "",
            f"`python benchmarks/executors.py --passes {arguments.passes}` on {where}. Local training of one round;",
            f"medians and ranges of {arguments.passes} passes in turns.",
            "",
            *lines,
            "",
        )
        arguments.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
