"""Few large coordinates, each as one of a few values: FedZip.

Shapes: c coordinates are sent of one parameter, each with one of 2p values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.compressor import Claims
from partwise.core.joined import FLOATS, float_name
from partwise.core.model import Params
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update, all_finite, not_finite, wide_type
from partwise.transforms.bits import narrowed, places, widened
from partwise.transforms.sparsify import TopK, check_ratio, restricted

__all__ = ["Clustered", "FedZip"]


@register
@dataclass(frozen=True, eq=False)
class Clustered:
    """Values out of a short list.

    Args:
        labels: uint8, as many bits each as the list needs: 1, 2 or 4.
        centres: (at most 16,) float, the list.
        size: c.
        dtype: of the tensor.
    """

    labels: Tensor = field(repr=False)
    centres: Tensor
    size: int
    dtype: str

    def __post_init__(self) -> None:
        expected = -(-self.size * _width(len(self.centres)) // 8)
        is_known = self.dtype in FLOATS and self.centres.is_floating_point() and 1 <= len(self.centres) <= 16
        is_known = is_known and self.labels.dtype == torch.uint8 and self.centres.dim() == 1
        if not is_known or self.size < 0 or tuple(self.labels.shape) != (expected,):
            raise ValueError(
                f"Clustered(size={self.size}): needs {expected} bytes of labels and at most 16 centres, got "
                f"{tuple(self.labels.shape)} and {tuple(self.centres.shape)}. Send what `FedZip` made."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def unpack(self) -> Tensor:
        """The centre of each label."""
        labels = widened(self.labels, _width(len(self.centres)))[: self.size].to(torch.int64)
        return self.centres.to(FLOATS[self.dtype])[labels.clamp_(max=len(self.centres) - 1)]


def _width(count: int) -> int:
    return 1 if count <= 2 else 2 if count <= 4 else 4


@dataclass(frozen=True)
class FedZip:
    """The largest coordinates of each parameter, each replaced by the mean of its cluster; the rest is not sent.

    Clusters are found by k-means over all coordinates, with a centre fixed at 0, to which what is not among the
    largest belongs, and some of what is. Positions are coded by the codec, as those of `TopK`.

    Args:
        ratio: the share of largest coordinates, in (0, 1].
        centres: values apart from 0, an even number up to 16, half of them above 0.
        iterations: of k-means.

    Raises:
        ValueError: an update that is not finite.

    Source: Malekijoo et al., "FedZip: a compression framework for communication-efficient federated learning", 2021,
        arXiv:2102.01593; shares and iterations as in the released code.
    Differs: the centre at 0 is fixed, without which what is left out could come back; biases are left out like
        everything else; positions instead of Huffman codes of labels, which are longer; it can be decoded. With
        `ErrorFeedback` around it, what is lost comes later.

    Example:
        >>> from partwise.core.index import Whole
        >>> v = torch.tensor([0.9, -0.8, 0.05, 0.02, -0.01, 0.7, -0.6, 0.03, 0.0, -0.04])
        >>> sent, _ = FedZip(ratio=0.4).apply(Update(Whole({"w": (10,)}), {"w": v}), (), torch.Generator())
        >>> sent.index.coords("w"), sent.values()["w"]
        (tensor([0, 1, 5, 6]), tensor([ 0.8000, -0.7000,  0.8000, -0.7000]))
    """

    ratio: float = 0.2
    centres: int = 2
    iterations: int = 4

    def __post_init__(self) -> None:
        check_ratio("FedZip", self.ratio)
        if not 2 <= self.centres <= 16 or self.centres % 2:
            raise ValueError(
                f"FedZip(centres={self.centres}): must be even and in 2..16, got {self.centres}. 2 is usual."
            )
        if self.iterations < 1:
            raise ValueError(
                f"FedZip(iterations={self.iterations}): must be at least 1, got {self.iterations}. 4 is usual."
            )

    def claims(self, size: int) -> Claims:
        # The cluster of the largest value a, of one sign, catches (its sum)² / its size >= a² / d >= ‖x‖² / d².
        return Claims(delta=1 / max(1, size) ** 2)

    def init(self, params: Params) -> State:
        return ()

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        for value in update.values().values():
            float_name(self, value.dtype)
            if not all_finite(value):
                raise not_finite(self)
        largest, _ = TopK(ratio=self.ratio, scope="layer").apply(update, (), rng)
        values = largest.values()
        flat = {name: value.reshape(-1).double() for name, value in values.items()}
        centres, zero = {name: self._centres(value) for name, value in flat.items()}, self.centres // 2
        kept = {name: places(_nearest(value, centres[name]) != zero) for name, value in flat.items()}
        sent = restricted(largest, values, {name: place for name, place in kept.items() if len(place)})
        packed = {name: _clustered(value, centres[name], zero) for name, value in sent.values().items()}
        return replace(sent, value=packed), state

    def _centres(self, flat: Tensor) -> Tensor:
        """Centres in ascending order, with 0 in the middle. (c,) float64 -> (2p + 1,)."""
        zero = self.centres // 2
        steps = torch.arange(1, zero + 1, dtype=flat.dtype, device=flat.device) / zero
        ends = torch.cat([flat, flat.new_zeros(1)])
        centres = torch.cat([(ends.min() * steps).flip(0), flat.new_zeros(1), ends.max() * steps])
        for _ in range(self.iterations):
            labels = _nearest(flat, centres)
            sums = torch.zeros_like(centres).index_add_(0, labels, flat)
            counts = torch.bincount(labels, minlength=len(centres))
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
            centres[zero] = 0.0
        return centres


def _clustered(value: Tensor, centres: Tensor, zero: int) -> Clustered:
    """Values of which none belongs to the centre at 0."""
    labels = _nearest(value.double(), centres)
    codes = (labels - (labels > zero).long()).to(torch.uint8)
    without = torch.cat([centres[:zero], centres[zero + 1 :]]).to(wide_type(value.dtype))
    return Clustered(narrowed(codes, _width(len(without))), without, len(codes), float_name("", value.dtype))


def _nearest(values: Tensor, centres: Tensor) -> Tensor:
    """The number of the nearest centre, the lower one of two; zeros belong to the middle. Centres ascend."""
    labels = torch.bucketize(values, (centres[1:] + centres[:-1]) / 2)
    labels[values == 0] = len(centres) // 2
    return labels
