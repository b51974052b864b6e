"""The attack that is there only where clients say which part they hold: pile on what hardly anybody holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from partwise.attacks.updates import InnerProduct
from partwise.core.aggregate import Coverage
from partwise.core.attack import Attack, Scene, mean_and_std, restricted
from partwise.core.index import Coords, Index, Joint, Whole
from partwise.core.population import Client, Dataset
from partwise.core.update import Update

__all__ = ["CoverageAttack"]


@dataclass(frozen=True)
class CoverageAttack(Attack):
    """Hostile clients hold, instead of their part, the coordinates that fewest others hold, and all the same ones.

    There they are the majority where nobody else would be, which a rule that needs a least number of holders refuses.
    What they send there is what another attack would; where honest clients hold nothing, what they computed, negated.

    Args:
        inner: what they send.
        size: share of the model that each of them holds, in (0, 1].

    Source: robust rules per coordinate; the remedy is `min_holders`, or parts that the server chooses.
    """

    inner: Attack = field(default_factory=lambda: InnerProduct(10.0))
    size: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.size <= 1:
            raise ValueError(f"CoverageAttack(size={self.size}): must lie in (0, 1], got {self.size}. 0.2 is usual.")

    @property
    def sees_honest(self) -> bool:
        return True

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        return self.inner.poison(data, client, seed)

    def forge(self, scene: Scene) -> list[Update]:
        index = self._coldest(scene)
        own, _ = mean_and_std(scene.own, scene.params)
        honest, _ = mean_and_std(scene.honest, scene.params)
        whole = Whole({name: tuple(t.shape) for name, t in scene.params.items()})
        base = {n: torch.where(honest[n] == 0, own[n], honest[n]) for n in own}
        fake = [Update(whole, restricted(base, whole, scene.params), u.weight) for u in scene.own]
        sent = self.inner.forge(scene._replace(own=fake))
        found = []
        for update in sent:
            values, _ = mean_and_std([update], scene.params)
            values = {n: torch.where(v == 0, -base[n], v) for n, v in values.items()}
            found.append(Update(index, restricted(values, index, scene.params), update.weight))
        return found

    def _coldest(self, scene: Scene) -> Index:
        cover = Coverage(scene.params)
        for update in scene.honest:
            cover.add_(update.index, 1.0)
        heat = {
            n: cover.weights[n].expand(t.shape).reshape(-1) if n in cover.weights else torch.zeros(t.numel())
            for n, t in scene.params.items()
        }
        every = torch.cat([h.double() for h in heat.values()])
        count = max(1, round(self.size * len(every)))
        chosen = torch.zeros(len(every), dtype=torch.bool)
        chosen[every.argsort(stable=True)[:count]] = True
        members, start = [], 0
        for name, h in heat.items():
            at = chosen[start : start + len(h)].nonzero().reshape(-1)
            start += len(h)
            if len(at):
                members.append(Coords({name: tuple(scene.params[name].shape)}, {name: at}))
        return members[0] if len(members) == 1 else Joint(tuple(members))
