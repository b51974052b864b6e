"""`partwise attack`: what a set-up is worth under attack."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partwise.cli.app import INTERRUPTED, EndedError, written

if TYPE_CHECKING:
    from partwise.experiment.experiment import Experiment
    from partwise.experiment.trials import Trial

__all__ = ["ATTACKS", "attack_command"]

NONE, OWN = "none", "as it is"
ATTACKS = (
    '{name="SignFlip", scale=10.0}',
    "GaussianReplace",
    "{name='InnerProduct', epsilon=0.1}",
    "{name='InnerProduct', epsilon=10.0}",
    "ALittleIsEnough",
    "CoverageAttack",
)


def attack_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="The set-up to attack.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it.")] = None,
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="A part, or an inline table; several times. Default: six.")
    ] = None,
    rules: Annotated[
        list[str] | None, typer.Option("--rule", help="An aggregator instead of the set-up's own; several times.")
    ] = None,
    shares: Annotated[
        list[float] | None,
        typer.Option("--share", help="Of hostile clients; several times. Default: those the set-up names, or a fifth."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, from the set-up's seed on.", min=1)] = 1,
    folder: Annotated[Path, typer.Option("--folder", help="Where trials are kept: it goes on from there.")] = Path(
        "attacked"
    ),
) -> None:
    """Attack a set-up: attacks against rules, as a table.

    Each attack meets each rule; a heat map comes with the table.

    Trials that were made are kept and not made again, so that the same command goes on after Ctrl-C.
    """
    from partwise.experiment.dump import dump
    from partwise.experiment.spec import load
    from partwise.experiment.trials import Trial, heat_map, make_trials, markdown

    given = list(overrides or ())
    base = load(spec, given)
    typed = {_label(text): text for text in [NONE, OWN, *(attacks or ATTACKS), *(rules or ())]}
    named = base.hostile.clients if base.hostile and not shares else ()
    usual = round(len(named) / len(base.build()[1].population.clients), 6) if named else 0.2
    grid = [(NONE, 0.0)]
    grid += [(_label(attack), share) for share in shares or [usual] for attack in attacks or ATTACKS if attack != NONE]
    grid = list(dict.fromkeys(grid))  # what is typed twice is played once, or the table would take it for repetitions
    trials = [
        Trial("", rule, attack, share, base.seed + number)
        for rule in dict.fromkeys(map(_label, rules or [OWN]))
        for attack, share in grid
        for number in range(seeds)
    ]
    for trial in trials:  # faults of what was typed are told now, not after an hour
        _experiment(spec, given, trial, typed, is_named=bool(named))
    keep = folder / "trials.jsonl"
    with written("--folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        keep.open("a", encoding="utf-8").close()
    try:
        rows = make_trials(
            trials,
            lambda trial: _experiment(spec, given, trial, typed, is_named=bool(named)),
            keep,
            about=dump(base),
            said=typer.echo,
        )
    except KeyboardInterrupt as error:
        raise EndedError(
            f"interrupted. The trials that were finished are kept in {folder}; the same command goes on from there.",
            INTERRUPTED,
        ) from error
    table = markdown(rows)
    has_score = any(row["score"] is not None for row in rows)
    with written("--folder", folder):
        (folder / "table.md").write_text(table + "\n", encoding="utf-8")
        if has_score:
            heat_map(rows, f"{spec.stem} under attack").savefig(folder / "heat.svg")
    for row in rows:
        if row["score"] is None:
            typer.echo(f"{row['rule']} / {row['attack']}: {row['ended']}")
    typer.echo(f"\n{table}\n\nIn {folder}: trials.jsonl, table.md{', heat.svg' if has_score else ''}")


def _label(text: str) -> str:
    """`{name="Krum", f=2}` as `Krum, f=2`."""
    return re.sub(r"^\{\s*name\s*=\s*|[{}\"']", "", text).strip()


def _experiment(
    spec: Path, overrides: Sequence[str], trial: Trial, typed: Mapping[str, str], *, is_named: bool
) -> Experiment:
    from partwise.experiment.spec import load

    more = [f"seed={trial.seed}"]
    more += [] if trial.rule == OWN else [f"aggregator={typed[trial.rule]}"]
    if trial.attack != NONE:
        more += [f"hostile.attack={typed[trial.attack]}", f"hostile.share={trial.share}"]
        more += [] if is_named else ["hostile.clients=[]"]  # of which a share would be ignored
    found = load(spec, [*overrides, *more])
    return replace(found, hostile=None) if trial.attack == NONE else found  # a set-up may have an attack of its own
