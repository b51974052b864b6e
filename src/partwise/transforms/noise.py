"""Gaussian noise of declared sensitivity: on the server for central privacy, on a client for local privacy.

Notation: one client moves what comes in by at most S; z is the noise multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from partwise.core.index import Whole
from partwise.core.limits import Limit, Noise
from partwise.core.model import Params, Values
from partwise.core.randomness import Randomness, SimulatedRandomness
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update

__all__ = ["GaussianNoise"]

Layout = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape and type; no storage, so that a client can keep it


@dataclass(frozen=True)
class GaussianNoise:
    """value + N(0, (z S)² I) on every coordinate of every parameter, held or not.

    Where only what was touched got noise, the noise would show what was touched.

    Args:
        noise_multiplier: z, standard deviation over sensitivity, >= 0; 0 only makes the update whole.
        sensitivity: S, how far one client can move the value in the Euclidean norm, > 0: on the server, behind
            `Clip(C)` and `FixedMean(cohort)`, C / cohort; on a client, C. What is too small is refused when the
            experiment is built.
        randomness: where the noise comes from. The default protects nothing.

    Source: McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, arXiv:1710.06963.

    Example:
        >>> noise, params = GaussianNoise(0.0, sensitivity=0.1), {"w": torch.zeros(2), "b": torch.zeros(1)}
        >>> update = Update(Whole({"w": (2,)}), {"w": torch.tensor([3.0, 4.0])})
        >>> noise.apply(update, noise.init(params), torch.Generator())[0].values()
        {'b': tensor([0.]), 'w': tensor([3., 4.])}
    """

    noise_multiplier: float
    sensitivity: float
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        check_noise_fields(self)

    def limited(self, before: Limit) -> Limit:
        return Limit(math.inf if self.noise_multiplier else before.norm, 1.0)

    def init(self, params: Params) -> State:
        return layout(params)

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        std = self.noise_multiplier * self.sensitivity
        value = {n: added(v, self.randomness.normal(v.shape, rng), std) for n, v in dense(update, state).items()}
        return whole(value), state


def check_noise_fields(part: Noise) -> None:
    """Refuse a noise multiplier or a sensitivity that means nothing."""
    name = type(part).__name__
    if not 0 <= part.noise_multiplier < math.inf:
        raise ValueError(
            f"{name}(noise_multiplier={part.noise_multiplier}): must be finite and at least 0, got "
            f"{part.noise_multiplier}. 1 is usual; partwise.experiment.accounting finds the one for an epsilon."
        )
    if not 0 < part.sensitivity < math.inf:
        raise ValueError(
            f"{name}(sensitivity={part.sensitivity}): must be finite and above 0, got {part.sensitivity}. It is the "
            "clip norm over the expected cohort."
        )


def layout(params: Params) -> Layout:
    """Shapes and types of all parameters, in the order of their names."""
    return {n: (tuple(params[n].shape), str(params[n].dtype).removeprefix("torch.")) for n in sorted(params)}


def dense(update: Update, to: Layout) -> Values:
    """The update's value on every coordinate there is, in buffers of its own; 0 where nothing is held."""
    values = update.values()
    device = next((v.device for v in values.values()), torch.device("cpu"))
    full = {
        n: torch.zeros(tuple(shape), dtype=getattr(torch, dtype), device=device) for n, (shape, dtype) in to.items()
    }
    update.index.scatter_add_(full, values)
    return full


def added(value: Tensor, normal: Tensor, std: float) -> Tensor:
    """value + std * normal, in the value's type; the sum is taken in that of the noise, if it is finer."""
    if not std:
        return value
    return (value + normal.to(value.device) * std).to(value.dtype)


def whole(value: Values) -> Update:
    """An update of whole parameters that counts for one."""
    return Update(Whole({name: tuple(v.shape) for name, v in value.items()}), value)
