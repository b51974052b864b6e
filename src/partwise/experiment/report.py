"""The report of one or more runs: one HTML file that needs nothing else."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from partwise import __version__
from partwise.core.errors import CheckpointError
from partwise.experiment.compare import Row, compare
from partwise.experiment.drawing import COLOURS
from partwise.experiment.dump import SPEC
from partwise.experiment.headline import headline, sentence
from partwise.experiment.inline_svg import inline_svg
from partwise.experiment.runs import ClientValue, Run, RunLike, read_runs
from partwise.experiment.spans import Use, uses
from partwise.experiment.timeline import timeline_of
from partwise.experiment.timeline_svg import timeline_svg
from partwise.experiment.views import View, about_clients, about_data, about_quality, about_time, scope_text
from partwise.experiment.words import amount, bytes_text, count_text, number, percent, seconds_text, title_of

__all__ = ["write_report"]

_TIMELINES = 3  # of the first runs: they are large
_ENDS = 4  # clients that idled least, and most
_SHOWN = 10  # clients at either end of a run's table, and reasons of trouble
_PARTS = (
    "algorithm",
    "workload",
    "scheduler",
    "aggregator",
    "client",
    "server",
    "download",
    "channel",
    "hostile",
    "trusted",
    "privacy",
    "evaluation",
    "runtime",
    "seed",
)


def write_report(
    folders: Iterable[RunLike],
    out: str | Path,
    *,
    metric: str | None = None,
    target: float | None = None,
    title: str = "",
) -> Path:
    """Write what runs did, what it cost and on whom, as one HTML file.

    Args:
        folders: of the runs, at least one; the first is what the others are measured by.
        out: the file.
        metric: the runs' main metric by default.
        target: the score to be reached; by default the last finite one of the first run.
        title: of the page; the runs' names by default.

    Returns:
        The file's path.

    Raises:
        CheckpointError: a folder holds no run, or the file cannot be written.
        DataError: the runs have different main metrics, or one lacks the score.
    """
    import jinja2

    runs, path = read_runs(folders), Path(out)
    rows = compare(runs, metric, target)
    if len(rows) == 1 and target is None:
        # That a run reached its own end says nothing.
        rows = [
            rows[0]._replace(
                target=None, target_version=None, target_uplink=None, target_downlink=None, target_seconds=None
            )
        ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("partwise.experiment"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(_page(runs, rows, path, target, title))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8", errors="replace")  # names of files may be any bytes
    except OSError as error:
        raise CheckpointError(
            f"write_report({str(path)!r}): needs a file that it may write, got: {error.strerror}. Name another."
        ) from error
    return path


def _page(runs: Sequence[Run], rows: Sequence[Row], out: Path, target: float | None, title: str) -> dict[str, Any]:
    name, scope = rows[0].metric, rows[0].scope
    is_own = target is not None
    lead = headline(runs, rows, is_own_target=is_own)
    pairs = list(zip(runs, rows, strict=True))
    others = [sentence(run, row, rows[0], is_own_target=is_own) for run, row in pairs[1:]]
    commands = [_reproduce(run) for run in runs]
    report = shlex.join(["partwise", "report", *(str(run.folder) for run in runs), "--out", str(out)])
    return {
        "title": title or _title(runs),
        "lead": lead,
        "others": [text for text in others if text != lead],
        "notes": list(_notes(runs, rows)),
        "metric": title_of(name),
        "scope": scope_text(scope),
        "tiles": [_tile(run, row, at) for at, (run, row) in enumerate(pairs)],
        "table": _table(runs, rows),
        "quality": _drawn(about_quality(runs, rows)),
        "over_clients": _drawn(about_clients(runs, rows)),
        "time": _time(runs),
        "clock": "time is virtual" if all(run.is_virtual for run in runs) else "time is that on the runs’ clocks",
        "data": _data(runs),
        "runs": [_run(run, row, at) for at, (run, row) in enumerate(pairs)],
        "commands": [*(text for text, is_command in commands if is_command), report],
        "has_all_commands": all(is_command for _, is_command in commands),
        "number_of_colours": len(COLOURS),
        "version": __version__,
    }


def _title(runs: Sequence[Run]) -> str:
    labels = [run.label for run in runs]
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _notes(runs: Sequence[Run], rows: Sequence[Row]) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    for run in runs:
        status = str(run.meta.get("status", ""))
        if status == "running":
            yield f"{run.label} has not finished: it was running, or had been killed, when this was written."
        elif status == "interrupted" or "Error" in status or status == "failed":
            said = status.rstrip(".")
            yield f"{run.label} did not finish: {said}. Its numbers are those up to version {run.last.version}."
    for run, row in zip(runs, rows, strict=True):
        if math.isnan(row.final):
            yield f"{run.label} ended with a score that is not a number."
    for run in (run for run in runs if run.privacy):
        yield f"{run.label}: {run.privacy}. {run.meta['guarantee']}"
    workloads = {str(run.meta.get("workload")) for run in runs}
    if len(workloads) > 1:
        yield "The runs have different workloads; their scores need not mean the same."
    if len({run.meta.get("seed") for run in runs}) > 1:
        yield "The runs have different seeds, so part of the difference between them is chance."


def _tile(run: Run, row: Row, at: int) -> dict[str, Any]:
    facts = [f"best {number(row.best)} in {run.noun} {row.best_version:,}"]
    if row.target is not None:
        reached = (
            f"reached in {amount(row.target_version, run.noun)}" if row.target_version is not None else "not reached"
        )
        facts.append(f"{number(row.target)} {reached}")
    if row.uplink_share is not None:
        facts.append(f"an upload is {percent(row.uplink_share)} of the model")
    return {"colour": at % len(COLOURS), "name": row.name, "value": number(row.final), "facts": facts}


# The table


def _table(runs: Sequence[Run], rows: Sequence[Row]) -> dict[str, Any]:
    """Column groups with titles, and rows of cells; a column that no run has anything for is left out."""
    goal = f"To reach {number(rows[0].target)}" if rows[0].target is not None else "To reach the target"
    has_rounds = {run.noun for run in runs} == {"round"}
    spec: list[tuple[str, str, Callable[[Row], str], Callable[[Row], object]]] = [
        (title_of(rows[0].metric), "final", lambda r: number(r.final), lambda r: r.final),
        (title_of(rows[0].metric), "best", lambda r: number(r.best), lambda r: r.best),
        (goal, "rounds" if has_rounds else "versions", _reached(lambda r: count_text(r.target_version)), _goal),
        (goal, "uplink", _reached(lambda r: bytes_text(r.target_uplink)), _goal),
        (goal, "downlink", _reached(lambda r: bytes_text(r.target_downlink)), _goal),
        (goal, "time", _reached(lambda r: seconds_text(r.target_seconds)), _seconds),
        ("Upload", "of the model", lambda r: percent(r.uplink_share), lambda r: r.uplink_share),
        ("Whole run", "bytes", lambda r: bytes_text(r.uplink + r.downlink), lambda r: r.uplink + r.downlink),
        ("Whole run", "wall time", lambda r: seconds_text(r.wall_seconds), lambda r: r.wall_seconds),
        ("Clients at the end", "mean", lambda r: number(r.mean), lambda r: r.mean),
        ("Clients at the end", "p10", lambda r: number(r.p10), lambda r: r.p10),
        ("Clients at the end", "p90", lambda r: number(r.p90), lambda r: r.p90),
        ("Clients at the end", "worst", lambda r: number(r.worst), lambda r: r.worst),
    ]
    columns = [column for column in spec if any(column[3](row) is not None for row in rows)]
    groups: list[list[Any]] = []
    for group, *_ in columns:
        if groups and groups[-1][0] == group:
            groups[-1][1] += 1
        else:
            groups.append([group, 1])
    return {
        "groups": groups,
        "columns": [column[1] for column in columns],
        "starts": [at == 0 or columns[at][0] != columns[at - 1][0] for at in range(len(columns))],
        "rows": [
            {"colour": at % len(COLOURS), "name": row.name, "cells": [cell(row) for _, _, cell, _ in columns]}
            for at, row in enumerate(rows)
        ],
    }


def _reached(cell: Callable[[Row], str]) -> Callable[[Row], str]:
    return lambda row: "not reached" if row.target_version is None else cell(row)


def _goal(row: Row) -> object:
    return row.target


def _seconds(row: Row) -> object:
    return row.target_seconds or None


# Time


def _time(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Timelines, figures, and where the clients' time went; None where no time passed and nobody was preferred."""
    timelines = [found for at, run in enumerate(runs) if (found := _timeline(run, at))]
    found = {
        "timelines": timelines[:_TIMELINES],
        "figures": _drawn(about_time(runs)),
        "uses": [found for at, run in enumerate(runs) if (found := _uses(run, at))],
    }
    return found if any(found.values()) else None


