"""A workload: clients with data, a model that fits them, and what to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from partwise.core.kinds import check_kinds
from partwise.core.metrics import Metric
from partwise.core.model import Model
from partwise.core.population import Population

__all__ = ["Workload", "WorkloadSource"]


@dataclass(frozen=True, eq=False)
class Workload:
    """What is trained, on whom, and how it is judged.

    Args:
        model: the model and its loss.
        population: the clients.
        metrics: at least one, each with a name of its own; the first is the main one.
    """

    model: Model
    population: Population
    metrics: tuple[Metric, ...]

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.metrics:
            raise ValueError("Workload(metrics=()): needs at least one metric, got none. Add Loss(model.loss).")
        names = [metric.name for metric in self.metrics]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:  # their columns would become those of one metric
            raise ValueError(
                f"Workload(metrics=...): must have names that differ, got {names.count(twice)} called {twice!r}. Name "
                f"them by what they measure, such as name={twice + '_2'!r}."
            )

    @property
    def main(self) -> Metric:
        """The metric that targets and comparisons refer to."""
        return self.metrics[0]


class WorkloadSource(Protocol):
    """A description from which a workload is made; a frozen dataclass of plain fields and parts."""

    def build(self, seed: int) -> Workload:
        """The workload; what it draws at random is derived from `seed`."""
        ...
