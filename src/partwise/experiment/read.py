"""Reading parts from plain tables: every value is compared with the annotation of the field it is for."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from partwise.core.annotations import is_protocol, union_members
from partwise.core.kinds import article
from partwise.experiment.parts import (
    Parameter,
    catalog,
    fits,
    is_part,
    is_writable,
    misfit,
    parameters,
    resolve,
    spell,
)
from partwise.experiment.suggest import did_you_mean, one_of
from partwise.experiment.toml import KeyPath

__all__ = ["Fault", "Reader", "is_faulty", "shown"]

_SEQUENCES = {tuple: tuple, list: list, frozenset: frozenset}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path, as a string"}
_PLURALS = {bool: "true and false", int: "whole numbers", float: "numbers", str: "strings", Path: "paths"}
_PLAIN = (bool, int, float, str, Path)
_FAULTY = object()  # stands for a value that has a fault


class Fault(NamedTuple):
    """What is wrong at a path: the rule, what was got, and the remedy."""

    path: KeyPath
    text: str


def is_faulty(value: object) -> bool:
    """Whether a reader could not make this value."""
    return value is _FAULTY


def shown(value: object) -> str:
    """A value as TOML has it, short."""
    match value:
        case bool():
            return "true" if value else "false"
        case Mapping():
            name = value.get("name")
            return f"a table named {name!r}" if isinstance(name, str) else "a table" if value else "an empty table"
        case list():
            return f"an array of {len(value)}" if value else "an empty array"
        case _:
            text = repr(value)
            return text if len(text) <= 60 else f"{text[:57]}..."


class Reader:
    """Reads values, and collects what is wrong with them.

    Args:
        base: key path -> the folder that a file name there is relative to.
    """

    def __init__(self, base: Callable[[KeyPath], Path]) -> None:
        self._base = base
        self.faults: list[Fault] = []

    def _fault(self, path: KeyPath, text: str) -> Any:
        self.faults.append(Fault(path, text))
        return _FAULTY

    # Values

    def value(self, raw: object, wanted: Any, path: KeyPath, default: object = None) -> Any:
        """What a plain value stands for where `wanted` is asked for.

        Args:
            raw: as TOML has it.
            wanted: an annotation.
            path: where it stands.
            default: what would stand there otherwise; a table without a name changes it.
        """
        members = [m for m in union_members(wanted) if m is not type(None)]
        if Any in members or object in members:
            return raw
        if (
            isinstance(raw, dict)
            and "name" in raw
            and any(map(_is_chain, members))
            and not any(map(is_protocol, members))
        ):
            key = ".".join(map(str, path))
            return self._fault(
                path, f"must be an array of parts, got {shown(raw)}. Write [[{key}]] instead of [{key}]."
            )
        fitting = [m for m in members if _has_shape(raw, m)]
        if isinstance(raw, dict) and len(fitting) > 1:
            fitting = _tables(raw, fitting)
        parts = [m for m in fitting if is_protocol(m)]
        if parts and len(parts) == len(fitting):
            return self._part(raw, parts, path, default)
        if fitting:
            return self._one(raw, _first(raw, fitting), path, default)
        if not any(is_writable(m) for m in members):
            return self._fault(
                path, f"cannot be written in a specification, got {shown(raw)}. Leave it out, or use Python."
            )
        protocols = [m for m in members if is_protocol(m)]
        words = " or ".join(dict.fromkeys(map(_words, members)))
        remedy = f"Choose {self._names(protocols)}." if protocols else _remedy(raw, members)
        return self._fault(path, f"must be {words}, got {shown(raw)}. {remedy}")

    def _one(self, raw: Any, wanted: Any, path: KeyPath, default: object) -> Any:
        """A value of the right shape for one type."""
        origin, args = get_origin(wanted), get_args(wanted)
        if origin is Literal:
            if any(raw == a and type(raw) is type(a) for a in args):
                return raw
            remedy = did_you_mean(str(raw), map(str, args)) or "Choose one."
            return self._fault(path, f"must be {one_of(args)}, got {shown(raw)}. {remedy}")
        if wanted is float and isinstance(raw, int) and abs(raw) > sys.float_info.max:
            text = f"must be a number below {sys.float_info.max:.2g}, got {shown(raw)}. Write fewer digits."
            return self._fault(path, text)
        if wanted is Path:
            return self._file(str(raw), path)
        if wanted in _PLAIN:
            return wanted(raw)
        if isinstance(raw, list):
            return self._sequence(raw, origin or wanted, args, path)
        if origin in (dict, Mapping):
            found = {key: self.value(v, args[1], (*path, key)) for key, v in raw.items()}
            return _FAULTY if _FAULTY in found.values() else found
        return self.fields(raw, wanted, path, default)

    def _file(self, raw: str, path: KeyPath) -> Any:
        try:
            return self._base(path) / Path(raw).expanduser()
        except RuntimeError:
            return self._fault(path, f"must be a path, got {shown(raw)}: nobody here has that home. Write it in full.")

    def _sequence(self, raw: list[Any], origin: Any, args: tuple[Any, ...], path: KeyPath) -> Any:
        fixed = origin is tuple and Ellipsis not in args and args != ()
        if fixed and len(raw) != len(args):
            return self._fault(
                path, f"must be an array of {len(args)}, got one of {len(raw)}. Give {len(args)} values."
            )
        wanted = args if fixed else [args[0] if args else Any] * len(raw)
        found = [self.value(v, w, (*path, at)) for at, (v, w) in enumerate(zip(raw, wanted, strict=True))]
        return _FAULTY if any(v is _FAULTY for v in found) else _SEQUENCES.get(origin, tuple)(found)

    # Parts

    def _part(self, raw: Any, wanted: Sequence[Any], path: KeyPath, default: object) -> Any:
        table = {"name": raw} if isinstance(raw, str) else dict(raw)
        name = table.pop("name", None)
        if name is None and is_part(type(default)):
            return self._made(table, type(default), path, named=True, default=default)
        if not isinstance(name, str):
            got = "none" if name is None else shown(name)
            return self._fault(path, f"must have a name, got {got}. Choose {self._names(wanted)}.")
        at = (*path, "name") if isinstance(raw, dict) else path
        cls = self._outside(name, wanted, at) if ":" in name else self._inside(name, wanted, at)
        return self._made(table, cls, path, named=True) if isinstance(cls, type) else _FAULTY

    def _inside(self, name: str, wanted: Sequence[Any], path: KeyPath) -> Any:
        """A part of Partwise by its name."""
        same = [p for p in catalog() if p.name == name]
        fitting = {p.cls for p in same if any(fits(p.cls, w) for w in wanted)}
        if len(fitting) == 1:
            return fitting.pop()
        words = " or ".join(_words(w) for w in wanted)
        remedy = did_you_mean(name, self._valid(wanted)) or f"Choose {self._names(wanted)}."
        got = f"{name!r}, one of the {same[0].family}" if same else repr(name)
        return self._fault(path, f"must be {words}, got {got}. {remedy}")

    def _outside(self, name: str, wanted: Sequence[Any], path: KeyPath) -> Any:
        """A part from a file or a module."""
        try:
            cls = resolve(name, self._base(path))
        except ValueError as error:
            return self._fault(path, str(error))
        if any(fits(cls, w) for w in wanted):
            return cls
        words = " or ".join(_words(w) for w in wanted)
        return self._fault(path, f"must be {words}, got {name!r}{misfit(cls, wanted[0])}. {_protocols(wanted)}")

    def _valid(self, wanted: Sequence[Any]) -> list[str]:
        return sorted({p.name for p in catalog() if is_writable(p.cls) and any(fits(p.cls, w) for w in wanted)})

    def _names(self, wanted: Sequence[Any]) -> str:
        names = self._valid(wanted)
        return (
            one_of([*names[:12], *(["..."] if len(names) > 12 else [])])
            if names
            else "a class of yours: path/to/parts.py:MyPart"
        )

    def fields(self, table: Mapping[str, Any], cls: type, path: KeyPath, default: object = None) -> Any:
        """A dataclass from a table that need not name it."""
        own = parameters(cls)
        if "name" not in own and "name" in table:
            if table["name"] != cls.__name__:
                return self._fault(
                    (*path, "name"), f"can only be {cls.__name__!r} here, got {shown(table['name'])}. Leave it out."
                )
            table = {k: v for k, v in table.items() if k != "name"}
        return self._made(table, cls, path, named=False, default=default)

    def _made(self, table: Mapping[str, Any], cls: type, path: KeyPath, *, named: bool, default: object = None) -> Any:
        try:
            own = {n: p for n, p in parameters(cls).items() if not (named and n == "name" and not p.is_required)}
        except TypeError as error:
            return self._fault(path, str(error))
        before = len(self.faults)
        changed = type(default) is cls
        found = {name: getattr(default, name) for name in own if name not in table} if changed else {}
        for key, raw in table.items():
            if key in own:
                otherwise = getattr(default, key) if changed else own[key].default
                found[key] = self.value(raw, own[key].annotation, (*path, key), otherwise)
            else:
                self._unknown(key, raw, cls, own, path)
        for name, parameter in own.items():
            if parameter.is_required and name not in table and not changed:
                self._missing(parameter, cls, path)
        made = self._constructed(cls, own, found, path)
        return _FAULTY if len(self.faults) > before else made

    def _unknown(self, key: str, raw: object, cls: type, own: Mapping[str, Parameter], path: KeyPath) -> None:
        rule = f"{cls.__name__} has no parameter {key!r}" if path else f"there is no key {key!r}"
        hint = did_you_mean(key, own)
        if not hint and isinstance(raw, list) and path and isinstance(path[-1], int):
            side = path[0]
            hint = f"To give stream {key!r} a chain of its own, write [[{side}.model]] instead of [[{side}]]."
        remedy = hint or (f"It has {one_of(own)}." if own else "It has none; leave it out.")
        self._fault((*path, key), f"{rule}, got {shown(raw)}. {remedy}")

    def _missing(self, parameter: Parameter, cls: type, path: KeyPath) -> None:
        name, members = parameter.name, union_members(parameter.annotation)
        protocols = [m for m in members if is_protocol(m)]
        if protocols:
            remedy = f"Add a table [{'.'.join(map(str, (*path, name)))}] with a name: {self._names(protocols)}."
        elif is_writable(parameter.annotation):
            words = " or ".join(_words(m) for m in members if m is not type(None))
            remedy = f"Add {name}, {words}{f': {parameter.about}' if parameter.about else ''}."
        else:
            remedy = f"It is {article(spell(parameter.annotation))}, which only Python can give."
        self._fault((*path, name), f"{cls.__name__ if path else 'an experiment'} needs it, got none. {remedy}")

    def _constructed(self, cls: type, own: Mapping[str, Parameter], found: Mapping[str, Any], path: KeyPath) -> Any:
        """The part; where it refuses a value, that value is left out, to learn what else it refuses."""
        given = {k: v for k, v in found.items() if v is not _FAULTY}
        if any(p.is_required and name not in given for name, p in own.items()):
            return _FAULTY
        left_out = set(found) - set(given)
        while True:
            try:
                return cls(**given)
            except (ValueError, TypeError, ArithmeticError, LookupError) as error:
                said = str(error) or type(error).__name__
            named = re.match(rf"{cls.__name__}\((\w+)=", said)
            blamed = named[1] if named and named[1] in given else None
            # A refusal that speaks of a value already left out may only be about its default.
            if not any(re.search(rf"\b{name}\b", said) for name in left_out):
                self._fault((*path, blamed) if blamed else path, said)
            if blamed is None or own[blamed].is_required:
                return _FAULTY
            left_out.add(blamed)
            del given[blamed]


# ---- what a value may be --------------------------------------------------------------------------------------------


def _has_shape(raw: object, wanted: Any) -> bool:
    """Whether a plain value could stand for this type at all."""
    origin = get_origin(wanted) or wanted
    match raw:
        case bool():
            return wanted is bool or origin is Literal
        case int():
            return wanted in (int, float) or origin is Literal
        case float():
            return wanted is float
        case str():
            return wanted in (str, Path) or origin is Literal or is_protocol(wanted)
        case list():
            return origin in (*_SEQUENCES, Sequence)
        case dict():
            return origin in (dict, Mapping) or is_protocol(wanted) or is_part(wanted)
        case _:
            return False  # dates and times


def _is_chain(wanted: Any) -> bool:
    """Whether it is a sequence of parts."""
    return get_origin(wanted) in (*_SEQUENCES, Sequence) and any(map(is_protocol, get_args(wanted)))


def _tables(raw: Mapping[str, Any], fitting: Sequence[Any]) -> list[Any]:
    """Which of several types a table is for: a name says a part, tables in it say a mapping."""
    parts = [m for m in fitting if is_protocol(m)]
    mappings = [m for m in fitting if get_origin(m) in (dict, Mapping)]
    if (
        mappings
        and not isinstance(raw.get("name"), str)
        and (not parts or all(isinstance(v, dict | list) for v in raw.values()))
    ):
        return mappings
    return parts or list(fitting)


def _first(raw: object, fitting: Sequence[Any]) -> Any:
    """The type to read by: the exact one where there is one, and a path where a path may also be text."""
    literal = [m for m in fitting if get_origin(m) is Literal]
    if any(raw in get_args(m) for m in literal) or len(literal) == len(fitting):
        return literal[0]
    if Path in fitting:  # what may be a path or text in Python is a path that is written as text
        return Path
    return next((m for m in fitting if m is type(raw)), next(m for m in fitting if m not in literal))


def _words(wanted: Any) -> str:
    origin = get_origin(wanted) or wanted
    if wanted in _WORDS:
        return _WORDS[wanted]
    if origin is Literal:
        return one_of(get_args(wanted))
    if origin in (*_SEQUENCES, Sequence):
        args = [a for a in get_args(wanted) if a is not Ellipsis]
        return (
            f"an array of {' and '.join(dict.fromkeys(_PLURALS.get(a, 'parts') for a in args))}" if args else "an array"
        )
    if origin in (dict, Mapping):
        return "a table"
    if origin is Callable:
        return "a loss, or another function"
    name = getattr(wanted, "__name__", str(wanted))
    if not is_protocol(wanted):
        return f"a table of the parameters of {name}"
    return article(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _remedy(raw: object, members: Sequence[Any]) -> str:
    scalars = [m for m in members if m in _PLAIN]
    if isinstance(raw, str) and scalars and str not in scalars:
        return "Write it without quotes." if bool in scalars or re.fullmatch(r"[-+\d._e]+", raw) else "Give a number."
    if isinstance(raw, float) and int in scalars:
        return f"Write {round(raw)}." if abs(raw) < 1e15 else "Give a whole number."
    if not isinstance(raw, str | list | dict) and str in scalars:
        return f'Put it in quotes: "{raw}".'
    if not isinstance(raw, list) and any((get_origin(m) or m) in (*_SEQUENCES, Sequence) for m in members):
        return "Put it in brackets." if not isinstance(raw, dict) else "Write [[...]] for each element."
    return "Give one."


def _protocols(wanted: Sequence[Any]) -> str:
    names = " or ".join(spell(w) for w in wanted)
    return f"See the protocol {names}."
