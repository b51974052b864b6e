"""The nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest", "one_of"]


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that a person most likely meant; None where none is near.

    Example:
        >>> nearest("fedsubavg", ["FedAvg", "FedSubAvg"]), nearest("zebra", ["FedAvg"])
        ('FedSubAvg', None)
    """
    names = list(dict.fromkeys(valid))
    plain = {n.lower().replace("_", "").replace("-", ""): n for n in reversed(names)}
    found = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A question that names it; empty where none is near."""
    found = nearest(name, valid)
    return f"Did you mean {found!r}?" if found else ""


def one_of(names: Iterable[str]) -> str:
    """Names as the end of a sentence.

    Example:
        >>> one_of(["a"]), one_of(["a", "b", "c"])
        ("'a'", "'a', 'b' or 'c'")
    """
    *rest, last = map(repr, names)
    return f"{', '.join(rest)} or {last}" if rest else last
