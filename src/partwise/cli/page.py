"""`partwise page`: a run as a page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["page_command"]


def page_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    port: Annotated[int, typer.Option("--port", "-p", help="0 takes any that is free.")] = 8765,
    host: Annotated[
        str, typer.Option("--host", help="An address of this machine; the default is for its own browsers only.")
    ] = "127.0.0.1",
    names: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A name under which others may ask for the page.")
    ] = None,
) -> None:
    """Show a run in the browser, live while it goes on.

    Clients, versions, staleness, bytes, metrics and errors, until Ctrl-C. It only reads, and loads nothing from
    elsewhere.
    """
    from partwise.monitor.serve import serve

    def say(address: str) -> None:
        typer.echo(f"{run} is shown at {address}  (Ctrl-C ends the page, not the run)")
        if host not in ("127.0.0.1", "::1", "localhost"):
            typer.echo("Everybody who can reach this address can read it.", err=True)

    serve(run, host=host, port=port, names=names or (), say=say)
