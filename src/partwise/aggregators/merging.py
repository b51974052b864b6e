"""Defence-aware merging: weights of clients and a mask of coordinates, found on unlabelled examples of the server.

Shapes and notation: n updates Δ_i; λ (n,) their weights; M a mask of every tensor's shape; b examples in a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from partwise.aggregators.columns import finite, mean_of, reduce_columns
from partwise.core.aggregate import Coverage, Sum
from partwise.core.errors import CompositionError
from partwise.core.model import Params, Values
from partwise.core.population import Census
from partwise.core.probe import MakeProbe, Predictor
from partwise.core.rng import generator
from partwise.core.schedule import ReplyInfo
from partwise.core.update import Update, wide

__all__ = ["DefenceAwareMerging", "entropy", "normal_mask"]


def entropy(scores: Tensor) -> Tensor:
    """The mean entropy of predictions, in nats. scores: (b, classes).

    Example:
        >>> round(float(entropy(torch.zeros(3, 2))), 4)
        0.6931
    """
    logs = scores.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


def normal_mask(mask: Tensor) -> Tensor:
    """A mask over its mean, so that its own mean is 1 and what it lets through is as long as without it.

    Raises:
        ValueError: it lets nothing through.
    """
    mean = mask.mean()
    if not float(mean.detach()) > 0:
        raise ValueError(f"normal_mask(): a mask must let something through, got a mean of {mean:g}. Raise it.")
    return mask / mean


@dataclass(frozen=True)
class DefenceAwareMerging:
    """Σ λ_i (M / mean M) ⊙ Δ_i, with λ and M such that the server's examples are told apart, disturbed ones too.

    For clients of whom some hide a backdoor, where the server has examples without labels and knows no trigger. In
    turns: M is drawn, and λ takes a step to where predictions are sure; a disturbance of the inputs, the same for all,
    takes one to where it changes predictions most; M takes one to where predictions are sure with and without it.
    Then λ alone. A coordinate's sum is scaled by n over the number of its holders, so that absence is no vote. It is
    no rule against updates that are merely large: bound them by `Clip`.

    Args:
        steps: of each of the two phases, >= 0; each takes three passes through the draw. 0 gives the mean.
        rate: how far λ moves in a step, as a share of 1/n, > 0.
        mask_rate: how far the logits of M move in a step, > 0.
        shift_rate: how far the disturbance moves in a step, in the inputs' unit, > 0.
        balance: what disturbed predictions count for, >= 0.
        temperature: of the relaxed draw of M, > 0.
        examples: in the server's draw.
        probe: what the model makes of the server's examples; the experiment's `Trusted` gives it.

    Source: Yang et al., "Mitigating the backdoor effect for multi-task model merging via safety-aware subspace", ICLR
        2025, arXiv:2410.13910, and its released code.
    Differs: clients' changes instead of fine-tuned models; λ begins at 1/n, not at 0.3, and moves in its unit; one draw
        of one set of examples instead of a batch per task; one mask and a disturbance, as the code has it, where the
        paper speaks of two masks; running statistics are not masked.

    Example:
        >>> from partwise.core.index import Whole
        >>> from partwise.testing.examples import example_params, example_probe, example_updates
        >>> params = example_params()
        >>> part = DefenceAwareMerging(steps=2, probe=example_probe())
        >>> sorted(part.reduce(example_updates(params, 3), 0, params)[0].value)
        ['E', 'W', 'b', 'scale']
    """

    steps: int = 100
    rate: float = 0.1
    mask_rate: float = 0.01
    shift_rate: float = 0.001
    balance: float = 0.1
    temperature: float = 0.5
    examples: int = 128
    probe: Predictor | None = field(default=None, repr=False, compare=False)
    needs: ClassVar[Literal["sum", "each"]] = "each"

    def __post_init__(self) -> None:
        for name in ("steps", "balance", "examples"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"DefenceAwareMerging({name}={getattr(self, name)}): must be finite and at least 0, got "
                    f"{getattr(self, name)}. Raise it."
                )
        for name in ("rate", "mask_rate", "shift_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"DefenceAwareMerging({name}={getattr(self, name)}): must be finite and above 0, got "
                    f"{getattr(self, name)}. Raise it."
                )

    def init(self, params: Params, census: Census) -> int:
        """The number of the next draw."""
        return 0

    def reduce(
        self, got: Sum | Sequence[Update], state: int, params: Params, replies: Sequence[ReplyInfo] = ()
    ) -> tuple[Update, int]:
        assert not isinstance(got, Sum)
        updates = finite(got, len(got), self)
        mean = reduce_columns(updates, params, mean_of, least=1)
        if not updates or not self.steps:
            return mean, state + 1
        if self.probe is None:
            raise CompositionError(
                f"{self!r}: tries models on examples that the server holds, got none. Give the experiment "
                "Trusted(examples=100)."
            )
        search = _Search(self, updates, params, self.probe, state)
        total = search.found()
        held = {name: total[name] for name in mean.index.shapes}
        return Update(mean.index, mean.index.gather(held), float(len(updates))), state + 1

    def probed(self, make: MakeProbe) -> DefenceAwareMerging:
        """The same with what the server can try.

        Raises:
            CompositionError: the server's probe tells no predictions, or inputs are no numbers that can be shifted.
        """
        probe = make(self.examples)
        if not isinstance(probe, Predictor):
            raise CompositionError(
                f"{self!r}: needs predictions on the server's examples, got {type(probe).__name__}, which tells none. "
                "Use a model whose first input is a number for each feature."
            )
        if self.steps:
            probe.blank()  # refuses inputs that cannot be shifted now, not at every commit
        return replace(self, probe=probe)


class _Tried(NamedTuple):
    """A model that is tried, and what it depends on.

    Args:
        params: θ_0 + (M / mean M) ⊙ S.
        sums: S, sum of λ_i Δ_i, whose gradients are wanted.
    """

    params: Values
    sums: Values


class _Search:
    """λ and M of one commit."""

    def __init__(
        self, rule: DefenceAwareMerging, updates: Sequence[Update], params: Params, probe: Predictor, number: int
    ) -> None:
        self._rule, self._updates, self._params, self._probe, self._number = rule, updates, params, probe, number
        cover = Coverage(params)
        for update in updates:
            cover.add_(update.index, 1.0)
        num = len(updates)
        self._factor = {name: (num / holders.clamp(min=1.0)) for name, holders in cover.weights.items()}
        self._rng = generator(0, "defence-aware merging", number)
        masked = [n for n in cover.weights if n not in probe.buffers() and params[n].is_floating_point()]
        # Adam's epsilon is 0 in float16: what is searched has float32 at least.
        self.logits = {n: torch.zeros_like(wide(params[n])).requires_grad_() for n in masked}
        self._blank = probe.blank()
        self.weights = torch.full((num,), 1.0 / num, dtype=torch.float64)

    def found(self) -> Values:
        """What is to be added, name -> tensor of the whole shape, of everything that somebody holds."""
        shift = wide(self._blank.clone()).requires_grad_()
        mover = torch.optim.Adam([shift], lr=self._rule.shift_rate, maximize=True)
        masker = torch.optim.Adam(list(self.logits.values()), lr=self._rule.mask_rate) if self.logits else None
        even, unit = self.weights.clone(), self._rule.rate / len(self._updates)
        for _ in range(self._rule.steps):
            noise = self._noise()
            gradient = self.gradient(even, {n: m.detach() for n, m in self.masks(noise).items()})
            weights = even - unit * gradient.sign()  # the first step of Adam
            self._step_shift(shift, mover, weights, noise)
            if masker is not None:
                self._step_mask(masker, shift.detach(), weights, noise)
        masks = {name: self._mask(name, logit.detach()) for name, logit in self.logits.items()}
        self.weights = even.clone().requires_grad_()
        last = torch.optim.Adam([self.weights], lr=unit)
        for _ in range(self._rule.steps):
            self.weights.grad = self.gradient(self.weights.detach(), masks)
            last.step()
        sums = self.sums(self.weights.detach())
        return {name: total * masks[name] if name in masks else total for name, total in sums.items()}

    def sums(self, weights: Tensor) -> Values:
        """S, each coordinate scaled by n over its holders."""
        total = {name: torch.zeros_like(self._params[name]) for name in self._factor}
        for update, weight in zip(self._updates, weights.tolist(), strict=True):
            update.index.scatter_add_(total, update.values(), weight)
        return {name: t * self._factor[name].to(t) for name, t in total.items()}

    def masks(self, noise: Values | None) -> Values:
        """M / mean M, drawn with some noise; without, of the probabilities."""
        found = {}
        for name, logit in self.logits.items():
            at = logit if noise is None else (logit + noise[name]) / self._rule.temperature
            found[name] = self._mask(name, at)
        return found

    def _mask(self, name: str, at: Tensor) -> Tensor:
        return normal_mask(at.sigmoid()).to(self._params[name].dtype)

    def gradient(self, weights: Tensor, masks: Values) -> Tensor:
        """Of the entropy of the predictions with respect to λ, (n,)."""
        tried = self._tried(weights, masks)
        loss = entropy(self._probe.scores(tried.params, self._number))
        if not loss.requires_grad:  # nobody holds what predictions depend on
            return torch.zeros_like(weights)
        grads = torch.autograd.grad(loss, list(tried.sums.values()), allow_unused=True)
        at = {
            name: torch.zeros_like(s) if g is None else g * self._factor[name].to(g)
            for (name, s), g in zip(tried.sums.items(), grads, strict=True)
        }
        found = []
        for update in self._updates:
            here, values = update.index.gather({n: at[n] for n in update.index.shapes}), update.values()
            found.append(sum(float((here[n].double() * values[n].double()).sum()) for n in values))
        return torch.tensor(found, dtype=torch.float64)

    def _tried(self, weights: Tensor, masks: Values) -> _Tried:
        sums = {name: total.requires_grad_() for name, total in self.sums(weights).items()}
        added = {name: s * masks[name] if name in masks else s for name, s in sums.items()}
        return _Tried({name: p + added[name] if name in added else p for name, p in self._params.items()}, sums)

    def _step_shift(self, shift: Tensor, mover: torch.optim.Adam, weights: Tensor, noise: Values) -> None:
        """To where it changes what is predicted without it."""
        with torch.no_grad():
            params = self._tried(weights, self.masks(noise)).params
            predicted = self._probe.scores(params, self._number).argmax(1)
        mover.zero_grad()
        functional.cross_entropy(self._probe.scores(params, self._number, shift.to(self._blank)), predicted).backward()
        mover.step()

    def _step_mask(self, masker: torch.optim.Adam, shift: Tensor, weights: Tensor, noise: Values) -> None:
        """To where predictions are sure, also of disturbed inputs."""
        masker.zero_grad()
        sums, masks = self.sums(weights), self.masks(noise)
        params = {n: p + sums[n] * masks[n] if n in masks else p + sums.get(n, 0.0) for n, p in self._params.items()}
        loss = entropy(self._probe.scores(params, self._number))
        loss = loss + self._rule.balance * entropy(self._probe.scores(params, self._number, shift.to(self._blank)))
        if loss.requires_grad:
            loss.backward()
            masker.step()

    def _noise(self) -> Values:
        """ln u - ln(1 - u) of a fresh draw for every coordinate."""
        found = {}
        for name, logit in self.logits.items():
            draw = torch.rand(logit.shape, generator=self._rng, dtype=torch.float64).clamp_(1e-6, 1 - 1e-6)
            found[name] = (draw / (1 - draw)).log().to(logit)
        return found
