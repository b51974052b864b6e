"""`partwise journal`: a run's journal checked, and where everybody stands by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from partwise.cli.app import FAILED, EndedError
from partwise.cli.options import Json

__all__ = ["journal_command"]


def journal_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that kept a journal.")],
    head: Annotated[str, typer.Option("--head", help="Hash of the last entry, noted elsewhere.")] = "",
    operator: Annotated[str, typer.Option("--operator", help="The operator's public key, noted elsewhere.")] = "",
    as_json: Json = False,
) -> None:
    """Check who contributed what to a run, and show the standings.

    The chain, the signatures and the rules of every entry are checked, the digests against the run's record, and the
    final model. What was tampered with is told, with exit code 1.
    """
    from partwise.cli.tables import plain_table, print_all
    from partwise.experiment.journal_check import check_journal

    found = check_journal(run, head=head, operator=operator)
    if as_json:
        typer.echo(json.dumps({**found._asdict(), "standings": [s._asdict() for s in found.standings]}))
    if not found.is_whole:
        raise EndedError(f"{run} was tampered with. {found.fault}", FAILED)
    if as_json:
        return
    table = plain_table("client", "contributions", "reputation", "stake", "paid", numbers=4)
    for who in found.standings:
        table.add_row(who.author, *(f"{number:,}" for number in who[1:]))
    print_all(table)
    typer.echo(f"Whole: {found.entries:,} entries, {found.rounds:,} versions.")
    typer.echo(f"operator {found.operator}\nhead     {found.head}")
    if not (head and operator):
        typer.echo("Note both elsewhere: only by them is a missing end, or another journal, noticed.")
