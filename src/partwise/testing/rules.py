"""What every contract has in common: how a rule fails, how a part rebuilds, when two trees are the same."""

from __future__ import annotations

import importlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from partwise.core.aggregate import Coverage
from partwise.core.codec import decode, encode
from partwise.core.errors import ProtocolError
from partwise.core.model import Params
from partwise.core.update import Packed, Update, check_update, is_finite

__all__ = [
    "check_fits",
    "check_part",
    "check_same",
    "expect",
    "other_chance",
    "saved",
    "snapshot",
    "trying",
    "unchanged",
]

_FAMILIES = (
    "transforms",
    "aggregators",
    "channels",
    "schedulers",
    "local",
    "algorithms",
    "populations",
    "attacks",
    "observers",
)


def expect(holds: bool, part: object, rule: str, *, got: object, remedy: str) -> None:
    """Raise an AssertionError with one sentence that names the part, the rule and the remedy, unless `holds`."""
    if not holds:
        raise AssertionError(f"{part!r}: {rule}, got {got}. {remedy}.")


@contextmanager
def trying(part: object, rule: str) -> Iterator[None]:
    """Turns whatever a part raises into a rule that it broke, also an assertion of its own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AssertionError) and str(error).startswith(f"{part!r}: "):
            raise
        raise AssertionError(f"{part!r}: {rule}, got {type(error).__name__}: {error}") from error


def check_part(part: Any) -> None:
    """A part is a frozen dataclass that its repr rebuilds."""
    if isinstance(part, type):
        raise TypeError(f"check({part.__name__}): needs a part, got its class. Make one: {part.__name__}().")
    expect(
        _settings(part) is not None and _settings(part).frozen,
        part,
        "a part is a frozen dataclass",
        got=f"a {type(part).__name__} that is not",
        remedy="Decorate the class with @dataclass(frozen=True)",
    )
    text = repr(part)
    with trying(part, "a part rebuilds from its repr"):
        rebuilt = eval(text, _namespace(part))  # noqa: S307 - the object's own repr, not something that arrived
    expect(
        repr(rebuilt) == text and (rebuilt == part or not _settings(part).eq),
        part,
        "a part rebuilds from its repr",
        got=f"{rebuilt!r}",
        remedy="Keep every setting in a field whose repr is code",
    )


def _settings(part: object) -> Any:
    """What @dataclass was called with; None for anything else."""
    return vars(type(part)).get("__dataclass_params__")


def _namespace(part: object) -> dict[str, Any]:
    """What a repr may name: the families, the part's own module, and the classes of the parts inside it."""
    names: dict[str, Any] = {"inf": math.inf, "nan": math.nan}
    for family in _FAMILIES:
        module = importlib.import_module(f"partwise.{family}")
        names.update({name: getattr(module, name) for name in getattr(module, "__all__", ())})
    names.update(vars(importlib.import_module(type(part).__module__)))
    names.update(_classes(part))
    return names


def _classes(value: object) -> dict[str, type]:
    if isinstance(value, (list, tuple)):
        return {name: cls for item in value for name, cls in _classes(item).items()}
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    inner = {name: cls for f in fields(value) for name, cls in _classes(getattr(value, f.name)).items()}
    return {**inner, type(value).__qualname__.split(".")[-1]: type(value)} | _qualified(type(value))


def _qualified(cls: type) -> dict[str, Any]:
    """A class inside a function prints as `f.<locals>.Name`, which is no code: such a part cannot rebuild."""
    head = cls.__qualname__.split(".")[0]
    module = importlib.import_module(cls.__module__)
    return {head: getattr(module, head)} if hasattr(module, head) else {}


def snapshot(part: object, tree: Any, what: str) -> bytes:
    """The bytes of a tree, to compare with later."""
    with trying(part, f"{what} must have an encoding"):
        return encode(tree)


def unchanged(part: object, before: bytes, tree: Any, what: str) -> None:
    """The tree still has the bytes it had."""
    expect(
        encode(tree) == before, part, f"must leave {what} as it is", got="another value", remedy="Copy before you write"
    )


def saved(part: object, state: Any) -> Any:
    """The state after a trip through a checkpoint."""
    return decode(bytearray(snapshot(part, state, "the state")))


def check_same(part: object, one: Any, other: Any, rule: str, remedy: str) -> None:
    """Two trees are the same to the last bit."""
    same = snapshot(part, one, "a result") == snapshot(part, other, "a result")
    expect(same, part, rule, got="two different results", remedy=remedy)


def check_fits(part: object, update: Update, params: Params) -> None:
    """An update that a server would accept, with the parameters' types and devices."""
    expect(
        isinstance(update, Update),
        part,
        "must give an Update",
        got=type(update).__name__,
        remedy="Return Update(…), state",
    )
    others = [type(v).__name__ for v in update.value.values() if not isinstance(v, torch.Tensor | Packed)]
    expect(not others, part, "must send tensors, or values packed", got=others, remedy="torch.from_numpy makes one")
    try:
        check_update(update, params)
    except ProtocolError as error:
        raise AssertionError(f"{part!r}: must give an update that fits the model; {error}") from error
    for name, value in update.values().items():
        like = params[name]
        expect(
            (value.dtype, value.device) == (like.dtype, like.device),
            part,
            f"must keep dtype and device, {like.dtype} on {like.device} for {name!r}",
            got=f"{value.dtype} on {value.device}",
            remedy="Convert what comes out to what came in",
        )
    expect(is_finite(update), part, "must keep finite values finite", got="NaN or infinity", remedy="Look for 0 / 0")
    with trying(part, "must give weights that fit the result's index"):
        Coverage(params).add_(update.index, update.weight)


@contextmanager
def other_chance(seed: int) -> Iterator[None]:
    """Another state of the global generators, which a part must not look at."""
    before, seed = random.getstate(), seed + 7_236_148_905_371  # not one that a test has set itself
    random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(before)
