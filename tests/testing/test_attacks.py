"""Each rule of the contract of attacks can be broken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from partwise.attacks import SignFlip
from partwise.core.attack import Attack
from partwise.core.population import Examples
from partwise.testing import check


@dataclass(frozen=True)
class BrokenAttack(Attack):
    """Turns signs round, with one fault."""

    fault: str = ""

    def poison(self, data, client, seed):
        if self.fault == "examples in place":
            data.columns()["x"].neg_()  # twice, and they are as they were
        if self.fault == "no labels":
            return Examples({"x": data.columns()["x"]})
        return data

    def forge(self, scene):
        if self.fault == "updates in place":
            for update in scene.own:
                for value in update.values().values():
                    value.neg_()
            return list(scene.own)
        return None if self.fault == "nothing" else SignFlip().forge(scene)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("examples in place", "must leave the examples it is given as it is"),
        ("no labels", r"must keep the columns of the examples, here x and y, got \['x'\]\. Change what is in them\."),
        ("updates in place", "must leave the updates and parameters it is given as it is"),
        ("nothing", "must take 3 hostile and 5 honest updates .* got TypeError"),
    ],
)
def test_a_broken_rule_is_named(fault, says):
    check(BrokenAttack())
    with pytest.raises(AssertionError, match=rf"^BrokenAttack\(fault='{fault}'\): {says}"):
        check(BrokenAttack(fault))
