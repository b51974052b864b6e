"""`partwise node`: what a site looks at before it joins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from partwise.cli.app import FAILED, EndedError

__all__ = ["node"]

node = typer.Typer(help="What a site looks at before it joins.", no_args_is_help=True)


@node.callback()
def _node() -> None:
    pass


@node.command("check")
def check_command(folder: Annotated[Path, typer.Argument(help="With a node.toml.")]) -> None:
    """Whether data, memory, keys and the way to the server are right."""
    from partwise.deploy.files import NodeFile
    from partwise.deploy.local import check

    file, wrong = NodeFile.read(folder), list[str]()
    for finding in check(file):
        typer.echo(f"{'ok   ' if finding.is_right else 'wrong'}  {finding.what}: {finding.said}")
        wrong += [] if finding.is_right else [finding.what]
    if wrong:
        raise EndedError(f"{file.name}: not ready to join: {', '.join(wrong)}.", FAILED)
