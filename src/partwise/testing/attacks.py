"""The contract of attacks."""

from __future__ import annotations

import torch

from partwise.core.attack import Attack, Scene
from partwise.core.population import Examples
from partwise.core.rng import generator
from partwise.core.update import check_update
from partwise.testing.examples import example_params, example_updates
from partwise.testing.rules import check_part, check_same, expect, snapshot, trying, unchanged

__all__ = ["check_attack"]


def check_attack(part: Attack) -> None:
    """Check that an attack keeps the rules of its family.

    Raises:
        AssertionError: a rule is broken; the sentence says which.

    Example:
        >>> from partwise.attacks import SignFlip
        >>> check_attack(SignFlip())
    """
    check_part(part)
    _poisons(part)
    for hostile, honest in ((3, 5), (1, 4), (2, 0)):
        _forges(part, hostile, honest)


def _poisons(part: Attack) -> None:
    rng = generator(3, "example attack")
    images = Examples({"x": torch.randn((12, 1, 6, 6), generator=rng), "y": torch.arange(12) % 10})
    before = snapshot(part, dict(images.columns()), "the examples")
    poisoned = []
    for _ in range(2):  # looked at after each: what is turned twice is as it was
        with trying(part, "must take images with labels"):
            poisoned.append(dict(part.poison(images, 2, 7).columns()))
        unchanged(part, before, dict(images.columns()), "the examples it is given")
    one, two = poisoned
    rule, remedy = "must keep the columns of the examples, here x and y", "Change what is in them"
    expect({"x", "y"} <= one.keys(), part, rule, got=sorted(one), remedy=remedy)
    check_same(part, one, two, "must depend on its arguments alone", "Derive chance from the seed and the client")
    expect(
        len(one["y"]) == len(one["x"]) > 0, part, "must leave a client examples", got="none", remedy="Keep at least one"
    )


def _forges(part: Attack, hostile: int, honest: int) -> None:
    params = example_params()
    updates = example_updates(params, hostile + honest)

    def scene() -> Scene:
        return Scene(updates[:hostile], updates[hostile:], params, 4, generator(9, "attack"))

    before = snapshot(part, (updates, params), "the updates")
    forged = []
    for _ in range(2):
        with trying(part, f"must take {hostile} hostile and {honest} honest updates over different submodels"):
            forged.append(list(part.forge(scene())))
        unchanged(part, before, (updates, params), "the updates and parameters it is given")
    one, two = forged
    check_same(part, one, two, "must depend on its arguments alone", "Draw from the scene's `rng`")
    expect(
        len(one) == hostile,
        part,
        "must make up one update for each hostile client",
        got=f"{len(one)} for {hostile}",
        remedy="Return a list as long as `scene.own`",
    )
    for update in one:
        with trying(part, "must make updates that fit the model, or the server would refuse them"):
            check_update(update, params)
