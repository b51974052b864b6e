"""Four ways to show a run: live on a terminal, as log lines, as JSON, not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from partwise.cli.watch import Header, Notice, Snapshot, View
from partwise.experiment.words import amount, bytes_text, finite, number, title_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Json", "Lines", "Live", "Quiet", "view_for"]

_SECONDS_BETWEEN_LINES = 10.0
_NOTICES = 10  # shown one by one; more are only counted


def _line(text: object) -> None:
    """Write a line; where nobody takes it any more, as behind `| head`, that is said, and the run goes on without."""
    try:
        print(text, flush=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            said = f"partwise: the output must be writable, got: {error.strerror}. The run goes on without."
            print(said, file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def view_for(*, as_json: bool, quiet: bool) -> View:
    """What suits the options and the place the output goes to."""
    if as_json:
        return Json()
    if quiet:
        return Quiet()
    return Live() if sys.stdout.isatty() else Lines()


class Quiet:
    """Shows nothing."""

    def prepare(self, what: str) -> None: ...

    def begin(self, header: Header) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...

    def notice(self, notice: Notice) -> None: ...

    def end(self, reason: str, snapshot: Snapshot | None) -> None: ...

    def close(self) -> None: ...


class Json:
    """One JSON object per line, for programs. Numbers that are not finite become null."""

    def prepare(self, what: str) -> None: ...

    def begin(self, header: Header) -> None:
        self._say("started", **header._asdict())

    def show(self, snapshot: Snapshot) -> None:
        scores = [score._asdict() for score in snapshot.scores]
        self._say("committed", **{**snapshot._asdict(), "scores": scores})

    def notice(self, notice: Notice) -> None:
        fields = notice._asdict()
        self._say(fields.pop("kind"), **fields)

    def end(self, reason: str, snapshot: Snapshot | None) -> None:
        at = {} if snapshot is None else {"value": snapshot.value, "best": snapshot.best}
        self._say("finished", reason=reason, version=snapshot.version if snapshot else 0, **at)

    def close(self) -> None: ...

    def _say(self, event: str, **fields: Any) -> None:
        _line(json.dumps({"event": event, **finite(fields)}, allow_nan=False))


class Lines:
    """A line per evaluation, and one every ten seconds, for logs."""

    def __init__(self) -> None:
        self._header: Header | None = None
        self._said_at = time.monotonic()
        self._notices = 0

    def prepare(self, what: str) -> None:
        _line(what)

    def begin(self, header: Header) -> None:
        self._header = header
        total = f"{amount(header.total, header.noun)}, " if header.total else ""
        _line(f"{header.name}: {total}{header.clients} clients; in {header.folder}")

    def show(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        if snapshot.scores or now - self._said_at >= _SECONDS_BETWEEN_LINES:
            self._said_at = now
            assert self._header is not None
            _line("  ".join(_facts(self._header, snapshot)))

    def notice(self, notice: Notice) -> None:
        self._notices += 1
        if self._notices <= _NOTICES:
            _line(notice)
        if self._notices == _NOTICES:
            _line("more lost or refused clients are only counted; `partwise show` has them all")

    def end(self, reason: str, snapshot: Snapshot | None) -> None:
        _line(_ended(reason))

    def close(self) -> None: ...


def _facts(header: Header, snapshot: Snapshot) -> list[str]:
    at = f"{snapshot.version}/{snapshot.total}" if snapshot.total else str(snapshot.version)
    facts = [f"{header.noun} {at}"]
    if not math.isnan(snapshot.value):
        facts.append(f"{header.metric} {number(snapshot.value, 4)} (best {number(snapshot.best, 4)})")
    facts += [f"{score.name} {number(score.value, 4)}" for score in snapshot.scores if score.scope == "privacy"]
    facts += [
        f"train loss {number(snapshot.loss, 4)}",
        f"up {bytes_text(snapshot.uplink)}",
        f"down {bytes_text(snapshot.downlink)}",
    ]
    if not math.isnan(snapshot.clients_per_second):
        facts.append(f"{snapshot.clients_per_second:.0f} clients/s")
    if snapshot.lost or snapshot.refused:
        facts.append(f"{snapshot.lost} lost, {snapshot.refused} refused")
    if not math.isnan(snapshot.seconds_left):
        facts.append(f"{_short_time(snapshot.seconds_left)} left")
    return facts


def _short_time(seconds: float) -> str:
    """A duration that is only a guess."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _ended(reason: str) -> str:
    """How a run ended; why it failed is said elsewhere."""
    return "failed" if re.match(r"\w+Error: ", reason) else reason


