"""Attacks on what is sent: flipped, scaled, drowned in noise, or made up together.

Notation: n clients in a round, q of them hostile; g is what a hostile client computed; μ and σ are mean and standard
deviation of each coordinate over those who hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor

from partwise.core.attack import Attack, Scene, mean_and_std, restricted, sees_honest
from partwise.core.population import Client, Dataset
from partwise.core.rng import Rng
from partwise.core.update import Update, map_values, scale

__all__ = [
    "ALittleIsEnough",
    "AdditiveNoise",
    "GaussianReplace",
    "InnerProduct",
    "NegatedCrowd",
    "SignFlip",
    "Sybils",
    "little_enough",
]


def _noise(like: Tensor, mean: float, std: float, rng: Rng) -> Tensor:
    drawn = torch.randn(like.shape, generator=rng, dtype=torch.float64) * std + mean
    return drawn.to(like)


def _finite(part: object, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{type(part).__name__}({name}={value}): must be finite, got {value}. Use a number.")


@dataclass(frozen=True)
class SignFlip(Attack):
    """-s g.

    Args:
        scale: s.

    Source: Xie, Koyejo, Gupta, "Zeno++", ICML 2020, arXiv:1903.07020, with s = 10.

    Example:
        >>> from partwise.core.index import Whole
        >>> own = [Update(Whole({"w": (1,)}), {"w": torch.tensor([2.0])})]
        >>> SignFlip(10.0).forge(Scene(own, [], {"w": torch.zeros(1)}, 0, torch.Generator()))[0].value["w"]
        tensor([-20.])
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _finite(self, scale=self.scale)

    def forge(self, scene: Scene) -> list[Update]:
        return [scale(update, -self.scale) for update in scene.own]


@dataclass(frozen=True)
class NegatedCrowd(Attack):
    """All send the negation of what the first of them computed, as far as they hold it.

    Source: Xie, Koyejo, Gupta, "Zeno", ICML 2019, arXiv:1805.10032: the bit-flipping failure of the released code.
    """

    def forge(self, scene: Scene) -> list[Update]:
        mean, _ = mean_and_std(scene.own[:1], scene.params)
        return [
            Update(u.index, restricted({n: -v for n, v in mean.items()}, u.index, scene.params), u.weight)
            for u in scene.own
        ]


@dataclass(frozen=True)
class AdditiveNoise(Attack):
    """g + N(mean, std²) in each coordinate.

    Args:
        std: >= 0.
        mean: of the noise.

    Source: Gupta et al., "MUD-HoG", ESORICS 2022, arXiv:2208.10273, with std 0.01.
    """

    std: float = 0.01
    mean: float = 0.0

    def __post_init__(self) -> None:
        _finite(self, std=self.std, mean=self.mean)

    def forge(self, scene: Scene) -> list[Update]:
        if not self.std and not self.mean:
            return list(scene.own)
        return [map_values(u, lambda v: v + _noise(v, self.mean, self.std, scene.rng)) for u in scene.own]


@dataclass(frozen=True)
class GaussianReplace(Attack):
    """N(0, std²) in each coordinate, whatever was computed.

    Args:
        std: > 0.

    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv:1802.10116, §6, with std 200.
    """

    std: float = 200.0

    def __post_init__(self) -> None:
        _finite(self, std=self.std)

    def forge(self, scene: Scene) -> list[Update]:
        return [map_values(u, lambda v: _noise(v, 0.0, self.std, scene.rng)) for u in scene.own]


