"""A run is resumed as what it began as, and not as another one."""

from __future__ import annotations

import shutil

import pytest
import torch

from partwise.algorithms import FedSubAvg
from partwise.core.errors import CheckpointError
from partwise.core.schedule import Scheduler
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.recorder import Checkpointing, Silent
from partwise.local import SGD, LocalTraining
from partwise.runtimes import Simulate
from partwise.runtimes.executors import Pool
from partwise.schedulers import Synchronous
from partwise.transforms import Clip
from toy_scores import experiment


class Killed(Silent):
    """Ends the run after its second version."""

    def committed(self, version: int, *rest: object) -> None:
        if version == 2:
            raise KeyboardInterrupt


def made(lr: float = 0.5, **changes: object):
    local = LocalTraining(SGD(lr=lr), batch_size=4, steps=3)
    settings = {"algorithm": FedSubAvg("count", local), "checkpointing": Checkpointing(every_seconds=0), **changes}
    return experiment(**settings)


@pytest.fixture
def killed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(client=[Clip(4.0)]).run(tmp_path / "run", progress=Killed())
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"lr": 0.25},
            r"the algorithm must be what it was .*lr = 0\.5.*, got .*lr = 0\.25.*\. Make the",
        ),
        ({"seed": 4}, r"the seed must be what it was when the checkpoint was written, seed = 3, got seed = 4\. Make"),
        ({"client": ()}, r"the client must be what it was"),
        ({"server": [Clip(1.0)]}, r"the server must be what it was"),
        ({"scheduler": Synchronous(cohort=3, rounds=9)}, r"the scheduler must be what it was .*, got .*9"),
    ],
)
def test_another_experiment_is_refused_and_the_run_is_left_as_it_is(changes, says, killed, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        made(**{"client": [Clip(4.0)], **changes}).run(killed, resume=True)
    rest = made(client=[Clip(4.0)]).run(killed, resume=True)
    whole = made(client=[Clip(4.0)]).run(tmp_path / "whole")
    assert all(torch.equal(t, rest.params[n]) for n, t in whole.params.items())
    assert rest.table() == whole.table()


def test_checkpoints_of_another_run_are_refused(killed, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(client=[Clip(4.0)], seed=9).run(tmp_path / "other", progress=Killed())
    shutil.rmtree(killed / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", killed / "checkpoints")
    with pytest.raises(CheckpointError, match=r"the seed must be what it was .*, seed = 9, got seed = 3"):
        made(client=[Clip(4.0)]).run(killed, resume=True)


def test_what_changes_nothing_of_the_model_may_change(killed):
    same = made(client=(Clip(4),), runtime=Simulate(executor=Pool()), evaluation=Evaluation(every=2))
    assert same.run(killed, resume=True).table("train_loss", "cohort")[-1]["version"] == 4


class Unwritten(Scheduler):
    """A scheduler that no specification can name, and that prints as the place where it lies."""

    def __init__(self) -> None:
        self.inner = Synchronous(cohort=3, rounds=4)

    def __getattribute__(self, name):
        return object.__getattribute__(self, name) if name in ("inner", "__class__") else getattr(self.inner, name)


def test_parts_that_are_known_as_objects_alone(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(scheduler=Unwritten()).run(tmp_path / "run", progress=Killed())
    kept = Unwritten()
    assert " at 0x" in object.__repr__(kept)
    made(scheduler=kept).run(tmp_path / "run", resume=True)
