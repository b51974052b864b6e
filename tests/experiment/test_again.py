"""Runs made again from their folders, and what is said when they do not come out the same."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from partwise.core.errors import CheckpointError
from partwise.experiment.again import replay
from partwise.experiment.experiment import Experiment
from partwise.experiment.log import LOG, read_log
from partwise.experiment.result import MODEL
from partwise.experiment.store import RunStore
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import FedFix, Synchronous
from toy_experiments import ASYNCHRONOUS, experiment


@pytest.fixture(params=[Simulate(), Processes(workers=2)], ids=["simulated", "processes"])
def made(request: Any) -> Experiment:
    return experiment("eager", request.param)


def altered(folder: Path, at: int, row: tuple[float, int, int]) -> None:
    data = bytearray((folder / LOG).read_bytes())
    data[8 + 20 * (at - 1) : 8 + 20 * at] = struct.pack("<diq", *row)
    (folder / LOG).write_bytes(data)


@pytest.mark.parametrize("which", ASYNCHRONOUS)
@pytest.mark.parametrize("runtime", [Simulate(), Processes(workers=2)], ids=["simulated", "processes"])
def test_it_comes_out_the_same(which, runtime, tmp_path):
    """Clients that race each other and get lost, and schedulers with timers."""
    more = {"scheduler": FedFix(0.05, versions=5)} if which == "FedFix" else {}  # the wall's clock is quicker
    made = experiment(which, runtime, **more)
    made.run(tmp_path / "first")
    found = replay(tmp_path / "first", tmp_path / "again", experiment=made)
    assert found.is_equal
    assert found.difference == ""
    assert found.versions == made.scheduler.versions or which == "FedFix"  # which makes none where nobody answered
    assert found.messages == len(read_log(tmp_path / "first"))
    assert found.compared[1] == "the final model"
    for name in (LOG, MODEL):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_log_that_was_cut(made, tmp_path):
    made.run(tmp_path / "run")
    data = (tmp_path / "run" / LOG).read_bytes()
    (tmp_path / "run" / LOG).write_bytes(data[: 8 + 20 * 21])
    found = replay(tmp_path / "run", experiment=made)
    assert found.difference.endswith("log.bin ends before it, with message 21.")
    assert found.difference.startswith("Record ")


@pytest.mark.parametrize("length", [0, 8, 27], ids=["empty", "its head", "half a message"])
def test_a_log_without_a_message(made, length, tmp_path):
    made.run(tmp_path / "run")
    data = (tmp_path / "run" / LOG).read_bytes()
    (tmp_path / "run" / LOG).write_bytes(data[:length])
    found = replay(tmp_path / "run", experiment=made)
    assert not found.is_equal
    assert (found.messages, found.versions) == (0, 0)
    assert found.difference.startswith("Record 1 is missing, ")
    assert found.difference.endswith(": log.bin ends before it, with message 0.")
    with RunStore(tmp_path / "run") as store:  # killed before anything happened
        store.truncate_after(seq=0, version=-1, heard=0)
    with pytest.raises(CheckpointError, match=r"needs a log\.bin with messages, got an empty one: the run was killed"):
        replay(tmp_path / "run", experiment=made)


def test_a_log_that_was_altered(made, tmp_path):
    made.run(tmp_path / "run")
    now, _, _ = read_log(tmp_path / "run")[16]
    altered(tmp_path / "run", 17, (now, 999, 0))
    found = replay(tmp_path / "run", experiment=made)
    assert (
        f"message 17 must be what the run comes to, got a message of client 999 at {now!r} s, but" in found.difference
    )


def test_another_model_and_another_population(made, tmp_path):
    made.run(tmp_path / "run")
    data = bytearray((tmp_path / "run" / MODEL).read_bytes())
    data[-1] ^= 1
    (tmp_path / "run" / MODEL).write_bytes(data)
    found = replay(tmp_path / "run", experiment=made)
    assert found.difference == "Every record is the same, but the final model is not."
    about = json.loads((tmp_path / "run" / "population.json").read_text())
    (tmp_path / "run" / "population.json").write_text(json.dumps({**about, "examples": [1]}))
    found = replay(tmp_path / "run", experiment=made)
    assert found.difference.startswith("The clients or their examples are not those of the run")


def test_another_specification(tmp_path):
    """Whole updates take longer on the link than those of a few entries."""
    made = experiment("residuals", Simulate())
    made.run(tmp_path / "run")
    other = experiment("residuals", Simulate(), client=())
    found = replay(tmp_path / "run", experiment=other)
    assert "message 6 must be what the run comes to, got a message of client 0 at 0.97488" in found.difference
    assert "but what comes next is a message of client 0 at 1.42377" in found.difference
    fewer = experiment("residuals", Simulate(), scheduler=Synchronous(cohort=4, rounds=3))
    assert "but the run is over: done" in replay(tmp_path / "run", experiment=fewer).difference


def test_a_record_that_was_altered(tmp_path):
    made = experiment("residuals", Simulate())
    made.run(tmp_path / "run")
    with RunStore(tmp_path / "run", "resume") as store:
        (lost, *_) = [e for e in store.events() if e["kind"] == "commit"]
        body = {**lost["body"], "loss": 0.125}
        store.truncate_after(seq=lost["seq"] - 1)
        store.append_events([(lost["time"], "commit", body)])
    found = replay(tmp_path / "run", experiment=made)
    at, loss = lost["seq"], lost["body"]["loss"]
    assert found.difference == (
        f"Record {at} differs, 'commit' at {lost['time']!r} s, version 1: its loss was 0.125 and is {loss!r}."
    )


def test_no_run_no_log_no_specification(tmp_path):
    with pytest.raises(CheckpointError, match=r"there must be a run's log\.bin, got none"):
        replay(tmp_path)
    made = experiment("residuals", Simulate(), scheduler=Synchronous(cohort=2, rounds=1))
    made.run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"needs the run's spec\.toml, got none: the run was made in Python of"):
        replay(tmp_path / "run")
