"""Clients that draw secrets of their own ask for other rows in every process, and are the same clients all the same."""

from __future__ import annotations

import pytest
import torch

from partwise.algorithms import Deniable, FedSubAvg
from partwise.core.errors import CheckpointError
from partwise.experiment.again import replay
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.local import SGD, LocalTraining
from toy_scores import Toy, experiment


class Killed(Silent):
    """Ends the run after its second version."""

    def committed(self, version: int, *rest: object) -> None:
        if version == 2:
            raise KeyboardInterrupt


def deniable(population: Toy | None = None):
    inner = FedSubAvg("count", LocalTraining(SGD(lr=0.5), batch_size=4, steps=3))
    return experiment(population, algorithm=Deniable(inner), checkpointing=Checkpointing(every_seconds=0))


def test_a_killed_run_is_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        deniable().run(tmp_path / "run", progress=Killed())
    result = deniable().run(tmp_path / "run", resume=True)
    assert all(torch.isfinite(value).all() for value in result.params.values())


def test_it_is_not_resumed_on_other_data(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        deniable().run(tmp_path / "run", progress=Killed())
    with pytest.raises(CheckpointError, match="must be those the run began with, got others"):
        deniable(Toy(highest_id=7)).run(tmp_path / "run", resume=True)


def test_one_made_again_is_not_said_to_have_other_clients(tmp_path):
    deniable().run(tmp_path / "run")
    assert "The clients or their examples" not in replay(tmp_path / "run", experiment=deniable()).difference
