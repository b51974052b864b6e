"""Several compressors, of which the task says which is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from partwise.core.codec import encoded_size
from partwise.core.compressor import Claims, Compressor, common
from partwise.core.errors import CompositionError
from partwise.core.index import Whole, shapes_of
from partwise.core.model import Params
from partwise.core.rng import Rng, generator
from partwise.core.transform import State, Transform
from partwise.core.update import Update

__all__ = ["Menu"]


@dataclass(frozen=True)
class Menu:
    """One of several compressors: that of the task's `group`, which a scheduler such as `ByLink` sets.

    Each keeps its own state. In an `ErrorFeedback`, what one has left out the next one sends. Messages tell how they
    are to be unpacked, so that the server need not know what was chosen.

    Args:
        options: compressors, and `Identity()` for none; the best quality first. Either all are right on average, or
            none is (but for `Identity()`).
        at: the one in use where no task says otherwise: in a group below 0, as of clients that `Tiered` has not sorted
            yet, and on the server.

    Raises:
        CompositionError: some of the options need error feedback, and others must not have it.
        ValueError: a number that stands for none of them.

    Source: the setting of Xiang et al., "Nebula-I", 2022, arXiv:2205.09470, whose rule is not published.

    Example:
        >>> from partwise.core.compressor import chosen
        >>> from partwise.core.transform import Identity
        >>> from partwise.transforms import Halved, Sign
        >>> menu = Menu((Identity(), Halved(), Sign()))
        >>> chosen(menu, 1).at
        1
        >>> menu.sizes({"w": torch.zeros(1000)})
        (4096, 2120, 284)
    """

    options: tuple[Transform, ...]
    at: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        self._check(self.at)
        known = [part.claims(2) for part in self.options if isinstance(part, Compressor)]
        if 0 < sum(claims.omega is not None for claims in known) < len(known):
            raise CompositionError(
                f"{self!r}: needs compressors that are all right on average, or none of them, got both: only "
                "the latter go with error feedback. Choose rounding='nearest' or unbiased=False for all."
            )

    def _check(self, number: int) -> None:
        if not 0 <= number < len(self.options):
            raise ValueError(
                f"Menu(at={number}): must be the number of one of its {len(self.options)} options, got {number}. Give "
                "it more options, or the scheduler fewer sizes."
            )

    def claims(self, size: int) -> Claims:
        """What all of them promise."""
        whole = Claims(omega=0.0, delta=1.0, is_linear=True)
        all_ = [part.claims(size) if isinstance(part, Compressor) else whole for part in self.options]
        is_unbiased = any(c.omega is not None for c, part in zip(all_, self.options, strict=True) if c is not whole)
        omegas = [c.omega for c in all_ if c.omega is not None]
        deltas = [c.delta for c in all_ if c.delta is not None]
        return Claims(
            omega=max(omegas) if is_unbiased else None,
            delta=min(deltas) if len(deltas) == len(all_) else None,
            is_linear=all(c.is_linear for c in all_),
        )

    def chosen(self, number: int) -> Menu:
        if number < 0:
            return self
        self._check(number)
        return replace(self, at=number)

    def common(self, seed: int) -> Menu:
        return replace(self, options=tuple(common(part, seed) for part in self.options))

    def init(self, params: Params) -> State:
        return tuple(part.init(params) for part in self.options)

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        sent, after = self.options[self.at].apply(update, state[self.at], rng)
        return sent, (*state[: self.at], after, *state[self.at + 1 :])

    def sizes(self, params: Params) -> Sequence[int]:
        """Bytes of an update of these parameters, all of them, by each option.

        Args:
            params: name -> tensor; only shapes and types are used.
        """
        rng = generator(0, "menu sizes")
        like = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in params.items()}
        drawn = {n: torch.randn(t.shape, generator=rng).to(t.dtype) for n, t in like.items()}
        update = Update(Whole(shapes_of(drawn)), drawn)
        found = []
        for at, state in enumerate(self.init(like)):
            sent, _ = common(self.options[at], 0).apply(update, state, generator(0, "menu sizes", at))
            found.append(encoded_size(sent))
        return tuple(found)
