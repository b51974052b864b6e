"""`partwise run` and `partwise resume`."""

from __future__ import annotations

import enum
import shlex
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from partwise.cli.app import FAILED, INTERRUPTED, NOT_A_RUN, UNUSABLE, EndedError, sentence, written
from partwise.cli.watch import Watcher
from partwise.core.errors import CheckpointError, PartwiseError, SpecError
from partwise.core.files import FULL

if TYPE_CHECKING:
    from partwise.cli.watch import View
    from partwise.experiment.experiment import Experiment

__all__ = ["execute", "resume_command", "run_command", "say_what_next"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]
Root = Annotated[Path, typer.Option("--root", help="Where the folders of runs are.")]

_LONG = 30.0  # seconds of a run, from which on it is worth a thought how it might be faster


class On(str, enum.Enum):
    """Where a run may run."""

    simulate = "simulate"
    processes = "processes"
    ray = "ray"


def run_command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="What to run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to it: scheduler.rounds=20 client.0.max_norm=3"),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Of the run; a new one under --root by default.")] = None,
    root: Root = Path("runs"),
    as_json: Json = False,
    quiet: Quiet = False,
    on: Annotated[On | None, typer.Option("--on", help="Another runtime than the specification's.")] = None,
) -> None:
    """Run a specification.

    To its end, or to its target, or to Ctrl-C, which saves and says how to go on.
    """
    from partwise.cli.views import view_for
    from partwise.experiment.store import RECORD

    with written("--folder", folder or ""):
        is_taken = folder is not None and folder.is_dir() and any(folder.iterdir())
    if folder is not None and is_taken:
        said = f"--folder {folder}: must be new or empty, got a folder with files. Name another"
        more = f", or go on with the run in it: partwise resume {folder}" if (folder / RECORD).exists() else "."
        raise EndedError(said + more, UNUSABLE)
    with closing(view_for(as_json=as_json, quiet=quiet)) as view:
        view.prepare("reading the specification and the data")
        experiment, began = _load(spec, list(overrides or ()), on), time.monotonic()
        watcher = execute(experiment, view, folder=folder, root=root)
    if not as_json and not quiet:
        say_what_next(watcher)
        if time.monotonic() - began >= _LONG and _is_one_by_one(experiment):
            typer.echo(
                "  partwise run ... runtime.executor=Auto   # clients were trained one by one; this may be faster"
            )


