"""Killed at any line that writes a run's files, a run is resumed to the bits of an undisturbed one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from partwise.core import files
from partwise.experiment import checkpoint, dump, log, objects, rundir, store
from partwise.experiment import experiment as whole
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from toy_experiments import experiment
from toy_killed import attempt, everything

WRITING = {module.__file__ for module in (checkpoint, dump, files, log, objects, rundir, store, whole)}
Line = tuple[str, int]


def lines_of(run: Any) -> list[Line]:
    """The lines of those modules, in the order in which the run comes to them first."""
    found: dict[Line, None] = {}

    def at(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in WRITING:
            return None
        if event == "line":
            found.setdefault((frame.f_code.co_filename, frame.f_lineno))
        return at

    before = sys.gettrace()
    sys.settrace(at)
    try:
        run()
    finally:
        sys.settrace(before)
    return list(found)


class Killed:
    """A run that kills itself with -9 before a line; once resumed it does not."""

    def __init__(self, made: Any, line: Line) -> None:
        self.made, self.line = made, line

    def run(self, folder: Path, *, resume: bool) -> None:
        if not resume:
            sys.settrace(self._at)
        self.made.run(folder, resume=resume)

    def _at(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != self.line[0]:
            return None
        if event == "line" and frame.f_lineno == self.line[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._at


@pytest.mark.slow
def test_killed_at_each_line_that_writes(tmp_path):
    made = experiment("residuals", Simulate(), scheduler=Synchronous(cohort=3, rounds=2))
    lines = lines_of(lambda: made.run(tmp_path / "undisturbed"))
    expected = everything(tmp_path / "undisturbed", of_time=True)
    assert len(lines) > 200
    for file, number in lines:
        folder = tmp_path / f"{Path(file).stem} {number}"
        assert not attempt(Killed(made, (file, number)), folder, None), "was not killed"
        attempt(made, folder, None)
        assert everything(folder, of_time=True) == expected, f"killed at {file}:{number}"
