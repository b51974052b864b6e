"""pfl-research: `SimulatedBackend`, `FederatedAveraging` and `PyTorchModel`, over data sets that are ready in memory.

A user's examples are visited in the order they are stored in, which is what its `Dataset` does: no shuffling. The
first round evaluates each user before and after training, because the framework evaluates every n-th round counted
from 0; the rounds that are timed evaluate nothing. The variant is not used.
"""

from __future__ import annotations

import asyncio
from itertools import chain

import networks
import numpy as np
import torch
import torch.nn.functional as F
import work
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Network(nn.Module):
    """The network with the two methods that `PyTorchModel` asks for."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.layers = networks.network(model)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(F.cross_entropy(self.layers(x), y, reduction="sum").item(), len(y))}


class Laps(TrainingProcessCallback):
    """Times the rounds."""

    def __init__(self, watch: work.Watch) -> None:
        self._watch = watch

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._watch.lap()
        return False, Metrics()


def main() -> None:
    task = work.task()
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)  # noqa: NPY002 - the framework draws from the global generator
    asyncio.set_event_loop(asyncio.new_event_loop())  # which the framework expects to find
    data = work.load(task.seed)
    images, labels = networks.tensors(data)
    users = [PyTorchTensorDataset((x, y)) for x, y in zip(images, labels, strict=True)]
    watch = work.Watch()
    net = Network(task.model)
    drawn = chain.from_iterable(work.cohorts(task))
    federated = FederatedDataset(users.__getitem__, lambda: next(drawn))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds,
            train_cohort_size=task.cohort,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=federated, val_data=federated),
        PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        NNTrainHyperParams(local_batch_size=work.BATCH, local_num_epochs=1, local_learning_rate=task.lr),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Laps(watch)],
        send_metrics_to_platform=False,
    )
    work.report(task, "pfl", watch, networks.accuracy(net, data), f"{task.threads}")


if __name__ == "__main__":
    main()
