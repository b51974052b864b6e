"""Faults of single values, not of whole clients: bits that flip on a link, and a shard of the server that gambles.

Shapes and notation: d coordinates, in the model's order of parameters; c of them in a stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from partwise.core.attack import Attack, Scene
from partwise.core.checks import at_least
from partwise.core.model import Params
from partwise.core.update import Update

__all__ = ["BitFlip", "Gambler"]


@dataclass(frozen=True)
class BitFlip(Attack):
    """In each of the first coordinates, one client's value, as a float32, has some of its bits inverted.

    Another client is drawn for each coordinate, of the hostile ones that hold it. With `Hostile(share=1.0)` any client
    may be the one, as on a bad link: then nobody is hostile as a whole and nearly everybody's update has a bad value,
    which breaks rules that judge whole updates. By bits 30 to 32 a value below 2 becomes about -2 ** 64 times as large,
    a 0 about -2 ** 65; one from 2 ** -64 to 2 ** -63 is no longer finite. Such an update a server refuses when it
    comes; an attack is played behind that door, where robust rules leave the client out, as one of their f, and with a
    mean the run ends by `DivergedError`.

    Args:
        coordinates: how many, from the model's first on, >= 1.
        bits: those that are inverted, 1 for the lowest of the fraction to 32 for the sign.

    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv:1802.10116, §6.
    Differs: who is hit is drawn anew in every commit; submodels, of whose coordinates only holders are drawn.

    Example:
        >>> from partwise.core.index import Whole
        >>> own = [Update(Whole({"w": (2,)}), {"w": torch.tensor([1.0, 1.0])})]
        >>> scene = Scene(own, [], {"w": torch.zeros(2)}, 0, torch.Generator())
        >>> BitFlip(coordinates=1, bits=(23, 32)).forge(scene)[0].value["w"]
        tensor([-1.5000,  1.0000])
    """

    coordinates: int = 1000
    bits: tuple[int, ...] = (22, 30, 31, 32)

    def __post_init__(self) -> None:
        at_least(self, coordinates=1)
        if not self.bits or len(set(self.bits)) < len(self.bits) or not all(1 <= bit <= 32 for bit in self.bits):
            raise ValueError(
                f"BitFlip(bits={self.bits}): must be different numbers from 1 to 32, got {self.bits}. "
                "The paper's are (22, 30, 31, 32)."
            )

    def forge(self, scene: Scene) -> list[Update]:
        held = torch.stack([_held(update, scene.params, 0, self.coordinates) for update in scene.own])  # (clients, c)
        draws = torch.rand(held.shape, generator=scene.rng, dtype=torch.float64)
        hit = torch.where(held, draws, -1.0).argmax(0)  # nobody's where nobody holds: `_changed` leaves it alone
        return [
            _changed(update, scene.params, 0, hit == number, self._flipped) for number, update in enumerate(scene.own)
        ]

    def _flipped(self, values: Tensor) -> Tensor:
        mask = sum(1 << (bit - 1) for bit in self.bits)
        mask -= (mask >> 31) << 32  # as an int32 has its sign
        return (values.float().contiguous().view(torch.int32) ^ mask).view(torch.float32).to(values)


@dataclass(frozen=True)
class Gambler(Attack):
    """One of the server's shards multiplies, by chance, entries of what it receives.

    A shard is a stretch of the model's coordinates, as long as any other and the same for all clients. With
    `Hostile(share=1.0)` it does so to everybody's updates, as in the paper: there the shard is bad, and no client.

    Args:
        probability: of each entry, in [0, 1].
        factor: what it is multiplied by.
        shards: into how many the model is divided, >= 1.
        shard: which of them gambles, from 0 on.

    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv:1802.10116, §6.
    Differs: submodels.

    Example:
        >>> from partwise.core.index import Whole
        >>> own = [Update(Whole({"w": (4,)}), {"w": torch.ones(4)})]
        >>> scene = Scene(own, [], {"w": torch.zeros(4)}, 0, torch.Generator())
        >>> Gambler(probability=1.0, shards=2, shard=1, factor=-3.0).forge(scene)[0].value["w"]
        tensor([ 1.,  1., -3., -3.])
    """

    probability: float = 0.0005
    factor: float = -1e20
    shards: int = 20
    shard: int = 0

    def __post_init__(self) -> None:
        at_least(self, shards=1, shard=0)
        if not 0 <= self.probability <= 1:
            raise ValueError(
                f"Gambler(probability={self.probability}): must lie in [0, 1], got {self.probability}. 0.0005 is usual."
            )
        if not math.isfinite(self.factor):
            raise ValueError(f"Gambler(factor={self.factor}): must be finite, got {self.factor}. -1e20 is usual.")
        if self.shard >= self.shards:
            raise ValueError(
                f"Gambler(shards={self.shards}, shard={self.shard}): must name one of the shards, from 0 to "
                f"{self.shards - 1}, got {self.shard}. Lower it."
            )

    def forge(self, scene: Scene) -> list[Update]:
        size = sum(t.numel() for t in scene.params.values())
        start, stop = (size * at // self.shards for at in (self.shard, self.shard + 1))
        found = []
        for update in scene.own:
            hit = torch.rand(stop - start, generator=scene.rng, dtype=torch.float64) < self.probability
            found.append(_changed(update, scene.params, start, hit, lambda values: values * self.factor))
        return found


def _places(update: Update, params: Params, start: int, num: int) -> Iterator[tuple[str, Tensor]]:
    """Where an update's values lie in a stretch of `num` coordinates: name -> (held,) int64, some outside of it."""
    first = -start
    for name, like in params.items():
        if name in update.index.shapes and max(first, 0) < min(num, first + like.numel()):
            yield name, update.index.coords(name) + first
        first += like.numel()


def _held(update: Update, params: Params, start: int, num: int) -> Tensor:
    """Which coordinates of a stretch it holds, (c,) bool."""
    found = torch.zeros(num, dtype=torch.bool)
    for _, at in _places(update, params, start, num):
        found[at[(at >= 0) & (at < num)].cpu()] = True
    return found


def _changed(update: Update, params: Params, start: int, hit: Tensor, change: Callable[[Tensor], Tensor]) -> Update:
    """The update with those of its values changed that are hit. hit: (c,) bool, of a stretch."""
    values = update.values()
    for name, at in _places(update, params, start, len(hit)):
        is_inside = (at >= 0) & (at < len(hit))
        chosen = is_inside & hit.to(at.device)[at.clamp(0, len(hit) - 1)]
        flat = values[name].reshape(-1)
        values[name] = torch.where(chosen, change(flat), flat).reshape(values[name].shape)
    return Update(update.index, values, update.weight)
