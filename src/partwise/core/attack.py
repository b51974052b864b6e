"""Hostile clients: what they train on, what they send, and when. For tests of a set-up, not for the wild.

An attack is played where updates meet: hostile clients train as everybody does, on data that the attack may have
changed, and what they computed is replaced just before the aggregator sees it. So any attack meets any rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from partwise.core.aggregate import sum_updates
from partwise.core.index import Index
from partwise.core.model import Params, Values
from partwise.core.population import Client, Dataset
from partwise.core.rng import Rng, numpy_generator
from partwise.core.update import Update

__all__ = ["Attack", "EveryRound", "Hostile", "Scene", "When", "mean_and_std", "restricted", "sees_honest"]


class Scene(NamedTuple):
    """What hostile clients see when they make up what they send.

    Args:
        own: what each of them computed; at least one.
        honest: what the others send; empty where a commit has nobody else.
        params: the model that it will be added to.
        version: of the model that the newest of them was given.
        rng: chance, derived from the experiment's seed, the version and the clients.
        clients: the numbers of the hostile ones, in the order of `own`.
    """

    own: Sequence[Update]
    honest: Sequence[Update]
    params: Params
    version: int
    rng: Rng
    clients: Sequence[Client] = ()


@runtime_checkable
class Attack(Protocol):
    """What hostile clients do. One that derives from this class writes the half it changes."""

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        """What a hostile client trains on."""
        return data

    def forge(self, scene: Scene) -> list[Update]:
        """What each of them sends, in the order of `scene.own`."""
        return list(scene.own)


@runtime_checkable
class When(Protocol):
    """In which rounds hostile clients are hostile."""

    def is_active(self, version: int, seed: int) -> bool:
        """Whether tasks at this version are attacked; the same for all hostile clients, who act together."""
        ...


@dataclass(frozen=True)
class EveryRound(When):
    """Always."""

    def is_active(self, version: int, seed: int) -> bool:
        return True


@dataclass(frozen=True)
class Hostile:
    """Which clients are hostile, what they do, and when.

    What they send keeps to no bound, such as a clip of the client chain. A privacy guarantee is one for the others, and
    holds where hostile clients do not see what these send; a run with an attack that does, `sees_honest`, says so.

    Args:
        attack: what they do.
        share: of the population, rounded, drawn by chance from the experiment's seed; in [0, 1].
        clients: their numbers, instead of a share.
        when: in which rounds.

    Example:
        >>> from partwise.attacks import SignFlip
        >>> len(Hostile(SignFlip(), share=0.3).members(range(10), seed=1))
        3
    """

    attack: Attack
    share: float = 0.2
    clients: tuple[int, ...] = ()
    when: When = field(default_factory=EveryRound)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"Hostile(share={self.share}): must lie in [0, 1], got {self.share}. 0.2 is a fifth.")

    def members(self, clients: Sequence[Client], seed: int) -> frozenset[Client]:
        """The hostile clients of a population.

        Raises:
            ValueError: a client that is not there.
        """
        if self.clients:
            unknown = sorted(set(self.clients).difference(clients))
            if unknown:
                raise ValueError(
                    f"Hostile(clients=...): must be clients of the population, got {unknown[:5]}. It has "
                    f"{len(clients)}, from {clients[0]} to {clients[-1]}."
                )
            return frozenset(self.clients)
        many = round(self.share * len(clients))
        chosen = numpy_generator(seed, "hostile").permutation(len(clients))[:many]
        return frozenset(clients[int(i)] for i in chosen)


def sees_honest(attack: Attack) -> bool:
    """Whether what hostile clients send depends on what the others send: then these move an aggregate by both.

    An attack says so by an attribute `sees_honest`, or by `is_omniscient`.
    """
    return bool(getattr(attack, "sees_honest", getattr(attack, "is_omniscient", False)))


def mean_and_std(updates: Sequence[Update], params: Params) -> tuple[Values, Values]:
    """Mean and standard deviation of each coordinate over its holders, name -> tensor of the parameter's shape.

    The deviation is that of a whole population, divided by the number of holders; float64. 0 where nobody holds.
    """
    whole = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in params.items()}
    one = [Update(u.index, {n: v.double() for n, v in u.values().items()}) for u in updates]
    mean = _mean(one, whole)
    apart = []
    for update in one:
        at = update.index.gather(mean)
        apart.append(Update(update.index, {n: (v - at[n]).square() for n, v in update.values().items()}))
    return mean, {name: t.sqrt() for name, t in _mean(apart, whole).items()}


def _mean(updates: Sequence[Update], whole: Params) -> Values:
    total = sum_updates(updates, whole)
    found = {name: torch.zeros_like(t) for name, t in whole.items()}
    total.index.put_(found, {name: t / total.weight[name].clamp(min=1) for name, t in total.value.items()})
    return found


def restricted(values: Values, index: Index, like: Params) -> Values:
    """What an index holds of some values, in the parameters' types."""
    return {name: v.to(like[name], copy=True) for name, v in index.gather(values).items()}
