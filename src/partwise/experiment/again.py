"""A run made again from its folder, and held against what it was the first time."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from partwise.core.errors import CheckpointError, DivergedError, ProtocolError
from partwise.core.runtime import Runtime
from partwise.experiment.dump import SPEC
from partwise.experiment.experiment import Experiment
from partwise.experiment.log import LOG, Log, read_log
from partwise.experiment.population_summary import same_clients
from partwise.experiment.recorder import Checkpointing, Progress
from partwise.experiment.result import MODEL
from partwise.experiment.spec import load
from partwise.experiment.store import RunStore
from partwise.runtimes.replay import Replay, Retrace
from partwise.runtimes.simulate import Simulate

__all__ = ["Replayed", "replay"]

_AT_THE_ENDS = Checkpointing(every_seconds=1e18, keep=1)
_MINE = {"executor", "node", "node_error", "rejected"}  # events that tell of machines, not of the run


class Replayed(NamedTuple):
    """What came of making a run again.

    Args:
        messages: in its log.
        versions: that were made again.
        difference: the first thing that was not the same, as a sentence; "" if nothing was.
        compared: what was.
    """

    messages: int
    versions: int
    difference: str
    compared: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        """Whether the run came out the same, bit by bit."""
        return not self.difference


def replay(
    folder: str | Path,
    into: str | Path | None = None,
    *,
    experiment: Experiment | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Make a run again from its specification and its log, and compare every record and the final model.

    A simulated run is simulated again, and held to the log message by message; of a run on the wall clock the messages
    are delivered as the log has them.

    Args:
        folder: of the run.
        into: a new folder for the run made again; by default it is thrown away.
        experiment: by default that of the specification in the folder.
        progress: shows the run.

    Raises:
        CheckpointError: the folder holds no run, no log, a log and a record in which nothing happened, or no
            specification and no experiment is given.
    """
    path, log = Path(folder), read_log(folder)
    found = _described(path) if experiment is None else experiment
    with RunStore(path, "read") as store:
        notes = [event["body"] for event in store.events("executor")]
        if not log:
            return _nothing(path, [event for event in store.events() if event["kind"] not in _MINE])
    with _place(into) as there:
        runtime = _runtime(found.runtime, log, notes[-1] if notes else {})
        said = ""
        try:
            replace(found, runtime=runtime, checkpointing=_AT_THE_ENDS).run(there, progress=progress)
        except (ProtocolError, DivergedError) as error:
            said = str(error)
            with RunStore(path, "read") as store:
                if str(store.meta().get("status")).endswith(f": {said}"):
                    said = ""  # the run ended so
        if (path / SPEC).is_file():
            shutil.copyfile(path / SPEC, there / SPEC)
        return _compared(path, there, len(log), said)


def _nothing(path: Path, events: list[dict[str, Any]]) -> Replayed:
    """What comes of a log without a message, of which no run can be made."""
    if not events:
        raise CheckpointError(
            f"replay({str(path)!r}): needs a {LOG} with messages, got an empty one: the run was killed before it wrote "
            "one. Go on with it, or begin it again."
        )
    return Replayed(0, 0, _too_few_or_many(events, [], is_done=False, messages=0), ())


def _described(path: Path) -> Experiment:
    if not (path / SPEC).is_file():
        raise CheckpointError(
            f"replay({str(path)!r}): needs the run's {SPEC}, got none: the run was made in Python of parts that a "
            f"specification cannot name. Call partwise.experiment.again.replay({str(path)!r}, experiment=...)."
        )
    return load(path / SPEC)


def _runtime(first: Runtime, log: Log, notes: Mapping[str, Any]) -> Runtime:
    if isinstance(first, Simulate):
        return Retrace(log, first, notes)
    executor = getattr(first, "executor", None)
    return Replay(log) if executor is None else Replay(log, executor)


@contextlib.contextmanager
def _place(into: str | Path | None) -> Iterator[Path]:
    if into is not None:
        yield Path(into)
        return
    with tempfile.TemporaryDirectory(prefix="partwise-replay-") as folder:
        yield Path(folder) / "run"


# What was the same


def _compared(first: Path, again: Path, messages: int, said: str) -> Replayed:
    with RunStore(first, "read") as one, RunStore(again, "read") as other:
        is_done = str(one.meta().get("status")) not in ("running", "interrupted")
        events = [[e for e in store.events() if e["kind"] not in _MINE] for store in (one, other)]
    versions = sum(event["kind"] == "commit" for event in events[1])
    compared = [f"{min(map(len, events)):,} records"]
    difference = _population(first, again) or _unlike(*events) or said
    difference = difference or _too_few_or_many(*events, is_done=is_done, messages=messages)
    if is_done and (first / MODEL).is_file() and not difference:
        compared.append("the final model")
        if (again / MODEL).read_bytes() != (first / MODEL).read_bytes():
            difference = "Every record is the same, but the final model is not."
    return Replayed(messages, versions, difference, tuple(compared))


def _population(first: Path, again: Path) -> str:
    one, other = (_json(folder / "population.json") for folder in (first, again))
    if one is None or same_clients(one, other, but_held=True):  # who drew other secrets tells other records
        return ""
    return "The clients or their examples are not those of the run: the data, or what reads them, has changed."


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _unlike(first: list[dict[str, Any]], again: list[dict[str, Any]]) -> str:
    """The first record that differs from its counterpart."""
    for at, (one, other) in enumerate(zip(first, again, strict=False), 1):
        if any(repr(one[key]) != repr(other[key]) for key in ("time", "kind", "body")):  # nan is like nan
            return f"Record {at:,} differs, {_where(one)}: {_what(one, other)}."
    return ""


def _too_few_or_many(first: list[dict[str, Any]], again: list[dict[str, Any]], *, is_done: bool, messages: int) -> str:
    """The first record without a counterpart; a run that was killed may have recorded less than its log has."""
    if len(again) < len(first):
        where = _where(first[len(again)])
        return f"Record {len(again) + 1:,} is missing, {where}: {LOG} ends before it, with message {messages:,}."
    if is_done and len(again) > len(first):
        return f"Record {len(first) + 1:,} is one too many, {_where(again[len(first)])}."
    return ""


def _where(event: Mapping[str, Any]) -> str:
    body = event["body"] if isinstance(event["body"], dict) else {}
    about = [f"{key} {body[key]}" for key in ("version", "client") if key in body]
    return ", ".join([f"{event['kind']!r} at {event['time']!r} s", *about])


def _what(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    for key in ("kind", "time"):
        if one[key] != other[key]:
            return f"its {key} was {one[key]!r} and is {other[key]!r}"
    a, b = one["body"], other["body"]
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if repr(a.get(key)) != repr(b.get(key)):
                return f"its {key} was {_short(a.get(key))} and is {_short(b.get(key))}"
    return f"it was {_short(a)} and is {_short(b)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
