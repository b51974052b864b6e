"""Training a chunk of clients together, and finding out how.

Shapes: C clients in a chunk, A of them not finished yet, T local steps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from partwise.core.model import Model, Values
from partwise.core.plan import Job, Trained
from partwise.core.population import Batch
from partwise.core.scratch import Scratch
from partwise.runtimes.executors.engines import Folded, Vmapped, check_ids, of_function, of_model
from partwise.runtimes.executors.factors import Factors, pays
from partwise.runtimes.executors.feed import Feed
from partwise.runtimes.executors.folded import BetterAloneError, UnstackableError
from partwise.runtimes.executors.groups import Unit, narrowed, stacked, stacked_terms
from partwise.runtimes.executors.plain import Plain
from partwise.runtimes.executors.tape import Tape, Taped, recorded
from partwise.runtimes.executors.trial import are_near, perturbed

__all__ = ["FAILURES", "Together", "Way", "train", "way_of"]

_log = logging.getLogger("partwise")

FAILURES = (
    ValueError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    UnstackableError,
    BetterAloneError,
)


class Way(NamedTuple):
    """How a group is trained, and why no faster way was taken.

    Args:
        name: of the way.
        why: no faster one was taken.
        linear: name of a weight that one linear map uses, and nothing else -> rows that it has of each example.
        tape: of the model, if all that it does has a known gradient.
    """

    name: Literal["folded", "vmap", "alone"]
    why: str = ""
    linear: Mapping[str, int] = MappingProxyType({})
    tape: Tape | None = None

    def factored(self, unit: Unit, job: Job) -> dict[str, int]:
        """What may be kept as factors, where only a sum is wanted -> rows of each client in a step."""
        if not unit.is_plain or unit.factors:
            return {}
        examples = len(job.data)
        width, steps = min(job.plan.batch_size or examples, examples), job.plan.num_steps(examples)
        rows = {name: many * width for name, many in self.linear.items() if job.start[name].dim() == 2}
        return {name: many for name, many in rows.items() if pays(job.start[name].shape, many, steps)}


class _Chunk(NamedTuple):
    """Jobs whose values are stacked.

    Args:
        jobs: most steps first.
        steps: of each.
        start: name -> (C, ...), not to be written to.
        rows: table -> rows in `start`; a client with fewer has zeros behind them.
        num_rows: table -> how many rows each client has, (C,).
    """

    jobs: Sequence[Job]
    steps: Sequence[int]
    start: Values
    rows: dict[str, int]
    num_rows: dict[str, Tensor]


def _chunk(unit: Unit, jobs: Sequence[Job], steps: Sequence[int]) -> _Chunk:
    device = next(iter(jobs[0].start.values())).device
    lengths = {n: [job.start[n].shape[0] for job in jobs] for n in unit.ragged}
    rows = {n: max(found) for n, found in lengths.items()}
    num_rows = {n: torch.tensor(found, device=device) for n, found in lengths.items()}
    return _Chunk(jobs, steps, stacked([job.start for job in jobs], rows), rows, num_rows)


_Engine = Folded | Taped | Vmapped


def _engine(
    unit: Unit, way: Way, num_rows: dict[str, Tensor], kept: Mapping[str, Factors] = MappingProxyType({})
) -> _Engine:
    if unit.model is None:
        return Vmapped(of_function(unit.loss), unit.names, num_rows)
    if way.name == "vmap":
        return Vmapped(of_model(unit.model, unit.factors), unit.names, num_rows)
    if way.tape is not None:
        return Taped(way.tape, unit.factors, unit.names, num_rows, kept)
    return Folded(unit.model, unit.factors, unit.names, num_rows, kept)


class Together(NamedTuple):
    """The results of jobs of one group, stacked.

    Args:
        order: number of each job, most steps first.
        steps: of each, in that order.
        losses: of each, in that order: mean over its steps.
        changes: name -> (C, ...), in that order; they lie in the scratch, or are factors.
        rows: table -> rows in `changes`; of a client with fewer, the first ones count.
    """

    order: Sequence[int]
    steps: Sequence[int]
    losses: Sequence[float]
    changes: Mapping[str, Tensor | Factors]
    rows: Mapping[str, int]

    def each(self, jobs: Sequence[Job]) -> list[Trained]:
        """One by one, in the order of the jobs."""
        found: list[Trained | None] = [None] * len(jobs)
        changes = {name: (t if isinstance(t, Tensor) else t.changes()).unbind() for name, t in self.changes.items()}
        for c, i in enumerate(self.order):
            own = {n: t[c][: len(jobs[i].start[n])] if n in self.rows else t[c] for n, t in changes.items()}
            found[i] = Trained(own, self.steps[c], self.losses[c])
        return cast(list[Trained], found)


def train(unit: Unit, jobs: Sequence[Job], way: Way, scratch: Scratch, *, is_summed: bool = False) -> Together:
    """Train jobs of one group.

    Args:
        unit: what they have in common.
        jobs: the jobs.
        way: how.
        scratch: where the changes lie.
        is_summed: whether the sum of the changes is all that is wanted of them.

    Raises:
        IndexError: an id outside the rows of its client.
    """
    steps = [job.plan.num_steps(len(job.data)) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda i: -steps[i])
    chunk = _chunk(unit, [jobs[i] for i in order], sorted(steps, reverse=True))
    kept = _kept(unit, chunk, way) if is_summed else {}
    engine = _engine(unit, way, chunk.num_rows, kept)
    own = scratch.empty({name: t for name, t in chunk.start.items() if name not in kept})
    values = {name: own[name].copy_(t) if name in own else t for name, t in chunk.start.items()}
    losses = _loop(unit, chunk, values, engine)
    check_ids(engine.bad)
    means = [total / many for total, many in zip(losses.sum(0).tolist(), chunk.steps, strict=True)]
    changes = {name: kept[name] if name in kept else t.sub_(chunk.start[name]) for name, t in values.items()}
    return Together(order, chunk.steps, means, changes, chunk.rows)


def _kept(unit: Unit, chunk: _Chunk, way: Way) -> dict[str, Factors]:
    """What these jobs keep as factors: it costs little, and all begin with the same."""
    first = chunk.jobs[0]
    lr, clients = first.plan.optimizer.lr, len(chunk.jobs)
    names = [n for n in way.factored(unit, first) if all(job.start[n] is first.start[n] for job in chunk.jobs)]
    rate = lr if way.tape is None else -1.0  # a tape's gradients have been multiplied by it
    return {name: Factors(first.start[name].detach(), rate, clients) for name in names}


def _loop(unit: Unit, chunk: _Chunk, values: Values, engine: _Engine) -> Tensor:
    """Train the values in place; the losses, (T, C) float64, 0 where a client has finished."""
    rule = chunk.jobs[0].plan.optimizer
    like = next(iter(values.values()))
    feed = Feed(chunk.jobs, chunk.steps, like, is_kept=isinstance(engine, Taped))
    terms_of = stacked_terms(chunk.jobs, chunk.rows)
    lr = rule.lr if unit.is_plain else 0.0
    state = None if lr else rule.init({n: values[n] for n in unit.names})
    losses = like.new_zeros(chunk.steps[0], len(chunk.jobs), dtype=torch.float64)
    active, held, terms = 0, values, terms_of(0)
    for step in range(len(losses)):
        if feed.active(step) != active:
            active = feed.active(step)
            held = {n: t[:active] for n, t in values.items()}
            state, terms = narrowed(state, active), terms_of(active)
        batch, shares = feed.batch(step)
        losses[step, :active], grads = engine(held, batch, shares, lr)
        if grads is not None:
            with torch.no_grad():
                for term in terms:
                    grads = term(held, grads, step)
                state = rule.step_(held, grads, state)
    return losses


# Which way


def way_of(unit: Unit, jobs: Sequence[Job]) -> tuple[Way, bool]:
    """The fastest way that is right, and whether that will hold for other jobs of the same kind.

    Each is tried on two clients whose parameters and data differ. A tape is compared with autograd on one client after
    the other; folding with vmap, which keeps clients apart by construction, and refuses what it cannot.
    """
    two = [perturbed(jobs[0], 1), perturbed(jobs[-1], 2)]
    taped = _taped(unit, two)
    if taped is not None:
        return taped, True
    folded, why = None, "its loss is known as a function only"
    linear: Mapping[str, int] = {}
    try:
        if unit.model is not None:
            folded, linear = _step(unit, two, Way("folded"))
    except BetterAloneError as error:
        return Way("alone", str(error)), True
    except FAILURES as error:
        why = _first_line(error)
    try:
        mapped, _ = _step(unit, two, Way("vmap"))
    except FAILURES as error:
        is_sound = not any(isinstance(result, Exception) for result in Plain().run(two))
        return Way("alone", f"torch.func.vmap refuses it: {_first_line(error)}"), is_sound
    if folded is None:
        return Way("vmap", why), True
    if not _are_close(folded, mapped):
        return Way("vmap", "an example's loss depends on the other examples of its batch"), True
    return Way("folded", linear=linear), True


def _taped(unit: Unit, jobs: Sequence[Job]) -> Way | None:
    """By a tape, if the gradient of all that the model does is known, and comes to what autograd finds."""
    if unit.model is None:
        return None
    try:
        way = Way("folded", tape=recorded(unit.model, jobs[0].start, jobs[0].data.columns(), unit.names))
        found, linear = _step(unit, jobs, way)
        expected = _one_by_one(unit, unit.model, jobs)
    except FAILURES as error:
        _log.info("stacked: not without autograd: %s", _first_line(error))
        return None
    return way._replace(linear=linear) if _are_close(found, expected) else None


def _one_by_one(unit: Unit, model: Model, jobs: Sequence[Job]) -> list[Tensor]:
    """Losses and gradients of one step, by autograd, one client after the other."""
    chunk, batch, shares = _first_step(unit, jobs)
    loss_of, found = of_model(model, unit.factors), list[Sequence[Tensor]]()
    for c, own in enumerate(shares):
        params = {n: t[c].clone().requires_grad_(n in unit.names) for n, t in chunk.start.items()}
        leaves = [params[n] for n in unit.names]
        loss = loss_of(params, {n: t.view(*shares.shape, *t.shape[1:])[c] for n, t in batch.items()}, own)
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found.append(
            [loss.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True))]
        )
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _first_step(unit: Unit, jobs: Sequence[Job]) -> tuple[_Chunk, Batch, Tensor]:
    """The jobs' values, and their first batch with the examples' shares."""
    chunk = _chunk(unit, jobs, [1] * len(jobs))
    return chunk, *Feed(jobs, chunk.steps, next(iter(chunk.start.values()))).batch(0)


def _step(unit: Unit, jobs: Sequence[Job], way: Way) -> tuple[list[Tensor], Mapping[str, int]]:
    """Losses and gradients of one step; and what is used by one linear map, where that is known."""
    chunk, batch, shares = _first_step(unit, jobs)
    engine = _engine(unit, way, chunk.num_rows)
    losses, grads = engine(chunk.start, batch, shares, 0.0)
    assert grads is not None
    return [losses, *grads.values()], engine.linear if isinstance(engine, Folded | Taped) else {}


def _are_close(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether losses, and gradients, are equal up to rounding.

    That is measured by the largest entry of all: a gradient that should be 0 is nothing but rounding.
    """
    return are_near(ones[:1], others[:1]) and are_near(ones[1:], others[1:])
