"""Messages of one form: what a log can keep, a row for each version."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from partwise.core.codec import encode, join, split
from partwise.core.compressor import common
from partwise.core.errors import CompositionError
from partwise.core.index import Whole, shapes_of
from partwise.core.model import Params, Values
from partwise.core.rng import generator
from partwise.core.transform import Transform
from partwise.core.update import Update

__all__ = ["Form", "form_of"]


class Form(NamedTuple):
    """How a message is put together from tensors of fixed shapes.

    Args:
        part: whose messages they are, for what is said of them.
        skeleton: all of it but for its tensors.
        fields: name -> shape and type.
        size: bytes of a message's tensors.
    """

    part: str
    skeleton: bytes
    fields: dict[str, tuple[tuple[int, ...], torch.dtype]]
    size: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (shape, _) in self.fields.items()}

    def blank(self) -> Values:
        """Tensors of a message, all 0."""
        return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in self.fields.items()}

    def read(self, sent: Update) -> Values:
        """The tensors of a message."""
        skeleton, tensors = split(sent)
        if skeleton != self.skeleton:
            raise CompositionError(
                f"{self.part}(): needs a transform whose messages differ in their tensors only, got two of other "
                "forms. Use Quantize, Sign or Halved."
            )
        return tensors

    def update(self, tensors: Values) -> Update:
        """The message again."""
        found: Update = join(self.skeleton, tensors)
        return found


def form_of(part: str, compress: Transform, params: Params) -> Form:
    """Of a compressor's messages about all of `params`.

    Raises:
        CompositionError: a compressor that keeps something, or whose messages are not of one size, or differ in what
            is no tensor, such as the seed of a draw: it would always be the same one.
    """
    like = tuple((n, tuple(t.shape), t.dtype) for n, t in params.items())
    return _form(part, compress, like)  # type: ignore[arg-type]  # a frozen dataclass has a hash


@lru_cache(8)
def _form(part: str, compress: Transform, like: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]) -> Form:
    """The form of two messages, which must be the same."""
    forms = []
    for draw in range(2):
        rng = generator(draw, "form of a message")
        values = {n: torch.randn(shape, generator=rng, dtype=torch.float32).to(dtype) for n, shape, dtype in like}
        state = compress.init(values)
        sent, after = common(compress, draw).apply(Update(Whole(shapes_of(values)), values), state, rng)
        if encode(state) != encode(()) or encode(after) != encode(()):
            raise CompositionError(
                f"{part}(compress={compress!r}): needs a transform that keeps nothing, got one with memory. What a "
                "message loses is in the next one, without error feedback."
            )
        skeleton, tensors = split(sent)
        fields = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
        forms.append(Form(part, skeleton, fields, sum(t.nbytes for t in tensors.values())))
    if forms[0] != forms[1]:
        raise CompositionError(
            f"{part}(compress={compress!r}): needs a transform whose messages differ in their tensors only, got two "
            "of other forms. Use Quantize, Sign or Halved."
        )
    return forms[0]
