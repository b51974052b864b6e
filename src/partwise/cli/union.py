"""`partwise union`: the rows that anybody holds, found under masks, for `Deniable(universe=...)`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["union_command"]


def union_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="Whose clients and tables.")],
    out: Annotated[Path, typer.Argument(metavar="UNIVERSE.npz", help="Where the union is written.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it.")] = None,
    contributors: Annotated[int, typer.Option("--contributors", help="So many clients must be in it.")] = 5,
    bloom: Annotated[int, typer.Option("--bloom", help="Use a Bloom filter, for a union of so many rows.")] = 0,
    keys: Annotated[str, typer.Option("--keys", help="Folder of signing keys, if the server may lie.")] = "",
) -> None:
    """Find which rows anybody holds, and not who holds them."""
    from partwise.algorithms.deniable import write_universe
    from partwise.channels.identities import KeyFolder
    from partwise.channels.unions import Bitmap, Bloom, MaskedUnion
    from partwise.core.errors import CompositionError, DataError
    from partwise.experiment.spec import load
    from partwise.programs.union import find_union

    experiment = load(spec, list(overrides or ()))
    star, _ = experiment.build()
    if not star.model.tables:
        raise CompositionError(f"{spec}: a union is of tables' rows, got a model without tables. It needs no union.")
    channel = MaskedUnion(
        Bloom(bloom) if bloom else Bitmap(),
        min_contributors=contributors,
        identities=KeyFolder(keys) if keys else None,
    )
    found = find_union(star, channel, experiment.runtime, _Said())
    try:
        write_universe(out, found)
    except OSError as error:
        raise DataError(f"{out}: must be writable, got: {error.strerror}. Name another file.") from error
    for name, rows in found.rows.items():
        assert rows is not None
        typer.echo(f"{name}: {len(rows):,} of {star.like[name].shape[0]:,} rows are held by somebody")
    typer.echo(f"The union is in {out}")


class _Said:
    """Says who was lost."""

    def heard(self, now: float, src: int, tag: int) -> str | None:
        return None

    def record(self, record: Any, world: Any) -> str | None:
        if record.kind == "lost":
            typer.echo(f"client {record.fields['client']} is not in it: {record.fields['reason']}", err=True)
        return None

    def settled(self, world: Any) -> None: ...

    def ended(self, world: Any, reason: str) -> None: ...
