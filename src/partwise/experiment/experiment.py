"""An experiment: one frozen description, from which a run is made."""

from __future__ import annotations

import json
import reprlib
import shutil
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from partwise.channels.plain import Plain
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm
from partwise.core.attack import Hostile, sees_honest
from partwise.core.channel import Channel
from partwise.core.disclosure import disclosed
from partwise.core.errors import CheckpointError, CompositionError, PartwiseError
from partwise.core.files import placed, to_disk, write_file
from partwise.core.kinds import article, check_kinds
from partwise.core.metrics import AUC, Accuracy, Loss, Metric, Perplexity, TopKAccuracy
from partwise.core.model import Model
from partwise.core.population import Dataset, Population, check_clients, check_data
from partwise.core.program import SERVER, Record
from partwise.core.runtime import Runtime
from partwise.core.schedule import Scheduler
from partwise.core.transform import Chain, Transform
from partwise.core.workload import Workload, WorkloadSource
from partwise.experiment.checkpoint import Checkpoints
from partwise.experiment.dump import SPEC, dump_each, save_spec, spec_digest
from partwise.experiment.endless import clock_stands_still
from partwise.experiment.evaluate import Evaluation
from partwise.experiment.journaling import Journaling, Keeper
from partwise.experiment.lock import LOCK
from partwise.experiment.mechanisms import Parts
from partwise.experiment.population_summary import population_summary, same_clients
from partwise.experiment.privacy import ClientDP
from partwise.experiment.recorder import Checkpointing, Progress, Recorder, Silent
from partwise.experiment.result import MODEL, Result
from partwise.experiment.rundir import environment, new_run_folder, save_environment
from partwise.experiment.store import RECORD, RunStore
from partwise.experiment.trusted import Trusted
from partwise.populations.columns import known
from partwise.populations.sizes import clients_with_tests
from partwise.programs.star import Star
from partwise.runtimes.devices import found_device
from partwise.runtimes.simulate import Simulate
from partwise.runtimes.threads import torch_threads
from partwise.schedulers.synchronous import Synchronous

__all__ = ["Experiment"]

# What decides, with the data, what becomes of the model.
_DECIDING = (
    *("seed", "algorithm", "scheduler", "client", "server", "download"),
    *("aggregator", "channel", "hostile", "trusted", "privacy"),
)
_MOST_THREADS = 1024  # many more end the process

