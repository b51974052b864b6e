"""Draws that are a function of where they are: what is drawn for some coordinates is what is drawn for all, restricted.

Whole numbers are made by whole numbers alone, so that they are the same on every device.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from partwise.core.rng import derive

__all__ = ["is_drawn", "key_of", "normal", "uniform", "words"]

# Weyl increment and multipliers of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014), as signed words.
_STEP, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685
_TABLE_BITS = 12
_FIFTY_THREE = 53


def key_of(seed: int, name: str) -> int:
    """The key of one parameter's draws, in [0, 2**63)."""
    return derive(seed, f"counter {name}")


def words(key: int | Tensor, at: Tensor) -> Tensor:
    """Words of 64 random bits, one per position.

    Args:
        key: of the stream; or int64 keys, of a shape that broadcasts with that of `at`.
        at: int64 positions, of any shape.

    Returns:
        int64 of the same shape.

    Example:
        >>> at = torch.tensor([3, 8, 5])
        >>> bool((words(7, torch.arange(9))[at] == words(7, at)).all())
        True
    """
    z = at * _STEP + key
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def uniform(key: int | Tensor, at: Tensor) -> Tensor:
    """Numbers uniform in (0, 1), float64: the middles of 2**53 equal parts."""
    found: Tensor = (_shifted(words(key, at), 64 - _FIFTY_THREE).double() + 0.5) * 2.0**-_FIFTY_THREE
    return found


def is_drawn(key: int, at: Tensor, share: float) -> Tensor:
    """Coins that are True with probability `share`, bool of the shape of `at`."""
    return _shifted(words(key, at), 64 - _FIFTY_THREE) < int(share * 2**_FIFTY_THREE)


def normal(key: int | Tensor, at: Tensor) -> Tensor:
    """Normal numbers, float32, to the bit the same on every device.

    The sum of two quantiles of 4,096 each, over √2: mean 0, variance 1, at most 5.2 in size.
    """
    table = _quantiles().to(at.device)
    word = words(key, at)
    first = table[_shifted(word, 64 - _TABLE_BITS)]
    second = table[_shifted(word, 64 - 2 * _TABLE_BITS) & (2**_TABLE_BITS - 1)]
    return (first + second) * (2.0**-16 * math.sqrt(0.5))  # the sum is a whole number: one rounding, everywhere alike


@lru_cache(1)
def _quantiles() -> Tensor:
    """Quantiles of the standard normal at the middles of equal parts, in whole 2^-16, with variance 1."""
    half, normal_ = 2 ** (_TABLE_BITS - 1), NormalDist()
    found = [normal_.inv_cdf((half + i + 0.5) / (2 * half)) for i in range(half)]
    variance = math.fsum(x * x for x in found) / half
    upper = torch.tensor([round(x * 2**16 / math.sqrt(variance)) for x in found], dtype=torch.float32)
    return torch.cat([-upper.flip(0), upper])
