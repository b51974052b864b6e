"""Finished, interrupted and running runs, read from their folders for comparison and report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from partwise.core.errors import DataError
from partwise.experiment.accounts import EPSILON
from partwise.experiment.spans import Committed, Span, read_commits, read_spans
from partwise.experiment.store import RunStore
from partwise.experiment.words import amount, number, one_line, split_scope

__all__ = [
    "ClientValue",
    "Point",
    "Run",
    "RunLike",
    "Trouble",
    "common_score",
    "names_of",
    "read_population",
    "read_run",
    "read_runs",
]


_TROUBLES = ("lost", "refused")
_TRAINING = ("train_loss", "cohort")  # every version has it, also where there is nothing to test on


class Point(NamedTuple):
    """A score of one version, with what the run had spent by then.

    Args:
        version: of the server.
        seconds: on the runtime's clock.
        uplink: bytes from clients so far.
        downlink: bytes to clients so far.
        value: the score; nan where it is not defined.
    """

    version: int
    seconds: float
    uplink: float
    downlink: float
    value: float


class ClientValue(NamedTuple):
    """A client's score. `examples` is how many it was tested on."""

    client: int
    value: float
    examples: int


class Trouble(NamedTuple):
    """A client that was lost, refused or, by an observer, suspected; then the stage is of what, and the reason why."""

    kind: str
    client: int
    version: int
    stage: str
    reason: str


@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder holds.

    Args:
        folder: it was read from.
        label: what the run is called beside others.
        meta: as recorded.
        scores: (name, scope) -> a point per evaluated version.
        clients: metric -> each client's score at the last evaluated version; empty where clients were not evaluated.
        answers: client -> how many of its replies arrived.
        troubles: clients lost and refused, in order; then those suspected.
        population: what `population_summary` gave, if it was kept.
        executor: what `Auto` chose and why, in words; empty for a run that had no choice.
    """

    folder: Path
    label: str
    meta: Mapping[str, Any] = field(repr=False)
    scores: Mapping[tuple[str, str], Sequence[Point]] = field(repr=False)
    clients: Mapping[str, Sequence[ClientValue]] = field(repr=False)
    answers: Mapping[int, int] = field(repr=False)
    troubles: Sequence[Trouble] = field(repr=False)
    population: Mapping[str, Any] | None = field(repr=False)
    executor: str = ""

    @property
    def metric(self) -> str:
        """The main metric's name."""
        return str(self.meta.get("metric", ""))

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of a metric is better."""
        if metric == self.metric:
            return bool(self.meta.get("higher_is_better", True))
        return not any(word in metric for word in ("loss", "perplexity", "error"))

    @cached_property
    def last(self) -> Point:
        """The last version on record; its value means nothing."""
        every = [points[-1] for points in self.scores.values() if points]
        return max(every, key=lambda p: (p.version, p.uplink), default=Point(0, 0.0, 0, 0, math.nan))

    @property
    def is_virtual(self) -> bool:
        """Whether its clock is the simulator's."""
        return str(self.meta.get("runtime", "Simulate")).startswith(("Simulate", "Retrace"))

    @property
    def noun(self) -> str:
        """What a version is called: `round` where the scheduler has rounds."""
        return "round" if str(self.meta.get("scheduler", "Synchronous")).startswith("Synchronous") else "version"

    @property
    def privacy(self) -> str:
        """What it has spent of its guarantee, in words; empty where it has none."""
        if not self.meta.get("guarantee"):
            return ""
        spent = self.scores.get(EPSILON)
        return f"ε = {number(spent[-1].value)} after {amount(spent[-1].version, self.noun)}" if spent else "ε = 0"

    @cached_property
    def spans(self) -> Sequence[Span]:
        """What the clients did, read from the folder when it is asked for."""
        return read_spans(self.folder)

    @cached_property
    def answered(self) -> int:
        """Tasks that clients answered before the last version on record, whose bytes are those that it tells."""
        with RunStore(self.folder, "read") as store:
            taken = store.answered(self.last.version)
        return taken + sum(t.kind == "refused" and t.version < self.last.version for t in self.troubles)

    @cached_property
    def commits(self) -> Sequence[Committed]:
        """The versions, read from the folder when they are asked for."""
        return read_commits(self.folder)

    @property
    def num_clients(self) -> int:
        """In the population; those that answered, where that was not kept."""
        return int(self.meta.get("num_clients", len(self.answers)))

    @property
    def model_bytes(self) -> int | None:
        """Bytes of the full model."""
        return None if self.population is None else self.population.get("model", {}).get("bytes")

    @cached_property
    def sizes(self) -> Mapping[int, int]:
        """Client -> how many examples it trains on; empty where that was not kept."""
        about = self.population or {}
        examples = about.get("examples") or ()
        numbers = about.get("numbers") or range(len(examples))
        return dict(zip(numbers, examples, strict=True))

    def by_width(self, metric: str) -> list[tuple[float, float]]:
        """Width ratios, ascending, and the last scores of the model thinned to them; empty where none was evaluated."""
        for wanted in ("central", "pooled"):
            found = []
            for (name, scope), points in self.scores.items():
                where, ratio = split_scope(scope)
                if name == metric and where == wanted and points:
                    found.append((ratio, points[-1].value))
            if len(found) > 1:
                return sorted(found)
        return []

    def client_name(self, client: int) -> str:
        """What a person would call a client."""
        return self._names.get(client, f"client {client}")

    @cached_property
    def _names(self) -> Mapping[int, str]:
        return names_of(self.population or {})


