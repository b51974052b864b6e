"""Flower's client side: a module of its own, so that an actor imports it once and loads the data once."""

from __future__ import annotations

from functools import lru_cache

import networks
import torch
import torch.nn.functional as F
import work
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@lru_cache(maxsize=1)
def clients(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return networks.tensors(work.load(seed))


@lru_cache(maxsize=1)
def network(model: str) -> torch.nn.Module:
    return networks.network(model)


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    net = network(config["model"])
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = clients(config["seed"])
    client = int(context.node_config["partition-id"])
    optimizer = torch.optim.SGD(net.parameters(), lr=config["lr"])
    for x, y in networks.batches(images[client], labels[client]):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": work.EXAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
