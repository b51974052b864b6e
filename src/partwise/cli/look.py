"""Commands that look at what there is: runs, and parts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from partwise.cli.app import NOT_A_RUN, UNUSABLE, EndedError, written
from partwise.cli.options import Json, Metric, Runs, Target
from partwise.cli.tables import plain_table, print_all
from partwise.cli.watch import main_value
from partwise.core.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from rich.table import Table

    from partwise.experiment.parts import Description
    from partwise.experiment.rundir import RunInfo
    from partwise.experiment.runs import Run

__all__ = ["list_command", "parts_command", "report_command", "show_command"]

# ---- runs -----------------------------------------------------------------------------------------------------------


def list_command(
    root: Annotated[Path, typer.Option("--root", help="Where the folders of runs are.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """The runs there are, and how each stands."""
    from partwise.experiment.rundir import list_runs
    from partwise.experiment.words import number

    found = [_looked_at(info) for info in list_runs(root)]
    if as_json:
        typer.echo(json.dumps([_info_as_json(*run) for run in found], allow_nan=False))
        return
    if not found:
        typer.echo(f"There are no runs in {root}. Make one: partwise demo")
        return
    table = plain_table("folder", "algorithm", "status", "version", "score", numbers=2)
    for info, version, value in found:
        score = f"{info.meta.get('metric', '')} {number(value, 4)}"
        status = _status(info).split(":", 1)[0]
        table.add_row(str(info.folder), _short(info.meta.get("algorithm")), status, str(version), score)
    print_all(table)


def _info_as_json(info: RunInfo, version: int, value: float) -> dict[str, Any]:
    about = {key: info.meta.get(key) for key in ("name", "seed", "algorithm", "metric")}
    return {
        "folder": str(info.folder),
        "status": _status(info),
        **about,
        "version": version,
        "value": value if math.isfinite(value) else None,
    }


def _short(part: object) -> str:
    return str(part or "").split("(", 1)[0]


def _status(info: RunInfo) -> str:
    from partwise.experiment.rundir import status_of

    return "cannot be read" if info.fault else status_of(info.meta, info.folder)


def _looked_at(info: RunInfo) -> tuple[RunInfo, int, float]:
    """A run, the last version on record, and the main metric when it was measured last; 0 and nan if it is damaged."""
    from partwise.experiment.store import RunStore

    if info.fault:
        return info, 0, math.nan
    name = str(info.meta.get("metric", ""))
    try:
        with RunStore(info.folder, "read") as store:
            at, rows = store.latest(name)
    except CheckpointError as error:
        return info._replace(fault=str(error)), 0, math.nan
    values = {(row["name"], row["scope"]): row["value"] for row in rows}
    scope = str(info.meta.get("scope") or "")
    value = main_value(values, name, scope if (name, scope) in values else "")
    return info, at, math.nan if value is None else value


def show_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a run.")],
    spec: Annotated[bool, typer.Option("--spec", help="Print its specification, complete with every default.")] = False,
) -> None:
    """What a run was, reached and cost.

    Its scores, its bytes, the spread over its clients, and who had trouble.
    """
    from partwise.experiment.dump import SPEC
    from partwise.experiment.runs import read_run

    run = read_run(folder)
    if spec:
        path = folder / SPEC
        if not path.is_file():
            raise EndedError(
                f"{folder}: needs the run's {SPEC}, got none: the run was made in Python of parts that a specification "
                "cannot name. Look at the Python code that made it.",
                NOT_A_RUN,
            )
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    print_all(_about(run), *_scores(run))
    for line in (*_by_width(run), *_over_clients(run), *_troubles(run)):
        typer.echo(line)


def _about(run: Run) -> Table:
    from partwise.experiment.rundir import status_of
    from partwise.experiment.words import amount, bytes_text, seconds_text

    machine: Any = run.meta.get("environment") or {}
    last = run.last
    facts = {
        "run": run.label,
        "status": status_of(run.meta, run.folder),
        "workload": run.meta.get("workload", ""),
        "algorithm": run.meta.get("algorithm", ""),
        "scheduler": run.meta.get("scheduler", ""),
        "runtime": run.meta.get("runtime", ""),
        **({"executor": run.executor} if run.executor else {}),
        "clients": f"{run.meta.get('num_clients', 0):,}",
        "seed": run.meta.get("seed", ""),
        "length": f"{amount(last.version, run.noun)}, {seconds_text(last.seconds)} on the run's clock",
        "sent": f"{bytes_text(last.uplink)} up, {bytes_text(last.downlink)} down",
        **({"privacy": run.privacy} if run.privacy else {}),
        "made with": ", ".join(f"{what} {machine.get(what)}" for what in ("partwise", "torch", "python")),
    }
    table = plain_table("", "")
    table.show_header = False
    for name, value in facts.items():
        table.add_row(name, str(value))
    return table


def _scores(run: Run) -> list[Any]:
    """The main metric, at ten versions at most, beside what was spent by then; nothing where none was measured."""
    from partwise.experiment.runs import common_score
    from partwise.experiment.words import bytes_text, number, seconds_text

    try:
        metric, scope = common_score([run])
    except DataError:  # it was killed before its first version
        return []
    points = run.scores[metric, scope]
    step = max(1, -(-len(points) // 9))
    chosen = [*points[:-1:step], points[-1]]
    table = plain_table(run.noun, f"{metric} ({scope})", "uplink", "downlink", "clock", numbers=5)
    for p in chosen:
        spent = bytes_text(p.uplink), bytes_text(p.downlink), seconds_text(p.seconds)
        table.add_row(str(p.version), number(p.value, 4), *spent)
    return ["", table]


def _by_width(run: Run) -> list[str]:
    from partwise.experiment.words import number

    found = [f"{ratio:g}: {number(value, 4)}" for ratio, value in run.by_width(run.metric)]
    return ["", f"by width: {', '.join(found)}"] if found else []


def _over_clients(run: Run) -> list[str]:
    from partwise.experiment.words import number

    names = ("mean", "p10", "p90", "worst")
    found = {n: run.scores[run.metric, n][-1].value for n in names if (run.metric, n) in run.scores}
    if not found:
        return []
    words = ", ".join(f"{name} {number(value, 4)}" for name, value in found.items())
    lines = ["", f"over clients: {words}"]
    ordered = sorted(
        (c for c in run.clients.get(run.metric, ()) if not math.isnan(c.value)),
        key=lambda c: c.value,
        reverse=not run.higher_is_better(run.metric),
    )
    worst = ", ".join(f"{run.client_name(c.client)} {number(c.value)}" for c in ordered[:3])
    return [*lines, f"served worst: {worst}"] if worst else lines


def _troubles(run: Run) -> list[str]:
    from partwise.experiment.words import printable

    gone = [t for t in run.troubles if t.kind != "suspected"]
    shown = [f"  {run.client_name(t.client)} {t.kind} at version {t.version}: {printable(t.reason)}" for t in gone[:10]]
    more = [f"  and {len(gone) - 10:,} more"] if len(gone) > 10 else []
    return [*(["", f"clients lost or refused: {len(gone):,}"] if gone else []), *shown, *more, *_suspects(run)]


def _suspects(run: Run) -> list[str]:
    """Whom an observer suspected, of what, in which rounds and why; the longest suspected first."""
    from partwise.experiment.words import amount, printable

    found: dict[tuple[int, str, str], list[int]] = {}
    for t in run.troubles:
        if t.kind == "suspected":
            found.setdefault((t.client, t.stage, t.reason), []).append(t.version)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        f"  {run.client_name(client)}: {what}, {amount(len(seen), run.noun)} from version {seen[0]} on: "
        f"{printable(reason)}"
        for (client, what, reason), seen in ordered[:20]
    ]
    more = [f"  and {len(ordered) - 20:,} more"] if len(ordered) > 20 else []
    return ["", f"clients suspected: {len({c for c, _, _ in found}):,}", *lines, *more] if found else []


def report_command(
    runs: Runs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("report.html"),
    metric: Metric = None,
    target: Target = None,
) -> None:
    """Write runs as one HTML page.

    It needs no other file and no network.
    """
    from partwise.experiment.report import write_report
    from partwise.experiment.runs import read_runs

    read = read_runs(runs)
    with written("--out", out):
        path = write_report(read, out, metric=metric, target=target)
    typer.echo(f"The report is in {path}")


# ---- parts ----------------------------------------------------------------------------------------------------------


def parts_command(
    which: Annotated[str | None, typer.Argument(metavar="[FAMILY|NAME]", help="Of which more is wanted.")] = None,
    as_json: Json = False,
) -> None:
    """Every part there is, or some in full.

    Of a family or a part: its parameters, their defaults, and where it comes from. The family `sections` has what a
    specification says in tables that need no name, such as [evaluation].
    """
    from partwise.experiment import Checkpointing, Evaluation, Journaling, Trusted
    from partwise.experiment.parts import Part, catalog, describe
    from partwise.experiment.privacy import ClientDP
    from partwise.experiment.suggest import did_you_mean

    sections = (Checkpointing, ClientDP, Evaluation, Journaling, Trusted)
    every = [*catalog(), *(Part("sections", cls.__name__, cls) for cls in sections)]
    chosen = [p for p in every if which is None or which in (p.family, p.name)]
    if not chosen:
        families = list(dict.fromkeys(p.family for p in every))
        hint = did_you_mean(str(which), [*families, *(p.name for p in every)])
        hint = hint or f"The families are {', '.join(families)}."
        raise EndedError(f"parts {which}: there is no such family or part. {hint}", UNUSABLE)
    found = [describe(p.cls, p.family) for p in chosen]
    if as_json:
        typer.echo(json.dumps([_as_json(d) for d in found]))
    elif which is None:
        _print_summary(found)
    else:
        for description in found:
            _print_part(description)


def _as_json(part: Description) -> dict[str, Any]:
    from partwise.experiment.parts import spell

    fields = [
        {
            "name": p.name,
            "type": spell(p.annotation),
            "default": None if p.is_required else repr(p.default),
            "about": p.about,
        }
        for p in part.parameters
    ]
    return {**part._asdict(), "parameters": fields}


def _print_summary(found: list[Description]) -> None:
    table = plain_table("", "", "")
    table.show_header = False
    family = ""
    for part in found:
        table.add_row(part.family if part.family != family else "", part.name, part.summary)
        family = part.family
    print_all(table)
    typer.echo('\nMore of one: partwise parts NAME. Your own: name = "path/to/parts.py:MyPart" in a specification.')


def _print_part(part: Description) -> None:
    from rich.text import Text

    from partwise.experiment.parts import spell

    print_all(Text.assemble((part.name, "bold"), f"  {part.family}"), Text(f"  {part.summary}"))
    table = plain_table("", "", "", "")
    table.show_header = False
    for p in part.parameters:
        default = "must be given" if p.is_required else _default(p.default)
        table.add_row(f"  {p.name}", Text(spell(p.annotation)), Text(default), Text(p.about))
    if part.parameters:
        print_all(table)
    print_all(*([Text(f"  Source: {part.source}")] if part.source else []), "")


def _default(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text.split('(', 1)[0]}(...)"
