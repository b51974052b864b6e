"""One frozen description of a run: checks, programs, store, checkpoints, report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from partwise.experiment.evaluate import Evaluation
    from partwise.experiment.experiment import Experiment
    from partwise.experiment.journaling import Journaling
    from partwise.experiment.recorder import Checkpointing
    from partwise.experiment.report import write_report
    from partwise.experiment.result import Result
    from partwise.experiment.spec import load
    from partwise.experiment.trusted import Trusted

__all__ = ["Checkpointing", "Evaluation", "Experiment", "Journaling", "Result", "Trusted", "load", "write_report"]

_MODULE_OF = {
    "Checkpointing": "recorder",
    "Evaluation": "evaluate",
    "Experiment": "experiment",
    "Journaling": "journaling",
    "Result": "result",
    "Trusted": "trusted",
    "load": "spec",
    "write_report": "report",
}

if not TYPE_CHECKING:  # modules that read a run's record do without torch, and shall not load it by their neighbours

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