def _timeline(run: Run, at: int) -> dict[str, Any] | None:
    if at >= _TIMELINES:
        return None
    try:
        timeline = timeline_of(run)
    except LookupError:
        return None
    svg = timeline_svg(timeline, inline=True)
    return {"colour": at % len(COLOURS), "title": run.label, "svg": svg}


def _uses(run: Run, at: int) -> dict[str, Any] | None:
    """The mean over the clients that were asked, and those that idled least and most."""
    end = max([run.last.seconds, *(span.ended for span in run.spans)], default=0.0)
    found = uses(run.spans, end)
    if not found or not any(span.ended > span.began for span in run.spans):
        return None
    mean, *rest = found
    rest.sort(key=lambda use: (use.idle, use.client))
    shown = rest if len(rest) <= 2 * _ENDS else [*rest[:_ENDS], *rest[-_ENDS:]]
    asked, of = len(rest), run.num_clients
    return {
        "colour": at % len(COLOURS),
        "name": run.label,
        "lines": [
            _used(f"mean of {asked:,} clients", mean, end),
            *(_used(run.client_name(u.client), u, end) for u in shown),
        ],
        "is_short": len(shown) < len(rest),
        "never": max(0, of - asked),
        "has_lost": any(use.lost for use in rest),
    }


def _used(name: str, use: Use, end: float) -> dict[str, Any]:
    parts = [percent(seconds / end) for seconds in (use.download, use.train, use.upload, use.lost, use.idle)]
    return {"name": name, "tasks": f"{use.tasks:,.1f}".removesuffix(".0"), "parts": parts}


