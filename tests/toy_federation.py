"""A small federation with a table, for tests of runtimes: every contract algorithm on it, and what a run came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from partwise.algorithms import MCPSGD, FedAMD, FedAvg, FedLaAvg, FedProx, FedSubAvg, Scaffold
from partwise.channels import Plain
from partwise.core.codec import encode
from partwise.core.model import CrossEntropy, Model
from partwise.core.population import Profile
from partwise.core.program import SERVER
from partwise.core.transform import chain
from partwise.local import SGD, LocalTraining
from partwise.programs.star import Star
from partwise.schedulers import Synchronous
from partwise.transforms import Clip, ErrorFeedback, Quantize, TopK
from toy_star import Clients, Log

WORDS, DIM, CLASSES = 60, 5, 3


class Tagger(nn.Module):
    """A table, and a layer on the mean of the rows of an example."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, DIM)
        self.out = nn.Linear(DIM, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.table(words).mean(1))


WIDTHS = {"table.weight": (None, "dim"), "out.weight": (None, "dim"), "out.bias": (None,)}


def model() -> Model:
    return Model(Tagger, CrossEntropy(), inputs=("words",), tables={"table.weight": ("words",)}, widths=WIDTHS)


def population(clients: int = 7) -> Clients:
    """Client i has 9 + 4 i examples over words of its own and a few that all have."""
    draw = torch.Generator().manual_seed(5)
    columns = []
    for i in range(clients):
        own = torch.randperm(WORDS, generator=draw)[: 8 + i]
        n = 9 + 4 * i
        words = own[torch.randint(len(own), (n, 3), generator=draw)]
        columns.append({"words": words, "y": (words.sum(1) + i) % CLASSES})
    profiles = {i: Profile(0.01 * (1 + i * 3 % 4), 2000.0 + 700 * i, 9000.0, float("inf"), 1.0) for i in range(clients)}
    return Clients(columns, profiles)


LOCAL = LocalTraining(SGD(0.2), batch_size=4, steps=3)

CASES: Mapping[str, dict[str, Any]] = {
    "fedavg": {"algorithm": FedAvg(LOCAL)},
    "fedprox": {"algorithm": FedProx(0.3, LOCAL)},
    "fedsubavg capped": {"algorithm": FedSubAvg("capped", LOCAL)},
    "scaffold": {"algorithm": Scaffold(LOCAL)},
    "fedamd": {"algorithm": FedAMD(LOCAL, anchor_prob=0.4)},
    "fedlaavg": {"algorithm": FedLaAvg(LOCAL, submodel=True)},
    "fedlaavg server": {"algorithm": FedLaAvg(LOCAL, "server", submodel=True)},
    "mcpsgd": {"algorithm": MCPSGD(1, LOCAL, separate_lr=0.1)},
    "error feedback": {
        "algorithm": FedSubAvg("count", LOCAL),
        "client_chain": {"model": chain(ErrorFeedback(TopK(9)), Clip(0.5))},
    },
    "download chain": {
        "algorithm": FedSubAvg("count", LOCAL),
        "download_chain": {"model": chain(Quantize(4, bucket=16))},
    },
}


def star(case: str, rounds: int = 5, **more: Any) -> Star:
    parts = {"scheduler": Synchronous(cohort=4, rounds=rounds), "channel": Plain(), "seed": 3, **CASES[case], **more}
    return Star(model=model(), population=parts.pop("population", population()), **parts)


def outcome(states: Mapping[int, Any]) -> dict[int, bytes]:
    """What a run came to, to the last bit: node -> parameters and server state, or client state."""
    server = states[SERVER]
    found = {SERVER: encode((server.streams, server.version, server.reducers, server.chains))}
    for client in sorted(states):
        if client != SERVER:
            found[client] = encode((states[client].own, states[client].chains, states[client].met))
    return found


def play(runtime: Any, of: Star, log: Any = None, **more: Any) -> tuple[dict[int, bytes], Any]:
    log = Log() if log is None else log
    states, reason = runtime.run(of.programs(), of.population, log, **more)
    assert reason == "done"
    return outcome(states), log
