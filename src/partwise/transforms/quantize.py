"""Quantising: fewer bits per coordinate, by chance without bias, or to the nearest level.

Shapes: n held values of one parameter, in buckets of B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from partwise.core.codec import register
from partwise.core.compressor import Claims
from partwise.core.joined import FLOATS, float_name
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, all_finite, not_finite, wide
from partwise.transforms.bits import CHUNK, narrowed, widened

__all__ = ["Levels", "Quantize", "Rounding", "ScaleBy", "smoothed", "stochastic_levels"]

ScaleBy = Literal["norm", "max"]
Rounding = Literal["stochastic", "nearest"]
_BITS = (2, 4, 8)
_MOST_SMOOTH = 10


@register
@dataclass(frozen=True, eq=False)
class Levels:
    """A quantised tensor: small whole numbers, and one scale per bucket.

    Args:
        codes: (bytes,) uint8; 8 // bits levels to a byte, the first in the lowest bits, each counted from -s.
        scales: (buckets,) what level s stands for.
        shape: of the tensor.
        bits: per value, sign included: 2, 4 or 8; s = 2**(bits - 1) - 1.
        bucket: values under one scale.
        dtype: of the tensor.
        smooth: k, where runs of 2^k values were mixed by a Hadamard matrix before they were quantised; 0 for not.
    """

    codes: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)
    shape: tuple[int, ...]
    bits: int
    bucket: int
    dtype: str
    smooth: int = 0

    def __post_init__(self) -> None:
        is_known = self.bits in _BITS and self.dtype in FLOATS and 0 <= self.smooth <= _MOST_SMOOTH
        if not is_known or self.bucket < 1 or any(n < 0 for n in self.shape):
            raise ValueError(
                f"Levels(bits={self.bits}, bucket={self.bucket}, dtype={self.dtype!r}): must be ones that "
                "`Quantize` makes, got others. Send what it made."
            )
        size = self._size
        expected = (-(-size * self.bits // 8),), (-(-size // self.bucket),)
        got = tuple(self.codes.shape), tuple(self.scales.shape)
        if got != expected or self.codes.dtype != torch.uint8 or not self.scales.is_floating_point():
            raise ValueError(
                f"Levels(shape={self.shape}): needs codes and scales of shapes {expected}, got {got}. "
                "Send what `Quantize` made."
            )

    @property
    def _size(self) -> int:
        """How many levels there are: whole runs, where runs were mixed."""
        run = 1 << self.smooth
        return -(-prod(self.shape) // run) * run

    def unpack(self) -> Tensor:
        """scale * level / s."""
        size, top = self._size, 2 ** (self.bits - 1) - 1
        value = torch.empty(size, dtype=self.scales.dtype, device=self.scales.device)
        steps = self.scales / top
        whole = size - size % self.bucket
        chunk = max(1, CHUNK // math.lcm(self.bucket, 8)) * math.lcm(self.bucket, 8)
        for at in range(0, size, chunk):
            codes = self.codes[at * self.bits // 8 : -(-min(at + chunk, size) * self.bits // 8)]
            part = value[at : at + chunk].copy_(widened(codes, self.bits)[: size - at]).sub_(top)
            full = max(0, min(whole - at, len(part)))  # values in whole buckets
            first = at // self.bucket
            part[:full].view(-1, self.bucket).mul_(steps[first : first + full // self.bucket].unsqueeze(1))
            if full < len(part):
                part[full:].mul_(steps[-1])
        if self.smooth:
            value = smoothed(value, self.smooth).div_(2**self.smooth)
        return value[: prod(self.shape)].to(FLOATS[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Quantize:
    """Each value becomes one of 2s + 1 levels of its bucket: by stochastic rounding (QSGD), or to the nearest one.

    a_j = s |g_j| / ‖g‖, l_j = ⌊a_j⌋ + [U_j < a_j - ⌊a_j⌋], decoded ‖g‖ sign(g_j) l_j / s, in each bucket. A message
    has about bits / 32 of the bytes of float32. By stochastic rounding the expectation of a value is itself, and it
    needs no error feedback; the nearest level is a contraction, and many times faster.

    Args:
        bits: per value, sign included: 2, 4 or 8; s = 2**(bits - 1) - 1.
        bucket: values that share a scale, >= 1; buckets do not cross parameters.
        scale_by: `norm` is the paper's; `max` divides by the bucket's largest magnitude, which is unbiased
            too and has the smaller variance.
        rounding: `stochastic`, or `nearest` with halves up, which is for `max`.
        smooth: k: runs of 2^k values are mixed by a Hadamard matrix first, so that one large value does not hide those
            beside it. 0 for none, up to 10; 5 is that of SDP4Bit.

    Raises:
        ValueError: an update that is not finite.

    Source: Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132, §3; `max` is common in implementations; Jia et al.,
        "SDP4Bit", NeurIPS 2024, arXiv:2410.15526 (`max` with 4 bits, bucket 2048 for differences of weights, 128 and
        `smooth=5` for gradients).
    Differs: fixed-width levels instead of Elias codes; of SDP4Bit, one level of quantisation. For its two levels, with
        sums between them, put `Smooth` around instead of `smooth=5`.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (3,)}), {"w": torch.tensor([127.0, -1.0, 63.0])})
        >>> sent, _ = Quantize(scale_by="max").apply(update, (), torch.Generator())
        >>> sent.value["w"].codes.numel(), sent.values()["w"]
        (3, tensor([127.,  -1.,  63.]))
    """

    bits: int = 8
    bucket: int = 512
    scale_by: ScaleBy = "norm"
    rounding: Rounding = "stochastic"
    smooth: int = 0

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ValueError(f"Quantize(bits={self.bits}): must be 2, 4 or 8, got {self.bits}. 8 is a safe choice.")
        if self.bucket < 1:
            raise ValueError(f"Quantize(bucket={self.bucket}): must be at least 1, got {self.bucket}. 512 is usual.")
        if self.scale_by not in get_args(ScaleBy):
            raise ValueError(
                f"Quantize(scale_by={self.scale_by!r}): must be 'norm' or 'max', got {self.scale_by!r}. Choose one."
            )
        if self.rounding not in get_args(Rounding):
            raise ValueError(
                f"Quantize(rounding={self.rounding!r}): must be 'stochastic' or 'nearest', got {self.rounding!r}. "
                "Choose one."
            )
        if self.rounding == "nearest" and self.scale_by == "norm":
            raise ValueError(
                "Quantize(rounding='nearest', scale_by='norm'): the nearest level of a norm is mostly 0, got that. "
                "Use scale_by='max'."
            )
        if not 0 <= self.smooth <= _MOST_SMOOTH:
            raise ValueError(
                f"Quantize(smooth={self.smooth}): must lie in 0..{_MOST_SMOOTH}, got {self.smooth}. 5 is usual."
            )

    def claims(self, size: int) -> Claims:
        top, bucket = 2 ** (self.bits - 1) - 1, min(self.bucket, max(1, size + (2**self.smooth - 1)))
        if self.rounding == "nearest":  # the largest of a bucket is exact, any other at most half a step off
            return Claims(delta=1 / (1 + (bucket - 1) / (4 * top**2)))
        if self.scale_by == "max":
            return Claims(omega=min(bucket / (4 * top**2), math.sqrt(bucket) / top))
        return Claims(omega=min(bucket / top**2, math.sqrt(bucket) / top))

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values = update.values()
        # In the order of names, so that the draw does not depend on how the index was put together.
        packed = {name: self._packed(values[name], rng) for name in sorted(values)}
        return replace(update, value={name: packed[name] for name in values}), state

    def _packed(self, value: Tensor, rng: Rng) -> Levels:
        name = float_name(self, value.dtype)
        top = 2 ** (self.bits - 1) - 1
        flat = wide(value.reshape(-1))
        if self.smooth:
            flat = smoothed(pad(flat, (0, -len(flat) % 2**self.smooth)), self.smooth)
        if self.rounding == "nearest":
            codes, scales = _nearest(flat, self.bits, self.bucket)
        else:
            uniform = torch.rand(flat.shape, generator=rng, device=rng.device, dtype=flat.dtype).to(flat.device)
            levels, scales = stochastic_levels(flat, top, uniform, bucket=self.bucket, scale_by=self.scale_by)
            codes = narrowed((levels + top).to(torch.uint8), self.bits)
        if not all_finite(scales):  # the largest of a bucket is not finite if any is not: a pass over all is saved
            raise not_finite(self)
        return Levels(codes, scales, tuple(value.shape), self.bits, self.bucket, name, self.smooth)


def smoothed(flat: Tensor, order: int) -> Tensor:
    """Each run of 2^order values times the Hadamard matrix of ones and minus ones; 2^order times its own inverse."""
    mix = torch.ones(1, 1, dtype=flat.dtype, device=flat.device)
    for _ in range(order):
        mix = torch.cat([torch.cat([mix, mix], 1), torch.cat([mix, -mix], 1)])
    return (flat.reshape(-1, len(mix)) @ mix).reshape(-1)


def _nearest(flat: Tensor, bits: int, bucket: int) -> tuple[Tensor, Tensor]:
    """Codes and scales, in pieces that stay in the processor's cache. (n,) -> (bytes,), (buckets,)."""
    size, top = flat.numel(), 2 ** (bits - 1) - 1
    codes = torch.empty(-(-size * bits // 8), dtype=torch.uint8, device=flat.device)
    scales = torch.empty(-(-size // bucket), dtype=flat.dtype, device=flat.device)
    least = 4 * top / torch.finfo(flat.dtype).max  # what is smaller has no reciprocal, and becomes 0
    unit = math.lcm(bucket, 8)
    chunk = max(1, CHUNK // unit) * unit
    room = torch.empty(min(size, chunk) + bucket, dtype=flat.dtype, device=flat.device)
    whole = torch.empty(min(size, chunk), dtype=torch.int16, device=flat.device)
    for at in range(0, size, chunk):
        part = flat[at : at + chunk]
        count = len(part)
        if count % bucket:
            part = pad(part, (0, -count % bucket))
        table, work = part.view(-1, bucket), room[: len(part)].view(-1, bucket)
        scale = torch.abs(table, out=work).amax(1).clamp_(min=least)
        scales[at // bucket : at // bucket + len(scale)] = scale
        torch.mul(table, (top / scale).unsqueeze(1), out=work).add_(top + 0.5)
        # Cut off below: to the nearest, halves up. By way of 16 bits, which is twice as fast as to bytes at once.
        levels = whole[:count].copy_(work.view(-1)[:count])
        if bits == 8:
            codes[at : at + count].copy_(levels)
        else:
            narrow = narrowed(levels.to(torch.uint8), bits)
            codes[at * bits // 8 : at * bits // 8 + len(narrow)] = narrow
    return codes, scales


def stochastic_levels(
    flat: Tensor, top: int, uniform: Tensor, *, bucket: int, scale_by: ScaleBy = "norm"
) -> tuple[Tensor, Tensor]:
    """Signed levels -top..top and one scale per bucket.

    Args:
        flat: (n,) float, finite.
        top: s, the highest level.
        uniform: (n,) in [0, 1), the draws that decide the rounding.
        bucket: values that share a scale.
        scale_by: the bucket's Euclidean norm, or its largest magnitude.

    Returns:
        (n,) levels, and (buckets,) scales.
    """
    size = flat.numel()
    padding = -size % bucket
    table = pad(flat, (0, padding)).reshape(-1, bucket)  # (buckets, bucket)
    largest = table.abs().amax(1) if size else flat
    scales = largest
    if scale_by == "norm":
        norms = torch.linalg.vector_norm(table, dim=1, dtype=torch.float64).to(flat.dtype)
        scales = torch.maximum(norms, largest)  # a norm that was rounded down would push a level past the top
    safe = torch.where(scales > 0, scales, torch.ones_like(scales)).unsqueeze(1)
    exact = table.abs() / safe * top
    whole = exact.floor()
    draws = pad(uniform, (0, padding)).reshape(-1, bucket)
    levels = (whole + (draws < exact - whole)).clamp_(max=top) * table.sign()
    return levels.reshape(-1)[:size], scales