# Data


def _data(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The clients and the model, of the first run that knows them."""
    run = next((run for run in runs if run.population), None)
    if run is None:
        return None
    about = run.population
    return {"facts": list(_facts(about)), "figures": _drawn(about_data(run)), "note": _sampled(about)}


def _drawn(views: Iterable[View]) -> list[dict[str, str]]:
    """Those that have something to show, as the template wants them."""
    found = []
    for view in views:
        try:
            figure = view.draw()
        except LookupError:
            continue
        svg = inline_svg(figure, view.name, f"{view.title}. {view.reading}")
        found.append({"title": view.title, "svg": svg, "reading": view.reading})
    return found


def _facts(about: Any) -> Iterator[tuple[str, str]]:
    model, examples, touched = about.get("model", {}), about.get("examples"), about.get("rows_touched")
    if "clients" in about:
        yield "Clients", count_text(about["clients"])
    if examples:
        yield "Training examples", f"{sum(examples):,}; {_spread(examples)} per client"
    if any(about.get("test_examples") or ()):
        yield (
            "Test examples of clients",
            f"{sum(about['test_examples']):,}; {_spread(about['test_examples'])} per client",
        )
    if "parameters" in model:
        size = f" ({bytes_text(model['bytes'])})" if "bytes" in model else ""
        yield "Model", f"{model['parameters']:,} parameters{size}"
    for name, (rows, *shape) in model.get("tables", {}).items():
        yield f"Table {name}", f"{rows:,} rows{''.join(f' × {n:,}' for n in shape)}"
        cold = dict(about.get("heat", {}).get(name, ())).get(0, 0)
        if cold:
            yield "Rows that no client touches", f"{cold:,} ({percent(cold / rows)})"
    if touched:
        total = sum(rows for rows, *_ in model.get("tables", {}).values())
        share = f" ({percent(median(touched) / total)} of all rows in the median)" if total else ""
        yield "Rows touched per client", f"{_spread(touched)}{share}"


def _spread(values: Sequence[float]) -> str:
    return f"median {count_text(median(values))}, from {count_text(min(values))} to {count_text(max(values))}"


def _sampled(about: Any) -> str:
    sampled, clients = about.get("sampled"), about.get("clients")
    if sampled is None or sampled == clients:
        return ""
    return f"Heat and rows were counted over {sampled:,} of the {clients:,} clients, evenly chosen."


# One section per run


def _run(run: Run, row: Row, at: int) -> dict[str, Any]:
    parts = [(key, _shown(run.meta[key])) for key in _PARTS if run.meta.get(key) not in (None, "", [], {}, "()", "{}")]
    if run.executor:
        parts.append(("executor", run.executor))
    return {
        "colour": at % len(COLOURS),
        "name": run.label,
        "folder": str(run.folder),
        "facts": list(_spent(run)),
        "parts": parts,
        "spec": _spec(run),
        "environment": _environment(run.meta.get("environment")),
        "sees": list(run.meta.get("discloses") or ()),
        "trouble": _trouble(run),
        "clients": _clients(run, row.metric),
    }


def _shown(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _spent(run: Run) -> Iterator[tuple[str, str]]:
    if "status" in run.meta:
        yield "Ended", str(run.meta["status"])
    yield f"{run.noun}s".capitalize(), count_text(run.last.version)
    yield "Uplink, downlink", f"{bytes_text(run.last.uplink)}, {bytes_text(run.last.downlink)}"
    if run.privacy:
        yield "Privacy", run.privacy
    if run.last.seconds:
        yield "Virtual time" if run.is_virtual else "On its clock", seconds_text(run.last.seconds)
    if run.meta.get("wall_seconds") is not None:
        yield "Wall time", seconds_text(float(run.meta["wall_seconds"]))
    if run.answers:
        asked, clients = sum(run.answers.values()), len(run.answers)
        yield "Answers", f"{asked:,} from {amount(clients, 'client')}"
    held, model = (run.population or {}).get("values_held"), (run.population or {}).get("model", {})
    if held and model.get("parameters"):
        yield "A client holds", f"{percent(median(held) / model['parameters'])} of the parameters in the median"


def _environment(found: Any) -> list[tuple[str, str]]:
    """Versions, machine and commit; nested tables one level deep."""
    if not isinstance(found, dict):
        return []
    lines = []
    for key, value in found.items():
        if key == "git" and isinstance(value, dict):
            lines.append(("commit", f"{value.get('commit')}{' with local changes' if value.get('is_dirty') else ''}"))
        elif key == "memory_bytes":
            lines.append(("memory", bytes_text(value)))
        elif isinstance(value, dict):
            lines += [(f"{key} {inner}", _shown(v)) for inner, v in value.items() if v is not None]
        elif value not in (None, ""):
            lines.append((key, _shown(value)))
    return lines


def _trouble(run: Run) -> dict[str, Any]:
    """Lost and refused clients by reason, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for trouble in run.troubles:
        groups.setdefault((trouble.kind, trouble.stage, trouble.reason), []).append(trouble)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = []
    for (kind, stage, reason), found in ordered[:_SHOWN]:
        names = [run.client_name(client) for client in dict.fromkeys(t.client for t in found)]
        who = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        first, last = min(t.version for t in found), max(t.version for t in found)
        when = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        lines.append({"what": f"{kind} in {stage}" if stage else kind, "times": f"{len(found):,}", "who": who,
                      "when": when, "reason": reason})  # fmt: skip
    return {
        "lost": sum(t.kind == "lost" for t in run.troubles),
        "refused": sum(t.kind == "refused" for t in run.troubles),
        "suspected": len({t.client for t in run.troubles if t.kind == "suspected"}),
        "lines": lines,
        "more": max(0, len(ordered) - _SHOWN),
    }


def _clients(run: Run, metric: str) -> dict[str, Any] | None:
    """The clients served worst and best at the end."""
    values = run.clients.get(metric, ())
    defined = sorted((c for c in values if not math.isnan(c.value)), key=lambda c: (c.value, c.client))
    if not defined:
        return None
    if not run.higher_is_better(metric):
        defined.reverse()
    lines = [_client(run, client) for client in defined]
    is_short = len(lines) <= 2 * _SHOWN
    tables = [("All clients, worst first", lines)] if is_short else [
        (f"The {_SHOWN} worst", lines[:_SHOWN]),
        (f"The {_SHOWN} best", lines[: -_SHOWN - 1 : -1]),
    ]  # fmt: skip
    return {"metric": title_of(metric), "tables": tables, "undefined": len(values) - len(defined), "of": len(values)}


def _client(run: Run, client: ClientValue) -> dict[str, str]:
    return {
        "name": run.client_name(client.client),
        "examples": count_text(client.examples),
        "value": number(client.value),
        "answers": count_text(run.answers.get(client.client, 0)),
    }


def _spec(run: Run) -> str:
    """The specification's file; empty for a run that was made in Python of parts that a specification cannot name."""
    try:
        return (run.folder / SPEC).read_text(encoding="utf-8")
    except OSError:
        return ""


def _reproduce(run: Run) -> tuple[str, bool]:
    """The command that makes the run again, and whether there is one."""
    if run.meta.get("command"):
        return str(run.meta["command"]), True
    spec = run.folder / SPEC
    return (shlex.join(["partwise", "run", str(spec)]), True) if spec.is_file() else ("", False)
