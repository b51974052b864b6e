"""Rules that judge updates on examples that the server itself holds: they need no honest majority.

Shapes and notation: m updates u_i, to be added to the model x; f_r is the loss on the server's examples; d coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from partwise.aggregators.columns import finite, mean_of, num_held, reduce_columns
from partwise.aggregators.krum import ranked
from partwise.core.aggregate import Sum
from partwise.core.codec import register
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.probe import MakeProbe, Probe
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, map_values, norm

__all__ = ["Zeno", "ZenoPlusPlus", "ZenoState"]


def _missing(part: object) -> ValueError:
    return ValueError(
        f"{part!r}: judges updates on examples that the server holds, got none. Give the experiment trusted examples, "
        "Trusted(examples=100) say, or the part a probe."
    )


@dataclass(frozen=True)
class Zeno:
    """The mean of the m - f updates that lower the server's own loss most, with a penalty for their size.

    score(u) = f_r(x) - f_r(x + γ u) - ρ ‖u‖²; all updates of a round are tried on the same examples, which are drawn
    anew in every round. Of a submodel, what is not held stays as it is; its score is divided by the share of the
    model that it holds, so that holding little is no fault. Works while one client is honest and no more than f are
    not. What is selected is averaged per coordinate over its holders.

    Args:
        f: how many are left out, >= 0; needs m > f.
        rho: ρ, the penalty, >= 0.
        rate: γ, how far the trial goes; 1 tries the updates as they would be added.
        examples: in the server's draw of a round, >= 1; 0 for all it has.
        penalty: `mean` divides ‖u‖² by the number of coordinates held, as the released code does; `sum` is the
            paper's.
        probe: the server's loss; an experiment with trusted examples gives it.

    Source: Xie, Koyejo, Gupta, "Zeno: distributed stochastic gradient descent with suspicion-based fault-tolerance",
        ICML 2019, arXiv:1805.10032, definition 2 and §4.
    Differs: submodels; updates are changes of the model, not gradients.

    Example:
        >>> from partwise.testing.examples import example_probe
        >>> from partwise.core.index import Whole
        >>> updates = [Update(Whole({"w": (1,)}), {"w": torch.tensor([x])}) for x in (-1.0, -0.5, 3.0)]
        >>> Zeno(f=2, probe=example_probe()).reduce(updates, 0, {"w": torch.ones(1)})[0].value["w"]
        tensor([-1.])
    """

    f: int
    rho: float = 0.0005
    rate: float = 1.0
    examples: int = 128
    penalty: Literal["mean", "sum"] = "mean"
    probe: Probe | None = field(default=None, repr=False, compare=False)
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        for name in ("f", "rho", "examples"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"Zeno({name}={value}): must be finite and at least 0, got {value}. Raise it.")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"Zeno(rate={self.rate}): must be finite and above 0, got {self.rate}. 1 is usual.")
        if self.penalty not in ("mean", "sum"):
            raise ValueError(f"Zeno(penalty={self.penalty!r}): must be 'mean' or 'sum'. Choose one.")

    def init(self, params: Params, census: Census) -> int:
        """The number of the next draw."""
        return 0

    def reduce(
        self, got: Sum | Sequence[Update], state: int, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, int]:
        assert not isinstance(got, Sum)
        if len(got) <= self.f:
            raise ValueError(
                f"Zeno(f={self.f}): needs more than f = {self.f} updates, got {len(got)}. "
                "Lower f or ask a larger cohort."
            )
        updates = finite(got, self.f, self)
        scores = -torch.tensor(self.scores(updates, params, state), dtype=torch.float64)
        chosen = [updates[i] for i in ranked(scores, updates)[: len(got) - self.f]]
        return reduce_columns(chosen, params, mean_of, least=1), state + 1

    def scores(self, updates: Sequence[Update], params: Params, number: int) -> list[float]:
        """The score of each update on draw `number`; minus infinity where the trial's loss is not finite."""
        if self.probe is None:
            raise _missing(self)
        before, found = self.probe.loss(params, number), []
        size = sum(t.numel() for t in params.values())
        for update in updates:
            trial = {n: t.clone() if n in update.index.shapes else t for n, t in params.items()}
            update.index.scatter_add_(trial, update.values(), self.rate)
            held = max(1, num_held(update))
            penalty = self.rho * norm(update) ** 2 / (held if self.penalty == "mean" else 1)
            score = before - self.probe.loss(trial, number) - penalty
            found.append(score * size / held if math.isfinite(score) else -math.inf)
        return found

    def probed(self, make: MakeProbe) -> Zeno:
        """The same with a probe."""
        return replace(self, probe=make(self.examples))


