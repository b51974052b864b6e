"""How noise gets into a run: what each mechanism adds to client, aggregator and server, and how it is accounted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from partwise.aggregators import FixedMean
from partwise.algorithms import AdaptiveClip
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.channel import Channel, Guarded, Rounding
from partwise.core.errors import CompositionError
from partwise.core.randomness import Randomness
from partwise.core.schedule import Sampling
from partwise.core.transform import Transform
from partwise.experiment.accounting import (
    Accountant,
    distributed_rho,
    gaussian_epsilon,
    poisson_epsilon,
    without_replacement_epsilon,
    zcdp_epsilon,
)
from partwise.experiment.accounts import Account, Concentrated, Counted, Nodes, Replaced, Sampled
from partwise.transforms import CapWeight, Clip, DiscreteNoise, FromGrid, GaussianNoise, TreeNoise
from partwise.transforms.distributed import rounded_norm, rounded_up

__all__ = [
    "Adaptive",
    "Central",
    "Distributed",
    "Mechanism",
    "Offer",
    "Parts",
    "Setting",
    "Tree",
    "multiplier_beside_count",
]

_DEVIATIONS = 6.0  # of noise; more is once in a billion


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
        rounding: by how much the channel may lengthen an update, for each unit of weight.
    """

    clip_norm: float
    max_weight: float
    cohort: float
    noise_multiplier: float
    randomness: Randomness
    seed: int = 0
    rounding: float = 0.0

    @property
    def sensitivity(self) -> float:
        """How far a client can move the mean."""
        return (self.clip_norm + self.rounding) / self.cohort


class Offer(NamedTuple):
    """What an account is opened on.

    Args:
        sampling: how clients are drawn; kind `public` where sampling is not to count.
        population: N.
        delta: of the guarantee.
        accountant: which one.
        dim: coordinates of the model; 0 where the mechanism does not need it.
    """

    sampling: Sampling
    population: int
    delta: float
    accountant: Accountant = "pld"
    dim: int = 0

    @property
    def rate(self) -> float:
        """q."""
        return min(1.0, self.sampling.size / self.population)


class Mechanism(Protocol):
    """A way to add noise; a frozen part."""

    def __hash__(self) -> int: ...

    @property
    def uses_sampling(self) -> bool:
        """Whether it gains by clients being drawn at random."""
        return True

    @property
    def needs_dim(self) -> bool:
        """Whether what it costs depends on the number of coordinates."""
        return False

    @property
    def needs_unscaled(self) -> bool:
        """Whether its noise comes with the updates, so that what scales them takes some of it away."""
        return False

    def compose(self, parts: Parts, setting: Setting, offer: Offer) -> Parts:
        """The parts of a run with clip, weights, divisor and noise put in."""
        ...

    def check_channel(self, channel: Channel, offer: Offer) -> None:
        """Refuse a channel that would void the guarantee.

        Raises:
            CompositionError: it would.
        """

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
class Central(Mechanism):
    """The server adds Gaussian noise to each aggregate; it is trusted to.

    Source: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, arXiv:1710.06963.
    """

    def compose(self, parts: Parts, setting: Setting, offer: Offer) -> Parts:
        noise = GaussianNoise(setting.noise_multiplier, setting.sensitivity, setting.randomness)
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


