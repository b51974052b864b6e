"""A privacy guarantee for a whole run: put together, checked, and accounted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from partwise.core.channel import Channel, Guarded, Rounding, rounding_of
from partwise.core.errors import CompositionError
from partwise.core.population import Population
from partwise.core.randomness import Randomness, SimulatedRandomness
from partwise.core.schedule import Scheduler
from partwise.core.workload import Workload
from partwise.experiment.accounting import Accountant, multiplier_for
from partwise.experiment.accounts import Account
from partwise.experiment.mechanisms import Central, Mechanism, Offer, Parts, Setting

__all__ = ["Amplification", "ClientDP"]

Amplification = Literal["sampling", "none"]


@dataclass(frozen=True)
class ClientDP:
    """(epsilon, delta)-differential privacy of all that a client contributes to the model, in every version together.

    The unit is the client: whoever sees every version of the model can hardly tell whether it took part, whatever its
    data. Epsilon after each commit is a metric of the run. It says nothing of what else the run records: training
    losses, evaluation on clients, counts of examples.

    Args:
        clip_norm: C, the largest norm of an update, > 0.
        epsilon: that the last version may have; it chooses the noise, for a scheduler that commits a client once at a
            time. Give this or
        noise_multiplier: z, standard deviation of the noise on a sum over C.
        delta: in (0, 1/N), the chance that is left out of account.
        mechanism: who adds which noise to what.
        max_weight: W, what a client counts for at most; with 1, all count alike.
        cohort: clients that are expected in a commit; 0 asks the scheduler.
        amplification: `sampling` counts that a client is seldom drawn, which needs a scheduler that draws clients
            as the theorem wants it: `Synchronous(choice=Poisson())`, or `Uniform()` where all are always available;
            `none` charges each commit to those who are in it.
        accountant: `pld` is tight; `rdp` is the common upper bound. Of Poisson samples only.
        randomness: where noise comes from. The default can be repeated and protects nothing.

    Raises:
        CompositionError: parts that would void the guarantee; raised when the experiment is built.

    Source: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, arXiv:1710.06963.
    """

    clip_norm: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    mechanism: Mechanism = field(default_factory=Central)
    max_weight: float = 1.0
    cohort: float = 0.0
    amplification: Amplification = "sampling"
    accountant: Accountant = "pld"
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(
                f"ClientDP(clip_norm={self.clip_norm}): must be finite and above 0, got {self.clip_norm}. "
                "Take the median norm of a few unclipped updates."
            )
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"ClientDP(epsilon={self.epsilon}, noise_multiplier={self.noise_multiplier}): needs one of the two, "
                f"got {'neither' if self.epsilon is None else 'both'}. epsilon=8.0 chooses the noise."
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"ClientDP(epsilon={self.epsilon}): must be finite and above 0, got {self.epsilon}. 1 to 8 is usual."
            )
        if self.noise_multiplier is not None and not 0 < self.noise_multiplier < math.inf:
            raise ValueError(
                f"ClientDP(noise_multiplier={self.noise_multiplier}): must be finite and above 0, got "
                f"{self.noise_multiplier}. Without noise there is no guarantee; leave out `privacy`."
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"ClientDP(delta={self.delta}): must lie in (0, 1), got {self.delta}. 1e-5 is usual.")
        if not 0 <= self.cohort < math.inf:
            raise ValueError(
                f"ClientDP(cohort={self.cohort}): must be finite and at least 0, got {self.cohort}. "
                "0 asks the scheduler."
            )
        for name, kinds in (("amplification", Amplification), ("accountant", Accountant)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"ClientDP({name}={getattr(self, name)!r}): must be {' or '.join(map(repr, get_args(kinds)))}. "
                    "Choose one."
                )

    # What an experiment asks for

    def compose(self, parts: Parts, scheduler: Scheduler, workload: Workload, *, channel: Channel, seed: int) -> Parts:
        """The parts of a run with those that the guarantee needs.

        Raises:
            CompositionError: parts that would void it.
        """
        found = sorted({**parts.algorithm.aggregators()})
        if found != ["model"]:
            raise CompositionError(
                f"{self._name}: hides what clients send in the stream 'model' alone, got an algorithm with the streams "
                f"{found}. Use one without others, or put Clip, FixedMean and GaussianNoise on each of them by hand."
            )
        if not parts.algorithm.only_adds:
            raise CompositionError(
                f"{self._name}: needs an algorithm that adds the aggregate and does nothing else with what clients "
                f"send, got {type(parts.algorithm).__name__}, which has a `commit` of its own. Use FedAvg or another "
                "without."
            )
        if parts.aggregators:
            raise CompositionError(
                f"{self._name}: needs a mean with a fixed divisor and brings its own, got "
                f"{next(iter(parts.aggregators.values()))!r}. Leave `aggregator` out."
            )
        empty: Mapping[str, tuple[()]] = {"model": ()}
        parts = parts._replace(client={**empty, **parts.client}, server={**empty, **parts.server})
        offer = self.offer(scheduler, workload)
        self.mechanism.check_channel(channel, offer)
        dim = _dim(workload) if isinstance(channel, Rounding) else 0
        rounding = rounding_of(channel, dim)
        if rounding == math.inf:
            raise CompositionError(
                f"{self._name}: needs a channel that keeps to the bound of an update, got {channel!r}, in whose sums a "
                "client counts with what it could not send before as well. Use one that sums updates as they are."
            )
        if offer.sampling.kind == "poisson" and isinstance(channel, Guarded) and channel.min_contributors > 1:
            raise CompositionError(
                f"{self._name}: counts on every draw of clients being committed, also one of nobody, got {channel!r}, "
                f"which opens no sum of fewer than {channel.min_contributors}: where as many were drawn, each of them "
                "shows. Use Uniform() where all are always available, or amplification='none'."
            )
        setting = self.setting(scheduler, offer, seed)._replace(rounding=rounding)
        return self.mechanism.compose(parts, setting, offer)

    def setting(self, scheduler: Scheduler, offer: Offer, seed: int = 0) -> Setting:
        """What the noise is made by, once it is known who takes part how often."""
        cohort = self.cohort or offer.sampling.size
        if not cohort > 0:
            raise CompositionError(
                f"{self._name}: must know how many clients a commit has in expectation, got none from "
                f"{type(scheduler).__name__}, whose commits vary. Set cohort."
            )
        z = self.noise_multiplier or self._chosen(scheduler, offer)
        return Setting(self.clip_norm, self.max_weight, cohort, z, self.randomness, seed)

    def offer(self, scheduler: Scheduler, workload: Workload) -> Offer:
        """What an account is opened on.

        Raises:
            CompositionError: clients are not drawn as the accounting assumes.
        """
        population, sampling = workload.population, scheduler.sampling
        num_clients = len(population.clients)
        if not self.delta * num_clients < 1:
            raise CompositionError(
                f"{self._name}: must be below one over the population of {num_clients}, got delta={self.delta:g}, "
                f"which would allow to publish a client. Lower it below {1 / num_clients:.1g}."
            )
        if sampling is None:
            raise CompositionError(
                f"{self._name}: must know that clients are drawn without a look at their data, got {scheduler!r}, "
                "which cannot say so. Use Synchronous with Poisson(), Uniform() or Stalest()."
            )
        if self.mechanism.needs_unscaled and scheduler.may_scale:
            raise CompositionError(
                f"{self._name}: counts on the whole share of noise of each client in a sum, got {scheduler!r}, which "
                "may scale updates, and their noise with them. Use a scheduler without staleness weights."
            )
        if self.amplification == "none" or not self.mechanism.uses_sampling:
            sampling = sampling._replace(kind="public")
        elif sampling.kind == "public":
            raise CompositionError(
                f"{self._name}: counts on clients being drawn at random, got {type(scheduler).__name__}, of which it "
                "is not known how often a client takes part. Use Synchronous(choice=Poisson()), or set "
                "amplification='none' to charge each commit to those who are in it."
            )
        elif sampling.kind == "fixed" and sampling.size > num_clients:
            raise CompositionError(
                f"{self._name}: draws a cohort from the population, got {sampling.size:g} of {num_clients} clients. "
                f"Lower the cohort of {type(scheduler).__name__}, or add clients."
            )
        elif sampling.kind == "fixed" and not _all_always_there(population):
            raise CompositionError(
                f"{self._name}: a cohort of {sampling.size:g} is a sample of the whole population only while all are "
                "available, got clients that come and go. Use Synchronous(choice=Poisson()), or amplification='none'."
            )
        dim = _dim(workload) if self.mechanism.needs_dim else 0
        return Offer(sampling, num_clients, self.delta, self.accountant, dim)

    def account(self, scheduler: Scheduler, workload: Workload) -> Account:
        """A ledger in which nothing is spent."""
        offer = self.offer(scheduler, workload)
        return self.mechanism.account(self.setting(scheduler, offer).noise_multiplier, offer)

    def statement(self, scheduler: Scheduler, workload: Workload) -> str:
        """What is guaranteed, for whom, and on what it rests, in sentences."""
        offer = self.offer(scheduler, workload)
        setting = self.setting(scheduler, offer)
        drawn = {
            "poisson": f"The client is there or not; each is drawn with probability {offer.rate:.3g}, in secret.",
            "fixed": f"The client is replaced by another; cohorts of {offer.sampling.size:g} of {offer.population} are "
            "drawn in secret, all alike.",
            "public": "The client's updates are replaced by nothing; nothing is gained by sampling, and each commit is "
            "charged to those who are in it.",
        }[offer.sampling.kind]
        text = (
            f"Differential privacy of one client's whole participation at delta {self.delta:g}, for all versions of "
            f"the model together: {self.mechanism.words(setting)}. {drawn} It does not cover training losses, scores "
            "and counts that the run records."
        )
        if self.randomness.is_simulated:
            text += " The noise was simulated from the experiment's seed: epsilon is what real noise would have given."
        return text

    # Inside

    @property
    def _name(self) -> str:
        return f"ClientDP(clip_norm={self.clip_norm:g}, delta={self.delta:g})"

    def _chosen(self, scheduler: Scheduler, offer: Offer) -> float:
        """The noise multiplier for the target."""
        assert self.epsilon is not None
        if not scheduler.versions:
            raise CompositionError(
                f"{self._name}: chooses the noise for all commits together, got {type(scheduler).__name__} without a "
                "number of versions. Set it, or give noise_multiplier."
            )
        if offer.sampling.kind == "public" and not scheduler.counts_once:
            raise CompositionError(
                f"{self._name}: chooses the noise for one reply of a client in each commit, got {scheduler!r}, which "
                "may commit several of its replies together, or scale one up, so that epsilon would pass "
                f"{self.epsilon:g}. Give noise_multiplier, or use Synchronous."
            )
        return _multiplier(self.mechanism, self.epsilon, offer, scheduler.versions)


@lru_cache(maxsize=32)
def _multiplier(mechanism: Mechanism, epsilon: float, offer: Offer, commits: int) -> float:
    return multiplier_for(epsilon, lambda z: mechanism.foresee(z, offer, commits))


def _dim(workload: Workload) -> int:
    """How many coordinates the model has."""
    return sum(t.numel() for t in workload.model.init(0).values())


def _all_always_there(population: Population) -> bool:
    return all(
        population.next_available(client, 0.0) <= 0.0 and population.available_until(client, 0.0) == math.inf
        for client in population.clients
    )