class Live:
    """A panel that is drawn anew while the run goes on, and stays when it is over.

    Args:
        console: where; the terminal by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live as Drawing

        self._header: Header | None = None
        self._snapshot: Snapshot | None = None
        self._notices: deque[Notice] = deque(maxlen=3)
        self._doing = "preparing"
        self._began = time.monotonic()
        self._drawing = Drawing(
            get_renderable=self._picture, console=console or Terminal(), refresh_per_second=5, redirect_stderr=False
        )

    def prepare(self, what: str) -> None:
        self._doing = what
        self._drawing.start(refresh=True)

    def begin(self, header: Header) -> None:
        self._header, self._doing = header, "running"
        self._began = time.monotonic()
        self._drawing.start(refresh=True)  # does nothing if it has been

    def show(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def notice(self, notice: Notice) -> None:
        self._notices.append(notice)

    def end(self, reason: str, snapshot: Snapshot | None) -> None:
        self._snapshot, self._doing = snapshot, _ended(reason)
        self.close()

    def close(self) -> None:
        self._drawing.stop()

    # The picture

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.spinner import Spinner
        from rich.text import Text

        if self._header is None:
            return Spinner("dots", Text(self._doing))
        rows: list[RenderableType] = [self._bar(), self._table()]
        rows += [Text(str(n), style="yellow", overflow="ellipsis", no_wrap=True) for n in self._notices]
        title = Text.assemble((self._header.name, "bold"), "  ", (f"{self._header.clients} clients", "dim"))
        return Panel(Group(*rows), title=title, subtitle=Text(self._doing, "dim"), title_align="left", width=78)

    def _bar(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        assert self._header is not None
        shot, total = self._snapshot, self._header.total
        at = shot.version if shot else 0
        left = shot.seconds_left if shot else math.nan
        time_left = f"{_short_time(left)} left" if left and not math.isnan(left) else ""
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column()
        grid.add_column(ratio=1)
        grid.add_column(justify="right", min_width=13)
        grid.add_row(
            Text(f"{self._header.noun} {at}{f'/{total}' if total else ''}", style="bold"),
            ProgressBar(total=total or None, completed=at, pulse=not total),
            Text(time_left or _short_time(time.monotonic() - self._began)),
        )
        return grid

    def _table(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        assert self._header is not None
        shot = self._snapshot
        heads = [title_of(self._header.metric), "best", "train loss", "uplink", "downlink", "clients/s"]
        values = ["–"] * 6
        if shot is not None:
            pace = "–" if math.isnan(shot.clients_per_second) else f"{shot.clients_per_second:.0f}"
            scores = [number(shot.value, 4), number(shot.best, 4), number(shot.loss, 4)]
            values = [*scores, bytes_text(shot.uplink), bytes_text(shot.downlink), pace]
            for score in (s for s in shot.scores if s.scope == "privacy"):
                heads.append(score.name)
                values.append(number(score.value, 4))
            if shot.lost or shot.refused:
                heads.append("lost/refused")
                values.append(f"{shot.lost}/{shot.refused}")
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in heads:
            grid.add_column(ratio=1)
        grid.add_row(*(Text(h, style="dim") for h in heads))
        grid.add_row(*(Text(v, style="bold" if i == 0 else "") for i, v in enumerate(values)))
        return grid