@dataclass(frozen=True)
class Adaptive(Mechanism):
    """As `Central`, with a clip norm that follows a quantile of the clients' norms; `clip_norm` is the first one.

    Whether a client's update was short is summed with noise of its own, for which the update's noise is raised so that
    both together are worth z: z_model = (z^-2 - (2 count_noise)^-2)^(-1/2).

    Args:
        quantile: the share of updates that should not be clipped, in (0, 1).
        rate: how fast the clip norm follows, > 0.
        count_noise: standard deviation of the noise on the number of short updates; 0 for a twentieth of the cohort.

    Source: Andrew et al., "Differentially private learning with adaptive clipping", NeurIPS 2021, arXiv:1905.03871.
    """

    quantile: float = 0.5
    rate: float = 0.2
    count_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.count_noise < math.inf:
            raise ValueError(
                f"Adaptive(count_noise={self.count_noise}): must be finite and at least 0, got {self.count_noise}. "
                "0 takes a twentieth of the cohort."
            )

    def compose(self, parts: Parts, setting: Setting, offer: Offer) -> Parts:
        if setting.max_weight != 1:
            raise CompositionError(
                f"{self!r}: asks of each client whether its update is short, so that all count alike, got "
                f"max_weight={setting.max_weight:g}. Leave it at 1."
            )
        count = self.count_noise or setting.cohort / 20
        z, cohort = setting.noise_multiplier, setting.cohort
        noise = GaussianNoise(multiplier_beside_count(z, count), 1 / cohort, setting.randomness)
        on_count = GaussianNoise(2 * count, 0.5 / cohort, setting.randomness)
        return Parts(
            AdaptiveClip(parts.algorithm, setting.clip_norm, self.quantile, self.rate),
            parts.client,
            {"model": (noise, *parts.server["model"]), "clip": (on_count,)},
            {"model": FixedMean(cohort), "clip": FixedMean(cohort)},
        )

    def check_channel(self, channel: Channel, offer: Offer) -> None:
        if isinstance(channel, Rounding) and channel.step < math.inf:
            raise CompositionError(
                f"{self!r}: makes its noise for updates, and for answers of half a one, as they are sent, got "
                f"{channel!r}, which rounds both. Use Central() or Distributed(), or a channel that rounds nothing."
            )

    def account(self, noise_multiplier: float, offer: Offer) -> Account:
        return gaussian_account(noise_multiplier, offer)

    def foresee(self, noise_multiplier: float, offer: Offer, commits: int) -> float:
        return gaussian_forecast(noise_multiplier, offer, commits)

    def words(self, setting: Setting) -> str:
        return (
            f"the server adds Gaussian noise, of multiplier {setting.noise_multiplier:.4g} in all, to each mean of "
            f"updates and to the share of them that are short; they are clipped to a norm that follows it from "
            f"{setting.clip_norm:g} on"
        )


def multiplier_beside_count(noise_multiplier: float, count_noise: float) -> float:
    """z of the updates, so that together with a count of noise sigma_b they are worth `noise_multiplier`.

    Example:
        >>> round(multiplier_beside_count(1.0, 5.0), 6)
        1.005038
    """
    rest = noise_multiplier**-2 - (2 * count_noise) ** -2
    if rest <= 0:
        raise CompositionError(
            f"Adaptive(count_noise={count_noise:g}): must be above half the noise multiplier of "
            f"{noise_multiplier:.4g}, got {count_noise:g}, which alone reveals more than both may. Raise it, or ask "
            "a larger cohort."
        )
    return 1 / math.sqrt(rest)


@dataclass(frozen=True)
class Tree(Mechanism):
    """The server adds noise to the nodes of a tree over rounds; nothing is assumed of how clients are drawn.

    What it costs depends on how often, and how close to each other, a client takes part, so that noise cannot be chosen
    for a target before the run: give `noise_multiplier`, the noise of a node.

    Args:
        restart_every: rounds after which a new tree begins, 0 for never.
        efficient: halve the variance by what is known of the nodes below.

    Source: Kairouz et al., "Practical and private (deep) learning without sampling or shuffling", ICML 2021,
        arXiv:2103.00039.
    """

    restart_every: int = 0
    efficient: bool = True

    @property
    def uses_sampling(self) -> bool:
        return False

    def compose(self, parts: Parts, setting: Setting, offer: Offer) -> Parts:
        z, each = setting.noise_multiplier, setting.sensitivity
        noise = TreeNoise(z, each, self.restart_every, self.efficient, setting.randomness)
        return bounded(parts, setting)._replace(server={**parts.server, "model": (noise, *parts.server["model"])})

    def account(self, noise_multiplier: float, offer: Offer) -> Account:
        return Nodes(noise_multiplier, offer.delta, self.restart_every)

    def foresee(self, noise_multiplier: float, offer: Offer, commits: int) -> float:
        raise CompositionError(
            f"{self!r}: cannot choose the noise for a target, because what it costs depends on when each client takes "
            "part, got epsilon. Give noise_multiplier."
        )

    def words(self, setting: Setting) -> str:
        return (
            f"the server adds Gaussian noise of multiplier {setting.noise_multiplier:.4g} to the nodes of a tree over "
            f"rounds, of means of updates that are clipped to norm {setting.clip_norm:g}"
        )


