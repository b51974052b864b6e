"""The work in PyTorch, for the frameworks that train an `nn.Module`: two networks, batches, accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from work import BATCH, Data


def network(model: str) -> nn.Sequential:
    if model == "mlp":  # 159,010 parameters
        return nn.Sequential(nn.Flatten(1), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    return nn.Sequential(  # 405,466 parameters
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(1),
        nn.Linear(1600, 240),
        nn.ReLU(),
        nn.Linear(240, 10),
    )


def tensors(data: Data) -> tuple[Tensor, Tensor]:
    """All clients' images (1000, 60, 1, 28, 28) and labels (1000, 60); the memory is that of `data`."""
    return torch.from_numpy(data.x).unsqueeze(2), torch.from_numpy(data.y)


def batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of one client, in random order."""
    for at in torch.randperm(len(y)).split(BATCH):
        yield x[at], y[at]


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    net.eval()
    x, y = torch.from_numpy(data.x_test).unsqueeze(1), torch.from_numpy(data.y_test)
    chunks = zip(x.split(1000), y.split(1000), strict=True)
    return sum(int((net(images).argmax(1) == labels).sum()) for images, labels in chunks) / len(y)
