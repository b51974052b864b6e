"""A run in a process that was begun so that it ignores Ctrl-C, as in the background of a script."""

from __future__ import annotations

import os
import signal

import pytest

from partwise.experiment.recorder import Silent
from partwise.experiment.store import RunStore
from toy_scores import experiment


class Pressed(Silent):
    """Ctrl-C after the first version."""

    def committed(self, version: int, *rest: object) -> None:
        if version == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_goes_on_and_leaves_the_signal_as_it_was(ignored, tmp_path):
    experiment().run(tmp_path / "run", progress=Pressed())
    with RunStore(tmp_path / "run", "read") as store:
        assert store.meta()["status"] == "done"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
