"""Clients that were written for Flower: their averages by hand, and a stock client unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from partwise.channels import Plain
from partwise.core.errors import DataError
from partwise.core.metrics import Accuracy
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Examples
from partwise.core.program import SERVER
from partwise.core.workload import Workload
from partwise.deploy.adapter import FlowerClients, Unseen
from partwise.experiment.experiment import Experiment
from partwise.programs.star import Star
from partwise.runtimes import Processes, Simulate
from partwise.schedulers import Synchronous
from toy_star import Log


def net() -> nn.Module:
    return nn.Linear(3, 2)


MODEL = Model(net, CrossEntropy(), inputs=("x",))


class Shift:
    """A NumPyClient that adds its number times the round to everything, and has 5 + 7c examples."""

    def __init__(self, client: int) -> None:
        self.client = client

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        return [p + self.client * config["server-round"] * config["by"] for p in parameters], 5 + 7 * self.client, {}


def star(make: Any, **more: Any) -> Star:
    algorithm = FlowerClients(make, {"by": 0.5}, **more)
    return Star(algorithm, Synchronous(cohort=3, rounds=2), MODEL, Unseen(3), Plain(), seed=3)


@pytest.mark.parametrize("runtime", [Simulate(), Processes(workers=2)])
def test_average_is_by_the_examples_that_clients_name(runtime):
    of, log = star(Shift), Log()
    states, reason = runtime.run(of.programs(), of.population, log)
    assert reason == "done"
    assert not log.of("lost")
    weights = np.array([5.0, 12.0, 19.0])
    moved = sum(0.5 * round * float(weights @ np.arange(3.0)) / weights.sum() for round in (1, 2))
    for name, value in of.initial().items():
        np.testing.assert_allclose(states[SERVER].streams["model"][name].numpy(), value.numpy() + moved, rtol=1e-5)


class Narrow(Shift):
    def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        return [p[:1] for p in parameters], 1, {}


class Short(Shift):
    def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
        return parameters[:1], 1, {}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Narrow, r"must return 'weight' of shape \(2, 3\), got \(1, 3\)\. The model of the client must be"),
        (Short, "a client must return 2 arrays, one per entry of the model, got 1. Return the whole state dict."),
    ],
)
def test_values_of_another_model_lose_the_task(make, reason):
    of, log = star(make), Log()
    Simulate().run(of.programs(), of.population, log)
    assert log.of("lost")
    for fields in log.of("lost"):
        with pytest.raises(DataError, match=reason):
            raise DataError(fields["reason"])


def test_unseen_clients_are_counted_and_no_more(tmp_path):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    test = Examples({"x": x, "y": (x[:, 0] > 0).long()})
    workload = Workload(MODEL, Unseen(3, test), (Accuracy(),))
    result = Experiment(workload, FlowerClients(Shift, {"by": 0.1}), Synchronous(cohort=3, rounds=2)).run(
        tmp_path / "run"
    )
    assert result.params.keys() == {"weight", "bias"}
    with pytest.raises(ValueError, match=r"^Unseen\(num_clients=0\): must be at least 1"):
        Unseen(0)


@pytest.mark.filterwarnings("ignore")  # Flower's own
def test_client_app_as_in_flowers_quickstart():
    """The shape of the PyTorch quickstart of Flower 1.4x: @app.train, a state dict in and out, `num-examples`."""
    pytest.importorskip("flwr")
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app, seen = ClientApp(), []

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        seen.append((context.node_config["partition-id"], context.node_config["num-partitions"]))
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"])
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
            optimizer.step()
        metrics = MetricRecord({"train_loss": 0.5, "num-examples": len(x)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=msg)

    algorithm = FlowerClients(lambda client: app, {"lr": 0.3}, num_partitions=3)
    of = Star(algorithm, Synchronous(cohort=3, rounds=8), MODEL, Unseen(3), Plain(), seed=3)
    log = Log()
    states, _ = Simulate().run(of.programs(), of.population, log)
    assert not log.of("lost")
    assert set(seen) == {(0, 3), (1, 3), (2, 3)}
    model = net()
    model.load_state_dict(states[SERVER].streams["model"])
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(9))
    accuracy = float((model(x).argmax(1) == (x[:, 0] > 0)).double().mean())
    assert accuracy > 0.85