@register
@dataclass
class ZenoState:
    """What `ZenoPlusPlus` keeps.

    Args:
        gradient: v, of the server's loss at an earlier model; empty before the first.
        age: updates judged by it.
        draws: gradients computed.
        accepted: updates accepted so far.
        judged: updates judged so far.
    """

    gradient: Values
    age: int = 0
    draws: int = 0
    accepted: int = 0
    judged: int = 0


@dataclass(frozen=True)
class ZenoPlusPlus:
    """Each update is cut to the length of the server's own gradient, and taken if it points along with it.

    With v the gradient of the server's loss and g = -u: g~ = (‖v‖ / ‖g‖) g is accepted iff γ <v, g~> - ρ ‖g~‖² + γ ε
    >= 0, and x moves by -γ g~. Each is judged by itself: it is for servers that commit every reply as it comes. Steps
    of the server's length cost on MNIST, without any hostile client, 8 points of accuracy, for in one of five seeds
    it did not get far, and 5 and 11 where each client holds half or a quarter of the units. Of several in one commit,
    the accepted are averaged per coordinate. v is computed anew after `delay` updates. Over a submodel, v is what it
    holds of it.

    Args:
        rate: γ, > 0, the length of a step in units of ‖v‖.
        rho: ρ, the penalty, >= 0.
        epsilon: ε, how much worse than nothing is still accepted.
        delay: k, updates judged by one v, >= 1.
        examples: in the server's draw, >= 1; 0 for all it has.
        probe: the server's loss; an experiment with trusted examples gives it.

    Source: Xie, Koyejo, Gupta, "Zeno++: robust fully asynchronous SGD", ICML 2020, arXiv:1903.07020, algorithm 1.
    Differs: submodels. The released code penalises the raw length, so that it depends on the scale of what is sent.

    Example:
        >>> from partwise.testing.examples import example_probe
        >>> from partwise.core.index import Whole
        >>> update = Update(Whole({"w": (2,)}), {"w": torch.tensor([-6.0, -8.0])})
        >>> part, params = ZenoPlusPlus(rate=0.1, probe=example_probe()), {"w": torch.tensor([3.0, 4.0])}
        >>> part.reduce([update], part.init(params, Census(1)), params)[0].value["w"]
        tensor([-0.3000, -0.4000])
    """

    rate: float = 0.1
    rho: float = 0.001
    epsilon: float = 0.0
    delay: int = 10
    examples: int = 128
    probe: Probe | None = field(default=None, repr=False, compare=False)
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ValueError(
                f"ZenoPlusPlus(rate={self.rate}): must be finite and above 0, got {self.rate}. 0.1 is usual."
            )
        for name, least in (("rho", 0), ("epsilon", 0), ("delay", 1), ("examples", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(
                    f"ZenoPlusPlus({name}={value}): must be finite and at least {least}, got {value}. Raise it."
                )

    def init(self, params: Params, census: Census) -> ZenoState:
        return ZenoState({})

    def reduce(
        self, got: Sum | Sequence[Update], state: ZenoState, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, ZenoState]:
        assert not isinstance(got, Sum)
        if self.probe is None:
            raise _missing(self)
        steps = []
        for update in finite(got, len(got), self):
            if not state.gradient or state.age >= self.delay:
                state = replace(state, gradient=self.probe.gradient(params, state.draws), age=0, draws=state.draws + 1)
            step = self._step(update, state.gradient)
            state = replace(state, age=state.age + 1, judged=state.judged + 1)
            if step is not None:
                state = replace(state, accepted=state.accepted + 1)
                steps.append(step)
        return reduce_columns(steps, params, mean_of, least=1), state

    def _step(self, update: Update, gradient: Values) -> Update | None:
        """-γ g~, or nothing where it is not accepted."""
        own = Update(update.index, update.index.gather(gradient))
        length, target = norm(update), norm(own)
        if length == 0 or target == 0:
            return None
        values, other = update.values(), own.values()
        cross = sum(float(torch.dot(v.reshape(-1).double(), other[n].reshape(-1).double())) for n, v in values.items())
        along = -cross * target / length  # <v, g~>
        if self.rate * along - self.rho * target**2 + self.rate * self.epsilon < 0:
            return None
        factor = self.rate * target / length  # of a tiny update it may be no float32
        return map_values(update, lambda v: (v.double() * factor).to(v))

    def probed(self, make: MakeProbe) -> ZenoPlusPlus:
        """The same with a probe."""
        return replace(self, probe=make(self.examples))
