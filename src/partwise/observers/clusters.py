"""Clusters of a few things by their distances.

Shapes: D is (m, m), squared distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["dbscan", "gap_threshold", "silhouette", "two_means"]


def gap_threshold(values: Sequence[float]) -> tuple[float, float]:
    """The middle of the largest gap between neighbours in order, and its width; two values at least.

    Example:
        >>> [round(x, 3) for x in gap_threshold([0.9, 0.1, 0.95, 0.2])]
        [0.55, 0.7]
    """
    ordered = sorted(values)
    width, below, above = max((b - a, a, b) for a, b in pairwise(ordered))
    return (below + above) / 2, width


def dbscan(squared: Tensor, eps: float, min_samples: int) -> list[int]:
    """The cluster of each, from 0 on; -1 for what belongs to none.

    Args:
        squared: D.
        eps: within which others are neighbours, >= 0.
        min_samples: neighbours, oneself among them, that make a core, >= 1.

    Source: Ester et al., "A density-based algorithm for discovering clusters", KDD 1996.
    """
    near = squared <= eps * eps
    is_core = (near.sum(1) >= min_samples).tolist()
    found, count = [-1] * len(squared), 0
    for start in range(len(squared)):
        if found[start] != -1 or not is_core[start]:
            continue
        found[start], reach = count, [start]
        while reach:
            at = reach.pop()
            for other in near[at].nonzero().reshape(-1).tolist() if is_core[at] else ():
                if found[other] == -1:
                    found[other] = count
                    reach.append(other)
        count += 1
    return found


def two_means(squared: Tensor) -> Tensor:
    """Two clusters by k-means, begun from the two farthest apart: (m,) bool, whether in the second.

    Centres are not needed: the squared distance to a mean is the mean of those to its members, less half of the mean of
    those between them.
    """
    finite = torch.where(squared < torch.inf, squared, squared[squared < torch.inf].max())
    one, other = divmod(int(finite.argmax()), len(finite))
    second = finite[:, other] < finite[:, one]
    for _ in range(100):
        if bool(second.all()) or not bool(second.any()):
            break
        apart = []
        for members in (~second, second):
            inside = finite[members][:, members].mean() / 2
            apart.append(finite[:, members].mean(1) - inside)
        now = apart[1] < apart[0]
        if torch.equal(now, second):
            break
        second = now
    return second


def silhouette(squared: Tensor, second: Tensor) -> float:
    """How well two clusters are apart, -1..1: mean of (b - a) / max(a, b), of mean distances to others and own."""
    apart, scores = squared.sqrt(), []
    for at in range(len(squared)):
        own, others = second == second[at], second != second[at]
        own[at] = False
        if not bool(own.any()) or not bool(others.any()):
            scores.append(0.0)
            continue
        a, b = float(apart[at][own].mean()), float(apart[at][others].mean())
        scores.append((b - a) / max(a, b) if max(a, b) > 0 else 0.0)
    return sum(scores) / len(scores) if scores else 0.0
