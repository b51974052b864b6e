"""What annotations say: the alternatives of a union, and what a protocol asks for."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

__all__ = ["is_callable", "is_protocol", "members_of", "union_members"]


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of anything else, itself."""
    if get_origin(annotation) is typing.Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for member in get_args(annotation) for m in union_members(member))
    return (annotation,)


def is_protocol(annotation: Any) -> bool:
    """Whether any class with the right members will do: a protocol, or a function's type."""
    return bool(getattr(annotation, "_is_protocol", False)) or is_callable(annotation)


def is_callable(annotation: Any) -> bool:
    """Whether it is a function's type."""
    return (get_origin(annotation) or annotation) is Callable


def members_of(protocol: type) -> set[str]:
    """Names that a protocol asks for."""
    found: set[str] = set()
    for base in protocol.__mro__:
        if getattr(base, "_is_protocol", False) and base is not typing.Protocol:
            found |= {n for n in (*vars(base), *inspect.get_annotations(base)) if not n.startswith("_")}
            found |= {"__call__"} & set(vars(base))
    return found
