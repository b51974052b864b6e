"""A curve of bounded size, however long the run."""

from __future__ import annotations

import math
from typing import NamedTuple

from partwise.experiment.runs import Point

__all__ = ["Series"]


class _Bucket(NamedTuple):
    """Points in a row: the lowest and the highest of them, and how many they are."""

    low: Point
    high: Point
    num_points: int


class Series:
    """Points by version, of which the lowest and the highest of every stretch are kept.

    As long as there are at most `limit` points, all are kept. Of more, stretches of equal length are: each by its
    extremes, so that neither a spike nor the best value is ever lost. The first and the last point are always kept.

    Args:
        limit: how many stretches there may be, >= 2; twice as many points are kept at most, and the last one.

    Example:
        >>> series = Series(limit=2)
        >>> for version, value in enumerate([5.0, 1.0, 9.0, 2.0, 3.0, 4.0], 1):
        ...     series.add(Point(version, 0.0, 0, 0, value))
        >>> [point.value for point in series.points()], series.num_added
        ([5.0, 1.0, 9.0, 3.0, 4.0], 6)
    """

    def __init__(self, limit: int = 300) -> None:
        if limit < 2:
            raise ValueError(f"Series(limit={limit}): must be at least 2, got {limit}. 300 fill a screen.")
        self._limit, self._stride = limit, 1
        self._buckets: list[_Bucket] = []
        self._first: Point | None = None
        self.last: Point | None = None
        self.num_added = 0

    def add(self, point: Point) -> None:
        """Append a point; one of the same version as the last takes its place."""
        if self.last is not None and self.last.version != point.version:
            self._close(self.last)
        if self.last is None or self.last.version != point.version:
            self.num_added += 1
        self.last = point

    def _close(self, point: Point) -> None:
        self._first = self._first or point
        if self._buckets and self._buckets[-1].num_points < self._stride:
            self._buckets[-1] = _merged(self._buckets[-1], _Bucket(point, point, 1))
            return
        if len(self._buckets) == self._limit:
            pairs = zip(self._buckets[::2], self._buckets[1::2], strict=False)
            odd = self._buckets[-1:] if self._limit % 2 else []
            self._buckets = [*(_merged(one, other) for one, other in pairs), *odd]
            self._stride *= 2
            self._close(point)
            return
        self._buckets.append(_Bucket(point, point, 1))

    def points(self) -> list[Point]:
        """What is kept, by version."""
        found = {p.version: p for bucket in self._buckets for p in sorted(bucket[:2], key=lambda p: p.version)}
        ends = {p.version: p for p in (self._first, self.last) if p is not None}
        return sorted({**found, **ends}.values(), key=lambda p: p.version)

    def best(self, higher: bool) -> float:
        """The best value there ever was; nan if there is none."""
        values = [p.value for p in self.points() if not math.isnan(p.value)]
        return (max if higher else min)(values, default=math.nan)


def _merged(one: _Bucket, other: _Bucket) -> _Bucket:
    low, high = _extreme(one.low, other.low, 1), _extreme(one.high, other.high, -1)
    return _Bucket(low, high, one.num_points + other.num_points)


def _extreme(one: Point, other: Point, sign: int) -> Point:
    """The lower of two, or the higher where the sign is -1; what is not a number gives way to any other."""
    if math.isnan(one.value) or math.isnan(other.value):
        return other if math.isnan(one.value) else one
    return one if sign * one.value <= sign * other.value else other
