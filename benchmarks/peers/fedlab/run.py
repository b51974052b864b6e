"""FedLab: `SGDSerialClientTrainer`, `SyncServerHandler` and `StandalonePipeline`.

The data set gives batches cut from tensors instead of a `DataLoader`, which the trainer takes as well and which is
quicker. The handler is told the shared cohorts. The variant is not used.
"""

from __future__ import annotations

from collections.abc import Iterator

import networks
import shims  # noqa: F401 - before FedLab
import torch
import work
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from fedlab.contrib.dataset.basic_dataset import FedDataset
from fedlab.core.standalone import StandalonePipeline


class Clients(FedDataset):
    """All clients' examples, as tensors."""

    def __init__(self, data: work.Data) -> None:
        super().__init__()
        self._images, self._labels = networks.tensors(data)

    def get_dataloader(
        self, id: int, batch_size: int, type: str = "train"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return networks.batches(self._images[id], self._labels[id])


class Handler(SyncServerHandler):
    """The server, with the shared cohorts."""

    def __init__(self, net: torch.nn.Module, task: work.Task) -> None:
        super().__init__(net, global_round=task.rounds, sample_ratio=task.cohort / work.CLIENTS)
        self._cohorts = work.cohorts(task)

    def sample_clients(self) -> list[int]:
        return self._cohorts[self.round]


class Pipeline(StandalonePipeline):
    """The loop, timed where it would evaluate."""

    def __init__(self, handler: Handler, trainer: SGDSerialClientTrainer, watch: work.Watch) -> None:
        super().__init__(handler, trainer)
        self._watch = watch

    def evaluate(self) -> None:
        self._watch.lap()


def main() -> None:
    task = work.task()
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    data = work.load(task.seed)
    watch = work.Watch()
    net = networks.network(task.model)
    trainer = SGDSerialClientTrainer(net, work.CLIENTS)
    trainer.setup_dataset(Clients(data))
    trainer.setup_optim(epochs=1, batch_size=work.BATCH, lr=task.lr)
    handler = Handler(net, task)
    Pipeline(handler, trainer, watch).main()
    work.report(task, "fedlab", watch, networks.accuracy(handler.model, data), f"{task.threads}")


if __name__ == "__main__":
    main()
