"""Federated rounds over a large table, written out by hand: what `embedding.py` compares Partwise with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwise.core.metrics import Loss
from partwise.core.model import BinaryCrossEntropy, Model, Values
from partwise.core.population import Roll
from partwise.core.workload import Workload
from partwise.populations import ArrayPopulation
from partwise.schedulers.choices import Uniform
from partwise.workloads.models import AttentionRecommender, SparseLinear

SEED, ROWS, TOUCHED, CLIENTS, COHORT, EXAMPLES, STEPS = 1, 100_000, 50, 500, 50, 20, 5
DIM, HIDDEN, HISTORY, ACTIVE = 32, 16, 8, 5
LR = {"attention": 0.5, "logistic": 1.0}
TABLE = {"attention": "items.weight", "logistic": "weights.weight"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Rounds = Callable[[int], tuple[list[float], Values]]  # how many -> when each was over (and the start), the end


def ids_of(width: int) -> Tensor:
    """(clients, examples, width): half of each client's rows are its own, half among the first hundred."""
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.empty(CLIENTS, EXAMPLES * width, dtype=torch.int64)
    for c in range(CLIENTS):
        hot = torch.randperm(100, generator=draw)[: TOUCHED // 2]
        cold = 100 + torch.randperm((ROWS - 100) // CLIENTS, generator=draw)[: TOUCHED - len(hot)] * CLIENTS + c
        order = torch.randperm(EXAMPLES * width, generator=draw)
        ids[c] = torch.cat([hot, cold])[order % TOUCHED]
    return ids.reshape(CLIENTS, EXAMPLES, width)


def workload(name: str) -> Workload:
    ids = ids_of(HISTORY + 1 if name == "attention" else ACTIVE).flatten(0, 1)
    y = torch.randint(2, (len(ids),), generator=torch.Generator().manual_seed(SEED))
    columns: dict[str, Tensor] = {"features": ids}
    make: Any = partial(SparseLinear, ROWS)
    if name == "attention":
        columns = {"history": ids[:, :HISTORY].contiguous(), "candidate": ids[:, HISTORY].contiguous()}
        make = partial(AttentionRecommender, ROWS, DIM, HIDDEN)
    inputs = tuple(columns)
    model = Model(make, BinaryCrossEntropy(), inputs=inputs, tables={TABLE[name]: inputs})
    return Workload(
        model, ArrayPopulation({**columns, "y": y}, torch.arange(CLIENTS + 1) * EXAMPLES), (Loss(model.loss),)
    )


def cohorts(work: Workload, rounds: int) -> list[list[int]]:
    roster = Roll(work.population, SEED)
    return [list(Uniform().pick(None, COHORT, turn=n, now=0.0, roster=roster)[0]) for n in range(rounds)]


def renumbered(work: Workload, name: str) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Each client's rows, and its columns with the ids counted within them."""
    found = []
    for client in range(CLIENTS):
        columns = dict(work.population.data(client).columns())
        rows = torch.unique(torch.cat([columns[c].reshape(-1) for c in work.model.inputs]))
        columns.update({c: torch.searchsorted(rows, columns[c]) for c in work.model.inputs})
        found.append((rows, {**columns, "y": columns["y"].float()}))
    return found


def trained(module: torch.nn.Module, inputs: Sequence[Tensor], y: Tensor, lr: float) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(module(*inputs), y).backward()
        optimizer.step()


def full_copy(work: Workload, name: str, clock: Callable[[], float]) -> Rounds:
    module, own = deepcopy(work.model.build(SEED)), renumbered(work, name)
    datas = [work.population.data(client).columns() for client in range(CLIENTS)]

    def run(rounds: int) -> tuple[list[float], Values]:
        server, times = work.model.init(SEED), [clock()]
        net = dict(module.named_parameters())
        for cohort in cohorts(work, rounds):
            total = {n: torch.zeros_like(p) for n, p in server.items()}
            count = torch.zeros(ROWS)
            for client in cohort:
                with torch.no_grad():
                    for n, p in net.items():
                        p.copy_(server[n])
                trained(module, [datas[client][c] for c in work.model.inputs], own[client][1]["y"], LR[name])
                count[own[client][0]] += 1
                with torch.no_grad():
                    for n, p in net.items():
                        total[n] += p.sub_(server[n])
            for n, t in total.items():
                by = count.clamp(min=1).unsqueeze(1) if n == TABLE[name] else float(COHORT)
                server[n] += t.div_(by)
            times.append(clock())
        return times, server

    return run


def rows_only(work: Workload, name: str, clock: Callable[[], float]) -> Rounds:
    module, own, table = deepcopy(work.model.build(SEED)), renumbered(work, name), TABLE[name]
    owner, _, key = table.rpartition(".")

    def run(rounds: int) -> tuple[list[float], Values]:
        server, times = work.model.init(SEED), [clock()]
        for cohort in cohorts(work, rounds):
            dense = {n: torch.zeros_like(p) for n, p in server.items() if n != table}
            changes = []
            for client in cohort:
                held, columns = own[client]
                start = server[table][held]
                setattr(module.get_submodule(owner), key, torch.nn.Parameter(start.clone()))
                net = dict(module.named_parameters())
                with torch.no_grad():
                    for n in dense:
                        net[n].copy_(server[n])
                trained(module, [columns[c] for c in work.model.inputs], columns["y"], LR[name])
                with torch.no_grad():
                    changes.append(net[table] - start)
                    for n, t in dense.items():
                        t += net[n] - server[n]
            _add_mean_(server, table, [own[c][0] for c in cohort], torch.cat(changes))
            for n, t in dense.items():
                server[n].add_(t, alpha=1 / COHORT)
            times.append(clock())
        return times, server

    return run


def _add_mean_(server: Values, table: str, held: Sequence[Tensor], change: Tensor) -> None:
    at = torch.cat(list(held))
    share = torch.bincount(at, minlength=ROWS)[at].unsqueeze(1)
    server[table].index_add_(0, at, change / share)


def attention_step_(values: Values, columns: dict[str, Tensor], y: Tensor) -> None:
    """One step of all clients; values: name -> (clients, ...), but the table, which is that of all of them."""
    leaves = [t.requires_grad_() for t in values.values()]
    table, w1, b1, w2, b2, v1, c1, v2, c2 = leaves
    k, n, t = columns["history"].shape
    past = F.embedding(columns["history"], table)  # (k, n, t, d)
    item = F.embedding(columns["candidate"], table)  # (k, n, d)
    of_past, of_item, of_both = w1.transpose(1, 2).split(DIM, 1)  # so that nothing is repeated for the candidate
    hidden = torch.bmm(past.view(k, n * t, DIM), of_past)
    hidden = torch.baddbmm(hidden, (past * item.unsqueeze(2)).view(k, n * t, DIM), of_both)
    beside = torch.baddbmm(b1.unsqueeze(1), item, of_item).unsqueeze(2)
    hidden = (hidden.view(k, n, t, HIDDEN) + beside).relu().view(k, n * t, HIDDEN)
    heed = torch.baddbmm(b2.unsqueeze(1), hidden, w2.transpose(1, 2)).view(k, n, 1, t).softmax(3)
    user = torch.matmul(heed, past).squeeze(2)  # (k, n, d)
    hidden = torch.baddbmm(c1.unsqueeze(1), torch.cat([user, item, user * item], 2), v1.transpose(1, 2)).relu()
    logits = torch.baddbmm(c2.unsqueeze(1), hidden, v2.transpose(1, 2)).squeeze(2)  # (k, n)
    loss = F.binary_cross_entropy_with_logits(logits, y, reduction="sum") / n
    grads = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        torch._foreach_add_(leaves, grads, alpha=-LR["attention"])


def logistic_step_(values: Values, columns: dict[str, Tensor], y: Tensor) -> None:
    (weights,) = (t.view(-1) for t in values.values())
    at = columns["features"]
    errors = weights[at].sum(2).sigmoid_().sub_(y).mul_(-LR["logistic"] / EXAMPLES)
    weights.index_add_(0, at.view(-1), errors.unsqueeze(2).expand_as(at).reshape(-1))


def stacked(work: Workload, name: str, clock: Callable[[], float]) -> Rounds:
    own, table = renumbered(work, name), TABLE[name]
    step_ = attention_step_ if name == "attention" else logistic_step_
    lengths = torch.tensor([len(rows) for rows, _ in own])
    joined = {c: torch.stack([columns[c] for _, columns in own]) for c in (*work.model.inputs, "y")}

    def run(rounds: int) -> tuple[list[float], Values]:
        server, times = work.model.init(SEED), [clock()]
        for cohort in cohorts(work, rounds):
            held, who = [own[c][0] for c in cohort], torch.tensor(cohort)
            offsets = lengths[who].cumsum(0) - lengths[who]
            columns = {c: joined[c][who] + offsets.view(-1, *[1] * (joined[c].dim() - 1)) for c in work.model.inputs}
            start = {n: p[torch.cat(held)] if n == table else p.expand(COHORT, *p.shape) for n, p in server.items()}
            values, y = {n: t.clone() for n, t in start.items()}, joined["y"][who]
            for _ in range(STEPS):
                step_(values, columns, y)
            with torch.no_grad():
                for n, t in values.items():
                    if n != table:
                        server[n] += (t - start[n]).mean(0)
                _add_mean_(server, table, held, values[table] - start[table])
            times.append(clock())
        return times, server

    return run
