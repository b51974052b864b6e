"""Where noise for privacy comes from: a simulation that can be repeated, or the operating system."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from partwise.core.rng import Rng

__all__ = ["Randomness", "SimulatedRandomness", "SystemRandomness", "chance", "uniform", "uniform_below"]

_RANGE = 2**62  # of `bits`
_TOP = 2.0**-53


class Randomness(Protocol):
    """Draws that noise is made of. `is_simulated`: whether who knows the experiment's seed knows the noise."""

    @property
    def is_simulated(self) -> bool: ...

    def normal(self, shape: Sequence[int], rng: Rng) -> Tensor:
        """Independent standard normal numbers, at least float32."""
        ...

    def bits(self, count: int, rng: Rng) -> Tensor:
        """(count,) int64, uniform in [0, 2**62)."""
        ...


@dataclass(frozen=True)
class SimulatedRandomness:
    """From the experiment's seed, so that a run can be repeated to the bit. It protects nothing: it is for studies."""

    is_simulated: ClassVar[bool] = True

    def normal(self, shape: Sequence[int], rng: Rng) -> Tensor:
        return torch.randn(tuple(shape), generator=rng, device=rng.device)

    def bits(self, count: int, rng: Rng) -> Tensor:
        return torch.randint(0, 2**62, (count,), generator=rng, device=rng.device)


@dataclass(frozen=True)
class SystemRandomness:
    """From the operating system's generator, for protection; no run with it can be repeated.

    A normal number in floating point still betrays a little of what it is added to by its last bits; discrete noise
    does not.

    Source: Mironov, "On significance of the least significant bits for differential privacy", CCS 2012.
    """

    is_simulated: ClassVar[bool] = False

    def normal(self, shape: Sequence[int], rng: Rng) -> Tensor:
        size = math.prod(shape)
        radius, angle = uniform(size, self, rng), uniform(size, self, rng)
        found = (-2 * torch.log1p(-radius)).sqrt_() * torch.cos(2 * math.pi * angle)  # Box and Muller
        return found.reshape(tuple(shape))

    def bits(self, count: int, rng: Rng) -> Tensor:
        if not count:
            return torch.empty(0, dtype=torch.int64)
        return torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64).bitwise_and_(2**62 - 1)


def uniform(count: int, randomness: Randomness, rng: Rng) -> Tensor:
    """(count,) float64, uniform in [0, 1), with 53 bits each."""
    return (randomness.bits(count, rng) >> 9).double() * _TOP


def chance(probability: float, count: int, randomness: Randomness, rng: Rng) -> Tensor:
    """(count,) bool, each True with this probability."""
    return uniform(count, randomness, rng).cpu() < probability


def uniform_below(bound: int, count: int, randomness: Randomness, rng: Rng) -> Tensor:
    """(count,) int64, uniform in [0, bound), exactly: draws that would favour small numbers are made again."""
    most = _RANGE // bound * bound
    draws = randomness.bits(count, rng).cpu()
    while len(over := (draws >= most).nonzero().reshape(-1)):
        draws[over] = randomness.bits(len(over), rng).cpu()
    return draws % bound
