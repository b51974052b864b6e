"""Contracts for parts of your own: one call says which rule a part breaks, if any.

from partwise.testing import check

def test_my_transform():
    check(MyTransform(rate=0.5))
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.attack import Attack
from partwise.core.index import Index
from partwise.core.plan import LocalOptimizer
from partwise.core.schedule import Scheduler
from partwise.core.transform import Transform
from partwise.testing.aggregators import check_aggregator
from partwise.testing.algorithms import check_algorithm
from partwise.testing.attacks import check_attack
from partwise.testing.channels import check_channel
from partwise.testing.compressors import check_compressor
from partwise.testing.executors import check_executor, check_jobs
from partwise.testing.indices import check_index
from partwise.testing.optimizers import check_optimizer
from partwise.testing.schedulers import check_scheduler
from partwise.testing.transforms import check_transform

__all__ = [
    "check",
    "check_aggregator",
    "check_algorithm",
    "check_attack",
    "check_channel",
    "check_compressor",
    "check_executor",
    "check_index",
    "check_jobs",
    "check_optimizer",
    "check_scheduler",
    "check_transform",
]


@runtime_checkable
class _HasStateTypes(Scheduler, Protocol):
    """A scheduler; the family's own protocol knows nothing but the standard library and is not asked at run time."""


def check(part: Any) -> None:
    """Check a part against the contract of its family, which follows from its methods.

    Executors and channels, some of which differ by rounding, have calls of their own: `check_executor` and
    `check_channel`.

    Args:
        part: a transform, aggregator, index, algorithm, attack, local optimiser or scheduler.

    Raises:
        AssertionError: a rule is broken; the sentence says which.
        TypeError: it is none of these.

    Example:
        >>> from partwise.transforms import TopK
        >>> check(TopK(k=3))
    """
    if isinstance(part, type):
        raise TypeError(f"check({part.__name__}): needs a part, got its class. Make one: {part.__name__}(…).")
    if isinstance(part, Algorithm):
        check_algorithm(part)
    elif isinstance(part, Aggregator):
        check_aggregator(part)
    elif isinstance(part, LocalOptimizer):
        check_optimizer(part)
    elif isinstance(part, Index):
        check_index(part)
    elif isinstance(part, _HasStateTypes):
        check_scheduler(part)
    elif isinstance(part, Transform):
        check_transform(part)
    elif isinstance(part, Attack):
        check_attack(part)
    else:
        raise TypeError(
            f"check({part!r}): needs a transform, aggregator, index, algorithm, attack, local optimiser or scheduler, "
            f"got a {type(part).__name__} with the methods of none. Compare its methods with the protocols in "
            "partwise.core."
        )
