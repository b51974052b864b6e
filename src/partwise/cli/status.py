"""`partwise status`: how a run stands, once or as it goes on."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from partwise.cli.tables import plain_table, print_all

if TYPE_CHECKING:
    from rich.table import Table

    from partwise.monitor.follow import Follower
    from partwise.monitor.standing import Incident, Standing

__all__ = ["status_command"]

_LINE_SECONDS = 10.0  # between two lines of a log, unless the run ends
_CLIENTS, _NODES, _INCIDENTS = 8, 20, 5  # that are shown


def status_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the run ends, or Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words; a line for every change.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """How a run stands: scores, bytes, clients, errors.

    While it goes on, or when it is over. `partwise page` shows the same in a browser.
    """
    from partwise.monitor.follow import Follower

    follower = Follower(run)
    try:
        if follow and not as_json and sys.stdout.isatty():
            _live(follower, every)
        else:
            _lines(follower, every, follow=follow, as_json=as_json)
    except KeyboardInterrupt:  # the run goes on
        typer.echo("")


def _lines(follower: Follower, every: float, *, follow: bool, as_json: bool) -> None:
    """All there is to say, then a line for every change; as JSON, all of it every time."""
    from partwise.monitor.snapshot import snapshot

    told, said_at = -1, -math.inf
    while True:
        standing = follower.standing()
        is_last = not (follow and standing.is_running)
        is_due = as_json or is_last or time.monotonic() - said_at >= _LINE_SECONDS
        if follower.changes != told and is_due:
            if as_json:
                print(json.dumps(snapshot(follower), allow_nan=False), flush=True)
            elif told < 0:
                print_all(*_picture(follower))
            else:
                print(_line(standing), flush=True)
            told, said_at = follower.changes, time.monotonic()
        if is_last:
            return
        time.sleep(every)
        follower.refresh()


def _live(follower: Follower, every: float) -> None:
    from rich.console import Console, Group
    from rich.live import Live

    terminal = Console(markup=False, emoji=False)
    with Live(Group(*_picture(follower)), console=terminal, auto_refresh=False) as live:
        while follower.standing().is_running:
            time.sleep(every)
            follower.refresh()
            live.update(Group(*_picture(follower)), refresh=True)


# ---- words ----------------------------------------------------------------------------------------------------------


def _line(now: Standing) -> str:
    from partwise.experiment.words import bytes_text, number

    facts = [
        f"{now.noun} {now.version}{f'/{now.total}' if now.total else ''}",
        f"{now.metric} {number(now.value, 4)} (best {number(now.best, 4)})",
        f"train loss {number(now.loss, 4)}",
        f"up {bytes_text(now.uplink)}",
        f"down {bytes_text(now.downlink)}",
        f"{now.lost} lost, {now.refused} refused",
    ]
    return "  ".join([*facts, *([] if now.is_running else [now.status])])


def _picture(follower: Follower) -> list[Any]:
    from rich.text import Text

    now, clients = follower.standing(), follower.clients.lines(follower.names, limit=_CLIENTS)
    found: list[Any] = [_facts(now)]
    if clients:
        heads = ("client", "reply at", "replies", now.noun, "stale", "up", "down", "lost", "refused")  # for 80 columns
        table = plain_table(*heads, numbers=8)
        for line in clients:
            table.add_row(*_cells(line))
        found += ["", table]
    if follower.nodes:
        found += ["", _nodes(follower, now)]
    incidents = list(reversed(follower.incidents))[:_INCIDENTS]
    if incidents:
        found += ["", Text("What went wrong, the latest first:")]
        found += [Text(f"  {_told(incident)}") for incident in incidents]
    return found


def _facts(now: Standing) -> Table:
    from rich.text import Text

    from partwise.experiment.words import amount, bytes_text, count_text, number, seconds_text

    left = "" if math.isnan(now.seconds_left) else f", about {seconds_text(now.seconds_left)} left"
    length = f"{now.version:,} of {amount(now.total, now.noun)}" if now.total else amount(now.version, now.noun)
    clock = f"{seconds_text(now.seconds)} {'of virtual time' if now.is_virtual else 'by its clock'}"
    facts = {
        "run": now.name,
        "status": now.status,
        "length": f"{length}{left}; {clock}",
        f"{now.metric} ({now.scope})": f"{number(now.value, 4)}, best {number(now.best, 4)}",
        "training loss": number(now.loss, 4),
        "sent": f"{bytes_text(now.uplink)} up, {bytes_text(now.downlink)} down",
        "clients": f"{count_text(now.answered)} of {count_text(now.clients)} heard of, {now.replies:,} replies; "
        f"{now.lost:,} lost, {now.refused:,} refused",
        "staleness": f"{number(now.staleness, 2)} in the mean of the last {now.noun}",
        "written": f"{seconds_text(max(0.0, time.time() - now.written_at))} ago",
    }
    if now.skipped:
        facts["skipped"] = amount(now.skipped, now.noun)
    if now.guarantee:
        facts["privacy"] = f"ε = {number(now.epsilon)}; {now.guarantee}"
    table = plain_table("", "")
    table.show_header = False
    for what, said in facts.items():
        table.add_row(what, Text(said))
    return table


def _nodes(follower: Follower, now: Standing) -> Table:
    from rich.text import Text

    from partwise.experiment.words import count_text, seconds_text

    table = plain_table("node", "", "since", "clients", "failed", "rejected", numbers=4)
    for node in list(follower.nodes.values())[:_NODES]:
        there = ("there" if node.is_there else "gone") if now.is_running else ""
        counts = map(count_text, (node.clients, node.errors, node.rejected))
        table.add_row(Text(node.name), there, seconds_text(node.since), *counts)
    return table


def _cells(line: Any) -> list[Any]:
    from rich.text import Text

    from partwise.experiment.words import NOTHING, bytes_text, count_text, seconds_text

    version, staleness = (count_text(n) if line.replies else NOTHING for n in (line.version, line.staleness))
    numbers = [seconds_text(line.seconds), count_text(line.replies), version, staleness]
    numbers += [bytes_text(line.uplink), bytes_text(line.downlink), count_text(line.lost), count_text(line.refused)]
    return [Text(line.name), *numbers]


def _told(incident: Incident) -> str:
    where = f" in {incident.stage}" if incident.stage else ""
    who = incident.name or "nothing committed"
    at = "" if incident.version is None else f" at version {incident.version}"
    what = f"{who}: {incident.kind}{where}{at}: {incident.reason}"
    return f"{what}\n{incident.traceback}".rstrip() if incident.traceback else what
