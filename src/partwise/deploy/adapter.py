"""A client that was written for Flower, as a client of Partwise: federated averaging over whole models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.errors import DataError
from partwise.core.index import Index
from partwise.core.mean import Mean
from partwise.core.model import Values
from partwise.core.plan import LocalPlan, ModelLoss, Trained
from partwise.core.population import Client, Dataset, Examples, Population
from partwise.core.update import Update
from partwise.local import SGD

__all__ = ["FlowerClients", "Unseen"]

Arrays = Sequence[Any]  # NumPy's


@dataclass(frozen=True)
class FlowerClients(Algorithm):
    """Federated averaging in which each client trains as a Flower client does.

    The values of the model go in as a list of arrays in the order of its state dict (`NumPyClient`), or as a state dict
    (`ClientApp`), and come out so; a client counts for the examples that it names. It runs on every runtime, one client
    at a time. What a client keeps in itself is not kept: it is made anew for every task, as by Flower.

    Args:
        make: makes the client of a number: a `NumPyClient`; or gives a `ClientApp`, the same for all.
        config: what `fit` is given, or the `ConfigRecord` of a message; `server-round` is added.
        num_partitions: what a `ClientApp` is told beside `partition-id`; 0 for nothing.

    Example:
        >>> class Half:
        ...     def fit(self, parameters, config):
        ...         return [array / 2 for array in parameters], 10, {}
        >>> FlowerClients(lambda client: Half()).aggregators()
        {'model': Mean(by='cohort', at_least=0.0)}
    """

    make: Callable[[Client], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    num_partitions: int = 0

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return LocalPlan(
            ModelLoss(site.model), SGD(0.1), steps=0, epochs=0
        )  # the client trains for itself, in `finish`

    def finish(
        self,
        held: Mapping[str, Values],
        trained: Trained,
        index: Index,
        task: Task,
        own: ClientState,
        site: Site,
    ) -> tuple[dict[str, Update], ClientState]:
        before, config = held["model"], {**self.config, "server-round": task.version + 1}
        client = self.make(site.client)
        fit = getattr(client, "fit", None)
        after, examples = _fitted(fit, before, config) if fit else self._trained(client, before, config, site.client)
        change = {name: _like(name, after, value, site.client) - value for name, value in before.items()}
        return {"model": Update(index, change, float(examples))}, own

    def _trained(
        self, app: Any, before: Values, config: dict[str, Any], client: Client
    ) -> tuple[Mapping[str, Tensor], float]:
        from partwise.deploy.flower import trained_by

        node = {"partition-id": client, **({"num-partitions": self.num_partitions} if self.num_partitions else {})}
        return trained_by(app, before, config, node)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": Mean("cohort")}


def _fitted(fit: Any, before: Values, config: dict[str, Any]) -> tuple[Mapping[str, Tensor], float]:
    found, examples, _ = fit([value.numpy(force=True).copy() for value in before.values()], config)
    if len(found) != len(before):
        raise DataError(
            f"FlowerClients(): a client must return {len(before)} arrays, one per entry of the model, got "
            f"{len(found)}. Return the whole state dict."
        )
    arrays = {name: torch.from_numpy(np.array(array)) for name, array in zip(before, found, strict=True)}
    return arrays, float(examples)


def _like(name: str, after: Mapping[str, Tensor], value: Tensor, client: Client) -> Tensor:
    found = after.get(name)
    if found is None or tuple(found.shape) != tuple(value.shape):
        got = "nothing" if found is None else tuple(found.shape)
        raise DataError(
            f"client {client}: must return {name!r} of shape {tuple(value.shape)}, got {got}. "
            "The model of the client must be that of the workload."
        )
    return found.to(value.device, value.dtype)


@dataclass(frozen=True)
class Unseen(Population):
    """Clients whose data only their own code knows.

    Args:
        num_clients: how many, >= 1.
        test: a test set that the server has itself.
    """

    num_clients: int
    test: Dataset | None = None

    def __post_init__(self) -> None:
        if self.num_clients < 1:
            raise ValueError(f"Unseen(num_clients={self.num_clients}): must be at least 1, got {self.num_clients}.")

    @property
    def clients(self) -> Sequence[Client]:
        return range(self.num_clients)

    def data(self, client: Client) -> Dataset:
        return Examples({"unseen": torch.zeros(1)})

    def central_test(self) -> Dataset | None:
        return self.test

    @property
    def is_open(self) -> bool:
        return False