@dataclass(frozen=True)
class InnerProduct(Attack):
    """-ε μ: the aggregate is to point away from the mean of the honest, by little or by much.

    A mean turns round where ε > (n - q) / q; a median, and Krum, already at small ε, where honest updates are spread
    wider than their mean is long.

    Args:
        epsilon: ε, > 0.
        is_omniscient: whether μ is that of the honest, or of what the attackers computed themselves.

    Source: Xie, Koyejo, Gupta, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation", UAI
        2019, arXiv:1903.03936, §3. Some libraries' factor is 1 + ε.
    """

    epsilon: float = 0.5
    is_omniscient: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"InnerProduct(epsilon={self.epsilon}): must be finite and above 0, got {self.epsilon}. "
                "Try 0.1, 0.5, 1.1 and 10."
            )

    def forge(self, scene: Scene) -> list[Update]:
        mean, _ = mean_and_std((self.is_omniscient and scene.honest) or scene.own, scene.params)
        wanted = {name: -self.epsilon * v for name, v in mean.items()}
        return [Update(u.index, restricted(wanted, u.index, scene.params), u.weight) for u in scene.own]


def little_enough(clients: int, hostile: int) -> float:
    """z, how many deviations from the mean the hostile may stray and still have supporters; 0 where there is no room.

    With s = ⌊n / 2⌋ + 1 - q supporters needed, z = Φ⁻¹((n - q - s) / (n - q)).

    Example:
        >>> round(little_enough(50, 24), 6)
        1.426077
    """
    honest = clients - hostile
    needed = clients // 2 + 1 - hostile
    share = (honest - needed) / honest if honest > 0 else 1.0
    if share >= 1:  # they are the majority
        return math.inf
    return max(0.0, NormalDist().inv_cdf(share)) if share > 0 else 0.0


@dataclass(frozen=True)
class ALittleIsEnough(Attack):
    """μ - z σ: far enough to harm, near enough to be among the honest.

    Args:
        z: how many deviations; None for the largest that hides, `little_enough`, capped at 10.
        is_omniscient: whether μ and σ are those of the honest, or of what the attackers computed, as in the paper.

    Source: Baruch, Baruch, Goldberg, "A little is enough: circumventing defenses for distributed learning", NeurIPS
        2019, arXiv:1902.06156, algorithm 3. The released code uses z = 1.5 throughout.
    """

    z: float | None = None
    is_omniscient: bool = False

    def __post_init__(self) -> None:
        if self.z is not None:
            _finite(self, z=self.z)

    def forge(self, scene: Scene) -> list[Update]:
        many = len(scene.own) + len(scene.honest)
        z = min(10.0, little_enough(many, len(scene.own))) if self.z is None else self.z
        mean, std = mean_and_std((self.is_omniscient and scene.honest) or scene.own, scene.params)
        wanted = {name: mean[name] - z * std[name] for name in mean}
        return [Update(u.index, restricted(wanted, u.index, scene.params), u.weight) for u in scene.own]


@dataclass(frozen=True)
class Sybils(Attack):
    """One participant under many names: all send what the first of them would, each with a little noise of its own.

    Args:
        inner: what the first one does, with its data as well.
        noise: standard deviation of the noise, in units of that update's root mean square, >= 0; 0 for copies.

    Source: Fung, Yoon, Beschastnikh, "The limitations of federated learning in Sybil settings", RAID 2020,
        arXiv:1808.04866; noise against defences by similarity: §7 there.
    """

    inner: Attack = field(default_factory=SignFlip)
    noise: float = 0.0

    def __post_init__(self) -> None:
        _finite(self, noise=self.noise)

    @property
    def sees_honest(self) -> bool:
        return sees_honest(self.inner)

    def poison(self, data: Dataset, client: Client, seed: int) -> Dataset:
        return self.inner.poison(data, client, seed)

    def forge(self, scene: Scene) -> list[Update]:
        first = self.inner.forge(scene)[0]
        mean, _ = mean_and_std([first], scene.params)
        found = []
        for update in scene.own:
            value = restricted(mean, update.index, scene.params)
            for name, v in value.items() if self.noise else ():
                size = float(v.double().square().mean().sqrt()) if v.numel() else 0.0
                value[name] = v + _noise(v, 0.0, self.noise * size, scene.rng)
            found.append(Update(update.index, value, update.weight))
        return found
