"""What a comparison says, in sentences computed from its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from partwise.experiment.compare import Row
from partwise.experiment.runs import Run
from partwise.experiment.words import amount, bytes_text, number, percent, ratio_of_bytes, seconds_text, title_of

__all__ = ["ending", "headline", "sentence"]


def headline(runs: Sequence[Run], rows: Sequence[Row], *, is_own_target: bool = False) -> str:
    """The report's first sentence: one run by itself, or the run that reached the target first against the first run.

    Args:
        runs: as read.
        rows: of the same runs.
        is_own_target: the target was given, and is not the first run's last score.
    """
    if len(rows) == 1:
        return _alone(runs[0], rows[0])
    ran = [at for at in range(1, len(rows)) if rows[at].target_version is not None]
    best = min(ran, key=lambda at: (_required(rows[at].target_version), at), default=_closest(runs, rows))
    return sentence(runs[best], rows[best], rows[0], is_own_target=is_own_target)


def sentence(run: Run, row: Row, first: Row, *, is_own_target: bool = False) -> str:
    """How one run did against the first."""
    title = title_of(row.metric)
    if row.target is None:
        return f"{row.name} ended at {title} {number(row.final)}; {first.name} has no {title} to compare it with."
    target = f"{title} of {number(row.target)}"
    which = "final" if math.isfinite(first.final) else "last finite"
    goal = f"the {target}" if is_own_target else f"{first.name}’s {which} {target}"
    if row.target_version is None:
        return (
            f"{row.name} did not reach {goal} within its {amount(run.last.version, run.noun)}: it ended at "
            f"{number(row.final)} and its best was {number(row.best)}."
        )
    text = f"{row.name} reached {goal} in {row.target_version:,} of {amount(run.last.version, run.noun)}"
    if first.target_version is None:
        return f"{text}; {first.name} did not reach it."
    text += f", where {first.name} took {first.target_version:,}"
    if row.target_bytes and first.target_bytes:
        text += f", and sent {ratio_of_bytes(row.target_bytes, first.target_bytes)} until then"
    return f"{text}. {ending(row, first)}".rstrip()


def ending(row: Row, first: Row) -> str:
    """How the last scores of two runs relate; empty where they cannot be compared."""
    if math.isnan(row.final) or math.isnan(first.final):
        return ""
    if number(row.final) == number(first.final):
        return f"Both ended at {number(row.final)}."
    return f"It ended at {number(row.final)}, {first.name} at {number(first.final)}."


def _alone(run: Run, row: Row) -> str:
    title, spent = title_of(row.metric), bytes_text(row.uplink + row.downlink)
    clients = f" with {amount(int(run.meta['num_clients']), 'client')}" if "num_clients" in run.meta else ""
    text = f"{row.name} stands at {title} {number(row.final)} after {amount(run.last.version, run.noun)}{clients}"
    if math.isnan(row.final):
        text = f"{row.name} made {amount(run.last.version, run.noun)}{clients}; its {title} is not defined at the end"
    text += f"; {spent} were sent"
    if run.last.seconds:
        text += f" in {seconds_text(run.last.seconds)} {'of virtual time' if run.is_virtual else 'by its clock'}"
    if row.uplink_share is not None:
        text += f", each upload being {percent(row.uplink_share)} of the full model in the mean"
    return f"{text}."


def _closest(runs: Sequence[Run], rows: Sequence[Row]) -> int:
    """The run with the best score among those that did not reach the target."""
    sign = 1 if runs[0].higher_is_better(rows[0].metric) else -1
    return max(range(1, len(rows)), key=lambda at: -math.inf if math.isnan(rows[at].best) else sign * rows[at].best)


def _required(value: int | None) -> int:
    assert value is not None
    return value
