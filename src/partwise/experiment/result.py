"""The result of a run, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partwise.experiment.store import RunStore

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from partwise.core.model import Params

__all__ = ["MODEL", "Result"]

MODEL = "model.safetensors"  # the trained parameters, in a run's folder


@dataclass(frozen=True, eq=False)
class Result:
    """What a run made.

    Args:
        folder: its record and checkpoints.
        streams: stream -> parameters after the last version; empty for a run that was only opened.
    """

    folder: Path
    streams: Mapping[str, Params] = field(default_factory=dict, repr=False)

    @property
    def params(self) -> Params:
        """The trained parameters, to be loaded by `module.load_state_dict(result.params, strict=False)`."""
        if "model" in self.streams:
            return self.streams["model"]
        from safetensors.torch import load_file  # so that opening a run loads no torch

        return load_file(self.folder / MODEL)

    def table(self, name: str | None = None, scope: str | None = None) -> list[dict[str, Any]]:
        """One row per version and score: version, time, bytes, name, scope, value."""
        with RunStore(self.folder, "read") as store:
            return store.metrics(name, scope)

    def frame(self, name: str | None = None, scope: str | None = None) -> pandas.DataFrame:
        """The table as a pandas data frame (extra `tables`)."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("Result.frame(): needs pandas, got none. pip install 'partwise[tables]'.") from error
        return pandas.DataFrame(self.table(name, scope))

    def plot(self) -> Figure:
        """The main metric by version, as a matplotlib figure; `partwise.experiment.plots` has more."""
        from partwise.experiment.plots import metric_by_version

        return metric_by_version([self.folder])

    def value(self, name: str, scope: str) -> float:
        """A score after the last version it was measured at."""
        rows = self.table(name, scope)
        if not rows:
            raise LookupError(f"Result.value({name!r}, {scope!r}): no such score was recorded. See Result.table().")
        return float(rows[-1]["value"])
