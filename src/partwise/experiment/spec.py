"""Specifications: TOML in, an experiment out; or all faults at once, each with its line, its rule and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from partwise.core.errors import DataError, SpecError
from partwise.experiment.dump import SPEC, dump, save_spec
from partwise.experiment.experiment import Experiment
from partwise.experiment.read import Fault, Reader, is_faulty, shown
from partwise.experiment.toml import KeyPath, decode_error, locate, parse

__all__ = ["SPEC", "dump", "load", "loads", "save_spec"]

_LARGEST = 1 << 26  # bytes of a specification


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a TOML file.

    Args:
        path: of the file; the paths in it are relative to its folder.
        overrides: `key=value` each, such as `scheduler.rounds=20`; paths in them are relative to the current folder.

    Raises:
        SpecError: the specification has faults; it lists them all.
        DataError: the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:  # no more than can be one: a device has no end, and data may fill the memory
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path}: must be a specification that can be read, got: {error.strerror}.") from error
    if len(content) > _LARGEST:
        raise DataError(f"{path}: must be a specification of {_LARGEST:,} bytes at most, got more. Name another file.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(
            [f"line {line}: TOML must be UTF-8, got the byte {error.object[error.start]:#04x}. Save it as UTF-8."]
        ) from error
    return loads(text, overrides, base=path.parent)


def loads(text: str, overrides: Sequence[str] = (), *, base: str | Path = ".") -> Experiment:
    """Read an experiment from TOML.

    Args:
        text: the specification.
        overrides: `key=value` each. The value is TOML, or a bare word: `algorithm.estimator=count`. An array's
            elements are numbered from 0: `client.0.max_norm=3`.
        base: the folder that paths in `text` are relative to.

    Raises:
        SpecError: the specification has faults; it lists them all.

    Example:
        >>> experiment = loads(
        ...     '''
        ...     [workload]
        ...     name = "StdlibCode"
        ...     [algorithm]
        ...     name = "FedSubAvg"
        ...     ''',
        ...     ["algorithm.estimator=count"],
        ... )
        >>> experiment.algorithm.estimator
        'count'
    """
    try:
        table = parse(text)
    except ValueError as error:
        line, complaint = decode_error(error, text)
        remedy = "Look at the line before as well; strings want quotes"
        raise SpecError([f"line {line}: must be TOML, got a syntax error: {complaint}. {remedy}."]) from error
    given, faults = _overridden(table, overrides)
    places = _Places(locate(text), given, Path(base))
    reader = Reader(places.base)
    experiment = reader.fields(table, Experiment, ())
    found = sorted(reader.faults, key=lambda fault: places.of(fault.path).number)
    faults += [f"{places.of(fault.path).words}: {_sentence(fault)}" for fault in found]
    if faults or is_faulty(experiment):
        raise SpecError(faults)
    assert isinstance(experiment, Experiment)
    return experiment


def _sentence(fault: Fault) -> str:
    key = ".".join(map(str, fault.path))
    return f"{key}: {fault.text}" if key else fault.text


# ---- where a fault is -----------------------------------------------------------------------------------------------


class _Override(NamedTuple):
    path: KeyPath
    text: str


class _Place(NamedTuple):
    """Sorts by line, overrides last, in their order."""

    number: int
    words: str


class _Places:
    """Who said what: a line of the text, or an override.

    Args:
        lines: key path -> line.
        overrides: those that were applied.
        base: the folder of the text.
    """

    def __init__(self, lines: Mapping[KeyPath, int], overrides: Sequence[_Override], base: Path) -> None:
        self._lines, self._overrides, self._base = lines, overrides, base

    def of(self, path: KeyPath) -> _Place:
        """The override or line that says what stands at a path, or else what stands around it."""
        override = self._override(path)
        while override is None and path and path not in self._lines:  # said by going through it, perhaps
            override = next((o for o in self._overrides if _is_same(o.path[: len(path)], path)), None)
            path = path[:-1]
        if override is not None:
            return _Place(10**9 + self._overrides.index(override), f"override {override.text}")
        line = self._lines.get(path, 1)
        return _Place(line, f"line {line}")

    def base(self, path: KeyPath) -> Path:
        """The folder that a file name at a path is relative to."""
        return Path.cwd() if self._override(path) is not None else self._base

    def _override(self, path: KeyPath) -> _Override | None:
        found = [o for o in self._overrides if _is_same(path[: len(o.path)], o.path)]
        return max(found, key=lambda o: len(o.path), default=None)


def _is_same(one: KeyPath, other: KeyPath) -> bool:
    """Whether two paths are the same; an override's number may also be the name of a key."""
    return [*map(str, one)] == [*map(str, other)]


# ---- overrides ------------------------------------------------------------------------------------------------------


def _overridden(table: dict[str, Any], overrides: Iterable[str]) -> tuple[list[_Override], list[str]]:
    """Put overrides into the table; those applied, and the faults of the others."""
    applied, faults = [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(int(k) if k.isdecimal() else k for k in key.strip().split("."))
        if text != text.encode("utf-8", "replace").decode():
            rule = "must be text in UTF-8, as what is run is kept in a file of it"
            faults.append(f"override {key}: {rule}, got {text!r}. Write other letters, or set the terminal to UTF-8.")
            continue
        if not equals or not all(k != "" for k in path):
            rule = "must be key=value, such as scheduler.rounds=20"
            faults.append(f"override {text}: {rule}, got {text!r}. Write a key, an equals sign and a value.")
            continue
        fault = _put(table, path, _override_value(value.strip()))
        if fault:
            faults.append(f"override {text}: {fault}")
        else:
            applied.append(_Override(path, text))
    return applied, faults


def _override_value(text: str) -> object:
    """TOML, or else a number as Python has it, or else the text itself."""
    try:
        found = parse(f"value = {text}\n")
        if list(found) == ["value"]:
            return found["value"]
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _put(table: dict[str, Any], path: KeyPath, value: object) -> str | None:
    """Set what stands at a path, in place, making tables and elements on the way; why it cannot be, if so."""
    here: Any = table
    for at, key in enumerate(path):
        where, is_last = ".".join(map(str, path[:at])), at == len(path) - 1
        if isinstance(here, list):
            if not isinstance(key, int) or key > len(here):
                many = f"{len(here)} element{'' if len(here) == 1 else 's'}"
                rule = f"{where} must be followed by a number from 0 to {len(here)}, got {key!r}"
                return f"{rule}. It has {many}; {len(here)} adds one."
            if key == len(here):
                here.append(None)
        elif isinstance(here, dict):
            key = str(key)
        else:
            return f"{where} must be a table to have {key!r}, got {shown(here)}. Leave out what follows it."
        if is_last:
            here[key] = value
        else:
            there = here.get(key) if isinstance(here, dict) else here[key]
            here[key] = _opened(there, path[at + 1])
            here = here[key]
    return None


def _opened(value: object, key: str | int) -> object:
    """What can have a key: a part written as its bare name is a table with that name, and nothing is empty."""
    if value is None:
        return [] if isinstance(key, int) else {}
    return {"name": value} if isinstance(value, str) else value
