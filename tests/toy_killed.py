"""A run that is killed with -9 after some seconds, and gone on with: for tests that no moment of a kill matters."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import warnings
from pathlib import Path

from partwise.experiment.experiment import Experiment
from partwise.experiment.store import RECORD

__all__ = ["attempt"]


def attempt(made: Experiment, folder: Path, seconds: float | None) -> bool:
    """Run, or go on, in a process that is killed after so many seconds; whether it was through by then."""
    process = multiprocessing.get_context("fork").Process(target=go_on, args=(made, folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of the test run: the child needs none
        process.start()
    process.join(seconds)
    process.kill()
    process.join()
    code = process.exitcode
    process.close()
    assert code in {0, -9}
    return code == 0


def go_on(made: Experiment, folder: Path) -> None:
    has_begun = (folder / RECORD).exists()
    if folder.exists() and not has_begun:
        shutil.rmtree(folder)  # killed before there was a record: the run has not begun
    made.run(folder, resume=has_begun)
    os._exit(0)  # at once: what a measuring of coverage does at the end of a process is not the run's business
