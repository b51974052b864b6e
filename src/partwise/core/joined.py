"""Values of several parameters packed as one vector, so that one scale or one rotation serves a whole message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from partwise.core.codec import register
from partwise.core.errors import ProtocolError
from partwise.core.model import Params, Values
from partwise.core.update import Packed

__all__ = ["FLOATS", "Joined", "check_packed", "float_name", "joined"]

FLOATS = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def float_name(part: object, dtype: torch.dtype) -> str:
    """The name of a floating type, as a packed value states it.

    Raises:
        TypeError: it is none that can be packed; the message names `part`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        raise TypeError(f"{part!r}: needs a floating dtype, got {dtype}. Convert the parameter.")
    return name


@register
@dataclass(frozen=True, eq=False)
class Joined(Mapping[str, Tensor]):
    """Name -> tensor, cut out of one packed vector in the order of names.

    Args:
        packed: the vector, (d,).
        shapes: name -> shape of its part.
        dtypes: name -> its type, such as `float32`; () where all have that of the vector.
    """

    packed: Packed = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: tuple[str, ...] = ()
    _kept: list[Values] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = [prod(shape) for shape in self.shapes.values()]
        is_right = all(n >= 0 for shape in self.shapes.values() for n in shape) and (
            not self.dtypes or (len(self.dtypes) == len(sizes) and set(self.dtypes) <= FLOATS.keys())
        )
        if not is_right or tuple(self.packed.shape) != (sum(sizes),):
            raise ValueError(
                f"Joined(): needs a vector of all parts together, ({sum(sizes)},), got {tuple(self.packed.shape)} for "
                f"{dict(self.shapes)}. Send what `joined` made."
            )

    def _values(self) -> Values:
        if not self._kept:
            sizes = [prod(shape) for shape in self.shapes.values()]
            parts = self.packed.unpack().split(sizes)
            dtypes = [FLOATS[name] for name in self.dtypes] or [part.dtype for part in parts]
            named = zip(self.shapes.items(), parts, dtypes, strict=True)
            self._kept.append({name: part.to(dtype).reshape(shape) for (name, shape), part, dtype in named})
        return self._kept[0]

    def __getitem__(self, name: str) -> Tensor:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def check_packed(what: str, value: Mapping[str, Tensor | Packed], like: Params) -> None:
    """Refuse packed values that would become larger than the parameters in `like` that they are parts of, unopened.

    Raises:
        ProtocolError: it names the value.
    """
    if isinstance(value, Joined):
        packed: Mapping[str, Sequence[int]] = value.shapes
    else:
        packed = {name: v.shape for name, v in value.items() if not isinstance(v, Tensor)}
    for name, shape in packed.items():
        most = like[name].numel() if name in like else 0
        if prod(shape) > most:
            raise ProtocolError(
                f"{what}[{name!r}]: must be a part of a parameter with {most} values, got {prod(shape)}. Use the same "
                "model on both sides."
            )


def joined(values: Values, pack: Callable[[Tensor], Packed]) -> Mapping[str, Tensor]:
    """All values in one vector, in the order of names, packed.

    Args:
        values: name -> tensor.
        pack: (d,) -> what stands for it.
    """
    names = sorted(values)
    if not names:
        return {}
    parts = [values[name].reshape(-1) for name in names]
    flat = torch.cat(parts) if len(parts) > 1 else parts[0]  # of the widest type among them
    of = tuple(str(values[name].dtype).removeprefix("torch.") for name in names)
    dtypes = () if all(values[name].dtype == flat.dtype for name in names) else of
    return Joined(pack(flat), {name: tuple(values[name].shape) for name in names}, dtypes)
