"""One bit per coordinate.

Notation: x is an update, or one parameter of it, of d coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.compressor import Claims
from partwise.core.joined import FLOATS, float_name, joined
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, all_finite, not_finite, wide
from partwise.transforms.bits import CHUNK, mean_magnitude, signs_of, widened
from partwise.transforms.sparsify import Scope, check_scope

__all__ = ["Sign", "Signs"]


@register
@dataclass(frozen=True, eq=False)
class Signs:
    """A tensor of two values, scale and -scale.

    Args:
        bits: (⌈d / 8⌉,) uint8, the first value in the lowest bit; set where it is below zero.
        scale: (1,) float.
        shape: of the tensor.
        dtype: of the tensor.
    """

    bits: Tensor = field(repr=False)
    scale: Tensor
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        expected = (-(-prod(self.shape) // 8),), (1,)
        got = tuple(self.bits.shape), tuple(self.scale.shape)
        is_known = self.dtype in FLOATS and self.bits.dtype == torch.uint8 and self.scale.is_floating_point()
        if got != expected or not is_known or any(n < 0 for n in self.shape):
            raise ValueError(
                f"Signs(shape={self.shape}): needs bits and scale of shapes {expected}, got {got}. "
                "Send what `Sign` made."
            )

    def unpack(self) -> Tensor:
        """scale where a bit is not set, -scale where it is."""
        size, scale = prod(self.shape), float(self.scale)
        value = torch.empty(size, dtype=self.scale.dtype, device=self.scale.device)
        for at in range(0, size, CHUNK):
            part = value[at : at + CHUNK]
            codes = widened(self.bits[at // 8 : -(-min(at + CHUNK, size) // 8)], 1)[: len(part)]
            part.copy_(codes).mul_(-2).add_(1).mul_(scale)  # twice the scale may be more than the type has
        return value.to(FLOATS[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Sign:
    """sign(x) times the mean magnitude: one bit per coordinate and one number; a zero counts as positive.

    Without error feedback, or a vote on the server, it does not converge in general.

    Args:
        scaled: times mean |x|, without which it is no contraction.
        scope: `global` takes one mean over all parameters, `layer` one for each.

    Raises:
        ValueError: an update that is not finite.

    Source: Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019, arXiv:1901.09847; Bernstein et al.,
        "signSGD", ICML 2018, arXiv:1802.04434 (`scaled=False`).

    Example:
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (3,)}), {"w": torch.tensor([3.0, -1.0, 0.5])})
        >>> Sign().apply(update, (), torch.Generator())[0].values()["w"]
        tensor([ 1.5000, -1.5000,  1.5000])
    """

    scaled: bool = True
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_scope("Sign", self.scope)

    def claims(self, size: int) -> Claims:
        # ‖x‖₁² / d is what is caught of ‖x‖², and that is least for a single value.
        return Claims(delta=1 / max(1, size)) if self.scaled else Claims()

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        values = update.values()
        if self.scope == "global":
            return replace(update, value=joined(values, self._packed)), state
        return replace(update, value={name: self._packed(value) for name, value in values.items()}), state

    def _packed(self, value: Tensor) -> Signs:
        name = float_name(self, value.dtype)
        flat = wide(value.reshape(-1))
        if not all_finite(flat):
            raise not_finite(self)
        scale = flat.new_ones(1)
        if self.scaled:
            scale = flat.new_full((1,), min(mean_magnitude(flat), torch.finfo(value.dtype).max))
        return Signs(signs_of(flat), scale, tuple(value.shape), name)
