"""The observer of a run: writes its record, evaluates, saves checkpoints, and says when to stop."""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Protocol, cast

from partwise.core.errors import CheckpointError, CompositionError, DivergedError
from partwise.core.ledger import Ledger
from partwise.core.program import SERVER, NodeId, Record
from partwise.core.runtime import Observer, World
from partwise.core.workload import Workload
from partwise.experiment.accounts import EPSILON, Account
from partwise.experiment.checkpoint import Checkpoints
from partwise.experiment.evaluate import Evaluation, Score, evaluate
from partwise.experiment.journaling import Keeper
from partwise.experiment.store import RunStore
from partwise.programs.star import Star
from partwise.runtimes.devices import found_device

__all__ = ["Checkpointing", "Progress", "Recorder", "Silent"]

_REFUSED_IN_A_ROW = 20  # without a single usable update in between
_SKIPPED_IN_A_ROW = 3
_SHOWN_EVERY = 0.2  # seconds of wall time between two commits of the record that are not a checkpoint's
_DIVERGED_ABOVE = 1e6  # a training loss that no useful run reaches


@dataclass(frozen=True)
class Checkpointing:
    """When a run is saved; it is always saved at its end.

    Args:
        every_seconds: of wall time between two checkpoints; 0 saves after every version.
        keep: how many checkpoints are kept, >= 1. They share what did not change between them.
    """

    every_seconds: float = 20.0
    keep: int = 2

    def __post_init__(self) -> None:
        if not self.every_seconds >= 0:
            raise ValueError(
                f"Checkpointing(every_seconds={self.every_seconds}): must be at least 0, got {self.every_seconds}. "
                "0 saves after every version."
            )
        if self.keep < 1:
            raise ValueError(
                f"Checkpointing(keep={self.keep}): must be at least 1, got {self.keep}. 2 survives a bad disk."
            )


class Progress(Protocol):
    """Shows a run to somebody."""

    def started(self, total: int, folder: str) -> None: ...

    def committed(self, version: int, loss: float, world: World, scores: Sequence[Score]) -> None:
        """A version was made; `scores` is empty where it was not evaluated."""
        ...

    def noticed(self, record: Record) -> None:
        """A client was lost or refused, a round was skipped, or, at resume, a checkpoint that is not whole was."""
        ...

    def finished(self, reason: str) -> None: ...


class Silent:
    """Shows nothing."""

    def started(self, total: int, folder: str) -> None: ...

    def committed(self, version: int, loss: float, world: World, scores: Sequence[Score]) -> None: ...

    def noticed(self, record: Record) -> None: ...

    def finished(self, reason: str) -> None: ...


