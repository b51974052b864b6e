"""What a description is given must be of the kind it asks for; the sentences are read here as a user reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pytest

from partwise.aggregators import Krum
from partwise.algorithms import FedAvg
from partwise.attacks import Hostile, SignFlip
from partwise.core.kinds import check_kinds
from partwise.local import SGD
from partwise.schedulers import Synchronous
from partwise.workloads import MNIST


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
    maker: Callable[[], Engine] = Steam

    def __post_init__(self) -> None:
        check_kinds(self)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"engine": Odd(), "brake": Brake(), "wagons": np.int64(3), "length": 2},
        {"spare": [Steam(), Odd()], "note": object},
        {"spare": {"a": (Steam(),), "b": []}},
        {"maker": Odd},
    ],
)
def test_what_fits(right):
    assert Train(**right).kind == "slow"


def test_numbers_of_numpy_become_those_of_python():
    train = Train(wagons=np.int64(3), length=np.float32(0.5))
    assert (train.wagons, train.length) == (3, 0.5)
    assert (type(train.wagons), type(train.length)) == (int, float)


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
        ({"brake": "2"}, "Train(brake='2'): must be a Brake or None, got a str. Give one."),
        ({"maker": Steam()}, "Train(maker=Steam(power=3)): must be a function, got a Steam. Give one."),
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


def test_parts_within_are_looked_at():
    """Those of Partwise; others may have annotations that mean something else."""
    Train(engine=Steam("much"))
    for part in (Hostile(SignFlip), [Hostile(SignFlip)], {"a": (Hostile(SignFlip),)}):
        with pytest.raises(
            TypeError, match=r"Hostile\(attack=SignFlip\): must be an Attack, got a class\. Make one: S"
        ):
            Train(note=part)
    with pytest.raises(TypeError, match=r"FedAvg\(local=SGD\(.*\)\): must be a LocalTraining, got a.* SGD\. Wrap it"):
        Train(note=FedAvg(SGD(0.1)))
    with pytest.raises(TypeError, match=r"MNIST\(partition='iid'\): must be .*, got a str\. Give"):
        Train(note=MNIST(partition="iid"))


def test_a_bound_asks_for_a_number():
    with pytest.raises(TypeError, match=r"Krum\(f='3'\): must be a number, got a str\. Give one\."):
        Krum(f="3")
    with pytest.raises(TypeError, match=r"Synchronous\(cohort='3'\): must be a number, got a str\. Give one\."):
        Synchronous(cohort="3")
