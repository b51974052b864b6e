"""Counting the population: who holds what, and what each client counts for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from partwise.core.aggregate import Coverage
from partwise.core.algorithm import Task
from partwise.core.population import Counts

if TYPE_CHECKING:
    from partwise.programs.star import Star

__all__ = ["count"]


def count(star: Star) -> Counts:
    """Ask every client once which part it would hold at version 0, and add up.

    A simulation may look; on a network the same numbers come from one secure sum.
    """
    cpu = torch.device("cpu")
    heat, weight, total = Coverage(star.like, cpu), Coverage(star.like, cpu), 0.0
    for client in star.population.clients:
        site = star.site(client)
        index = star.algorithm.select(Task(-1, 0, 0, 0), star.algorithm.client_init(site), site)
        amount = star.algorithm.weight(site)
        total += amount
        heat.add_(index, 1.0)
        weight.add_(index, amount)
    for cover in (heat, weight):
        for name in star.like:
            cover.allocate_(name, 0)  # also what nobody holds
    return Counts(heat.weights, weight.weights, total)
