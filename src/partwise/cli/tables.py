"""Tables on a terminal, in a file, and for another program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["plain_table", "print_all"]


def plain_table(*heads: str, numbers: int = 0) -> Table:
    """A table without lines; the last so many columns are numbers."""
    from rich.table import Table as Plain

    table = Plain(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for at, head in enumerate(heads):
        table.add_column(head, justify="right" if at >= len(heads) - numbers else "left", overflow="fold")
    return table


def print_all(*what: Any) -> None:
    """Print tables and lines, as wide as the place allows, and letter by letter: `[x]` in a name is no style."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if console.is_terminal:
        for one in what:
            console.print(one, highlight=False)
        return
    wide = Console(width=1000, markup=False, emoji=False)  # a file or another program: long lines are no trouble there
    with wide.capture() as captured:
        for one in what:
            wide.print(one, highlight=False)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
