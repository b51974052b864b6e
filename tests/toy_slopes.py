"""Stars whose clients have given gradients: linear losses, and quadratics around given points; float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from partwise.channels import Plain
from partwise.core.model import MeanSquaredError, Model
from partwise.core.program import SERVER
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.runtimes import Simulate
from partwise.schedulers import Synchronous
from toy_star import Clients, Log


class Weights(nn.Module):
    """theta times the inputs, summed."""

    def __init__(self, start: tuple[float, ...]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.theta).sum(1)


class Itself:
    """The output is the loss."""

    def __call__(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs


def linear(gradients: list[list[tuple[float, ...]]], start: tuple[float, ...]) -> tuple[Model, Clients]:
    """Client i's loss of an example is ⟨g, theta⟩, with g one of its gradients."""
    columns = [{"x": torch.tensor(g, dtype=torch.float64)} for g in gradients]
    return Model(lambda: Weights(start), Itself(), inputs=("x",)), Clients(columns)


def quadratic(centres: tuple[float, ...], start: float) -> tuple[Model, Clients]:
    """Client i's loss is (theta - c_i)² / 2."""
    columns = [
        {"x": torch.ones(1, 1, dtype=torch.float64), "y": torch.tensor([c], dtype=torch.float64)} for c in centres
    ]
    return Model(lambda: Weights((start,)), MeanSquaredError(), inputs=("x",)), Clients(columns)


def steps(lr: float, count: int = 1, batch_size: int = 1) -> LocalTraining:
    return LocalTraining(SGD(lr), batch_size=batch_size, steps=count)


def states_after(of: tuple[Model, Clients], algorithm: Any, rounds: int, **more: Any) -> Any:
    model, clients = of
    scheduler = Synchronous(len(clients.clients), rounds=rounds)
    star = Star(algorithm, scheduler, model, clients, Plain(), seed=3, **more)
    states, reason = Simulate().run(star.programs(), clients, Log())
    assert reason == "done"
    return states


def theta_after(of: tuple[Model, Clients], algorithm: Any, rounds: int, **more: Any) -> list[float]:
    """The server's parameters after so many rounds in which all take part."""
    if not rounds:
        return list(of[0].init(3)["theta"].tolist())
    return list(states_after(of, algorithm, rounds, **more)[SERVER].streams["model"]["theta"].tolist())
