"""What a client's transform keeps can be saved, and begins with no tensor of the model's size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from partwise.algorithms import FedAvg
from partwise.core.errors import CompositionError
from toy_star import everybody, number_model, parabolas, star_of


@dataclass(frozen=True)
class Keeps:
    """Keeps an object of its own class, or what is as large as the model."""

    is_large: bool

    def init(self, params):
        return {n: torch.zeros_like(t) for n, t in params.items()} if self.is_large else {"kept": object()}

    def apply(self, update, state, rng):
        return update, state


@pytest.mark.parametrize(
    ("is_large", "says"),
    [
        (True, "keeps something of the model's own size from the start"),
        (False, r"must keep a state that can be saved, .* got a object at tree\['kept'\]\. Convert it, or register"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused_for_what_it_is(is_large, says):
    population = parabolas()
    with pytest.raises(CompositionError, match=rf"^Keeps\(is_large={is_large}\): {says}"):
        star_of(FedAvg(), number_model(), population, everybody(population, 1), client_chain={"model": Keeps(is_large)})
