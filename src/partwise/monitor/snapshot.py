"""A run at a moment, as plain numbers and words for a page or another program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from partwise.experiment.accounts import EPSILON
from partwise.experiment.runs import Point
from partwise.experiment.words import finite, title_of
from partwise.monitor.clients import Order
from partwise.monitor.follow import LOSS, MEAN_STALENESS, MOST_STALENESS, Follower
from partwise.monitor.series import Series

__all__ = ["snapshot"]

_KEPT = {LOSS, EPSILON, MEAN_STALENESS, MOST_STALENESS}  # curves that have a place of their own


def snapshot(follower: Follower, *, metric: str = "", order: Order = "recent", find: str = "") -> dict[str, Any]:
    """What a follower knows, ready for JSON.

    Args:
        follower: of the run.
        metric: whose curve is wanted, as `name/scope`; the main metric's by default, and where there is no such curve.
        order: of the clients; those first that have most of it.
        find: only clients with this number, or with this in their names.

    Returns:
        `run`, the fields of `Standing` with `now` beside `written_at`; `curves`, each with `of` how many points it
        was drawn from, and `versions`, `seconds`, `uplink`, `downlink` and `values` of those that are left; `metrics`,
        what may be asked for; `clients`, the first of the `num_found` that are meant; `nodes` of a network;
        `incidents`, the last ones first. What is not finite is None.
    """
    keys = {f"{name}/{scope}": (name, scope) for name, scope in follower.series if (name, scope) not in _KEPT}
    main = "/".join(follower.main)
    asked = metric if metric in keys else main
    curves = {
        "metric": follower.main if asked == main else keys[asked],
        "loss": LOSS,
        "staleness": MEAN_STALENESS,
        "most_staleness": MOST_STALENESS,
        "epsilon": EPSILON,
    }
    found: dict[str, Any] = finite(
        {
            "changes": follower.changes,
            "run": {**follower.standing()._asdict(), "now": time.time()},
            "metric": {"key": asked, "is_main": asked == main, "higher_is_better": follower.higher_is_better},
            "metrics": [{"key": key, "title": f"{title_of(name)}, {scope}"} for key, (name, scope) in keys.items()],
            "curves": {what: _curve(follower.series[key]) for what, key in curves.items() if key in follower.series},
            "clients": [line._asdict() for line in follower.clients.lines(follower.names, order, find)],
            "num_found": follower.clients.count(follower.names, find),
            "nodes": [node._asdict() for node in follower.nodes.values()],
            "incidents": [incident._asdict() for incident in reversed(follower.incidents)],
        }
    )
    return found


def _curve(series: Series) -> dict[str, Any]:
    points: Sequence[Point] = series.points()
    version, seconds, up, down, value = (list(column) for column in zip(*points, strict=True)) if points else ([],) * 5
    return {
        "of": series.num_added,
        "versions": version,
        "seconds": seconds,
        "uplink": up,
        "downlink": down,
        "values": value,
    }
