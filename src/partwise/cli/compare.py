"""`partwise compare`: runs side by side, and where their logs part."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from partwise.cli.app import UNUSABLE, EndedError
from partwise.cli.options import Json, Metric, Runs, Target
from partwise.cli.tables import plain_table, print_all

if TYPE_CHECKING:
    from partwise.experiment.compare import Row
    from partwise.experiment.log import Log
    from partwise.experiment.runs import Run

__all__ = ["compare_command", "print_rows"]


def compare_command(runs: Runs, metric: Metric = None, target: Target = None, as_json: Json = False) -> None:
    """Runs side by side: results and costs.

    And the first message in which the log of each differs from that of the first. Where one of them is a log.bin, the
    logs alone are compared.
    """
    from partwise.experiment.compare import compare
    from partwise.experiment.runs import read_runs

    if any(path.is_file() for path in runs):
        _compare_logs(runs, as_json)
        return
    read = read_runs(runs)
    rows, parted = compare(read, metric, target), _parted(runs)
    if as_json:
        both = [{**row._asdict(), **(log or {})} for row, log in zip(rows, parted, strict=True)]
        typer.echo(json.dumps([{k: _finite(v) for k, v in found.items()} for found in both], allow_nan=False))
        return
    print_rows(rows, "round" if all(run.noun == "round" for run in read) else "version")
    _print_by_time(read, rows)
    _print_logs([row.name for row in rows], parted)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_rows(rows: list[Row], noun: str = "round") -> None:
    """A comparison as a table.

    Args:
        rows: of the table.
        noun: what a version is called.
    """
    from partwise.experiment.words import bytes_text, number, percent, seconds_text

    first = rows[0]
    to = f"to {number(first.target, 4)}"
    heads = [
        "run",
        "final",
        "best",
        f"{noun}s {to}",
        "bytes",
        "clock",
        "all bytes",
        "uplink/model",
        "p10",
        "worst",
        "took",
    ]
    table = plain_table(*heads, numbers=len(heads) - 1)
    for row in rows:
        table.add_row(
            row.name,
            number(row.final, 4),
            number(row.best, 4),
            "never" if row.target_version is None else str(row.target_version),
            bytes_text(row.target_bytes),
            seconds_text(row.target_seconds),
            bytes_text(row.uplink + row.downlink),
            percent(row.uplink_share),
            number(row.p10),
            number(row.worst),
            seconds_text(row.wall_seconds),
        )
    print_all(f"{first.metric} ({first.scope}); bytes go both ways", table)


def _print_by_time(runs: Sequence[Run], rows: Sequence[Row]) -> None:
    """The score by moments of the runs' clocks, where there are several runs and time passes."""
    from partwise.experiment.compare import by_time
    from partwise.experiment.words import number, seconds_text

    moments = by_time(runs, rows[0].metric, rows[0].scope) if len(runs) > 1 else []
    if not moments:
        return
    table = plain_table("clock", *(row.name for row in rows), numbers=len(rows) + 1)
    for seconds, values in moments:
        table.add_row(seconds_text(seconds), *(number(value, 4) for value in values))
    print_all("", f"{rows[0].metric} by the clock; – where a run had not begun or was over", table)


# Logs


def _parted(runs: Sequence[Path]) -> list[dict[str, Any] | None]:
    """Of each run, how many messages are in its log, and where it parts from the first one's; None without logs."""
    from partwise.experiment.log import LOG, read_log

    if not (runs[0] / LOG).is_file():
        return [None] * len(runs)
    first, found = read_log(runs[0]), list[dict[str, Any] | None]()
    for run in runs:
        if not (run / LOG).is_file():
            found.append(None)
            continue
        found.append(_difference(first, read_log(run)))
    return found


def _difference(first: Log, log: Log) -> dict[str, Any]:
    from partwise.experiment.log import difference

    at = difference(first, log)
    return {"log_messages": len(log), "log_differs_at": at and at.at, "log_difference": at and str(at)}


def _print_logs(names: Sequence[str], parted: Sequence[dict[str, Any] | None]) -> None:
    lines = [_about_logs(names[0], name, found) for name, found in zip(names[1:], parted[1:], strict=True) if found]
    for line in ["", *lines] if lines else []:
        typer.echo(line)


def _about_logs(one: str, other: str, found: dict[str, Any]) -> str:
    if found["log_differs_at"] is None:
        return f"The logs of {one} and {other} are the same, {found['log_messages']:,} messages."
    return f"The logs of {one} and {other} part at {found['log_difference']}."


def _compare_logs(paths: Sequence[Path], as_json: bool) -> None:
    """Of logs, or runs, how each parts from the first."""
    from partwise.experiment.log import read_log

    if len(paths) < 2:
        rule = "a log is compared with another, or with a run's folder"
        raise EndedError(f"compare {paths[0]}: {rule}, got one. Name both.", UNUSABLE)
    first = read_log(paths[0])
    found = [_difference(first, read_log(path)) for path in paths]
    if as_json:
        typer.echo(json.dumps([{"path": str(path), **about} for path, about in zip(paths, found, strict=True)]))
        return
    for path, about in zip(paths[1:], found[1:], strict=True):
        typer.echo(_about_logs(str(paths[0]), str(path), about))
