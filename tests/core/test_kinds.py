"""What a description is given must be of the kind it asks for; the sentences are read here as a user reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pytest

from partwise.core.kinds import check_kinds


class Engine(Protocol):
    """Goes."""

    @property
    def power(self) -> int: ...

    def go(self) -> None: ...


@dataclass(frozen=True)
class Steam:
    power: int = 3

    def go(self) -> None: ...


class Odd:
    """Fits the protocol, with what it is made of put in later."""

    def __init__(self) -> None:
        self.power = 2

    def go(self) -> None: ...


@dataclass(frozen=True)
class Brake:
    force: float = 1.0
    engine: Engine = field(default_factory=Steam)


@dataclass(frozen=True)
class Train:
    engine: Engine = field(default_factory=Steam)
    brake: Brake | None = None
    wagons: int = 1
    length: float = 1.0
    name: str = "train"
    spare: Sequence[Engine] | Mapping[str, Sequence[Engine]] = ()
    kind: Literal["fast", "slow"] = "slow"
    note: Any = None

    def __post_init__(self) -> None:
        check_kinds(self)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"engine": Odd(), "brake": Brake(), "wagons": np.int64(3), "length": 2},
        {"spare": [Steam(), Odd()], "note": object},
        {"spare": {"a": (Steam(),), "b": []}},
    ],
)
def test_what_fits(right):
    assert Train(**right).kind == "slow"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"engine": Steam}, "Train(engine=Steam): must be an Engine, got a class. Make one: Steam(...)."),
        ({"engine": "Steam"}, "got a str. Give the part itself, Steam(...); names are for specification files."),
        ({"engine": None}, "Train(engine=None): must be an Engine, got None. Give one."),
        (
            {"brake": Steam(5)},
            "Train(brake=Steam(power=5)): must be a Brake or None, got a Steam. Wrap it: Brake(engine=Steam(power=5)).",
        ),
        ({"brake": 2}, "Train(brake=2): must be a Brake or None, got an int. Wrap it: Brake(force=2)."),
        ({"wagons": "3"}, "Train(wagons='3'): must be a whole number, got a str. Give one."),
        ({"wagons": 1.5}, "Train(wagons=1.5): must be a whole number, got a float. Give one."),
        ({"wagons": True}, "Train(wagons=True): must be a whole number, got a bool. Give one."),
        ({"length": "1"}, "Train(length='1'): must be a number, got a str. Give one."),
        ({"name": 3}, "Train(name=3): must be a string, got an int. Give one."),
        (
            {"spare": Steam()},
            "(spare=Steam(power=3)): must be a tuple of Engine or a dict of a tuple of Engine for each stream, got a S",
        ),
        ({"spare": {"a": (Steam(), Steam)}}, "for each stream, got a class in it. Make one: Steam(...)."),
        ({"spare": Steam(4)}, "got a Steam. Write (Steam(power=4),)."),
        ({"spare": (Steam(), 4)}, "got an int in it. Give one."),
        ({"spare": "Steam"}, "got a str. Give one."),
    ],
)
def test_what_does_not(wrong, says):
    with pytest.raises(TypeError) as caught:
        Train(**wrong)
    assert says in str(caught.value)
