"""Turning an update before it is quantised, so that its coordinates look alike: DRIVE and EDEN.

Notation: x has d coordinates, n of them once it is filled with zeros; R x = H D x, with random signs D and a Hadamard
matrix H, is as long as x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from partwise.core.codec import register
from partwise.core.compressor import Claims
from partwise.core.counter import is_drawn, key_of
from partwise.core.joined import FLOATS, float_name, joined
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, all_finite, not_finite, wide_type
from partwise.transforms.bits import narrowed, widened
from partwise.transforms.distributed import rotate
from partwise.transforms.sparsify import Scope, check_scope

__all__ = ["Eden", "Turned"]

# Lloyd and Max's centres for a standard normal number, those above 0; from the released code of EDEN.
_CENTRES = {
    1: (0.7978845608028654,),
    2: (0.4527800398860679, 1.5104176087114887),
    3: (0.24509416307340598, 0.7560052489539643, 1.3439092613750225, 2.151945669890335),
    4: (
        0.12839501671105813,
        0.38804823445328507,
        0.6567589957631145,
        0.9423402689122875,
        1.2562309480263467,
        1.6180460517130526,
        2.069016730231837,
        2.732588804065177,
    ),
}


@register
@dataclass(frozen=True, eq=False)
class Turned:
    """A tensor, turned and quantised.

    Args:
        low: uint8, labels of the coordinates with ⌊bits⌋ bits each, one after another; 3 bits take 4.
        high: uint8, labels of those with one bit more; which they are follows from the seed.
        scale: (1,) float, times the centres.
        shape: of the tensor.
        size: n.
        bits: per coordinate, in (0, 4].
        seed: of the turn, and of which coordinates have one bit more.
        dtype: of the tensor.
    """

    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    scale: Tensor
    shape: tuple[int, ...]
    size: int
    bits: float
    seed: int
    dtype: str

    def __post_init__(self) -> None:
        is_known = self.dtype in FLOATS and 0 < self.bits <= 4 and 0 <= self.seed < 2**63
        is_known = is_known and prod(self.shape) <= self.size <= 2 * max(1, prod(self.shape))
        is_known = is_known and all(n >= 0 for n in self.shape)
        is_known = is_known and tuple(self.scale.shape) == (1,) and self.scale.is_floating_point()
        is_known = is_known and self.low.dtype == self.high.dtype == torch.uint8
        if not is_known or 8 * (len(self.low) + len(self.high)) > 5 * self.size + 16:
            raise ValueError(
                f"Turned(shape={self.shape}, size={self.size}, bits={self.bits}): must be one that `Eden` makes, got "
                "another. Send what it made."
            )

    def unpack(self) -> Tensor:
        """R⁻¹ (scale * centres)."""
        have, more = _parts(self.size, self.bits, self.seed)
        turned = torch.zeros(self.size, dtype=self.scale.dtype)
        for at, labels, bits in ((have, self.low, math.floor(self.bits)), (more, self.high, math.floor(self.bits) + 1)):
            if bits and (at is None or len(at)):
                count = self.size if at is None else len(at)
                codes = widened(labels.cpu(), _width(bits))[:count].to(torch.int32)
                if len(codes) < count:
                    raise ValueError(f"Turned(): needs a label for each of {count} coordinates, got {len(codes)}.")
                centres = _centres(bits, turned)[codes.clamp_(max=2**bits - 1)]
                turned[slice(None) if at is None else at] = centres
        value = rotate(turned * self.scale.cpu(), self.seed, back=True)[: prod(self.shape)]
        return value.to(self.scale.device, FLOATS[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Eden:
    """A random rotation, then few bits per coordinate; at one bit it is DRIVE.

    y = √n R x / ‖x‖ looks like normal numbers; c(y) are the nearest of the 2^bits centres that are best for those, and
    S c(y), turned back, is what is decoded. With S = ‖x‖² / ⟨c(y), R x⟩ it has ⟨C(x), x⟩ = ‖x‖², whatever the draw,
    and under uniform rotations no bias; the Hadamard rotation comes near that in many dimensions, not in few, which is
    why no bound is promised. With S = ⟨c(y), R x⟩ / ‖c(y)‖² it is as near to x as it gets, a contraction, for error
    feedback.

    Args:
        bits: per coordinate, in (0, 4]: of a fraction, so many more coordinates have one bit more; below 1, so many
            are sent at all. 3 bits take the room of 4.
        unbiased: which S.
        scope: `global` turns all parameters together, `layer` each by itself. What is turned is filled with zeros to a
            power of two, and they are sent as well.

    Raises:
        ValueError: an update that is not finite.

    Source: Vargaftik et al., "DRIVE: one-bit distributed mean estimation", NeurIPS 2021, arXiv:2105.08339; the same,
        "EDEN: communication-efficient and robust distributed mean estimation for federated learning", ICML 2022,
        arXiv:2108.08842.
    Differs: the seed travels with the message; which coordinates have a bit more is drawn one by one.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (4,)}), {"w": torch.tensor([3.0, -1.0, 0.5, -2.0])})
        >>> sent, _ = Eden(bits=4).apply(update, (), torch.Generator().manual_seed(1))
        >>> bool((sent.values()["w"] * update.values()["w"]).sum().sub(14.25).abs() < 1e-4)
        True
    """

    bits: float = 1.0
    unbiased: bool = True
    scope: Scope = "global"

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 4:
            raise ValueError(f"Eden(bits={self.bits}): must lie in (0, 4], got {self.bits}. 1 is DRIVE.")
        check_scope("Eden", self.scope)

    def claims(self, size: int) -> Claims:
        # ⟨c, y⟩² >= (smallest centre)² ‖y‖², and ‖c‖² <= n (largest centre)², which is below 8 n <= 16 d.
        centre = _CENTRES[math.ceil(self.bits)][0]
        return Claims() if self.unbiased else Claims(delta=min(1.0, self.bits) * centre**2 / (16 * max(1, size)))

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values = update.values()
        if self.scope == "global":
            return replace(update, value=joined(values, lambda flat: self._packed(flat, rng))), state
        packed = {name: self._packed(values[name], rng) for name in sorted(values)}
        return replace(update, value={name: packed[name] for name in values}), state

    def _packed(self, value: Tensor, rng: Rng) -> Turned:
        name = float_name(self, value.dtype)
        flat = value.reshape(-1).to("cpu", wide_type(value.dtype))
        if not all_finite(flat):
            raise not_finite(self)
        size = 1 << max(0, (len(flat) - 1).bit_length()) if len(flat) else 0
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        turned = rotate(pad(flat, (0, size - len(flat))), seed)
        length = float(torch.linalg.vector_norm(turned, dtype=torch.float64))
        have, more = _parts(size, self.bits, seed)
        labels = []
        chosen = torch.zeros_like(turned)
        unit = turned * (math.sqrt(size) / length) if length else turned
        for at, bits in ((have, math.floor(self.bits)), (more, math.floor(self.bits) + 1)):
            where = slice(None) if at is None else at
            if not bits or (at is not None and not len(at)):
                labels.append(torch.empty(0, dtype=torch.uint8))
                continue
            centres = _centres(bits, turned)
            code = torch.bucketize(unit[where].contiguous(), (centres[1:] + centres[:-1]) / 2, right=True)
            chosen[where] = centres[code]
            labels.append(narrowed(code.to(torch.uint8), _width(bits)))
        scale = self._scale(turned.double(), chosen.double())
        low, high = (part.to(value.device) for part in labels)
        sent = turned.new_tensor([scale]).to(value.device)
        return Turned(low, high, sent, tuple(value.shape), size, self.bits, seed, name)

    def _scale(self, turned: Tensor, chosen: Tensor) -> float:
        common = float(turned @ chosen)
        if not common:
            return 0.0
        return float(turned @ turned) / common if self.unbiased else common / float(chosen @ chosen)


def _width(bits: int) -> int:
    """Bits that a label takes: those that divide a byte."""
    return 4 if bits == 3 else bits


def _centres(bits: int, like: Tensor) -> Tensor:
    """All centres, ascending: (2^bits,)."""
    upper = torch.tensor(_CENTRES[bits], dtype=like.dtype)
    return torch.cat([-upper.flip(0), upper])


def _parts(size: int, bits: float, seed: int) -> tuple[Tensor | None, Tensor]:
    """Coordinates with ⌊bits⌋ bits, None for all of them; and those with one more."""
    share = bits - math.floor(bits)
    if not share:
        return None, torch.empty(0, dtype=torch.int64)
    more = is_drawn(key_of(seed, "bits"), torch.arange(size), share)
    return (~more).nonzero().reshape(-1), more.nonzero().reshape(-1)