RunLike = Run | str | Path


def read_run(folder: str | Path) -> Run:
    """Read one run's record.

    Raises:
        CheckpointError: the folder holds no run.
    """
    path = Path(folder)
    with RunStore(path, "read") as store:
        meta = store.meta()
        scores: dict[tuple[str, str], list[Point]] = {}
        for row in store.metrics():
            point = Point(row["version"], row["time"], row["uplink_bytes"], row["downlink_bytes"], row["value"])
            scores.setdefault((row["name"], row["scope"]), []).append(point)
        evaluated = max((p.version for (n, s), ps in scores.items() if s == "pooled" for p in ps), default=0)
        clients: dict[str, list[ClientValue]] = {}
        for row in store.clients(evaluated):
            clients.setdefault(row["name"], []).append(ClientValue(row["client"], row["value"], row["examples"]))
        answers = store.answers()
        troubles = [_trouble(event["kind"], event["body"]) for kind in _TROUBLES for event in store.events(kind)]
        troubles += _suspected([event["body"] for event in store.events("told")])
        notes = [event["body"] for event in store.events("executor")]
    return Run(
        folder=path,
        label=str(meta.get("name") or path.name),
        meta=meta,
        scores=scores,
        clients=clients,
        answers=answers,
        troubles=troubles,
        population=read_population(path),
        executor=_choice(notes[-1]) if notes else "",
    )


def _choice(notes: Mapping[str, Any]) -> str:
    """What an executor noted of its choice; nothing where it is none, or is told in another way."""
    chosen, seconds, faults = (notes.get(key) for key in ("chosen", "seconds", "faults"))
    if not isinstance(chosen, str) or not isinstance(seconds, Mapping) or not isinstance(faults, Mapping):
        return ""
    own, others = seconds.get(chosen), {part: took for part, took in seconds.items() if part != chosen}
    words = [f"{_name(part)} took {took / own:.2g} times as long" for part, took in others.items() if own]
    words += [f"{_name(part)} failed: {error}" for part, error in faults.items()]
    return "; ".join([f"{_name(chosen)}, by a trial", *words])


def _name(part: str) -> str:
    return part.split("(", 1)[0]


