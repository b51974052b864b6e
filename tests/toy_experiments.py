"""Experiments with clients that have paces and links, made in Python: for tests that kill, resume and repeat runs."""

from __future__ import annotations

from typing import Any

import torch

from partwise.algorithms import FedAvg, FedLaAvg, FedRank, FedSubAvg, Scaffold
from partwise.core.metrics import Accuracy, Loss
from partwise.core.model import CrossEntropy
from partwise.core.population import Examples, Fate, Population, Profile
from partwise.core.runtime import Runtime
from partwise.core.workload import Workload
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import Checkpointing
from partwise.schedulers import FedBuff, FedCompass, FedFix, Synchronous
from partwise.schedulers.staleness import Constant
from partwise.transforms import ErrorFeedback, TopK
from toy_federation import CLASSES, LOCAL, WORDS, model
from toy_star import Eager

CLIENTS, ROUNDS = 6, 8


ASYNCHRONOUS = ("eager", "FedBuff", "FedCompass", "FedFix")


class People(Population):
    """Six clients with paces, links, examples and tests of their own."""

    clients = range(CLIENTS)

    def _make(self, client: int, purpose: int) -> Examples:
        draw = torch.Generator().manual_seed(1000 * purpose + client)
        words = torch.randint(5 * client, 5 * client + 30, (8 + 3 * client, 3), generator=draw) % WORDS
        return Examples({"words": words, "y": (words.sum(1) + client) % CLASSES})

    def data(self, client: int) -> Examples:
        return self._make(client, 1)

    def test_data(self, client: int) -> Examples:
        return self._make(client, 2)

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return Profile(0.1 * (1 + client * 5 % 7), 900.0 + 100 * client, 4000.0, float("inf"), 1.0)

    def name(self, client: int) -> str:
        return f"client number {client}"


class FicklePeople(People):
    """Six clients that lose a task now and then, in every stage; the server hears of it a little later."""

    def fate(self, client: int, task: int) -> Fate:
        stage: Any = {3: "download", 8: "train", 13: "upload"}.get((5 * task + client) % 17, "")
        return Fate(stage, 0.5, 0.2 * (task % 3), 0.1 * (task % 2))


def experiment(which: str, runtime: Runtime, **more: Any) -> Experiment:
    people = FicklePeople() if which in ASYNCHRONOUS else People()
    workload = Workload(model(), people, (Accuracy(), Loss(CrossEntropy())))
    parts: dict[str, Any] = {
        "control variates": {"algorithm": Scaffold(LOCAL)},
        "memory": {"algorithm": FedLaAvg(LOCAL)},
        "ranks": {"algorithm": FedRank(LOCAL)},
        "residuals": {"algorithm": FedSubAvg("count", LOCAL), "client": (ErrorFeedback(TopK(12)),)},
        "eager": {
            "algorithm": FedSubAvg("count", LOCAL),
            "client": (ErrorFeedback(TopK(12)),),
            "scheduler": Eager(5, 3 * ROUNDS),
        },
        "FedBuff": {
            "algorithm": Scaffold(LOCAL),  # whose control is not scaled
            "scheduler": FedBuff(3, 5, staleness=Constant(), versions=ROUNDS, patience_seconds=9.0),
        },
        "FedCompass": {
            "algorithm": FedSubAvg("count", LOCAL),
            "client": (ErrorFeedback(TopK(12)),),
            "scheduler": FedCompass(2, 6, versions=2 * ROUNDS, patience_seconds=9.0),
        },
        "FedFix": {"algorithm": FedAvg(LOCAL), "scheduler": FedFix(2.0, versions=ROUNDS)},
    }[which]
    usual = {
        "scheduler": Synchronous(cohort=4, rounds=ROUNDS),
        "name": "killed",
        "seed": 11,
        "runtime": runtime,
        "checkpointing": Checkpointing(every_seconds=0),
    }
    return Experiment(workload, **{**usual, **parts, **more})
