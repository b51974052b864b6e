"""A star of toy clients on the simulator: populations from dicts, fixed cohorts, and a scalar model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from partwise.channels import Plain
from partwise.core.algorithm import Algorithm
from partwise.core.codec import encode
from partwise.core.model import Model
from partwise.core.population import Dataset, Examples, Population, Profile
from partwise.core.program import SERVER, Record
from partwise.core.runtime import Observer
from partwise.core.schedule import (
    Action,
    After,
    Arrived,
    Commit,
    Dispatch,
    Event,
    Lost,
    Roster,
    Scheduler,
    Started,
    Stop,
)
from partwise.local import SGD, LocalTraining
from partwise.programs.server import ServerNode
from partwise.programs.star import Star
from partwise.runtimes import Simulate


@dataclass
class Clients(Population):
    """A population from tensors: client i has columns[i]."""

    columns: Sequence[Mapping[str, Tensor]]
    profiles: Mapping[int, Profile] = field(default_factory=dict)

    @property
    def clients(self) -> Sequence[int]:
        return range(len(self.columns))

    def data(self, client: int) -> Dataset:
        return Examples(self.columns[client])

    def profile(self, client: int, now: float = 0.0) -> Profile:
        return self.profiles.get(client, Profile())

    @property
    def is_instant(self) -> bool:
        return not self.profiles


@dataclass(frozen=True)
class Cohorts(Scheduler):
    """A scheduler with cohorts that are written down; each round waits for all of its clients."""

    cohorts: tuple[tuple[int, ...], ...]
    state_types: ClassVar[tuple[type, ...]] = ()

    def init(self, population: Roster) -> Any:
        return 0, (), ()

    def step(self, state: Any, event: Event, roster: Roster) -> tuple[Any, list[Action]]:
        round, waiting, got = state
        match event:
            case Started():
                return self._open(0)
            case Arrived(_, reply, _):
                got = (*got, reply)
                waiting = tuple(c for c in waiting if c != reply.client)
            case Lost(_, client, _):
                waiting = tuple(c for c in waiting if c != client)
        if waiting:
            return (round, waiting, got), []
        commit: list[Action] = [Commit(got)] if got else []
        state, more = self._open(round)
        return state, commit + more

    def _open(self, round: int) -> tuple[Any, list[Action]]:
        if round == len(self.cohorts):
            return (round, (), ()), [Stop()]
        cohort = self.cohorts[round]
        return (round + 1, cohort, ()), [Dispatch(c) for c in cohort]


@dataclass(frozen=True)
class Eager(Scheduler):
    """Commits each reply alone, by 1 / (1 + staleness), and asks its client, or one that was lost, again."""

    busy: int = 4
    commits: int = 12
    state_types: ClassVar[tuple[type, ...]] = ()

    @property
    def versions(self) -> int:
        return self.commits

    def init(self, roster: Roster) -> int:
        return 0

    def step(self, state: int, event: Event, roster: Roster) -> tuple[int, list[Action]]:
        match event:
            case Started():
                return state, [After(0.001, 7), *(Dispatch(c) for c in list(roster.clients)[: self.busy])]
            case Arrived(_, reply, _):
                commit = Commit([reply], [1 / (1 + state - reply.version)])
                end: Action = Stop() if state + 1 == self.commits else Dispatch(reply.client)
                return state + 1, [commit, end]
            case Lost(_, client, _, _):
                return state, [Dispatch(client)]
        return state, []


@dataclass(frozen=True)
class Recorded(Scheduler):
    """A scheduler that notes which replies it has committed."""

    inner: Scheduler
    committed: set[int] = field(default_factory=set)

    @property
    def state_types(self) -> tuple[type, ...]:
        return self.inner.state_types

    def init(self, roster: Roster) -> Any:
        return self.inner.init(roster)

    def step(self, state: Any, event: Event, roster: Roster) -> tuple[Any, list[Action]]:
        state, actions = self.inner.step(state, event, roster)
        self.committed.update(r.id for a in actions if isinstance(a, Commit) for r in a.replies)
        return state, actions


@dataclass
class Log(Observer):
    """Keeps every record, and what `look` sees at each one of `kind`."""

    look: Any = None
    kind: str = "commit"
    records: list[Record] = field(default_factory=list)
    seen: list[Any] = field(default_factory=list)
    rows: list[tuple[float, int, int]] = field(default_factory=list)

    def heard(self, now: float, src: int, tag: int) -> str | None:
        self.rows.append((now, src, tag))
        return None

    def record(self, record: Record, world: Any) -> str | None:
        self.records.append(record)
        if record.kind == self.kind and self.look is not None:
            self.seen.append(self.look(world))
        return None

    def settled(self, world: Any) -> None:
        pass

    def ended(self, world: Any, reason: str) -> None:
        pass

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [r.fields for r in self.records if r.kind == kind]


@dataclass
class Saving(Log):
    """Keeps the encoded entries of every settled moment, as a checkpoint would: unchanged ones are taken over."""

    saved: list[dict[str, bytes]] = field(default_factory=list)

    def settled(self, world: Any) -> None:
        entries, unchanged = world.entries()
        before = self.saved[-1] if self.saved else {}
        self.saved.append({name: before[name] if name in unchanged else encode(entries[name]) for name in entries})


def workers_end_with(code: str) -> bool:
    """Whether a process that runs this code, and says `ready`, takes its children with it when it is killed.

    The pipe that they all have open is at its end when the last of them is gone.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        run.kill()
        return run.stdout.read() == b""


def run(star: Star, look: Any = None, kind: str = "commit") -> tuple[Mapping[int, Any], Log]:
    """The final states, and what happened."""
    log = Log(look, kind)
    states, _ = Simulate().run(star.programs(), star.population, log)
    return states, log


def star_of(algorithm: Algorithm, model: Model, population: Clients, scheduler: Any, **more: Any) -> Star:
    return Star(algorithm=algorithm, scheduler=scheduler, model=model, population=population, channel=Plain(), **more)


def server(world: Any) -> ServerNode:
    return world.state(SERVER)


def everybody(population: Clients, rounds: int) -> Cohorts:
    return Cohorts((tuple(population.clients),) * rounds)


# The running example: two clients, one number.


class Number(nn.Module):
    def __init__(self, at: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([at], dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        return self.w.expand(len(a))


@dataclass(frozen=True)
class Parabola:
    """a/2 (w - b)²; a and b are columns."""

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * batch["a"] * (outputs - batch["b"]) ** 2


def number_model(at: float = 0.0) -> Model:
    return Model(Number(at), Parabola(), inputs=("a",))


def parabolas(a: Sequence[float] = (1.0, 3.0), b: Sequence[float] = (0.0, 4.0), sizes: Sequence[int] = ()) -> Clients:
    """One client per parabola, with so many equal examples of it."""
    sizes = sizes or (1,) * len(a)
    double = torch.float64
    return Clients(
        [
            {"a": torch.full((n,), x, dtype=double), "b": torch.full((n,), y, dtype=double)}
            for x, y, n in zip(a, b, sizes, strict=True)
        ]
    )


def full_batch(steps: int, lr: float = 0.1) -> LocalTraining:
    return LocalTraining(SGD(lr), batch_size=0, steps=steps)


def trajectory(algorithm: Algorithm, rounds: int, population: Clients, model: Model | None = None) -> list[float]:
    """The number w after each round with everybody taking part."""
    star = star_of(algorithm, model or number_model(), population, everybody(population, rounds))
    _, log = run(star, lambda world: float(server(world).streams["model"]["w"]))
    return log.seen
