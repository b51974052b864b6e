"""Two counts per client, in 16 bytes each, however many clients there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from partwise.core.codec import register

__all__ = ["Ledger"]

_PAGE = 256  # clients; so that numbers far apart take 4 KiB each at most, and a million in a row 16 MiB


@register
@dataclass(eq=False)
class Ledger(Mapping[int, tuple[int, int]]):
    """Client -> two counts, >= 0; who has (0, 0) is not in it.

    Args:
        pages: number of the page -> counts of its 256 clients, (256, 2) int64.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add_(70_000, 3, 4)
        >>> ledger.get(70_000, (0, 0)), ledger.get(7, (0, 0)), len(ledger)
        ((3, 4), (0, 0), 1)
    """

    pages: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def add_(self, client: int, first: int, second: int) -> None:
        """Add to the counts of one client."""
        row = self._row(client)
        row[0] += first
        row[1] += second

    def follow_(self, other: Ledger, client: int) -> tuple[int, int]:
        """Set the counts of one client to those that another ledger has; by how much they grew."""
        number, at = divmod(client, _PAGE)
        page, row = other.pages.get(number), self._row(client)
        first, second = (0, 0) if page is None else page[at].tolist()
        before = row.tolist()
        row[:] = first, second
        return first - before[0], second - before[1]

    def copy(self) -> Ledger:
        """The same counts, in memory of their own."""
        return Ledger({number: page.copy() for number, page in self.pages.items()})

    def _row(self, client: int) -> NDArray[np.int64]:
        number, at = divmod(client, _PAGE)
        page = self.pages.get(number)
        if page is None:
            page = self.pages[number] = np.zeros((_PAGE, 2), np.int64)
        elif not page.flags.writeable:  # as the codec gives it
            page = self.pages[number] = page.copy()
        found: NDArray[np.int64] = page[at]
        return found

    def __getitem__(self, client: int) -> tuple[int, int]:
        number, at = divmod(client, _PAGE)
        first, second = self.pages[number][at].tolist() if number in self.pages else (0, 0)
        if not (first or second):
            raise KeyError(client)
        return first, second

    def __iter__(self) -> Iterator[int]:
        for number in sorted(self.pages):
            for at in self.pages[number].any(1).nonzero()[0].tolist():
                yield number * _PAGE + at

    def __len__(self) -> int:
        return sum(int(page.any(1).sum()) for page in self.pages.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # it changes
