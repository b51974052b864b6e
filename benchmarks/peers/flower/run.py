"""Flower: the simulation runtime on Ray, one actor per thread with one CPU each, and the strategy `FedAvg`.

The cohort is the strategy's own uniform draw: node numbers are random and the server does not learn which client
is behind them. A round is over when the strategy has the aggregate. The variant is not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # both are read when the packages are imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import networks
import torch
import work
from client_app import app as client_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


class Timed(FedAvg):
    """FedAvg that notes when each aggregate is there."""

    def __init__(self, watch: work.Watch, cohort: int) -> None:
        super().__init__(
            fraction_train=cohort / work.CLIENTS,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=work.CLIENTS,
        )
        self._watch = watch

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = super().aggregate_train(server_round, replies)
        self._watch.lap()
        return found


def main() -> None:
    task = work.task()
    torch.manual_seed(task.seed)
    data = work.load(task.seed)
    watch = work.Watch()
    net = networks.network(task.model)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        result = Timed(watch, task.cohort).start(
            grid=grid,
            initial_arrays=ArrayRecord(net.state_dict()),
            num_rounds=task.rounds,
            train_config=ConfigRecord({"model": task.model, "lr": task.lr, "seed": task.seed}),
        )
        net.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app,
        client_app,
        num_supernodes=work.CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": task.threads, "logging_level": "WARNING", "log_to_driver": False},
        },
    )
    threads = f"{task.threads} actors, 1 thread each"
    work.report(task, "flwr", watch, networks.accuracy(net, data), threads)


if __name__ == "__main__":
    main()