Chains = Sequence[Transform] | Mapping[str, Sequence[Transform]]


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is trained, on whom, by which parts, and how it is judged.

    Args:
        workload: model, clients and metrics, or a description they are made from.
        algorithm: what clients train and keep.
        scheduler: who works, when, and what is committed together.
        name: of the run's folder.
        seed: all randomness is derived from it.
        client: transforms on a client's update, in order; or stream -> transforms.
        server: transforms on the aggregate, in order; or stream -> transforms.
        download: compressors of what clients fetch of the stream `model`, in order; or stream of the server ->
            compressors. They keep nothing, so that any part can be had in fewer bits.
        aggregator: of the stream `model`, or stream -> aggregator; the algorithm's own by default.
        channel: how updates reach the aggregator.
        hostile: clients that attack, to see what the rest is worth.
        trusted: examples that the server holds, for aggregators that judge updates by them; public for `Distillation`.
        privacy: a guarantee for every client; it adds the parts that it needs, and its epsilon is recorded.
        journal: a tamper-evident record of who contributed what, written as the run goes on.
        evaluation: when and what is evaluated.
        checkpointing: when the run is saved.
        runtime: what makes time pass.
        on_refused: what a refused update (not finite, wrong shape) does: `skip` it or `stop` the run.
        threads: of torch in this process; 0 leaves them alone.

    Raises:
        TypeError: a field of another kind, such as a part's class or name instead of the part.
        CompositionError: parts that do not fit together; raised by `star`, and so before the first round.
    """

    workload: Workload | WorkloadSource
    algorithm: Algorithm
    scheduler: Scheduler = field(default_factory=Synchronous)
    name: str = "run"
    seed: int = 0
    client: Chains = ()
    server: Chains = ()
    download: Chains = ()
    aggregator: Aggregator | Mapping[str, Aggregator] | None = None
    channel: Channel = field(default_factory=Plain)
    hostile: Hostile | None = None
    trusted: Trusted | None = None
    privacy: ClientDP | None = None
    journal: Journaling | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpointing: Checkpointing = field(default_factory=Checkpointing)
    runtime: Runtime = field(default_factory=Simulate)
    on_refused: Literal["skip", "stop"] = "skip"
    threads: int = 1

    def __post_init__(self) -> None:
        check_kinds(self)
        if not 0 <= self.threads <= _MOST_THREADS:
            raise ValueError(
                f"Experiment(threads={self.threads}): must be in 0..{_MOST_THREADS}, got {self.threads}. 1 is usual."
            )

    def build(self) -> tuple[Star, Workload]:
        """The programs' definition and the workload, checked."""
        workload = self.workload if isinstance(self.workload, Workload) else _made(self.workload, self.seed)
        check_clients(workload.population)
        trusted = None
        if self.trusted is not None:
            workload, trusted = self.trusted.taken(workload, self.seed)
        _check_columns(workload)
        aggregators = self.aggregator if isinstance(self.aggregator, Mapping) else {"model": self.aggregator}
        given = {stream: part for stream, part in aggregators.items() if part is not None}
        parts = Parts(self.algorithm, _stages(self.client), _stages(self.server), given)
        if self.privacy is not None:
            parts = self.privacy.compose(parts, self.scheduler, workload, channel=self.channel, seed=self.seed)
        used = parts.aggregators
        if self.journal is not None:
            used = self.journal.noted({**parts.algorithm.aggregators(), **used}, self.channel, self.privacy is not None)
        star = Star(
            algorithm=parts.algorithm,
            scheduler=self.scheduler,
            model=workload.model,
            population=workload.population,
            channel=self.channel,
            aggregators=used,
            client_chain=_chains(parts.client),
            server_chain=_chains(parts.server),
            download_chain=_chains(_stages(self.download)),
            seed=self.seed,
            on_refused=self.on_refused,
            hostile=self.hostile,
            trusted=trusted,
        )
        if self.evaluation.widths:
            self.evaluation.check_widths(workload.model, star.like, parts.algorithm)
        self.scheduler.init(star.roster)  # refuses a cohort that is too large now, not in the first round
        return star, workload

    def run(
        self,
        folder: str | Path | None = None,
        *,
        resume: bool = False,
        progress: Progress | None = None,
        root: str | Path = "runs",
    ) -> Result:
        """Run to the end, or to the target, or to Ctrl-C.

        Args:
            folder: of the run; a new one under `root` by default.
            resume: go on from the last checkpoint in `folder`.
            progress: shows the run.
            root: where new folders are made.

        Returns:
            The result, which reads from the folder.

        Raises:
            CheckpointError: the folder cannot be written, or there is nothing to resume.
            DivergedError: the run diverged; the last checkpoint is kept.

        Warns:
            RuntimeWarning: nobody watches, and no version was made: the model is what it was.
        """
        # Clients need gradients, whatever the caller has switched off for code of its own.
        with torch_threads(self.threads), torch.inference_mode(mode=False), torch.enable_grad():
            return self._begin(folder, resume, progress or Silent(), root)

    def _begin(self, folder: str | Path | None, resume: bool, progress: Progress, root: str | Path) -> Result:
        found_device("Evaluation", self.evaluation.device)  # refused before there is a folder
        star, workload = self.build()
        self.evaluation.check_target(workload.population)
        self._check_end(workload.population)
        about = json.dumps(population_summary(star))  # refuses what no client could do, before there is a folder
        path = Path(folder) if folder is not None else new_run_folder(Path(root), self.name)
        if folder is not None and not resume:
            _empty_folder(path)
        shown, path = str(path), path.absolute()  # others' code may go to another folder while the run goes on
        store = RunStore(path, "resume" if resume else "append")
        try:
            return self._run(path, store, star, workload, about, shown, resume=resume, progress=progress)
        finally:
            store.close()

    def _check_end(self, population: Population) -> None:
        """Refuse a scheduler that only the clock ends where none passes."""
        if self.evaluation.target is not None or not isinstance(self.runtime, Simulate):
            return
        if clock_stands_still(self.scheduler, population):
            raise CompositionError(
                f"Experiment(scheduler={self.scheduler!r}): must come to an end, got clients that take no time, so "
                "that its `seconds` never pass. Give the clients a pace or links, or the scheduler versions."
            )

    def _run(
        self,
        path: Path,
        store: RunStore,
        star: Star,
        workload: Workload,
        about: str,
        shown: str,
        *,
        resume: bool,
        progress: Progress,
    ) -> Result:
        checkpoints = Checkpoints(path / "checkpoints", keep=self.checkpointing.keep)
        keeper = Keeper(self.journal, path) if self.journal is not None else None
        recorder = Recorder(
            star,
            workload,
            evaluation=self.evaluation,
            store=store,
            checkpoints=checkpoints,
            checkpointing=self.checkpointing,
            progress=progress,
            account=self.privacy.account(self.scheduler, workload) if self.privacy else None,
            keeper=keeper,
            is_noise_new=self.privacy is not None and not self.privacy.randomness.is_simulated,
            parts=dump_each(self, _DECIDING),
        )
        saved = None
        if resume and (checkpoints.versions() or store.metrics("train_loss")):
            saved = checkpoints.load()
            if saved.notes:
                store.set_meta(passed_over=[*store.meta().get("passed_over", ()), *saved.notes])
            _same_population(path, about, is_drawn=star.algorithm.hides_holders)
            recorder.restore(saved.entries)
            if recorder.reached:  # and killed before that was written down
                result = _with_model(path, saved.entries[f"node/{SERVER}"])
                store.set_meta(status=recorder.reached)
                store.commit()
                progress.started(self.scheduler.versions, shown)
                progress.finished(recorder.reached)
                return result
        else:  # also a run that was killed before its first checkpoint, and so before its first version
            store.truncate_after(seq=0, version=-1, heard=0)
            if keeper is not None:
                keeper.rewind(0)
            self._describe(path, store, star, workload, about)
        store.set_meta(status="running")
        store.commit()  # so that others can see the run while it goes on
        progress.started(self.scheduler.versions, shown)
        if saved is not None:
            for note in saved.notes:
                progress.noticed(Record("passed over", {"version": saved.version, "reason": note}))
        reason, began = "failed", time.monotonic()
        before = float(store.meta().get("wall_seconds", 0.0))
        try:
            with _ctrl_c(recorder):
                programs, entries = star.programs(relays=self.runtime.relays), saved.entries if saved else None
                states, ended = self.runtime.run(programs, workload.population, recorder, entries=entries)
            result = _with_model(path, states[SERVER])
            reason = ended  # not before there is a model
        except PartwiseError as error:
            reason = f"{type(error).__name__}: {error}"
            raise
        finally:
            store.set_meta(status=reason, wall_seconds=before + time.monotonic() - began)
            store.commit()
            progress.finished(reason)
        if not recorder.version and not recorder.interrupted and type(progress) is Silent:
            _warn_of_nothing(path, store, reason)
        return result

    def _guarantee(self, workload: Workload) -> str | None:
        """What is promised to clients, in sentences."""
        if self.privacy is None:
            return None
        text = self.privacy.statement(self.scheduler, workload)
        if self.hostile is not None and sees_honest(self.hostile.attack):
            text += (
                " It does not hold beside this run's attack, which makes what hostile clients send of what the others "
                "send: these move the model by both, and noise is made for one."
            )
        return text

    def _describe(self, path: Path, store: RunStore, star: Star, workload: Workload, about: str) -> None:
        """Write down what is run, on whom and where, before it begins."""
        main, found = workload.main, environment()
        aggregators = star.all_aggregators()
        store.set_meta(
            name=self.name,
            seed=self.seed,
            algorithm=repr(self.algorithm),
            scheduler=repr(self.scheduler),
            versions=self.scheduler.versions,
            workload=repr(self.workload),
            metric=main.name,
            higher_is_better=main.higher_is_better,
            num_clients=len(workload.population.clients),
            client=repr(self.client),
            server=repr(self.server),
            download=repr(self.download),
            aggregator=repr(self.aggregator or aggregators.get("model", aggregators)),
            channel=repr(self.channel),
            discloses=[*disclosed(self.channel), *disclosed(self.algorithm)],
            hostile=repr(self.hostile) if self.hostile else None,
            hostile_clients=sorted(star.members),
            trusted=repr(self.trusted) if self.trusted else None,
            privacy=repr(self.privacy) if self.privacy else None,
            journal=repr(self.journal) if self.journal else None,
            guarantee=self._guarantee(workload),
            evaluation=repr(self.evaluation),
            runtime=repr(self.runtime),
            scope=self.evaluation.scope,
            environment=found,
        )
        save_environment(path, found)
        save_spec(self, path)
        if (path / SPEC).is_file():
            store.set_meta(spec_digest=spec_digest(path))
        write_file(path / "population.json", [about.encode()])


