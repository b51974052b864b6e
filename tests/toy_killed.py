"""A run that is killed with -9, gone on with, and what it leaves: for tests that no moment of a kill matters."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import partwise
from partwise.core.codec import encode
from partwise.experiment.checkpoint import Checkpoints
from partwise.experiment.experiment import Experiment
from partwise.experiment.log import read_log
from partwise.experiment.store import RECORD, RunStore

__all__ = ["SOURCE", "attempt", "everything", "python"]

SOURCE = {**os.environ, "PYTHONPATH": str(Path(partwise.__file__).parents[1])}


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that has printed its first line."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=SOURCE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


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


def everything(folder: Path, *, of_time: bool) -> dict[str, object]:
    """All that a run left behind, to the last bit; what depends on the wall clock only if that is asked for."""
    with RunStore(folder, "read") as store:
        assert store.meta()["status"] == "done"
        tables = {"metrics": store.metrics(), "clients": store.clients()}
        if of_time:
            tables |= {"events": store.events(), "replies": store.replies(), "log": list(read_log(folder))}
    if not of_time:
        tables["metrics"] = [{**row, "time": 0.0} for row in tables["metrics"]]
    entries = Checkpoints(folder / "checkpoints").load().entries
    server = entries["node/-1"]
    found: dict[str, object] = {"node/-1": encode((server.streams, server.version, server.reducers, server.chains))}
    for name in entries:
        if name.startswith("node/") and name != "node/-1":
            found[name] = encode((entries[name].own, entries[name].chains))
        elif of_time and name == "queue":  # what was lent before a checkpoint is owned after it
            found[name] = encode([(p.rank, p.src, p.to, p.size, p.seed) for p in entries[name]])
        elif of_time and not name.startswith("recorder"):
            found[name] = encode(entries[name])
    return {**found, **tables, "model": (folder / "model.safetensors").read_bytes()}