def read_runs(folders: Iterable[RunLike]) -> list[Run]:
    """Read runs and give them labels that differ: the name, else with the algorithm, else the folder.

    Raises:
        CheckpointError: a folder holds no run.
        ValueError: no folder is given.
    """
    runs = [run if isinstance(run, Run) else read_run(run) for run in folders]
    if not runs:
        raise ValueError("read_runs([]): needs at least one run, got none. Name the folder of a run.")
    kinds = [run.label for run in runs], [f"{run.label} {_short(run)}" for run in runs], [r.folder.name for r in runs]
    labels = next((found for found in kinds if len(set(found)) == len(runs)), None)
    if labels is None:
        labels = [f"{run.label} #{at}" for at, run in enumerate(runs, 1)]
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def common_score(runs: Sequence[Run], metric: str | None = None, scope: str | None = None) -> tuple[str, str]:
    """The metric and scope by which all these runs can be judged.

    Args:
        runs: at least one.
        metric: its name; the runs' main metric by default, or the training loss where none of them could be tested.
        scope: central where all have one, else pooled over clients, by default.

    Raises:
        DataError: the runs have different main metrics, or one lacks the score.
    """
    name = metric or runs[0].metric
    if metric is None and len({run.metric for run in runs}) > 1:
        found = ", ".join(f"{run.metric} ({run.label})" for run in runs)
        shared = sorted(set.intersection(*({n for n, _ in run.scores} for run in runs)) - {"train_loss"})
        remedy = f"Name one that all recorded: {', '.join(shared)}." if shared else "They recorded none in common."
        raise DataError(f"compare({len(runs)} runs): they must have one main metric, got {found}. {remedy}")
    if metric is None and scope is None and not any(n == name for run in runs for n, _ in run.scores):
        name = "train_loss" if all(_TRAINING in run.scores for run in runs) else name
    wanted = [scope] if scope else [*filter(None, [runs[0].meta.get("scope")]), "central", "pooled", "mean", "cohort"]
    for candidate in wanted:
        if all((name, candidate) in run.scores for run in runs):
            return name, str(candidate)
    lacking = next((run for run in runs if all((name, w) not in run.scores for w in wanted)), runs[-1])
    there = ", ".join(f"{n} ({s})" for n, s in sorted(lacking.scores)) or "nothing"
    raise DataError(
        f"compare({len(runs)} runs): all must have recorded {name}{f' ({scope})' if scope else ''}, got "
        f"{there} from {lacking.label!r} ({lacking.folder}). Name a score that all of them have."
    )


def _trouble(kind: str, body: Mapping[str, Any]) -> Trouble:
    return Trouble(
        kind, int(body["client"]), int(body["version"]), str(body.get("stage", "")), str(body.get("reason", ""))
    )


def _suspected(told: Sequence[Mapping[str, Any]]) -> list[Trouble]:
    """One for every round in which a client was suspected, each with the reason of the last one of its kind."""
    rounds = [(body["version"], suspect) for body in told for suspect in body.get("suspects", ())]
    last = {(s["client"], s["kind"]): s["reason"] + (", confirmed" if s["confirmed"] else "") for _, s in rounds}
    return [
        Trouble("suspected", s["client"], version, s["kind"], last[s["client"], s["kind"]]) for version, s in rounds
    ]


def read_population(path: Path) -> Mapping[str, Any] | None:
    """What `population_summary` gave of a run's clients; one that was damaged, or half written, counts as none."""
    try:
        about = json.loads((path / "population.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) and _has_clients(about) else None


def _has_clients(about: Mapping[str, Any]) -> bool:
    """Whether what is said of clients can be meant by it, also where somebody has written into the file."""
    numbers, names = about.get("numbers") or [], about.get("names") or []
    is_list = isinstance(numbers, list) and isinstance(names, list)
    return is_list and all(type(number) is int for number in (about.get("clients", 0), *numbers))


def names_of(about: Mapping[str, Any]) -> dict[int, str]:
    """Client -> what a person would call it, as it may be shown; empty where nobody gave names.

    Args:
        about: as `read_population` reads it.
    """
    names, numbers = about.get("names") or (), about.get("numbers")
    places = range(len(names)) if numbers is None else numbers
    return {client: shown for client, name in zip(places, names, strict=False) if (shown := one_line(str(name)))}


def _short(run: Run) -> str:
    return _name(str(run.meta.get("algorithm", "")))
