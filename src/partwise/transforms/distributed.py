"""Noise in shares: each client rounds to a grid and adds a little discrete noise, so that only the sum has enough.

Notation: d coordinates; the grid has step g; a client's value has norm C at most.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from partwise.core.errors import CompositionError
from partwise.core.limits import Limit
from partwise.core.model import Params, Values
from partwise.core.randomness import Randomness, SimulatedRandomness, uniform
from partwise.core.rng import Rng, generator
from partwise.core.transform import State
from partwise.core.update import Update
from partwise.transforms.discrete import discrete_gaussian
from partwise.transforms.noise import dense, layout, whole

__all__ = ["DiscreteNoise", "FromGrid", "rotate", "rounded_norm", "rounded_up"]

_SIXTEENTHS = 16
_DEVIATIONS = 6.0  # of noise; more is once in a billion


def rounded_norm(norm: float, dim: int, beta: float = math.exp(-0.5)) -> float:
    """The norm that a value of this one may have after rounding to the integers: what is longer is rounded again.

    min(norm + √d, sqrt(norm² + d/4 + √(2 ln(1/beta)) (norm + √d/2))).

    Args:
        norm: C / g.
        dim: d.
        beta: the chance that one rounding is longer, at most.

    Source: Kairouz, Liu and Steinke, "The distributed discrete Gaussian mechanism for federated learning with secure
        aggregation", ICML 2021, arXiv:2102.06387, proposition 22.
    """
    root = math.sqrt(dim)
    unlikely = norm**2 + dim / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + root / 2)
    return min(norm + root, math.sqrt(unlikely))


def rounded_up(variance: float) -> Fraction:
    """A variance as a fraction that the sampler takes: sixteenths, and whole numbers where it is large; never less.

    Example:
        >>> rounded_up(2.01), rounded_up(3e6)
        (Fraction(33, 16), Fraction(3000000, 1))
    """
    parts = _SIXTEENTHS if variance < 2**19 else 1
    return Fraction(math.ceil(variance * parts), parts)


def rotate(flat: Tensor, seed: int, *, back: bool = False) -> Tensor:
    """H D x: signs at random, then a Hadamard transform; orthonormal, it spreads a value over all coordinates.

    d is cut into powers of two, largest first, each of which is transformed by itself, so that there are as many
    coordinates after it as before.

    Args:
        flat: (d,), float.
        seed: of the signs, which are public.
        back: undo it.
    """
    signs = torch.randint(0, 2, (len(flat),), generator=generator(seed, "rotation")).to(flat) * 2 - 1
    mixed, at = flat.clone() if back else flat * signs, 0
    while at < len(flat):
        size = 1 << ((len(flat) - at).bit_length() - 1)
        mixed[at : at + size] = _hadamard(mixed[at : at + size])
        at += size
    return mixed * signs if back else mixed


def _hadamard(x: Tensor) -> Tensor:
    """(2^k,) -> (2^k,), its own inverse."""
    size, half = len(x), 1
    while half < size:
        pairs = x.reshape(-1, 2, half)
        x = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), dim=1).reshape(-1)
        half *= 2
    return x / math.sqrt(size)


@dataclass(frozen=True)
class DiscreteNoise:
    """clip, rotate, divide by g, round to integers at random, add N_Z(0, s²); all parameters, held or not.

    The integers are for a sum that reveals no term; `FromGrid` makes values of their mean again. The noise of one
    client is too little to hide it: it is hidden among n of them, whose sum has the variance n s². Without a channel
    that hides the terms, the server sees each of them.

    Args:
        sensitivity: C, > 0; a `Clip` in front says the same.
        granularity: g, > 0.
        variance: s², of a client's noise in units of g², > 0; rounded up to sixteenths.
        rotation_seed: of the rotation, which is public and the same for all.
        bits: of a whole number that is sent, in 2..31; what is larger is cut, and its noise with it: there must be room
            for C / g and six deviations s, as `ClientDP` sees to. A channel that carries numbers up to
            2^(bits - 1) - 1 in steps of one carries them as they are.
        randomness: where rounding and noise come from. The default protects nothing.

    Source: Kairouz, Liu and Steinke, "The distributed discrete Gaussian mechanism for federated learning with secure
        aggregation", ICML 2021, arXiv:2102.06387, algorithm 1.
    Differs: no padding to a power of two; see `rotate`. The sum is reduced by the channel, not here.
    """

    sensitivity: float
    granularity: float
    variance: float
    rotation_seed: int = 0
    bits: int = 16
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 31:
            raise ValueError(f"DiscreteNoise(bits={self.bits}): must lie in 2..31, got {self.bits}. 16 is usual.")
        for name in ("sensitivity", "granularity", "variance"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"DiscreteNoise({name}={value}): must be finite and above 0, got {value}. Raise it.")
        if rounded_up(self.variance).numerator > 2**24:
            raise ValueError(
                f"DiscreteNoise(variance={self.variance}): must be at most 2**24, got {self.variance}. "
                "Take a coarser grid."
            )

    @property
    def noise_multiplier(self) -> float:
        """Of one client's noise alone."""
        return math.sqrt(self.variance) * self.granularity / self.sensitivity

    @property
    def bound(self) -> float:
        """The largest magnitude of a coordinate that comes out."""
        return 2.0 ** (self.bits - 1) - 1

    def limited(self, before: Limit) -> Limit:
        return Limit(math.inf, 1.0)

    def init(self, params: Params) -> State:
        """Raises CompositionError where a type has not all the whole numbers: rounding would undo the noise."""
        largest = min(self.bound, self.sensitivity / self.granularity + _DEVIATIONS * math.sqrt(self.variance))
        for name, like in params.items():
            exact = 2 / torch.finfo(like.dtype).eps if like.is_floating_point() else math.inf
            if largest > exact:
                raise CompositionError(
                    f"DiscreteNoise(granularity={self.granularity:g}): whole numbers up to {largest:.0f} must be exact "
                    f"in the model's type, got {name!r} of {like.dtype}, in which those up to {exact:.0f} are. Take a "
                    "coarser grid, or train in float32."
                )
        return layout(params)

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        value = dense(update, state)
        if not value:
            return whole(value), state
        flat = torch.cat([v.reshape(-1).double() for v in value.values()])
        length = float(torch.linalg.vector_norm(flat))
        if not math.isfinite(length):
            raise ValueError(
                f"DiscreteNoise(): needs a finite update, got norm {length}. "
                "Lower the learning rate or look at the data."
            )
        if length > self.sensitivity:
            flat *= self.sensitivity / length
        scaled = rotate(flat, self.rotation_seed) / self.granularity
        whole_numbers = self._rounded(scaled, rng)
        noise = discrete_gaussian(len(flat), rounded_up(self.variance), self.randomness, rng)
        sent = (whole_numbers + noise.to(flat)).clamp_(-self.bound, self.bound)
        return whole(_split(sent, value)), state

    def _rounded(self, scaled: Tensor, rng: Rng) -> Tensor:
        """To the integers around, without bias, again and again until the norm is what it may be."""
        longest = rounded_norm(self.sensitivity / self.granularity, len(scaled))
        below = scaled.floor()
        while True:
            found = below + (uniform(len(scaled), self.randomness, rng).to(scaled) < scaled - below)
            if float(torch.linalg.vector_norm(found)) <= longest:
                return found


@dataclass(frozen=True)
class FromGrid:
    """g times the value, turned back: what `DiscreteNoise` did to clients' values, undone on their mean.

    Args:
        granularity: g, as the clients have it.
        rotation_seed: as the clients have it.
    """

    granularity: float
    rotation_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.granularity < math.inf:
            raise ValueError(
                f"FromGrid(granularity={self.granularity}): must be finite and above 0, got {self.granularity}. Take "
                "the clients'."
            )

    def init(self, params: Params) -> State:
        return layout(params)

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        value = dense(update, state)
        if not value:
            return whole(value), state
        flat = torch.cat([v.reshape(-1).double() for v in value.values()]) * self.granularity
        return whole(_split(rotate(flat, self.rotation_seed, back=True), value)), state


def _split(flat: Tensor, like: Values) -> Values:
    parts = flat.split([v.numel() for v in like.values()])
    return {name: part.reshape(v.shape).to(v.dtype) for (name, v), part in zip(like.items(), parts, strict=True)}
