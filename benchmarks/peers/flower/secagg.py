"""Flower's SecAgg+ without a network: its workflow on the server, its modifier at each client, one process.

    .envs/flower/bin/python flower/secagg.py [--clients 100] [--values 1000000] [--shares 1.0] [--lost 0.0]

`benchmarks/masks.py --only flower` runs it in Flower's environment. Prints one line of JSON: seconds of one client and
of the server (processor time of this process), bytes of the masked
vector that the client sends, and how far the average that comes out is from the right one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterable
from copy import deepcopy
from types import SimpleNamespace

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

STAGES = ("setup", "share keys", "masked vectors", "unmask")
LIMIT = 1.0


class Grid:
    """Delivers messages at once; clients in `lost` fall silent once they have sent their shares."""

    def __init__(self, values: np.ndarray, clients: int, lost: int) -> None:
        self._reply = [values]
        self._contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in range(1, clients + 1)}
        self._lost = set(range(clients - lost + 1, clients + 1))
        self.seconds = dict.fromkeys(self._contexts, 0.0)
        self.stage, self.away = 0, 0.0

    def _train(self, message: Message, context: Context) -> Message:
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(self._reply), 1, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        found, start = [], time.process_time()
        for message in messages:
            client = message.metadata.dst_node_id
            if self.stage >= 2 and client in self._lost:
                continue
            copy = deepcopy(message)  # as a network would; clients take their messages apart
            began = time.process_time()
            found.append(secaggplus_mod(copy, self._contexts[client], self._train))
            self.seconds[client] += time.process_time() - began
        self.stage += 1
        self.away += time.process_time() - start
        return found


class Strategy:
    """Asks everybody, and keeps the average."""

    def __init__(self, clients: int) -> None:
        self._clients, self.average = clients, None

    def configure_fit(self, server_round: int, parameters: object, client_manager: object) -> list:
        return [(SimpleNamespace(node_id=n), FitIns(parameters, {})) for n in range(1, self._clients + 1)]

    def aggregate_fit(self, server_round: int, results: list, failures: list) -> tuple:
        self.average = parameters_to_ndarrays(results[0][1].parameters)[0]
        return results[0][1].parameters, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--shares", type=float, default=1.0, help="of the cohort; 1.0 is the complete graph")
    parser.add_argument("--lost", type=float, default=0.0)
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    values = (np.random.default_rng(5).random(args.values, np.float32) - 0.5) / 100
    lost = round(args.lost * args.clients)
    grid, strategy = Grid(values, args.clients, lost), Strategy(args.clients)
    state = RecordDict()
    state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord([np.zeros(1, np.float32)])
    manager = SimpleNamespace(num_available=lambda: args.clients)
    context = LegacyContext(Context(1, 0, {}, state, {}), strategy=strategy, client_manager=manager)
    # Sums of 100 clients with 16 bits and weight 1 of a largest 1: the settings that our side has.
    workflow = SecAggPlusWorkflow(
        args.shares, 0.51, max_weight=1.0, clipping_range=LIMIT, quantization_range=2**16, modulus_range=2**32
    )
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # what a runtime would say
    began = time.process_time()
    workflow(grid, context)
    total = time.process_time() - began
    if strategy.average is None:
        raise SystemExit("Flower's workflow opened nothing")
    away = float(np.abs(strategy.average - values).max())
    found = {"client": grid.seconds[1], "server": total - grid.away, "error": away, "up": 4 * args.values}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