class Recorder(Observer):
    """Writes what a run says, as it says it.

    Args:
        star: the programs' definition.
        workload: what is measured.
        evaluation: when it is measured.
        store: the run's record.
        checkpoints: where the run is saved.
        checkpointing: when it is saved.
        progress: shows the run.
        account: the ledger of a privacy guarantee, if there is one.
        keeper: writes the run's journal, if it keeps one.
        is_noise_new: whether a version that is made again gets other noise than before, and so is given away twice.
        parts: name -> what decides what becomes of the model, in words: a run is resumed with the same alone.
    """

    def __init__(
        self,
        star: Star,
        workload: Workload,
        *,
        evaluation: Evaluation,
        store: RunStore,
        checkpoints: Checkpoints,
        checkpointing: Checkpointing,
        progress: Progress,
        account: Account | None = None,
        keeper: Keeper | None = None,
        is_noise_new: bool = False,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        self._parts = parts or {}
        self._account, self._keeper, self._is_noise_new = account, keeper, is_noise_new
        self._star, self._workload, self._evaluation = star, workload, evaluation
        self._store, self._checkpoints, self._checkpointing = store, checkpoints, checkpointing
        self._progress, self._log = progress, store.log
        self._saved_at, self._shown_at = time.monotonic(), -math.inf
        self._is_due = False
        self.version, self.number = 0, 0
        self._seen = Ledger()  # client -> bytes counted in its earlier replies
        self._refused_in_a_row, self._skipped_in_a_row = 0, 0
        self.interrupted = False
        self.reached = ""  # a sentence once the target is

    # What the runtime calls

    def heard(self, now: float, src: NodeId, tag: int) -> str | None:
        self._log.add(now, src, tag)
        return None

    def record(self, record: Record, world: World) -> str | None:
        if record.kind in ("reply", "replies"):
            self._replied(record, world)
            return None
        self.number += 1
        self._store.append_events([(world.now, record.kind, dict(record.fields))])
        if self._keeper is not None:
            self._keep(self._keeper, record, world)
        match record.kind:
            case "started":
                self._measure(world)
                self._is_due = True  # so that a run killed in its first round can be resumed
            case "lost" | "refused":
                self._progress.noticed(record)
                self._refused(record)
            case "skipped":
                self._progress.noticed(record)
                self._skipped(record)
            case "commit":
                self._skipped_in_a_row = 0
                return self._committed(record.fields, world)
        return None

    def _keep(self, keeper: Keeper, record: Record, world: World) -> None:
        match record.kind:
            case "told":
                keeper.told(record.fields)
            case "skipped":
                keeper.skipped()
            case "commit":
                keeper.committed(world.state(SERVER).streams["model"])

    def settled(self, world: World) -> None:
        self._show()
        if self._is_due:
            self._is_due = False
            wait = self._checkpointing.every_seconds
            if self.interrupted or self.version == 0 or time.monotonic() - self._saved_at >= wait:
                self.save(world)

    def _show(self) -> None:
        """Let others follow the run."""
        if time.monotonic() - self._shown_at >= _SHOWN_EVERY:
            self._store.commit()
            self._shown_at = time.monotonic()

    def ended(self, world: World, reason: str) -> None:
        """Evaluate the last version if it was not, and save."""
        if self.version % self._evaluation.every:
            self._measure(world)
        self.save(world)

    def save(self, world: World) -> None:
        """Write the record, then a checkpoint that knows how much of the record belongs to it."""
        self._store.commit(durable=True)
        entries, unchanged = world.entries()
        mine = {"number": self.number, "version": self.version, "seen": self._seen, "reached": self.reached}
        mine["heard"], mine["refused_in_a_row"] = len(self._log), self._refused_in_a_row
        mine["account"] = self._account.state() if self._account else None
        mine["parts"] = self._parts
        if self._keeper is not None:
            self._keeper.flush()
            mine["journal"] = len(self._keeper)
            self._store.set_meta(journal_written=self._keeper.about)
        self._checkpoints.save(
            self.version,
            ChainMap[str, object]({"recorder": mine}, cast("MutableMapping[str, object]", entries)),
            unchanged,
        )
        self._saved_at = time.monotonic()

    def restore(self, entries: Mapping[str, object]) -> None:
        """Go on after a checkpoint: what was recorded later is forgotten.

        Raises:
            CheckpointError: it is of another run, or the experiment is not what it was.
        """
        mine: Any = entries["recorder"]
        self._check_parts(mine.get("parts") or {})
        self.number, self.version, self._seen = mine["number"], mine["version"], mine["seen"]
        self.reached, self._refused_in_a_row = mine["reached"], mine.get("refused_in_a_row", 0)
        self._log.truncate(mine["heard"])  # before anything is counted: a log that is too short refuses the run
        if self._keeper is not None:
            self._keeper.rewind(mine.get("journal", 0))
        if self._account is not None and mine.get("account") is not None:
            self._account.restore(mine["account"])
            if self._is_noise_new:
                self._count_lost(self._account, mine["account"])
        self._store.truncate_after(seq=self.number, version=self.version)

    def _check_parts(self, began_with: Mapping[str, str]) -> None:
        for name, text in began_with.items():
            now = self._parts.get(name, text)
            if text != now:
                was, found = _around(text, now), _around(now, text)
                raise CheckpointError(
                    f"Experiment.run(resume=True): the {name} must be what it was when the checkpoint was written, "
                    f"{was}, got {found}. Make the experiment as it was, or begin a new run."
                )

    def _count_lost(self, account: Account, saved: Any) -> None:
        """Versions after the checkpoint have been given away, and will be made again with other noise: both count."""
        account.count(self._store.meta().get("spent_before") or saved)
        for event in self._store.events("commit"):
            if event["seq"] > self.number:
                account.charge(event["body"]["clients"], event["body"].get("scales", ()))
        spent = account.state()
        self._store.set_meta(spent_before=spent)  # in one transaction with the end of those versions, so counted once
        account.restore(saved)
        account.count(spent)

    # What that means

    def _replied(self, record: Record, world: World) -> None:
        """A reply, or many, column by column: its row has what its event leaves out, in fewer bytes."""
        columns = record.fields if record.kind == "replies" else {key: [value] for key, value in record.fields.items()}
        clients, ids = columns["client"], columns["id"]
        if not clients:
            return
        self._refused_in_a_row = 0
        self.number = self._store.append_events(
            [(world.now, "reply", {"client": client, "id": id}) for client, id in zip(clients, ids, strict=True)]
        )
        sent = world.traffic.clients  # what each has sent and received since its last reply
        up, down = zip(*[self._seen.follow_(sent, client) for client in clients], strict=True)
        rows = zip(
            repeat(self.version + 1, len(clients)),
            clients,
            ids,
            columns["steps"],
            columns["examples"],
            up,
            down,
            columns["began"],
            columns["fetched"],
            columns["trained"],
            repeat(world.now, len(clients)),
            columns["loss"],
            columns["staleness"],
            strict=True,
        )
        self._store.append_replies(rows)
        self._show()

    def _refused(self, record: Record) -> None:
        """One client may be broken; when nobody's update can be used, the model is."""
        self._refused_in_a_row += record.kind == "refused"
        if self._refused_in_a_row >= _REFUSED_IN_A_ROW:
            raise DivergedError(
                f"version {self.version}: the last {self._refused_in_a_row} updates were all refused; the run diverges "
                f"or every client is broken. The last reason: {record.fields['reason']}"
            )

    def _skipped(self, record: Record) -> None:
        """One round may fall short; when every round does, the rule does not fit the cohort."""
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= _SKIPPED_IN_A_ROW:
            raise CompositionError(
                f"version {self.version}: {self._skipped_in_a_row} rounds in a row committed nothing. "
                f"The last reason: {record.fields['reason']}"
            )

    def _committed(self, fields: Mapping[str, Any], world: World) -> str | None:
        self.version, self._is_due = fields["version"], True
        loss = float(fields["loss"])
        typical = float(fields["median_loss"])  # one client's word does not stop a run
        if fields["replies"] and (not math.isfinite(typical) or typical > _DIVERGED_ABOVE):
            raise DivergedError(
                f"version {self.version}: the median training loss is {typical:g}; the run diverges. "
                "Lower the learning rates, or clip; the last checkpoint is from before."
            )
        scores = self._measure(world) if self.version % self._evaluation.every == 0 else []
        spent = self._spent(fields)
        self._store.append_metrics([self._row(world, s) for s in (Score("train_loss", "cohort", loss), *spent)])
        self._progress.committed(self.version, loss, world, [*scores, *spent])
        if self._account is not None and self._is_noise_new:
            self._store.commit(durable=True)  # what is spent is on record before the version is given away
        return self._reached(scores) or ("interrupted" if self.interrupted else None)

    def _spent(self, commit: Mapping[str, Any]) -> list[Score]:
        """What a commit leaves of a privacy guarantee."""
        if self._account is None:
            return []
        self._account.charge(commit["clients"], commit.get("scales", ()))
        return [Score(*EPSILON, self._account.epsilon())]

    def _measure(self, world: World) -> list[Score]:
        server = world.state(SERVER)
        scores, rows = evaluate(
            self._workload,
            self._star.algorithm,
            server.streams["model"],
            _Own(world, self._workload.population.clients),
            per_client=self._evaluation.per_client,
            widths=self._evaluation.widths,
            device=found_device("Evaluation", self._evaluation.device),
        )
        self._store.append_metrics([self._row(world, score) for score in scores])
        self._store.append_clients([(self.version, r.client, r.name, r.value, r.examples) for r in rows])
        return scores

    def _row(self, world: World, score: Score) -> tuple[Any, ...]:
        traffic = world.traffic
        return (self.version, world.now, traffic.uplink, traffic.downlink, score.name, score.scope, score.value)

    def _reached(self, scores: Sequence[Score]) -> str | None:
        target, main = self._evaluation.target, self._workload.main
        score = main_score(scores, main.name, self._evaluation.scope)
        if target is None or score is None:
            return None
        reached = score.value >= target if main.higher_is_better else score.value <= target
        self.reached = f"target reached: {main.name} {score.value:.4f}" if reached else ""
        return self.reached or None


def _around(text: str, other: str, room: int = 60) -> str:
    """A text, of a long one what is around the first letter in which it differs from another one."""
    at = next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    begin = max(0, min(at - room // 2, len(text) - room))
    found = " ".join(text[begin : begin + room].split())
    return f"{'...' if begin else ''}{found}{'...' if begin + room < len(text) else ''}"


class _Own(Mapping[NodeId, Any]):
    """What clients keep for themselves, looked up when it is asked for: all of it may be more than memory has room for.

    Args:
        world: has it.
        clients: whose.
    """

    def __init__(self, world: World, clients: Collection[NodeId]) -> None:
        self._world, self._clients = world, clients

    def __getitem__(self, client: NodeId) -> Any:
        node = self._world.state(client)
        return None if node is None else node.own

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


def main_score(scores: Sequence[Score], name: str, scope: str = "") -> Score | None:
    """The score that speaks for a version: central where there is one, else pooled over the clients."""
    found = {s.scope: s for s in scores if s.name == name}
    for wanted in (scope,) if scope else ("central", "pooled"):
        if wanted in found:
            return found[wanted]
    return None
