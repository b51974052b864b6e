"""Tables on a terminal, in a file, and for another program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["plain_table", "print_all"]

_NAME = 8  # letters that a column of words keeps at least


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
    from rich.table import Table as Plain

    console = Console(markup=False, emoji=False)
    if console.is_terminal:
        for one in what:
            width = _fit_(one, console.width) if isinstance(one, Plain) else console.width
            place = console if width == console.width else Console(width=width, markup=False, emoji=False)
            place.print(one, highlight=False)
        return
    wide = Console(width=1000, markup=False, emoji=False)  # a file or another program: long lines are no trouble there
    with wide.capture() as captured:
        for one in what:
            wide.print(one, highlight=False)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _fit_(table: Table, wide: int) -> int:
    """Narrow the widest columns of a table until it fits, but never so that a number is broken; return its width."""
    from rich.cells import cell_len

    columns = table.columns
    if not columns:
        return wide
    natural, least = list[int](), list[int]()
    for column in columns:
        cells = [str(cell) for cell in column.cells]
        lines = [line for text in (str(column.header), *cells) for line in text.splitlines()]
        natural.append(max(map(cell_len, lines), default=1))
        words = [word for text in cells for word in text.split()] if column.justify == "right" else []
        least.append(max(map(cell_len, words), default=min(_NAME, natural[-1])))
    gaps = 2 * (len(columns) - 1)
    while sum(natural) + gaps > wide and natural != least:
        at = max((at for at in range(len(columns)) if natural[at] > least[at]), key=lambda at: natural[at])
        natural[at] -= 1
    for column, width in zip(columns, natural, strict=True):
        column.width = width
    return max(wide, sum(natural) + gaps)
