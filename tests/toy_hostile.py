"""Small images on eight clients, of whom two flip signs before an observer: for tests of hostile runs."""

import os
import signal

import torch

from partwise.aggregators import Mean, Watch
from partwise.algorithms import FedAvg
from partwise.attacks import Hostile, SignFlip
from partwise.core.metrics import Accuracy
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.local import SGD, LocalTraining
from partwise.observers import MUDHoG
from partwise.populations.arrays import ArrayPopulation
from partwise.schedulers import Synchronous

__all__ = ["Stops", "experiment", "images"]


def images(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=rng)
    x = 0.1 * torch.randn(n, 1, 6, 6, generator=rng)
    x[torch.arange(n), 0, y] += 1.0
    return {"x": x, "y": y}


def experiment(rounds=5, **more):
    population = ArrayPopulation(images(160, 1), torch.arange(0, 161, 20), central=Examples(images(80, 2)))
    model = Model(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4)), CrossEntropy())
    parts = {
        "aggregator": Watch(MUDHoG(), Mean("holders"), exclude=True),
        "hostile": Hostile(SignFlip(), clients=(2, 6)),
    }
    return Experiment(
        Workload(model, population, (Accuracy(),)),
        FedAvg(LocalTraining(SGD(0.2), batch_size=10)),
        Synchronous(cohort=8, rounds=rounds),
        checkpointing=Checkpointing(every_seconds=0.0),
        **{**parts, **more},
    )


class Stops(Silent):
    """Presses Ctrl-C after the third version."""

    def committed(self, version, loss, world, scores):
        if version == 3:
            os.kill(os.getpid(), signal.SIGINT)
