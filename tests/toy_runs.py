"""Run folders written without training, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from partwise.experiment.store import RunStore

METRIC = "auc"


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
        store.append_replies([(1, client, 20, 640, 0, 0, 0.0, 1.0, 0.5, 0) for client in replies])
        store.append_events(
            [
                (1.0, kind, {"client": client, "version": version, "stage": stage, "reason": reason})
                for kind, client, version, stage, reason in troubles
            ]
        )
    if population is not None:
        (folder / "population.json").write_text(json.dumps(population))
    return folder