@dataclass(frozen=True)
class Distributed(Mechanism):
    """Each client adds a share of the noise, discrete, to values on a grid: the server need not be trusted with it.

    That holds behind a channel that reveals only sums; with `Plain` it is a simulation of it. What is counted on is
    the noise of those who are sure to answer, the scheduler's `min_replies`; and no sampling. A channel that may lose
    clients in its exchange must open no sum of fewer: its `min_contributors` must be as many.

    Args:
        steps: grid steps in the clip norm, C / g, >= 1; more of them cost bits and round less.
        bits: of a whole number that a client sends, in 2..31. A channel for values up to 2^(bits - 1) - 1 in steps of
            one carries them as they are.

    Source: Kairouz, Liu and Steinke, "The distributed discrete Gaussian mechanism for federated learning with secure
        aggregation", ICML 2021, arXiv:2102.06387.
    """

    steps: float = 1024.0
    bits: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.steps < math.inf:
            raise ValueError(
                f"Distributed(steps={self.steps}): must be finite and at least 1, got {self.steps}. 1024 is usual."
            )

    @property
    def uses_sampling(self) -> bool:
        return False

    @property
    def needs_dim(self) -> bool:
        return True

    @property
    def needs_unscaled(self) -> bool:
        return True

    def compose(self, parts: Parts, setting: Setting, offer: Offer) -> Parts:
        if setting.max_weight != 1:
            raise CompositionError(
                f"{self!r}: adds whole numbers, so that all clients count alike, got "
                f"max_weight={setting.max_weight:g}. Leave it at 1."
            )
        g = setting.clip_norm / self.steps
        variance = self._variance(setting.noise_multiplier, offer)
        noise = DiscreteNoise(setting.clip_norm, g, variance, setting.seed, self.bits, setting.randomness)
        longest = self.steps + _DEVIATIONS * math.sqrt(variance)
        if longest > noise.bound:
            raise CompositionError(
                f"{self!r}: numbers of a client must fit their bits, got up to {longest:.0f} for {self.bits} bits, "
                f"which hold {noise.bound:.0f}. Use more bits or fewer steps."
            )
        parts = bounded(parts, setting)
        return parts._replace(
            client={**parts.client, "model": (*parts.client["model"], noise)},
            server={**parts.server, "model": (FromGrid(g, setting.seed), *parts.server["model"])},
        )

    def check_channel(self, channel: Channel, offer: Offer) -> None:
        fewest = offer.sampling.at_least
        if channel.exchanges and not (isinstance(channel, Guarded) and channel.min_contributors >= fewest):
            raise CompositionError(
                f"{self!r}: counts on the noise of min_replies={fewest} clients in every sum, got {channel!r}, which "
                f"may lose some and open a sum of fewer. Set its min_contributors to {fewest}."
            )

    def account(self, noise_multiplier: float, offer: Offer) -> Account:
        return Concentrated(self._rho(noise_multiplier, offer), offer.delta)

    def foresee(self, noise_multiplier: float, offer: Offer, commits: int) -> float:
        return zcdp_epsilon(commits * self._rho(noise_multiplier, offer), offer.delta)

    def words(self, setting: Setting) -> str:
        return (
            f"each client adds its share of discrete Gaussian noise, which is of multiplier "
            f"{setting.noise_multiplier:.4g} in a sum of the fewest replies that are committed, to whole grid steps of "
            f"its update, clipped to norm {setting.clip_norm:g}; who sees sums only, behind a channel that hides their "
            "terms, learns no more than epsilon says"
        )

    def _longest(self, offer: Offer) -> float:
        return rounded_norm(self.steps, offer.dim)

    def _variance(self, noise_multiplier: float, offer: Offer) -> float:
        """Of one client's noise, so that the fewest that answer have enough of it together."""
        fewest = offer.sampling.at_least
        if fewest < 2:
            raise CompositionError(
                f"{self!r}: must know how many clients' noise is in a sum at least, got a scheduler that commits "
                f"{fewest}. Set min_replies of Synchronous, with Uniform() or Stalest()."
            )
        return float(rounded_up((noise_multiplier * self._longest(offer)) ** 2 / fewest))

    def _rho(self, noise_multiplier: float, offer: Offer) -> float:
        variance = self._variance(noise_multiplier, offer)
        return distributed_rho(self._longest(offer), variance, offer.sampling.at_least, offer.dim)


def bounded(parts: Parts, setting: Setting) -> Parts:
    """With what bounds a client's update, and a mean that it moves by no more than its share."""
    limits = CapWeight(setting.max_weight), Clip(setting.clip_norm)  # a channel looks for the bound at the end
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
