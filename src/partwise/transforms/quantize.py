"""Quantising: fewer bits per coordinate, unbiased.

Shapes: n held values of one parameter, in buckets of B.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from partwise.core.codec import register
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update

__all__ = ["Levels", "Quantize", "ScaleBy", "stochastic_levels"]

ScaleBy = Literal["norm", "max"]
_BITS = (2, 4, 8)
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


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
    """

    codes: Tensor = field(repr=False)
    scales: Tensor = field(repr=False)
    shape: tuple[int, ...]
    bits: int
    bucket: int
    dtype: str

    def __post_init__(self) -> None:
        if self.bits not in _BITS or self.bucket < 1 or self.dtype not in _DTYPES or any(n < 0 for n in self.shape):
            raise ValueError(
                f"Levels(bits={self.bits}, bucket={self.bucket}, dtype={self.dtype!r}): must be ones that "
                "`Quantize` makes, got others. Send what it made."
            )
        size = prod(self.shape)
        expected = (-(-size * self.bits // 8),), (-(-size // self.bucket),)
        got = tuple(self.codes.shape), tuple(self.scales.shape)
        if got != expected or self.codes.dtype != torch.uint8 or not self.scales.is_floating_point():
            raise ValueError(
                f"Levels(shape={self.shape}): needs codes and scales of shapes {expected}, got {got}. "
                "Send what `Quantize` made."
            )

    def unpack(self) -> Tensor:
        """scale * level / s."""
        size, top = prod(self.shape), 2 ** (self.bits - 1) - 1
        shifts = torch.arange(0, 8, self.bits, device=self.codes.device, dtype=torch.uint8)
        codes = (self.codes.unsqueeze(1) >> shifts) & (2**self.bits - 1)  # (bytes, values in a byte)
        levels = (codes.reshape(-1)[:size].to(torch.int16) - top).to(self.scales.dtype)
        each = self.scales.repeat_interleave(self.bucket)[:size]
        value: Tensor = (each * levels / top).to(_DTYPES[self.dtype])
        return value.reshape(self.shape)


@dataclass(frozen=True)
class Quantize:
    """QSGD: each value becomes one of 2s + 1 levels by stochastic rounding, so that its expectation is itself.

    a_j = s |g_j| / ‖g‖, l_j = ⌊a_j⌋ + [U_j < a_j - ⌊a_j⌋], decoded ‖g‖ sign(g_j) l_j / s, in each bucket. A message
    has about bits / 32 of the bytes of float32. Being unbiased, it needs no error feedback.

    Args:
        bits: per value, sign included: 2, 4 or 8; s = 2**(bits - 1) - 1.
        bucket: values that share a scale, >= 1; buckets do not cross parameters.
        scale_by: `norm` is the paper's; `max` divides by the bucket's largest magnitude, which is unbiased
            too and has the smaller variance.

    Raises:
        ValueError: an update that is not finite.

    Source: Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132, §3; `max` is common in implementations.
    Differs: fixed-width levels instead of Elias codes.

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

    def __post_init__(self) -> None:
        if self.bits not in _BITS:
            raise ValueError(f"Quantize(bits={self.bits}): must be 2, 4 or 8, got {self.bits}. 8 is a safe choice.")
        if self.bucket < 1:
            raise ValueError(f"Quantize(bucket={self.bucket}): must be at least 1, got {self.bucket}. 512 is usual.")
        if self.scale_by not in get_args(ScaleBy):
            raise ValueError(
                f"Quantize(scale_by={self.scale_by!r}): must be 'norm' or 'max', got {self.scale_by!r}. Choose one."
            )

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values = update.values()
        # In the order of names, so that the draw does not depend on how the index was put together.
        packed = {name: self._packed(values[name], rng) for name in sorted(values)}
        return replace(update, value={name: packed[name] for name in values}), state

    def _packed(self, value: Tensor, rng: Rng) -> Levels:
        name = str(value.dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise TypeError(f"{self!r}: needs a floating dtype, got {value.dtype}. Convert the parameter.")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"{self!r}: needs a finite update, got NaN or infinity. Lower the learning rate or look at the data."
            )
        top = 2 ** (self.bits - 1) - 1
        flat = value.reshape(-1).to(torch.promote_types(value.dtype, torch.float32))
        uniform = torch.rand(flat.shape, generator=rng, device=rng.device, dtype=flat.dtype).to(flat.device)
        levels, scales = stochastic_levels(flat, top, uniform, bucket=self.bucket, scale_by=self.scale_by)
        each = 8 // self.bits
        codes = pad((levels + top).to(torch.uint8), (0, -len(levels) % each)).reshape(-1, each)
        shifts = torch.arange(0, 8, self.bits, device=codes.device, dtype=torch.uint8)
        return Levels(
            (codes << shifts).sum(1).to(torch.uint8), scales, tuple(value.shape), self.bits, self.bucket, name
        )


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
