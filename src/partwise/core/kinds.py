"""Whether what a description is given is of the kind that it asks for; if not, a sentence that says what to give."""

from __future__ import annotations

import dataclasses
import reprlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

from partwise.core.annotations import is_callable, is_protocol, members_of, union_members

__all__ = ["article", "check_kinds"]

_ROWS = (Sequence, tuple)  # of any length, and all of one kind
_PLAIN = (str, bytes, int, float, list, tuple, dict, set)
_NUMBERS: tuple[type, ...] = (bool, int, float)
_WORDS = {int: "a whole number", float: "a number", str: "a string", type(None): "None"}


def check_kinds(part: Any) -> None:
    """Refuse a field of a dataclass, or of a part of Partwise within it, that is of another kind than its annotation.

    A number of another library, such as numpy's, becomes the equal one of Python: neither JSON nor specification files
    take the former, nor does all of torch.

    Raises:
        TypeError: the first such field.
    """
    cls: Any = type(part)
    for name, wanted in _hints(cls).items():
        value = getattr(part, name)
        if not _is(value, wanted):
            shown = value.__name__ if isinstance(value, type) else reprlib.repr(value)
            wrong, asked = _culprit(value, wanted)
            raise TypeError(
                f"{cls.__name__}({name}={shown}): must be {_words(wanted)}, got {_kind(wrong)}"
                f"{'' if wrong is value else ' in it'}. {_remedy(wrong, asked)}"
            )
        if isinstance(value, Real) and type(value) not in _NUMBERS:
            object.__setattr__(part, name, int(value) if isinstance(value, Integral) else float(value))
        for inner in _within(value):
            check_kinds(inner)


def _within(value: object) -> Iterator[object]:
    """The parts that a value is, or holds, whose annotations can be relied on."""
    if isinstance(value, Mapping):
        yield from (found for v in value.values() for found in _within(v))
    elif isinstance(value, list | tuple):
        yield from (found for v in value for found in _within(v))
    elif dataclasses.is_dataclass(value) and type(value).__module__.startswith("partwise."):
        yield value


def _culprit(value: object, wanted: Any) -> tuple[object, Any]:
    """What is wrong with a value, and what is asked for there: itself, or the first wrong one that it holds."""
    for member in union_members(wanted):
        origin, args = get_origin(member), get_args(member)
        if origin is Mapping and isinstance(value, Mapping):
            return next(_culprit(v, args[1]) for v in value.values() if not _is(v, args[1]))
        if origin in _ROWS and isinstance(value, Sequence) and not isinstance(value, str):
            return next(_culprit(v, args[0]) for v in value if not _is(v, args[0]))
    return value, wanted


def _kind(value: object) -> str:
    return "None" if value is None else "a class" if isinstance(value, type) else article(type(value).__name__)


@lru_cache(64)
def _hints(cls: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _is(value: object, wanted: Any) -> bool:
    return any(_is_one(value, member) for member in union_members(wanted))


def _is_one(value: object, wanted: Any) -> bool:
    origin, args = get_origin(wanted) or wanted, get_args(wanted)
    if wanted in (Any, object) or origin is Literal:  # which word it is, is looked at elsewhere
        return True
    if is_callable(wanted):
        return callable(value)
    if isinstance(value, type):
        return False
    if wanted in (int, float):
        return isinstance(value, Integral if wanted is int else Real) and not isinstance(value, bool)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_is(v, args[1]) for v in value.values())
    if origin in _ROWS:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_is(v, args[0]) for v in value)
    if is_protocol(wanted):
        if isinstance(value, _PLAIN):  # a string has a `split`, and is no partition
            return False
        here = set(dir(value))  # without a look at what a property comes to
        return all(name in here or hasattr(value, name) for name in members_of(wanted))
    return isinstance(value, origin) if isinstance(origin, type) else True


def _words(wanted: Any) -> str:
    return " or ".join(_words_of_one(member) for member in union_members(wanted))


def _words_of_one(wanted: Any) -> str:
    if wanted in _WORDS:
        return _WORDS[wanted]
    if is_callable(wanted):
        return "a function"
    origin, args = get_origin(wanted) or wanted, get_args(wanted)
    if origin is Mapping:
        return f"a dict of {_words(args[1])} for each stream"
    if origin in _ROWS:
        return f"a tuple of {args[0].__name__}"
    return article(origin.__name__)


def article(words: str) -> str:
    """The words with `a` or `an` in front."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def _remedy(value: object, wanted: Any) -> str:
    """What to write instead."""
    if isinstance(value, type):
        return f"Make one: {value.__name__}(...)."
    members = union_members(wanted)
    shown = reprlib.repr(value)
    if any(get_origin(m) in _ROWS and _is(value, get_args(m)[0]) for m in members):
        return f"Write ({shown},)."
    for member in members:
        field = _first_that_takes(value, member)
        if field:
            return f"Wrap it: {member.__name__}({field}={shown})."
    if isinstance(value, str) and value.isidentifier() and any(map(is_protocol, members)):
        return f"Give the part itself, {value}(...); names are for specification files."
    return "Give one."


def _first_that_takes(value: object, wanted: Any) -> str:
    """The field of a dataclass that would take this value, of plain values the very first; empty if there is none."""
    if not isinstance(wanted, type) or not dataclasses.is_dataclass(wanted):
        return ""
    fields = list(_hints(wanted).items())[: 1 if isinstance(value, _PLAIN) else None]
    return next((name for name, hint in fields if _is(value, hint)), "")
