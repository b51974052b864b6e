"""Fed-Influence: how the model would differ without a client, followed round by round instead of trained anew.

Notation: w is the model, w_k what client k makes of it; S is the cohort C without client c; n_k are weights, q_k their
shares in S; e_c is the model without c, less w; J_k = ∂w_k/∂w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from partwise.core.aggregate import sum_updates
from partwise.core.codec import register
from partwise.core.detect import Verdict
from partwise.core.model import Params, Values
from partwise.core.population import Census, Client
from partwise.core.probe import MakeProbe, Probe
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update

__all__ = ["FedInfluence", "InfluenceState", "Jacobian", "diagonal_jacobian", "exact_jacobian", "influence_step"]

Jacobian = Callable[[Values], Values]  # e -> J_k e


def influence_step(
    error: Values, without: Client, updates: Mapping[Client, Update], params: Params, maps: Mapping[Client, Jacobian]
) -> Values:
    """e_c after a round: sum over S of q_k J_k e_c, plus the mean of S less the mean of C. Name -> float64 tensor.

    Args:
        error: e_c before it, float64; zero at first.
        without: c.
        updates: client -> its update, of all in the round; weights are n_k. Submodels: means are over holders.
        params: names, shapes.
        maps: client -> e to J_k e; who is not in it has J_k = 1.

    Source: Xue et al., "Toward understanding the influence of individual clients in federated learning", AAAI 2021,
        arXiv:2012.10936; the recursion in this form is derived, not quoted.
    """
    whole = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in params.items()}
    stay = [client for client in updates if client != without]
    moved = []
    for client in stay:
        through = maps[client](error) if client in maps else error
        moved.append(Update(updates[client].index, updates[client].index.gather(through), updates[client].weight))
    after = {name: t.clone() for name, t in error.items()}
    carried = sum_updates([_double(u) for u in moved], whole)
    carried.index.put_(after, {n: v / carried.weight[n].clamp(min=1e-300) for n, v in carried.value.items()})
    if without in updates:
        for sign, clients in ((1.0, stay), (-1.0, list(updates))):
            total = sum_updates([_double(updates[client]) for client in clients], whole)
            mean = {n: v / total.weight[n].clamp(min=1e-300) for n, v in total.value.items()}
            total.index.scatter_add_(after, mean, sign)
    return after


def _double(update: Update) -> Update:
    return replace(update, value={name: v.double() for name, v in update.values().items()})


def _joined(updates: Sequence[Update], params: Params) -> Update:
    """What one client sent in a commit, as one update: of several, their mean, which counts as much as all."""
    if len(updates) == 1:
        return updates[0]
    total = sum_updates(updates, params)
    value = {n: v / total.weight[n].clamp(min=1e-30).to(v) for n, v in total.value.items()}
    return Update(total.index, value, total.weight)


def exact_jacobian(train: Callable[[Params], Values], start: Params) -> Jacobian:
    """J_k of a local training that is a function of its start, by a derivative in one direction at a time.

    Args:
        train: start -> the values after local training, by the same batches.
        start: where it began.
    """

    def through(error: Values) -> Values:
        names = list(start)

        def flat(*values: Tensor) -> tuple[Tensor, ...]:
            found = train(dict(zip(names, values, strict=True)))
            return tuple(found[name] for name in names)

        at = tuple(start[name] for name in names)
        # By two backward passes; forward mode warns of a deprecated compiler when it is first used.
        moved = torch.autograd.functional.jvp(flat, at, tuple(error[name].to(start[name]) for name in names))[1]
        return {name: v.double() for name, v in zip(names, moved, strict=True)}

    return through


def diagonal_jacobian(curvature: Values, lr: float, steps: int, *, damping: float = 0.0, clip: bool = True) -> Jacobian:
    """(1 - η h)^I in every coordinate: what a client's mean squared gradients h, the diagonal Fisher, say of J_k.

    Args:
        curvature: name -> h >= 0; a client sends it with its update.
        lr: η.
        steps: I.
        damping: added to h.
        clip: whether 1 - η h is kept in -1..1, so that no product explodes.
    """
    factor = {name: 1 - lr * (h.double() + damping) for name, h in curvature.items()}
    if clip:
        factor = {name: f.clamp(-1.0, 1.0) for name, f in factor.items()}
    return lambda error: {name: e * factor[name] ** steps if name in factor else e for name, e in error.items()}


@register
@dataclass
class InfluenceState:
    """errors: client -> e_c. influence: client -> the estimate after the last round."""

    errors: dict[int, Values] = field(default_factory=dict)
    influence: dict[int, float] = field(default_factory=dict)
    rounds: int = 0


@dataclass(frozen=True)
class FedInfluence:
    """Follows what the model would be without some clients, and says how much its loss would be worse.

    Its estimate L(w + e_c) - L(w) is positive for a client that helps. The server sees updates alone, so J_k = 1: what
    a client contributed is added up and not carried through the others' training. `influence_step` with their Jacobians
    is exact for a quadratic loss; those need what only clients have.

    Args:
        audited: the clients that are followed; each costs memory of a model.
        harmful_below: an estimate below this makes a client `harmful`; None for never.
        start: the first round, from 1, in which it says so.
        examples: of the server's, in its loss; 0 for all.
        probe: the server's loss; an experiment with trusted examples gives it.

    Source: Xue et al., "Toward understanding the influence of individual clients in federated learning", AAAI 2021,
        arXiv:2012.10936.
    """

    audited: tuple[int, ...]
    harmful_below: float | None = None
    start: int = 3
    examples: int = 0
    probe: Probe | None = field(default=None, repr=False, compare=False)

    def init(self, params: Params, census: Census) -> InfluenceState:
        zero = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in params.items()}
        return InfluenceState({c: {n: t.clone() for n, t in zero.items()} for c in self.audited})

    def judge(
        self, updates: Sequence[Update], replies: Sequence[ReplyInfo], state: InfluenceState, params: Params
    ) -> tuple[Sequence[Verdict], InfluenceState]:
        if self.probe is None:
            raise ValueError(
                f"{self!r}: needs a loss that the server can compute, got none. Give the experiment trusted examples."
            )
        each: dict[Client, list[Update]] = {}
        for reply, update in zip(replies, updates, strict=True):
            each.setdefault(reply.client, []).append(update)
        sent = {client: _joined(own, params) for client, own in each.items()}
        errors = {c: influence_step(e, c, sent, params, {}) for c, e in state.errors.items()}
        after = {name: t.clone() for name, t in params.items()}
        total = sum_updates(updates, params)  # what a mean makes of the round: the aggregator comes later
        total.index.scatter_add_(after, {n: v / total.weight[n].clamp(min=1e-30).to(v) for n, v in total.value.items()})
        base, found = self.probe.loss(after, 0), {}
        for client, error in errors.items():
            found[client] = self.probe.loss({n: t + error[n].to(t) for n, t in after.items()}, 0) - base
        now = InfluenceState(errors, found, state.rounds + 1)
        return self._verdicts(now, sent), now

    def _verdicts(self, state: InfluenceState, sent: Mapping[Client, Any]) -> list[Verdict]:
        if self.harmful_below is None or state.rounds < self.start:
            return []
        return [
            Verdict(c, "harmful", f"influence {value:.4g} on the loss", True, True)
            for c, value in sorted(state.influence.items())
            if value < self.harmful_below and c in sent
        ]

    def probed(self, make: MakeProbe) -> FedInfluence:
        """The same with a probe."""
        return replace(self, probe=make(self.examples))
