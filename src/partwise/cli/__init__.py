"""The command line. Nothing heavy is imported before a command needs it: `partwise --help` answers at once."""

from __future__ import annotations

from partwise.cli.app import app, main
from partwise.cli.demo import demo
from partwise.cli.doctor import doctor
from partwise.cli.look import compare, list_, parts, report, show
from partwise.cli.populations import data
from partwise.cli.run import resume, run

__all__ = ["app", "main"]

app.command()(run)
app.command()(resume)
app.command("list")(list_)
app.command()(show)
app.command()(compare)
app.command()(report)
app.command()(parts)
app.add_typer(data, name="data")
app.command()(demo)
app.command()(doctor)
