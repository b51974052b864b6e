"""What a part gives, looked at where it is used: who gives another kind of thing is named, with what it must give."""

from __future__ import annotations

from typing import Any

from partwise.core.errors import CompositionError
from partwise.core.kinds import article

__all__ = ["check_given", "check_two", "misgiven"]


def check_given(part: object, method: str, found: object, kind: Any, words: str) -> None:
    """Refuse what a method gave, if it is not of the kind that it must be, which `words` tell.

    Raises:
        CompositionError: it names the part.
    """
    if not isinstance(found, kind):
        raise misgiven(part, method, found, words)


def check_two(part: object, method: str, found: object, words: str) -> None:
    """Refuse what a method gave, if it is not the two things that `words` tell.

    Raises:
        CompositionError: it names the part.
    """
    if not isinstance(found, tuple) or len(found) != 2:
        raise misgiven(part, method, found, words)


def misgiven(part: object, method: str, found: object, words: str) -> CompositionError:
    """What is said of a part that gives something else than `words` tell."""
    kind = "None" if found is None else article(type(found).__name__)
    got = f"a tuple of {len(found)}" if type(found) is tuple else kind
    return CompositionError(f"{part!r}: {method} must give {words}, got {got}. partwise.testing.check says more.")