def _warn_of_nothing(path: Path, store: RunStore, ended: str) -> None:
    """Say that a run made no version, and why, where nobody was told of the clients that were lost."""
    troubles = [*store.events("refused"), *store.events("lost")]
    first = str(troubles[0]["body"].get("reason", "")) if troubles else ""
    why = f"it ended: {ended}" + (f"; the first trouble: {first}" if first and first not in ended else "")
    warnings.warn(
        f"Experiment.run(folder={str(path)!r}): at least one version is what a run is for, got none; "
        f"{why.rstrip('.')}. Mend that, and begin a new run.",
        RuntimeWarning,
        stacklevel=4,
    )


def _with_model(path: Path, server: Any) -> Result:
    """Write the model, whole or not at all."""
    streams = {stream: dict(params) for stream, params in server.streams.items()}
    written = path / f".{MODEL}.tmp"
    try:
        with placed(written, path / MODEL):
            save_file(streams["model"], written)
            shutil.copymode(path / RECORD, written)  # who may read the record may read the model
            with written.open("rb") as file:
                to_disk(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path / MODEL}: needs room on a disk it may write to, got: {error}. Free some, and resume the run."
        ) from error
    return Result(path, streams)


def _same_population(path: Path, about: str, *, is_drawn: bool) -> None:
    """Refuse to resume on other clients than the run began with.

    Args:
        path: of the run.
        about: the clients as they are now.
        is_drawn: whether clients draw what they ask for, maybe by secrets of their own: then that says nothing of them.
    """
    found = path / "population.json"
    try:
        began_with = json.loads(found.read_text(encoding="utf-8")) if found.exists() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{found}: must be the run's clients as it began, got a file that is not: {error}. Restore it from a "
            "copy; or take it away, if you know that the clients and their examples are the same."
        ) from error
    if began_with is not None and not same_clients(began_with, json.loads(about), but_held=is_drawn):
        raise CheckpointError(
            f"Experiment.run(folder={str(path)!r}, resume=True): the clients or their examples must be those the run "
            "began with, got others. Use the same data (and, for StdlibCode, the same Python), or begin a new run."
        )


