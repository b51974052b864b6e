"""Partwise, by its front door: an `Experiment`, which also keeps the run's record. The variant is the executor."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory

import networks
import torch
import work

import partwise as pw
from partwise.core.program import Record
from partwise.core.runtime import World
from partwise.experiment.evaluate import Score
from partwise.populations import ArrayPopulation
from partwise.runtimes.executors import Auto, Plain, Pool, Stacked

EXECUTORS = {"plain": Plain(), "pool": Pool(), "stacked": Stacked(), "auto": Auto()}


class Laps:
    """Shows nobody the run, but times its rounds."""

    def __init__(self, watch: work.Watch) -> None:
        self._watch = watch

    def started(self, total: int, folder: str) -> None: ...

    def committed(self, version: int, loss: float, world: World, scores: Sequence[Score]) -> None:
        self._watch.lap()

    def noticed(self, record: Record) -> None: ...

    def finished(self, reason: str) -> None: ...


def main() -> None:
    task = work.task(variant="plain")
    data = work.load(task.seed)
    x, y = (t.flatten(0, 1) for t in networks.tensors(data))  # client after client
    watch = work.Watch()
    model = pw.Model(lambda: networks.network(task.model), pw.CrossEntropy(), channels_last=task.model == "cnn")
    population = ArrayPopulation({"x": x, "y": y}, torch.arange(work.CLIENTS + 1) * work.EXAMPLES)
    experiment = pw.Experiment(
        pw.Workload(model, population, (pw.Accuracy(),)),
        pw.FedAvg(pw.LocalTraining(pw.SGD(lr=task.lr), batch_size=work.BATCH)),
        pw.Synchronous(cohort=task.cohort, rounds=task.rounds),
        seed=task.seed,
        evaluation=pw.Evaluation(every=task.rounds + 1, per_client=False),  # and there is no test set to evaluate on
        checkpointing=pw.Checkpointing(every_seconds=1e9),
        runtime=pw.Simulate(executor=EXECUTORS[task.variant]),
        threads=task.threads,
    )
    with TemporaryDirectory() as folder:
        result = experiment.run(folder, progress=Laps(watch))
        net = model.build(task.seed)
        net.load_state_dict(result.params)
        pool = task.variant == "pool"
        threads = "a process per core, 1 thread each" if pool else f"{task.threads}"
        work.report(task, "partwise", watch, networks.accuracy(net, data), threads)


if __name__ == "__main__":
    main()
