"""Run folders written without training, for tests of what reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from partwise.experiment.store import RunStore

METRIC = "auc"
NASTY = "<b>&\"'$x_ {{ 7*7 }} _日本"
POPULATION = {
    "clients": 4,
    "numbers": None,
    "names": ["ab", "cd", "ef", NASTY],
    "examples": [10, 30, 60, 100],
    "test_examples": [2, 3, 5, 7],
    "sampled": 4,
    "rows_touched": [2, 3, 5, 40],
    "values_held": [100, 120, 150, 200],
    "heat": {"table.weight": [[4, 1], [2, 6], [1, 33], [0, 10]]},
    "model": {"parameters": 1000, "bytes": 4000, "tables": {"table.weight": [50, 16]}},
}
TROUBLES = [
    ("lost", 0, 3, "train", "RuntimeError: no memory"),
    ("lost", 2, 9, "train", "RuntimeError: no memory"),
    ("refused", 3, 4, "", f"must be finite, got {NASTY}"),
]


def write_run(
    folder: Path,
    curve: Sequence[tuple[int, float, int, int, float]],
    *,
    meta: Mapping[str, Any] | None = None,
    metric: str = METRIC,
    scope: str = "pooled",
    spread: Mapping[str, Sequence[float]] | None = None,
    clients: Iterable[tuple[int, float, int]] = (),
    replies: Iterable[int] = (),
    spans: Iterable[tuple[int, float, float, float, float]] = (),
    lost: Iterable[tuple[int, str, float, float]] = (),
    commits: Iterable[tuple[float, Sequence[int], Sequence[int]]] = (),
    troubles: Iterable[tuple[str, int, int, str, str]] = (),
    losses: Sequence[float] = (),
    population: Mapping[str, Any] | None = None,
) -> Path:
    """A run's folder.

    Args:
        folder: made.
        curve: (version, seconds, uplink, downlink, score) per evaluated version.
        meta: added to the least that a run says about itself.
        metric: of the curve.
        scope: of the curve.
        spread: scope -> scores over clients, one per version of the curve.
        clients: (client, score, examples) at the last version.
        replies: the clients that answered, in order.
        spans: (client, began, fetched, trained, arrived) of more replies.
        lost: (client, stage, began, noticed) of lost tasks.
        commits: (time, clients, staleness).
        troubles: (kind, client, version, stage, reason).
        losses: the training loss of version 1, 2, ...
        population: written to `population.json`.
    """
    about = {"name": folder.name, "algorithm": "FedAvg()", "metric": metric, "higher_is_better": True, "status": "done"}
    with RunStore(folder) as store:
        store.set_meta(**{**about, **(meta or {})})
        store.append_metrics([(*point[:4], metric, scope, point[4]) for point in curve])
        for name, values in (spread or {}).items():
            store.append_metrics([(*p[:4], metric, name, v) for p, v in zip(curve, values, strict=True)])
        store.append_metrics([(v, float(v), v, v, "train_loss", "cohort", x) for v, x in enumerate(losses, 1)])
        last = curve[-1][0] if curve else 0
        store.append_clients([(last, client, metric, value, n) for client, value, n in clients])
        store.append_replies(
            [(1, client, at, 20, 640, 0, 0, 0.0, 0.25, 0.75, 1.0, 0.5, 0) for at, client in enumerate(replies)]
        )
        store.append_events(
            [
                (1.0, kind, {"client": client, "version": version, "stage": stage, "reason": reason})
                for kind, client, version, stage, reason in troubles
            ]
        )
        more = [(1, c, at, 5, 9, 0, 0, *times, 0.5, 0) for at, (c, *times) in enumerate(spans, 100)]
        store.append_replies(more)
        for at, (client, stage, began, now) in enumerate(lost, 200):
            gone = {"client": client, "version": 1, "stage": stage, "reason": "gone", "id": at, "began": began}
            store.append_events([(now, "lost", gone)])
        for version, (now, who, staleness) in enumerate(commits, 1):
            made = {"version": version, "clients": list(who), "staleness": list(staleness)}
            store.append_events([(now, "commit", made)])
    if population is not None:
        (folder / "population.json").write_text(json.dumps(population))
    return folder


def curve(rate: float, uplink: int, versions: int = 12) -> list[tuple[int, float, int, int, float]]:
    """Every second version, of 30 seconds each; the downlink is twice the uplink."""
    return [(v, 30.0 * v, uplink * v, 2 * uplink * v, 0.5 + rate * v) for v in range(0, versions + 1, 2)]


def full_run(folder: Path, rate: float, uplink: int, **more: Any) -> Path:
    """A run with everything a record can hold."""
    points = curve(rate, uplink)
    spread = {
        "mean": [p[4] - 0.01 for p in points],
        "p10": [p[4] - 0.1 for p in points],
        "p90": [p[4] + 0.1 for p in points],
        "worst": [p[4] - 0.2 for p in points],
        "pooled@0.5": [p[4] - 0.05 for p in points],
        "pooled@0.25": [p[4] - 0.15 for p in points],
    }
    meta = {
        "seed": 3,
        "num_clients": 4,
        "scheduler": "Synchronous(rounds=12, cohort=2)",
        "workload": "Toy(rows=50)",
        "environment": {
            "python": "3.11.2",
            "git": {"commit": "abc123", "is_dirty": True},
            "memory_bytes": 8_000_000_000,
        },
        **more.pop("meta", {}),
    }
    return write_run(
        folder,
        points,
        meta=meta,
        spread=spread,
        clients=[(0, 0.4, 2), (1, 0.9, 3), (2, math.nan, 5), (3, 0.7, 7)],
        replies=[0, 1, 0, 1, 0, 3],
        troubles=TROUBLES,
        losses=[0.7, 0.65, 0.6, 0.62],
        commits=[(30.0, [0, 1], [0, 0]), (60.0, [0, 1], [0, 1]), (90.0, [0, 3], [0, 2])],
        population=POPULATION,
        **more,
    )
