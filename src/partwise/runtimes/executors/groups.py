"""Which jobs can be trained together, and what stands in the way of the others.

Shapes: C clients in a chunk, A of them not finished yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, cast
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from partwise.core.model import Model, Params, Values
from partwise.core.plan import GradientTerm, Job, LossFn, ModelLoss
from partwise.core.population import Examples
from partwise.core.update import wide
from partwise.local import SGD, AdamW, ClipGradient, Decay, Proximal, Rescaled, Shift, Times

__all__ = [
    "Terms",
    "Unit",
    "are_alike",
    "layout_of",
    "narrowed",
    "stacked",
    "stacked_terms",
    "trainable_names",
    "unit_of",
]

Terms = Callable[[int], Sequence[GradientTerm]]


class Unit(NamedTuple):
    """What the jobs of a group have in common.

    Args:
        key: equal for jobs that can be trained together.
        kind: equal for jobs of which one trial says how they can be trained.
        loss: what is minimised.
        model: whose losses are minimised; None for a loss that is known as a function only.
        factors: parameter -> what it is multiplied by in the loss.
        ragged: names of tables, of which every client may hold another number of rows.
        names: what moves.
        is_plain: the update is plain SGD on the gradient of the loss.
    """

    key: Hashable
    kind: Hashable
    loss: LossFn
    model: Model | None
    factors: Mapping[str, float]
    ragged: frozenset[str]
    names: tuple[str, ...]
    is_plain: bool


def trainable_names(job: Job) -> tuple[str, ...]:
    """What moves, in the order of the held values."""
    plan = job.plan
    return tuple(
        n for n, t in job.start.items() if plan.trainable(n) and n not in plan.buffers and t.is_floating_point()
    )


def layout_of(job: Job, tables: Collection[str]) -> Hashable:
    """Names, shapes, types and device of what a job holds and of its `Examples`, but for how many rows there are."""
    values = tuple((n, tuple(t.shape[1:] if n in tables else t.shape), t.dtype) for n, t in job.start.items())
    return values, cast(Examples, job.data).kinds(), str(next(iter(job.start.values())).device)


def unit_of(job: Job) -> Unit | str:
    """The group of a job, or what stands in the way of any."""
    plan, names = job.plan, trainable_names(job)
    obstacle = _obstacle(job, names)
    if obstacle:
        return obstacle
    model, factors, loss_key = _model_of(plan.loss)
    ragged = frozenset(model.tables) & job.start.keys() if model is not None else frozenset()
    terms = tuple(_term_key(term) for term in plan.gradient)
    # A loss that is known as a function only takes whole batches, so they must have equal lengths.
    pace = () if model is not None else (plan.batch_size, plan.num_steps(len(job.data)), len(job.data))
    kind = (loss_key, layout_of(job, ragged), names)
    rule = plan.optimizer
    is_plain = isinstance(rule, SGD) and not rule.momentum and not rule.weight_decay and not plan.gradient
    return Unit((kind, plan.optimizer, terms, pace), kind, plan.loss, model, factors, ragged, names, is_plain)


def are_alike(one: Job, other: Job) -> bool:
    """Whether two jobs are of one unit, as far as that can be told at a glance: the clients of a round mostly are."""
    p, q = one.plan, other.plan
    if type(p.loss) is not ModelLoss or type(q.loss) is not ModelLoss or p.loss.model is not q.loss.model:
        return False
    if p.gradient or (
        p is not q
        and (q.gradient or p.trainable is not q.trainable or p.buffers != q.buffers or p.optimizer != q.optimizer)
    ):
        return False
    if one.start.keys() != other.start.keys() or not (q.steps or q.epochs):
        return False
    tables, start = p.loss.model.tables, one.start
    for name, t in other.start.items():  # a loop: this is asked for every client
        first = start[name]
        if first is not t and not _is_alike(first, t, name in tables):
            return False
    a, b = one.data, other.data
    if not isinstance(a, Examples) or not isinstance(b, Examples) or not len(a) or not len(b):
        return False
    return a.place()[0] is b.place()[0] or a.kinds() == b.kinds()


def _is_alike(one: Tensor, other: Tensor, is_table: bool) -> bool:
    shapes = (one.shape[1:], other.shape[1:]) if is_table else (one.shape, other.shape)
    return one.dtype is other.dtype and shapes[0] == shapes[1] and one.device == other.device


def _obstacle(job: Job, names: Sequence[str]) -> str:
    plan = job.plan
    if type(plan.optimizer) not in (SGD, AdamW):
        return f"the optimiser {type(plan.optimizer).__name__} is not known to work entry by entry"
    known = (Proximal, Shift, Times, Decay, ClipGradient)
    unknown = [type(term).__name__ for term in plan.gradient if type(term) not in known]
    if unknown:
        return f"the gradient term {unknown[0]} is not known for many clients"
    if plan.buffers and plan.buffers & job.start.keys():
        return "the model has buffers, which move in the forward pass"
    if not isinstance(job.data, Examples) or not len(job.data):
        return "its data are not columns in memory"
    values = list(job.start.values())
    if not values or any(t.dtype not in (torch.float32, torch.float64) for t in values):
        return "it holds something else than 32-bit or 64-bit numbers"
    if not names:
        return "nothing is trainable"
    if not (plan.steps or plan.epochs):
        return "no step is to be taken"
    return ""


def _model_of(loss: LossFn) -> tuple[Model | None, Mapping[str, float], Hashable]:
    """The model whose losses are averaged, the factors on its parameters, and what makes two such losses equal.

    That keeps no model alive, for it is remembered from run to run.
    """
    if type(loss) is ModelLoss:
        return loss.model, {}, ref(loss.model)
    if type(loss) is Rescaled:
        model, inner, _ = _model_of(loss.loss)
        if model is not None:
            factors = dict(inner)
            for name, factor in loss.factors.items():
                factors[name] = factors.get(name, 1.0) * factor
            return model, factors, (ref(model), tuple(sorted(factors.items())))
    try:
        hash(loss)
    except TypeError:
        return None, {}, id(loss)
    return None, {}, cast(Hashable, loss)


def _term_key(term: GradientTerm) -> Hashable:
    match term:
        case Proximal(mu, anchor):
            return "Proximal", mu, tuple(sorted(anchor))
        case Shift(by):
            return "Shift", tuple(sorted(by))
        case Times():
            return "Times"
        case _:
            return cast(Hashable, term)


def stacked(values: Sequence[Params], rows: Mapping[str, int]) -> Values:
    """Name -> (C, ...), not to be written to: tensors that all have in common are not copied.

    The tables in `rows` get that many rows each, the last of them 0 where a client has fewer.
    """
    found: Values = {}
    for name, first in values[0].items():
        if all(v[name] is first for v in values):
            found[name] = first.detach().expand(len(values), *first.shape)
            continue
        tensors = [v[name].detach() for v in values]
        if name not in rows or all(t.shape[0] == rows[name] for t in tensors):
            found[name] = torch.stack(tensors)
        else:
            found[name] = _ragged(name, tensors, rows[name])
    return found


def _ragged(name: str, tensors: Sequence[Tensor], rows: int) -> Tensor:
    first = tensors[0]
    if any(t.shape[1:] != first.shape[1:] or len(t) > rows for t in tensors):
        raise ValueError(f"stacked({name!r}): rows must be alike, got {[tuple(t.shape) for t in tensors]}. Split.")
    lengths = np.array([len(t) for t in tensors])
    # Where each row of all clients' tables, one after another, lies among those of the padded ones.
    at = np.arange(lengths.sum()) + np.repeat(
        np.arange(0, len(tensors) * rows, rows) - np.cumsum(lengths) + lengths, lengths
    )
    table = first.new_zeros(len(tensors) * rows, *first.shape[1:])
    table.index_copy_(0, torch.from_numpy(at).to(first.device), torch.cat(list(tensors)))
    return table.view(len(tensors), rows, *first.shape[1:])


def stacked_terms(jobs: Sequence[Job], rows: Mapping[str, int]) -> Terms:
    """The jobs' gradient terms for the first A of them, with their tensors stacked."""
    columns = list(zip(*(job.plan.gradient for job in jobs), strict=True))
    built: list[Any] = []
    for terms in columns:
        if isinstance(terms[0], ClipGradient | Decay):
            built.append(terms[0])
        elif isinstance(terms[0], Times):
            built.append((terms[0], stacked([{"factor": term.factor} for term in terms], {})))
        else:
            held = [term.anchor if isinstance(term, Proximal) else term.by for term in terms]
            built.append((terms[0], stacked(held, rows)))

    def narrow(active: int) -> Sequence[GradientTerm]:
        found: list[GradientTerm] = []
        for term in built:
            if isinstance(term, ClipGradient):
                found.append(_clip(term.max_norm))
            elif isinstance(term, Decay):
                found.append(term)
            else:
                own = {n: t[:active] for n, t in term[1].items()}
                if isinstance(term[0], Times):
                    found.append(_times(own["factor"]))
                else:
                    found.append(Proximal(term[0].mu, own) if isinstance(term[0], Proximal) else Shift(own))
        return found

    return narrow


def _times(factor: Tensor) -> GradientTerm:
    """`Times` with one factor per client, (A,)."""

    def term(params: Params, grads: Values, step: int) -> Values:
        return {n: g * factor.to(g).reshape(-1, *[1] * (g.dim() - 1)) for n, g in grads.items()}

    return term


def _clip(max_norm: float) -> GradientTerm:
    """`ClipGradient` with one norm per client."""

    def term(params: Params, grads: Values, step: int) -> Values:
        norms = [torch.linalg.vector_norm(wide(g).reshape(len(g), -1), dim=1) for g in grads.values()]
        total = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # (A,)
        factor = (max_norm / (total + 1e-12)).clamp(max=1.0)
        return {n: (wide(g) * factor.reshape(-1, *[1] * (g.dim() - 1))).to(g.dtype) for n, g in grads.items()}

    return term


def narrowed(state: Any, active: int) -> Any:
    """An optimiser's state for the first A clients; tensors in it have the clients first."""
    if isinstance(state, Tensor):
        return state[:active]
    if isinstance(state, dict):
        return {key: narrowed(value, active) for key, value in state.items()}
    return tuple(narrowed(value, active) for value in state) if isinstance(state, tuple) else state
