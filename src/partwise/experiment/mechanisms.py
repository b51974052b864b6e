"""How noise gets into a run: what each mechanism adds to client, aggregator and server, and how it is accounted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from partwise.aggregators import FixedMean
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.schedule import Sampling
from partwise.core.transform import Transform
from partwise.experiment.accounting import (
    Accountant,
    gaussian_epsilon,
    poisson_epsilon,
    without_replacement_epsilon,
)
from partwise.experiment.accounts import Account, Counted, Replaced, Sampled
from partwise.transforms import CapWeight, Clip, GaussianNoise
from partwise.transforms.randomness import Randomness

__all__ = ["Central", "Mechanism", "Offer", "Parts", "Setting"]


class Parts(NamedTuple):
    """What a run is put together from: stream -> transforms in order, stream -> aggregator."""

    algorithm: Algorithm
    client: Mapping[str, tuple[Transform, ...]]
    server: Mapping[str, tuple[Transform, ...]]
    aggregators: Mapping[str, Aggregator]


class Setting(NamedTuple):
    """What noise is made by.

    Args:
        clip_norm: C.
        max_weight: W.
        cohort: K, clients in a commit, expected.
        noise_multiplier: z.
        randomness: where noise comes from.
        seed: of the experiment.
    """

    clip_norm: float
    max_weight: float
    cohort: float
    noise_multiplier: float
    randomness: Randomness
    seed: int = 0


class Offer(NamedTuple):
    """What an account is opened on.

    Args:
        sampling: how clients are drawn; kind `public` where sampling is not to count.
        population: N.
        delta: of the guarantee.
        accountant: which one.
    """

    sampling: Sampling
    population: int
    delta: float
    accountant: Accountant = "pld"

    @property
    def rate(self) -> float:
        """q."""
        return min(1.0, self.sampling.size / self.population)


class Mechanism(Protocol):
    """A way to add noise; a frozen part."""

    def __hash__(self) -> int: ...

    def compose(self, parts: Parts, setting: Setting) -> Parts:
        """The parts of a run with clip, weights, divisor and noise put in."""
        ...

    def account(self, noise_multiplier: float, offer: Offer) -> Account:
        """A ledger in which nothing is spent."""
        ...

    def foresee(self, noise_multiplier: float, offer: Offer, commits: int) -> float:
        """Epsilon after so many commits, at worst: what a target is held against."""
        ...

    def words(self, setting: Setting) -> str:
        """What is added to what, as the middle of a sentence."""
        ...


@dataclass(frozen=True)
class Central:
    """The server adds Gaussian noise to each aggregate; it is trusted to.

    Source: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, arXiv:1710.06963.
    """

    def compose(self, parts: Parts, setting: Setting) -> Parts:
        sensitivity = setting.clip_norm / setting.cohort
        noise = GaussianNoise(setting.noise_multiplier, sensitivity, setting.randomness)
        return bounded(parts, setting)._replace(server={**parts.server, "model": (noise, *parts.server["model"])})

    def account(self, noise_multiplier: float, offer: Offer) -> Account:
        return gaussian_account(noise_multiplier, offer)

    def foresee(self, noise_multiplier: float, offer: Offer, commits: int) -> float:
        return gaussian_forecast(noise_multiplier, offer, commits)

    def words(self, setting: Setting) -> str:
        return (
            f"the server adds Gaussian noise of multiplier {setting.noise_multiplier:.4g} to each mean of updates "
            f"that are clipped to norm {setting.clip_norm:g}"
        )


def bounded(parts: Parts, setting: Setting) -> Parts:
    """With what bounds a client's update, and a mean that it moves by no more than its share."""
    limits = Clip(setting.clip_norm), CapWeight(setting.max_weight)
    client = {**parts.client, "model": (*parts.client["model"], *limits)}
    return parts._replace(client=client, aggregators={"model": FixedMean(setting.cohort, setting.max_weight)})


def gaussian_account(noise_multiplier: float, offer: Offer) -> Account:
    """The ledger of Gaussian noise on each commit, by how clients are drawn."""
    match offer.sampling.kind:
        case "poisson":
            return Sampled(noise_multiplier, offer.rate, offer.delta, offer.accountant)
        case "fixed":
            return Replaced(noise_multiplier, round(offer.sampling.size), offer.population, offer.delta)
        case _:
            return Counted(noise_multiplier, offer.delta)


def gaussian_forecast(noise_multiplier: float, offer: Offer, commits: int) -> float:
    """Epsilon of Gaussian noise on so many commits; without sampling, of a client that is in all of them."""
    match offer.sampling.kind:
        case "poisson":
            return poisson_epsilon(noise_multiplier, offer.rate, commits, offer.delta, offer.accountant)
        case "fixed":
            size = round(offer.sampling.size)
            return without_replacement_epsilon(noise_multiplier / 2, size, offer.population, commits, delta=offer.delta)
        case _:
            return gaussian_epsilon(math.sqrt(commits) / noise_multiplier, offer.delta)
