"""Each rule of the contract of local optimisers can be broken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from partwise.testing import check


@dataclass(frozen=True)
class BrokenOptimizer:
    """Gradient descent with one fault."""

    lr: float = 0.1
    fault: str = ""

    def init(self, params):
        return [0]

    def step_(self, params, grads, state):
        if self.fault == "once":
            state.pop()
        for name in params if self.fault == "all names" else grads:
            grad = grads.get(name, torch.ones(()))
            if self.fault == "another tensor":
                params[name] = params[name] - self.lr * grad
            elif self.fault == "upward":
                params[name].add_(grad, alpha=self.lr)
            elif self.fault == "chance":
                params[name].sub_(grad, alpha=self.lr * float(torch.rand(())))
            elif self.fault == "another rate":
                params[name].sub_(grad, alpha=0.1)
            elif self.fault == "another type":
                params[name].data = (params[name] - self.lr * grad).double()
            elif self.fault == "by length":
                params[name].sub_(grad / grad.norm(), alpha=self.lr)
            elif self.fault != "still":
                params[name].sub_(grad, alpha=self.lr)
        return state


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("", None),
        ("all names", "must leave a parameter without a gradient"),
        ("another tensor", "step_ must change the parameters in place, and keep types and shapes, got another tensor"),
        ("another type", "step_ must change the parameters in place, and keep types and shapes, got another tensor"),
        ("another rate", "must step by its `lr`, got the same step by half of it"),
        ("by length", r"must keep values finite where gradients are zero, got \['E', "),
        ("still", "step_ must change the parameters in place, got the values from before"),
        ("upward", "must step against the gradient, got a slope of"),
        ("once", "must take one step after another, got IndexError: pop from empty list"),
        ("chance", "must depend on its arguments alone"),
    ],
)
def test_optimizer_rule_fails(fault, says):
    if says is None:
        check(BrokenOptimizer())
    else:
        with pytest.raises(AssertionError, match=says):
            check(BrokenOptimizer(fault=fault))
