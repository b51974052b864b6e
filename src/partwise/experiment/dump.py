"""Writing an experiment as a specification from which the same experiment is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from partwise import __version__
from partwise.core.annotations import is_protocol, union_members
from partwise.core.files import write_file
from partwise.experiment.parts import (
    Parameter,
    catalog,
    fits,
    is_part,
    parameters,
    reference,
)
from partwise.experiment.toml import write

__all__ = ["SPEC", "dump", "dump_each", "save_spec", "spec_digest"]

SPEC = "spec.toml"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # which differs from process to process


def dump(experiment: object) -> str:
    """An experiment, or any part, as complete TOML: every default is written out.

    Args:
        experiment: made of parts; a part from outside Partwise must be at the top of a module.

    Returns:
        What `partwise.experiment.spec.loads` reads as an equal experiment, whatever the folder.

    Raises:
        TypeError: something in it exists only as an object, such as a module or a tensor.
    """
    return write(_fields(experiment, ""))


def dump_each(experiment: object, names: Collection[str]) -> dict[str, str]:
    """Some fields of an experiment, each as TOML, or as it prints where it exists only as an object."""
    found = {}
    cls: type = type(experiment)
    for name, parameter in parameters(cls).items():
        if name in names:
            value = getattr(experiment, name)
            try:
                found[name] = "" if value is None else write({name: _plain(value, parameter.annotation, name)})
            except TypeError:
                found[name] = _ADDRESS.sub("", repr(value))
    return found


def spec_digest(folder: Path) -> str:
    """The SHA-256 of a run's specification, in hexadecimal digits.

    Raises:
        OSError: there is none to be read.
    """
    return hashlib.sha256((folder / SPEC).read_bytes()).hexdigest()


def save_spec(experiment: object, folder: Path) -> str | None:
    """Write an experiment into its run's folder; why it cannot be written, if so.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        text = dump(experiment)
    except TypeError as error:
        return str(error)
    said = f"# As it was run by Partwise {__version__}, with every default; `partwise resume` reads it.\n"
    write_file(folder / SPEC, [(said + text).encode()])
    return None


def _fields(part: Any, path: str) -> dict[str, Any]:
    table = {}
    cls: type = type(part)
    for name, parameter in parameters(cls).items():
        value, where = getattr(part, name), f"{path}.{name}" if path else name
        if value is not None:
            table[name] = _plain(value, parameter.annotation, where)
        elif parameter.default is not None:
            raise TypeError(f"dump({where}): TOML has no None, and leaving it out means {parameter.default!r}. Set it.")
    return table


def _plain(value: object, annotation: Any, path: str) -> Any:
    members = union_members(annotation)
    match value:
        case bool() | str():
            return value
        case int() | float():
            # a whole number where a float is meant is written as one, as it will be read
            return float(value) if float in members and int not in members else value
        case Path():
            return str(value.expanduser().resolve())
        case Mapping():
            return {_key(k, path): _plain(v, _inside(members, Mapping), f"{path}.{k}") for k, v in value.items()}
        case list() | tuple() | frozenset():
            inner = _inside(members, None)
            ordered = sorted(value) if isinstance(value, frozenset) else value
            return [_plain(v, inner, f"{path}.{at}") for at, v in enumerate(ordered)]
    if not is_part(type(value)):
        raise TypeError(
            f"dump({path}): must be a frozen dataclass, a string, a number, or a collection of these, got {value!r}. "
            "Describe it by a part that makes it, such as a workload's class."
        )
    if type(value) in members:
        return _fields(value, path)
    return {"name": _name(value, members, path), **_named_fields(value, path)}


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"dump({path}): keys must be strings, got {key!r}. Name them.")
    return key


def _inside(members: tuple[Any, ...], kind: Any) -> Any:
    """What the elements of a collection may be."""
    found = []
    for member in members:
        origin, args = get_origin(member), get_args(member)
        is_mapping = origin in (dict, Mapping)
        if args and is_mapping == (kind is Mapping) and not is_protocol(member):
            found += [args[-1]] if is_mapping else [a for a in args if a is not Ellipsis]
    return Union[tuple(found)] if found else object  # noqa: UP007 - made of what was found


def _name(part: object, members: tuple[Any, ...], path: str) -> str:
    cls = type(part)
    named = [p.cls for p in catalog() if p.name == cls.__name__]
    wanted = [m for m in members if is_protocol(m)]
    fitting = [c for c in named if not wanted or any(fits(c, w) for w in wanted)]
    if fitting == [cls]:
        return cls.__name__
    try:
        return reference(cls)
    except TypeError as error:
        raise TypeError(f"dump({path}): {error}") from None


def _named_fields(part: Any, path: str) -> dict[str, Any]:
    """The fields of a part whose table also says which part it is."""
    cls: type = type(part)
    own: Parameter | None = parameters(cls).get("name")
    table = _fields(part, path)
    if own is not None and (own.default is MISSING or table.pop("name", None) != own.default):
        raise TypeError(
            f"dump({path}): a parameter called 'name' must keep its default {own.default!r}, got {part!r}: "
            "in a specification, name says which part it is. Call the parameter something else."
        )
    return table
