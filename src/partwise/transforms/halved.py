"""Half the bytes: values in bfloat16."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.compressor import Claims
from partwise.core.joined import FLOATS, float_name
from partwise.core.limits import Limit
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Packed, Update

__all__ = ["Halved", "Halves"]

_TOP = {torch.float16: 65280.0}  # the largest of bfloat16 that is no infinity there


@register
@dataclass(frozen=True, eq=False)
class Halves:
    """A tensor kept in bfloat16.

    Args:
        value: of any shape, bfloat16.
        dtype: of the tensor.
    """

    value: Tensor = field(repr=False)
    dtype: str

    def __post_init__(self) -> None:
        if self.value.dtype != torch.bfloat16 or self.dtype not in FLOATS:
            raise ValueError(
                f"Halves(dtype={self.dtype!r}): needs bfloat16 and a floating type, got {self.value.dtype}. Send what "
                "`Halved` made."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def unpack(self) -> Tensor:
        """The values in their own type."""
        return self.value.to(FLOATS[self.dtype])


@dataclass(frozen=True)
class Halved:
    """Every value in bfloat16, rounded to the nearest, halves to even: 8 bits of precision, the range of float32.

    What is beyond that range becomes its end.

    Source: Kalamkar et al., "A study of BFLOAT16 for deep learning training", 2019, arXiv:1905.12322.

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (2,)}), {"w": torch.tensor([1.0, 1.001])})
        >>> Halved().apply(update, (), torch.Generator())[0].values()["w"]
        tensor([1., 1.])
    """

    def claims(self, size: int) -> Claims:
        # Half a unit in the last of 8 places. Denormal numbers lose more, which no claim here counts.
        return Claims(delta=1 - 2.0**-16)

    def limited(self, before: Limit) -> Limit:
        return before._replace(norm=before.norm * (1 + 2.0**-8))

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        return replace(update, value={name: self._packed(value) for name, value in update.values().items()}), state

    def _packed(self, value: Tensor) -> Packed | Tensor:
        name = float_name(self, value.dtype)
        if value.dtype == torch.bfloat16:
            return value
        if math.isnan(float(value.sum())) and bool(value.isnan().any()):  # a sum is many times as fast
            raise ValueError(
                f"{self!r}: needs an update without NaN, got one. Lower the learning rate or look at the data."
            )
        top = _TOP.get(value.dtype, torch.finfo(torch.bfloat16).max)
        halved = value.to(torch.bfloat16)
        return Halves(halved.clamp_(-top, top), name)
