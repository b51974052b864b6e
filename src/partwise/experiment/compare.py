"""Runs side by side: what each reached, and what it spent on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from partwise.core.errors import DataError
from partwise.experiment.runs import Point, Run, RunLike, common_score, read_runs
from partwise.experiment.words import time_ticks

__all__ = ["Row", "by_time", "compare"]


class Row(NamedTuple):
    """One run in a comparison. What the record does not hold is None; a score that is not defined is nan.

    Args:
        folder: of the run.
        name: of the run, made distinct where two are alike.
        algorithm: as it prints.
        metric: what all runs are judged by.
        scope: where it is measured, as in `Score`.
        final: the score at the last evaluated version.
        final_version: that version.
        best: the best score.
        best_version: where it was first seen.
        target: the score to be reached; None if there is none to take.
        target_version: the first version that reached it; None if none did, and then so are the next three.
        target_uplink: bytes from clients by then.
        target_downlink: bytes to clients by then.
        target_seconds: on the runtime's clock by then.
        uplink: bytes from clients in the whole run.
        downlink: bytes to clients in the whole run.
        uplink_share: mean uplink bytes per answered task, over the bytes of the full model.
        mean: over clients at the last evaluated version, and so the next three.
        p10: 10th percentile.
        p90: 90th percentile.
        worst: the worst client's.
        wall_seconds: of the whole run on the wall's clock.
    """

    folder: Path
    name: str
    algorithm: str
    metric: str
    scope: str
    final: float
    final_version: int
    best: float
    best_version: int
    target: float | None
    target_version: int | None
    target_uplink: float | None
    target_downlink: float | None
    target_seconds: float | None
    uplink: float
    downlink: float
    uplink_share: float | None
    mean: float | None
    p10: float | None
    p90: float | None
    worst: float | None
    wall_seconds: float | None

    @property
    def target_bytes(self) -> float | None:
        """Bytes both ways until the target."""
        if self.target_uplink is None or self.target_downlink is None:
            return None
        return self.target_uplink + self.target_downlink


def compare(
    folders: Iterable[RunLike], metric: str | None = None, target: float | None = None, *, scope: str | None = None
) -> list[Row]:
    """Compare runs by one metric; the first is what the others are measured by.

    Args:
        folders: of the runs, at least one.
        metric: the runs' main metric by default.
        target: the score to be reached; by default the last finite one of the first run.
        scope: central where all runs have it, else pooled over clients, by default.

    Returns:
        One row per run, in the order given.

    Raises:
        CheckpointError: a folder holds no run.
        DataError: the runs have different main metrics, or one lacks the score.

    Example:
        for row in compare(["runs/fedavg", "runs/fedsubavg"]): print(row.name, row.final, row.target_version)
    """
    runs = read_runs(folders)
    name, where = common_score(runs, metric, scope)
    if target is None:
        reachable = [p.value for p in runs[0].scores[name, where] if math.isfinite(p.value)]
        target = reachable[-1] if reachable else None
    elif not math.isfinite(target):
        raise DataError(
            f"compare(target={target}): must be a finite number, got {target}. Leave it out for the first run's end."
        )
    return [_row(run, name, where, target) for run in runs]


def by_time(runs: Sequence[Run], metric: str, scope: str, count: int = 8) -> list[tuple[float, list[float | None]]]:
    """Moments of the runs' clocks, and each run's last score by then; None before its first and after its end.

    Args:
        runs: which all have the score.
        metric: its name.
        scope: where it is measured.
        count: of moments, about. There are none where no time passes.
    """
    ends = [run.scores[metric, scope][-1].seconds for run in runs]
    found = []
    for moment in time_ticks(0.0, max(ends), count)[1:]:
        values = [_by(run.scores[metric, scope], moment) for run in runs]
        found.append((moment, values))
    return found


def _by(points: Sequence[Point], moment: float) -> float | None:
    """The last score by a moment; None if there was none yet, or will be none any more."""
    if not points[0].seconds <= moment:
        return None
    last = [p for p in points if p.seconds <= moment][-1]
    return None if last is points[-1] and last.seconds < moment else last.value


def _row(run: Run, metric: str, scope: str, target: float | None) -> Row:
    points = run.scores[metric, scope]
    higher = run.higher_is_better(metric)
    best = _best(points, higher)
    reached = None if target is None else next((p for p in points if _reaches(p.value, target, higher)), None)
    over_clients = {name: _last(run.scores.get((metric, name), ())) for name in ("mean", "p10", "p90", "worst")}
    wall = run.meta.get("wall_seconds")
    return Row(
        folder=run.folder,
        name=run.label,
        algorithm=str(run.meta.get("algorithm", "")),
        metric=metric,
        scope=scope,
        final=points[-1].value,
        final_version=points[-1].version,
        best=best.value,
        best_version=best.version,
        target=target,
        target_version=reached and reached.version,
        target_uplink=reached and reached.uplink,
        target_downlink=reached and reached.downlink,
        target_seconds=reached and reached.seconds,
        uplink=run.last.uplink,
        downlink=run.last.downlink,
        uplink_share=_uplink_share(run),
        wall_seconds=None if wall is None else float(wall),
        **over_clients,
    )


def _best(points: Sequence[Point], higher: bool) -> Point:
    """The first of the best; the last one where no score is defined."""
    defined = [p for p in points if not math.isnan(p.value)]
    if not defined:
        return points[-1]
    value = (max if higher else min)(p.value for p in defined)
    return next(p for p in defined if p.value == value)


def _reaches(value: float, target: float, higher: bool) -> bool:
    return value >= target if higher else value <= target  # False for nan


def _last(points: Sequence[Point]) -> float | None:
    return points[-1].value if points else None


def _uplink_share(run: Run) -> float | None:
    if not run.model_bytes or not run.answered:
        return None
    return run.last.uplink / run.answered / run.model_bytes
