"""Ctrl-C in the round that reaches the target: the run is where it would have ended anyway."""

from __future__ import annotations

import os
import signal

from partwise.experiment.evaluate import Evaluation
from partwise.experiment.recorder import Silent
from partwise.experiment.result import MODEL
from partwise.experiment.store import RunStore
from toy_scores import experiment


class Interrupted(Silent):
    """Presses Ctrl-C when a version has been made."""

    def __init__(self, at: int) -> None:
        self.at = at

    def committed(self, version: int, *rest: object) -> None:
        if version == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_target_counts(tmp_path):
    target = experiment(evaluation=Evaluation(target=0.0))  # any AUC reaches it, and so the first version does
    target.run(tmp_path / "undisturbed")
    target.run(tmp_path / "interrupted", progress=Interrupted(1))
    found = []
    for name in ("undisturbed", "interrupted"):
        with RunStore(tmp_path / name, "read") as store:
            found.append((store.meta()["status"].split(":")[0], store.metrics(), store.events()))
    assert found[0] == found[1]
    assert found[0][0] == "target reached"
    one, other = ((tmp_path / name / MODEL).read_bytes() for name in ("undisturbed", "interrupted"))
    assert one == other


def test_before_it_the_run_is_interrupted(tmp_path):
    made = experiment(evaluation=Evaluation(target=2.0))  # which no AUC is
    made.run(tmp_path / "run", progress=Interrupted(1))
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"] == "interrupted"
