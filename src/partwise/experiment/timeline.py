"""The timeline of a run: which rows and which stretch of it are shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from partwise.core.errors import DataError
from partwise.experiment.runs import Run
from partwise.experiment.spans import Span
from partwise.experiment.words import moment_text, seconds_text

__all__ = ["ROWS", "Line", "Timeline", "timeline_of"]

ROWS = 24
_TASKS_PER_ROW = 40  # beyond, a stretch at the beginning is shown: bars would be too thin to see


class Line(NamedTuple):
    """One client's row. name: what a person would call it."""

    client: int
    name: str
    spans: Sequence[Span]

    @property
    def overlaps(self) -> bool:
        """Whether it was asked for a task while it was at another."""
        return any(span.started is not None for span in self.spans)


class Timeline(NamedTuple):
    """Who did what when.

    Args:
        label: the run's.
        begin: what is shown begins, seconds since the run began.
        end: and ends.
        run_end: the last moment on record.
        lines: a row per client, by number.
        commits: moments at which a version was made, within what is shown.
        left_out: clients that were asked meanwhile and have no row.
    """

    label: str
    begin: float
    end: float
    run_end: float
    lines: Sequence[Line]
    commits: Sequence[float]
    left_out: int

    def note(self) -> str:
        """What is not shown, in a sentence; "" if all is."""
        parts = []
        if self.begin > 0 or self.end < self.run_end:
            of = seconds_text(self.run_end)
            moments = [seconds_text(moment) for moment in (self.begin, self.end)]
            if moments[0] == moments[1]:
                moments = [moment_text(moment, self.end, self.end - self.begin) for moment in (self.begin, self.end)]
            stretch = " to ".join(moments)
            parts.append(f"from {stretch} of {of}" if self.begin > 0 else f"the first {seconds_text(self.end)} of {of}")
        if self.left_out:
            asked = len(self.lines) + self.left_out
            parts.append(
                f"{len(self.lines):,} of the {asked:,} clients that were asked; {self.left_out:,} are left out"
            )
        return f"Shown: {', '.join(parts)}." if parts else ""


def timeline_of(
    run: Run,
    *,
    clients: Sequence[int] = (),
    rows: int = ROWS,
    begin: float = 0.0,
    end: float | None = None,
) -> Timeline:
    """What is shown of a run.

    Args:
        run: as read.
        clients: whose rows; by default those that were asked most often.
        rows: how many, >= 1, where `clients` does not say whose.
        begin: seconds since the run began, >= 0.
        end: by default that of the run, or as much as can be told apart.

    Raises:
        LookupError: its clients took no time, or none was asked meanwhile.
        DataError: what is to be shown has no length, or no rows.
    """
    run_end = max([run.last.seconds, *(span.ended for span in run.spans)], default=0.0)
    if rows < 1 or not begin >= 0 or (end is not None and not begin < end < math.inf):
        raise DataError(
            f"timeline(rows={rows}, begin={begin:g}, end={end}): needs a row at least and a stretch that ends after it "
            "begins, got these. Leave them out for what fits."
        )
    if not any(span.ended > span.began for span in run.spans):
        raise LookupError(f"timeline: the clients of {run.label!r} took no time. Give them a pace and links.")
    until = run_end if end is None else end
    within = [span for span in run.spans if span.ended >= begin and span.began <= until]
    often = Counter(span.client for span in within)
    chosen = sorted(clients) or sorted(sorted(often, key=lambda client: (-often[client], client))[:rows])
    mine = set(chosen)
    kept = [span for span in within if span.client in mine]
    if not kept or not begin < until:
        raise LookupError(
            f"timeline: no client of {run.label!r} had a task meanwhile. Choose others, or other moments."
        )
    if end is None and len(kept) > _TASKS_PER_ROW * len(chosen):
        until = kept[_TASKS_PER_ROW * len(chosen)].began
        kept = [span for span in kept if span.began < until]
    by_client: dict[int, list[Span]] = {client: [] for client in chosen}
    for span in kept:
        by_client[span.client].append(span)
    return Timeline(
        run.label,
        begin,
        until,
        run_end,
        [Line(client, run.client_name(client), spans) for client, spans in by_client.items()],
        [commit.time for commit in run.commits if begin <= commit.time <= until],
        len(often.keys() - mine),
    )
