"""Noise for sums over rounds, kept in a binary tree: what the model carries grows with the log of the rounds.

Notation: round t is leaf t of a tree; a node of l levels covers 2^(l-1) leaves. h is a node's noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from partwise.core.limits import Limit
from partwise.core.model import Params, Values
from partwise.core.randomness import Randomness, SimulatedRandomness
from partwise.core.rng import Rng
from partwise.core.transform import State
from partwise.core.update import Update
from partwise.transforms.noise import added, check_noise_fields, dense, layout, whole

__all__ = ["TreeNoise", "node_variance"]


def node_variance(levels: int) -> float:
    """Of the best estimate of a node from its own noisy sum and those below it: 1 / (2 (1 - 2^-l)).

    Example:
        >>> [round(node_variance(l), 4) for l in range(1, 6)]
        [1.0, 0.6667, 0.5714, 0.5333, 0.5161]
    """
    return 1 / (2 * (1 - 2.0**-levels))


@dataclass(frozen=True)
class TreeNoise:
    """value_t + z S (N_t - N_{t-1}): the sum of the first t values carries the noise N_t of the tree's nodes.

    N_t is the sum of h over the nodes of the binary expansion of t, so that after t rounds the model carries the noise
    of at most log2(t) + 1 nodes and not of t rounds. In return one client's update is in as many nodes. It needs
    nothing of how clients are drawn.

    Args:
        noise_multiplier: z, standard deviation of a node's noise over S, >= 0.
        sensitivity: S, how far one client can move one value, > 0: behind `Clip(C)` and `FixedMean(cohort)`,
            C / cohort.
        restart_every: rounds after which a new tree begins, 0 for never. The old one is completed as if rounds without
            anybody followed, which leaves the noise of its root alone.
        efficient: estimate each node from all noise below it as well, which halves the variance.
        randomness: where the noise comes from. The default protects nothing.

    Source: Kairouz et al., "Practical and private (deep) learning without sampling or shuffling", ICML 2021,
        arXiv:2103.00039, algorithm 1 and appendix B; Honaker, "Efficient use of differentially private binary trees",
        TPDP 2015.
    Differs: the noise is given out as the difference of prefixes, so that any server optimiser may follow.
    """

    noise_multiplier: float
    sensitivity: float
    restart_every: int = 0
    efficient: bool = True
    randomness: Randomness = field(default_factory=SimulatedRandomness)

    def __post_init__(self) -> None:
        check_noise_fields(self)
        if self.restart_every < 0:
            raise ValueError(
                f"TreeNoise(restart_every={self.restart_every}): must be at least 0, got {self.restart_every}. "
                "0 keeps one tree."
            )

    def limited(self, before: Limit) -> Limit:
        return Limit(math.inf if self.noise_multiplier else before.norm, 1.0)

    def init(self, params: Params) -> State:
        """to: names and shapes. step: leaves of the open tree. nodes: [levels, noise] of its complete nodes.

        before: what they came to, name -> tensor.
        """
        return {"to": layout(params), "step": 0, "nodes": [], "before": {}}

    def apply(self, update: Update, state: State, rng: Rng) -> tuple[Update, State]:
        value = dense(update, state["to"])
        shapes = {name: v.shape for name, v in value.items()}

        def drawn(variance: float = 1.0) -> Values:
            return {n: self.randomness.normal(s, rng).mul_(math.sqrt(variance)) for n, s in shapes.items()}

        nodes: list[tuple[int, Values]] = [(levels, noise) for levels, noise in state["nodes"]]
        nodes.append((1, drawn()))
        while len(nodes) > 1 and nodes[-1][0] == nodes[-2][0]:
            self._join_(nodes, drawn())
        step = state["step"] + 1
        is_last = step == self.restart_every
        while is_last and len(nodes) > 1:  # nothing else hangs on what nobody was in: it is drawn as a whole
            levels = nodes[-1][0]
            if nodes[-2][0] != levels:
                nodes.append((levels, drawn(node_variance(levels) if self.efficient else 1.0)))
            self._join_(nodes, drawn())
        total = {n: _sum([noise[n] for _, noise in nodes]) for n in shapes}
        before, std = state["before"], self.noise_multiplier * self.sensitivity
        fresh = {n: t if n not in before else t - before[n].to(t.device) for n, t in total.items()}
        sent = whole({n: added(v, fresh[n], std) for n, v in value.items()})
        if is_last:
            return sent, {"to": state["to"], "step": 0, "nodes": [], "before": {}}
        return sent, {"to": state["to"], "step": step, "nodes": [list(n) for n in nodes], "before": total}

    def _join_(self, nodes: list[tuple[int, Values]], own: Values) -> None:
        """Replace the last two nodes by the one above them, which has noise of its own."""
        (levels, left), (_, right) = nodes[-2:]
        below = 2 * node_variance(levels)
        share = below / (1 + below) if self.efficient else 1.0
        joined = {n: own[n].mul_(share).add_(left[n] + right[n], alpha=1 - share) for n in own}
        nodes[-2:] = [(levels + 1, joined)]


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total