def resume_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a run that was killed or interrupted.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run from its last checkpoint.

    It ends with the bits it would have ended with undisturbed.
    """
    from partwise.cli.views import view_for

    try:
        with closing(view_for(as_json=as_json, quiet=quiet)) as view:
            view.prepare("reading the last checkpoint and the data")
            watcher = execute(_frozen(folder), view, folder=folder, resume=True)
    except KeyboardInterrupt as error:
        said = f"interrupted before it went on. Go on with: partwise resume {shlex.quote(str(folder))}"
        raise EndedError(said, INTERRUPTED) from error
    if not as_json and not quiet:
        say_what_next(watcher)


def _load(spec: Path, overrides: list[str], on: On | None) -> Experiment:
    from partwise.experiment.spec import load

    experiment = load(spec, overrides)
    wanted = on.value.capitalize() if on else type(experiment.runtime).__name__
    return experiment if type(experiment.runtime).__name__ == wanted else load(spec, [*overrides, f"runtime={wanted}"])


def _is_one_by_one(experiment: Experiment) -> bool:
    """Whether the run was simulated by the executor that nobody has to choose, which is seldom the fastest."""
    from partwise.runtimes import Simulate
    from partwise.runtimes.executors import Plain

    return isinstance(experiment.runtime, Simulate) and isinstance(experiment.runtime.executor, Plain)


def _frozen(folder: Path) -> Experiment:
    """The experiment of a run that did not end."""
    from partwise.experiment.dump import spec_digest
    from partwise.experiment.spec import SPEC, load
    from partwise.experiment.store import RunStore

    with RunStore(folder, "read") as store:
        meta = store.meta()
    status = str(meta.get("status", ""))
    if status == "done" or status.startswith("target reached"):
        said = f"{folder}: there must be something left to do, got a run that ended: {status}. Run it again."
        raise EndedError(said, NOT_A_RUN)
    if not (folder / SPEC).is_file():
        if not meta.get("name"):
            raise EndedError(
                f"{folder}: there must be a run that has begun, got one that was killed before it wrote down what it "
                "is. Begin it again, in another folder.",
                NOT_A_RUN,
            )
        raise EndedError(
            f"{folder}: needs its {SPEC}, got none: the run was made in Python of parts that a specification cannot "
            f"name. Go on from there: experiment.run({str(folder)!r}, resume=True).",
            NOT_A_RUN,
        )
    if meta.get("spec_digest") not in (None, spec_digest(folder)):
        raise EndedError(
            f"{folder / SPEC}: must be as the run wrote it, got one that was changed since: the record would say of "
            "all versions what is true of some. Restore it, or begin a new run with it; link data that have moved.",
            NOT_A_RUN,
        )
    try:
        return load(folder / SPEC)
    except SpecError as error:
        raise EndedError(f"{folder / SPEC}: {error}", NOT_A_RUN) from error


def execute(
    experiment: Experiment, view: View, *, folder: Path | None = None, root: Path = Path("runs"), resume: bool = False
) -> Watcher:
    """Run, and end the command with the right exit code if the run does not end well."""
    watcher = Watcher(view, experiment.evaluation.scope)
    try:
        experiment.run(folder, resume=resume, progress=watcher, root=root)
    except KeyboardInterrupt as error:
        if watcher.header is None:
            raise
        raise EndedError(f"interrupted at once. {_how_to_resume(watcher)}", INTERRUPTED) from error
    except SystemExit as error:  # of code that is not ours: a run that did not end would pass for one that is done
        said = f"a part called sys.exit({'' if error.code is None else repr(error.code)}), which ended the run. Have it"
        see = _how_to_see(watcher) if watcher.header else "No run was begun."
        raise EndedError(f"{said} raise an error instead. {see}", FAILED) from error
    except (PartwiseError, ValueError, OSError) as error:
        if watcher.header is None:
            if isinstance(error, CheckpointError) and not resume:  # the new folder cannot be written
                cause = error.__cause__
                is_unusable = cause is None or (isinstance(cause, OSError) and cause.errno not in FULL)
                raise EndedError(str(error), UNUSABLE if is_unusable else FAILED) from error
            raise
        raise EndedError(f"{sentence(error)} {_how_to_see(watcher)}", FAILED) from error
    if watcher.reason == "interrupted":
        at = f"{watcher.noun} {watcher.last.version}" if watcher.last else "the beginning"
        raise EndedError(f"interrupted, and saved at {at}. {_how_to_resume(watcher)}", INTERRUPTED)
    if watcher.reason == "nothing left to do" or watcher.reason.startswith("client "):
        raise EndedError(f"the run ended early: {watcher.reason}. {_how_to_see(watcher)}", FAILED)
    if watcher.last is None and not resume:
        rule = "the run made no version: every client was lost, or its update refused"
        raise EndedError(f"{rule}. {_how_to_see(watcher)}", FAILED)
    return watcher


def _how_to_resume(watcher: Watcher) -> str:
    return f"Go on with: partwise resume {shlex.quote(watcher.folder)}"


def _how_to_see(watcher: Watcher) -> str:
    return f"See: partwise show {shlex.quote(watcher.folder)}"


def say_what_next(watcher: Watcher) -> None:
    """The end of a run in a few lines, and what can be done with it."""
    from partwise.experiment.words import amount, bytes_text, number

    last, folder = watcher.last, shlex.quote(watcher.folder)
    if last is not None and watcher.header is not None:
        score = f"{watcher.header.metric} {number(last.value, 4)} (best {number(last.best, 4)})"
        sent = f"{bytes_text(last.uplink)} up, {bytes_text(last.downlink)} down"
        typer.echo(f"{amount(last.version, watcher.noun)}: {score}, {sent}")
    typer.echo(
        f"The run is in {watcher.folder}\n  partwise show {folder}\n  partwise report {folder} --out report.html"
    )
