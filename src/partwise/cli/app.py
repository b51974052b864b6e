"""The application: its exit codes, and errors as sentences."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from partwise import __version__
from partwise.core.errors import CheckpointError, PartwiseError
from partwise.core.files import FULL

__all__ = ["FAILED", "INTERRUPTED", "NOT_A_RUN", "UNUSABLE", "EndedError", "app", "main", "sentence", "written"]

FAILED = 1
UNUSABLE = 2
NOT_A_RUN = 3
INTERRUPTED = 130

_HELP = """Federated learning in which each participant holds, trains and sends a part of the model.

Begin with: partwise demo
"""
_EPILOG = (
    "Exit codes: 0 done. 1 the run failed: it diverged, or the disk is full. 2 the specification or the command cannot "
    "be used. 3 nothing to resume, or not a run's folder. 130 interrupted by Ctrl-C, after saving."
)


class EndedError(PartwiseError):
    """A command ends with this sentence and this exit code."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


@contextlib.contextmanager
def written(option: str, path: Path | str) -> Iterator[None]:
    """Ends the command where the place that an option names cannot be written: it cannot be used, or the disk is full.

    Args:
        option: as it is typed.
        path: what was given, or its default.

    Raises:
        EndedError: an error of the system, or a `CheckpointError` that comes of one, was raised inside.
    """
    try:
        yield
    except (OSError, CheckpointError) as error:
        cause = error.__cause__ if isinstance(error, CheckpointError) else error
        if not isinstance(cause, OSError):
            raise
        is_full = cause.errno in FULL
        remedy = "Free some space, or name another place" if is_full else "Name another"
        raise EndedError(
            f"{option} {path}: must be a place that can be written, got: {cause.strerror or cause}. {remedy}.",
            FAILED if is_full else UNUSABLE,
        ) from error


class _Sentences(TyperGroup):
    """Turns errors into a sentence and an exit code. Bugs keep their traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # --debug is understood anywhere, for people add it at the end of the command that failed
        rest = [a for a in args if a != "--debug"]
        return super().parse_args(ctx, ["--debug", *rest] if len(rest) < len(args) else rest)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `partwise list | head`
            raise
        except KeyboardInterrupt:
            _end("interrupted before there was anything to save.", INTERRUPTED)
        except EndedError as error:
            if ctx.params.get("debug") and error.__cause__ is not None:
                raise
            _end(str(error), error.code)
        except (PartwiseError, ValueError, OSError, ImportError) as error:
            if ctx.params.get("debug"):
                raise
            code = (
                NOT_A_RUN if isinstance(error, CheckpointError) else FAILED if isinstance(error, OSError) else UNUSABLE
            )
            _end(sentence(error), code)


def sentence(error: BaseException) -> str:
    """What an error says, for somebody who does not read Python."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return str(error) or type(error).__name__


def _end(message: str, code: int) -> NoReturn:
    typer.echo(f"partwise: {message}", err=True)
    raise typer.Exit(code)


app = typer.Typer(
    name="partwise",
    cls=_Sentences,
    help=_HELP,
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the help in boxes takes a quarter of a second to import
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"partwise {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version, and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: without the program's name; those of the process by default.
    """
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a pipe on Windows cannot write every character by default
            stream.reconfigure(errors="replace")
    app(args=None if args is None else list(args), prog_name="partwise")


def _nowhere() -> TextIO:
    """What a process writes to that was begun without an output."""
    return Path(os.devnull).open("w", encoding="utf-8")
