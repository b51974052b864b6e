"""Local training as data: what to train, in how many steps, by which rule; an executor runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from partwise.core.codec import register
from partwise.core.errors import CompositionError
from partwise.core.model import Model, Params, Values
from partwise.core.population import Batch, Dataset
from partwise.core.rng import Rng

__all__ = [
    "Executor",
    "GradientTerm",
    "Job",
    "LocalOptimizer",
    "LocalPlan",
    "LossFn",
    "ModelLoss",
    "Resident",
    "Trained",
    "everything",
    "opened",
    "ran",
]


class LossFn(Protocol):
    """(params, batch, rng) -> scalar loss; a pure function of its parameters."""

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class ModelLoss:
    """The mean of a model's losses over the batch."""

    model: Model

    def __call__(self, params: Params, batch: Batch, rng: Rng) -> Tensor:
        return self.model.losses_of_each(params, batch).mean()


@runtime_checkable
class LocalOptimizer(Protocol):
    """The rule of a local step: a frozen dataclass with a field `lr`."""

    @property
    def lr(self) -> float: ...

    def init(self, params: Params) -> Any:
        """The first state for these parameters."""
        ...

    def step_(self, params: Values, grads: Values, state: Any) -> Any:
        """One step on `params`, in place. `grads` belongs to the optimiser. Returns the next state."""
        ...


class GradientTerm(Protocol):
    """A change to the gradient at one local step; what it needs of its client are tensors it holds."""

    def __call__(self, params: Params, grads: Values, step: int) -> Values: ...


def everything(name: str) -> bool:
    """Every held parameter is trainable."""
    return True


@dataclass(frozen=True, eq=False)
class LocalPlan:
    """What one client trains.

    Args:
        loss: what is minimised.
        optimizer: the rule of a step.
        batch_size: examples in a batch; 0 for all of them at once.
        steps: local steps; 0 to count by `epochs` instead.
        epochs: passes over the data. A last short batch is kept. With no steps and no epochs nothing is trained.
        gradient: changes to the gradient, in order, before the optimiser.
        trainable: which held names move.
        buffers: held names that the loss itself moves, such as running means.
        extra: name -> start value of what is trained beside the held parameters and only the loss knows, such as a
            second model. No name of the model.

    Raises:
        ValueError: a batch size or a number of steps or epochs that is none.
    """

    loss: LossFn
    optimizer: LocalOptimizer
    batch_size: int = 32
    steps: int = 0
    epochs: int = 1
    gradient: Sequence[GradientTerm] = ()
    trainable: Callable[[str], bool] = everything
    buffers: frozenset[str] = frozenset()
    extra: Params = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "epochs"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 0:
                raise ValueError(
                    f"LocalPlan({name}={value!r}): must be a whole number from 0 on, got {value!r}. "
                    "0 steps count by epochs, a batch_size of 0 takes all examples."
                )

    def num_steps(self, examples: int) -> int:
        """Local steps on that many examples."""
        size = min(self.batch_size, examples) if self.batch_size else examples
        return self.steps or self.epochs * max(1, -(-examples // max(1, size)))


class Job(NamedTuple):
    """A plan with what it is run on.

    Args:
        plan: what to train.
        start: the values to start from; not changed.
        data: the examples, ids already numbered within what is held.
        seed: of the batches and of any noise in the loss.
    """

    plan: LocalPlan
    start: Values
    data: Dataset
    seed: int


@register
class Trained(NamedTuple):
    """The result of a job.

    Args:
        change: the values after training minus those before. Those of jobs that were trained together may lie in one
            block of memory, so that one that is to stay for long is copied.
        steps: local steps taken.
        loss: mean training loss over the steps; 0 where there were none.
        seed: of the job, from the runtime on: a node may have been given another meanwhile.
    """

    change: Values
    steps: int
    loss: float
    seed: int | None = None


class Executor(Protocol):
    """Runs jobs, one after another or many at once, with the same result."""

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
        """One result per job, in order; a job that raised gives its exception."""
        ...


@runtime_checkable
class Resident(Protocol):
    """An executor that keeps something from one batch of jobs to the next: processes, a choice.

    A runtime opens it when a run begins, has what it gets run every job, and closes it when the run ends, however
    that comes about. By itself, unopened, `run` is as that of any other executor.
    """

    def run(self, jobs: Sequence[Job]) -> Sequence[Trained | Exception]: ...

    def open(self, notes: dict[str, Any]) -> AbstractContextManager[Executor]:
        """The executor of one run.

        Args:
            notes: what it has to know again when the run is resumed, as the codec takes it; empty in a new run. The
                runtime saves it with everything else, and records it as `executor` when it has changed.
        """
        ...


def opened(executor: Executor, notes: dict[str, Any]) -> AbstractContextManager[Executor]:
    """What runs the jobs of one run: the executor itself, unless it is one to be opened."""
    return executor.open(notes) if isinstance(executor, Resident) else nullcontext(executor)


def ran(executor: Executor, jobs: Sequence[Job]) -> Sequence[Trained | Exception]:
    """What an executor makes of some jobs: one result for each.

    Raises:
        CompositionError: it gives something else, which would be taken for another client's, or for none.
    """
    found: Any = executor.run(jobs)
    results = list(found) if isinstance(found, Iterable) else None
    if results is None or len(results) != len(jobs):
        many = f"a {type(found).__name__}" if results is None else len(results)
        raise _no_results(executor, f"must give one result for each of {len(jobs)} jobs", many)
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, Exception):
            continue
        if not isinstance(result, Trained) or not isinstance(result.loss, int | float):
            kind = f"a {type(result).__name__}"
            kind = f"a loss that is a {type(result.loss).__name__}" if isinstance(result, Trained) else kind
            raise _no_results(executor, "must give a Trained with numbers, or an exception, for each job", kind)
        if result.change.keys() != job.start.keys():
            rule = f"must give the change of all that the job began with, {sorted(job.start)}"
            raise _no_results(executor, rule, sorted(result.change))
    return results


def _no_results(executor: Executor, rule: str, got: object) -> CompositionError:
    return CompositionError(f"{executor!r}: {rule}, got {got}. partwise.testing.check_executor says more.")