def _made(source: WorkloadSource, seed: int) -> Workload:
    """What a description of a workload builds; a `Model`, which has a `build` as well, is none."""
    found: object = source.build(seed)
    if not isinstance(found, Workload):
        raise CompositionError(
            f"Experiment(workload={reprlib.repr(source)}): its build must return a Workload, got "
            f"{'None' if found is None else article(type(found).__name__)}. "
            "Return Workload(model, population, metrics)."
        )
    return found


def _check_columns(workload: Workload) -> None:
    """What the model, its loss and the metrics read must be there: refused now, not as the failure of every client."""
    model, population = workload.model, workload.population
    target = getattr(model.loss, "target", None)
    if population.is_open and len(population.clients):
        first = population.clients[0]
        check_data(population, "data", first, examples := population.data(first))
        _check_read(model, examples, {f"Model(loss={model.loss})": target})
    central, tested = population.central_test(), clients_with_tests(population)
    for data in (central, population.test_data(tested[0]) if len(tested) else None):
        if data is not None and data is not central:
            check_data(population, "test_data", tested[0], data)
        if data is not None and len(data):
            _check_read(
                model, data, {f"Workload(metrics=({metric!r}, ...))": _read(metric) for metric in workload.metrics}
            )


def _check_read(model: Model, data: Dataset, targets: Mapping[str, object]) -> None:
    """The columns that the model reads, and these targets, must be among those of the data."""
    there = data.columns()
    for name in model.inputs:
        known(f"Model(inputs={model.inputs})", name, there)
    for table, columns in model.tables.items():
        for name in columns:
            known(f"Model(tables={{{table!r}: {columns}}})", name, there)
    for where, target in targets.items():
        if isinstance(target, str):
            known(where, target, there)


def _read(metric: Metric) -> object:
    """The column that a metric reads, where that is known."""
    if isinstance(metric, Accuracy | TopKAccuracy | AUC):
        return metric.target
    return getattr(metric.of, "target", None) if isinstance(metric, Loss | Perplexity) else None


def _empty_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"Experiment.run(folder={str(path)!r}): needs a folder that can be made, got: {error.strerror}. "
            "Name another."
        ) from error
    if any(file.name != LOCK for file in path.iterdir()):  # a run killed at once leaves its lock alone
        raise CheckpointError(
            f"Experiment.run(folder={str(path)!r}): a new run needs a new or empty folder, got one with files. "
            "Name another, or resume the run in it."
        )


def _stages(chains: Chains) -> dict[str, tuple[Transform, ...]]:
    streams = chains if isinstance(chains, Mapping) else {"model": chains}
    return {stream: tuple(stages) for stream, stages in streams.items()}


def _chains(streams: Mapping[str, tuple[Transform, ...]]) -> dict[str, Transform]:
    return {stream: Chain(stages) for stream, stages in streams.items() if stages}


@contextmanager
def _ctrl_c(recorder: Recorder) -> Iterator[None]:
    """The first Ctrl-C finishes the version under way and saves; the second one is as always. Ignored ones stay so."""

    def stop(number: int, frame: FrameType | None) -> None:
        if recorder.interrupted:
            raise KeyboardInterrupt
        recorder.interrupted = True

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in a script's `command &`
        yield
        return
    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not in the main thread: then Ctrl-C is not ours to catch
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
