"""Many short runs of one set-up under attack: what each comes to, kept line by line, as a table and as a heat map.

A trial that was made is not made again, so that a grid that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch

from partwise.core.errors import DivergedError, PartwiseError
from partwise.core.population import Dataset
from partwise.core.program import SERVER, NodeId, Record
from partwise.core.runtime import Observer, World
from partwise.experiment.evaluate import evaluate
from partwise.experiment.experiment import Experiment
from partwise.experiment.recorder import main_score
from partwise.experiment.words import number
from partwise.runtimes.threads import torch_threads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Trial", "heat_map", "interval", "make_trials", "markdown", "play"]

_IN_A_ROW = 20  # refused, or rounds without a commit: then it is over
# Of Student's distribution, 97.5 %, by degrees of freedom from 1 on; 1.96 beyond.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


class Trial(NamedTuple):
    """One cell of a grid, in one seed.

    Args:
        setting: whatever else was varied: the partition, the part of the model that clients hold.
        rule: how the aggregator is called.
        attack: how the attack is called.
        share: of hostile clients.
        seed: of everything.
    """

    setting: str
    rule: str
    attack: str
    share: float
    seed: int


class _Watch(Observer):
    """Stops a run that will come to nothing, and keeps the last parameters that were fit."""

    def __init__(self) -> None:
        self.version, self.skipped, self.refused, self.reason = 0, 0, 0, ""
        self.params: Mapping[str, Any] = {}

    def record(self, record: Record, world: World) -> str | None:
        self.params = world.state(SERVER).streams["model"]
        if record.kind == "commit":
            self.version, self.skipped = record.fields["version"], 0
        elif record.kind in ("reply", "replies"):
            self.refused = 0
        elif record.kind in ("skipped", "refused"):
            self.skipped += record.kind == "skipped"
            self.refused += record.kind == "refused"
            self.reason = str(record.fields["reason"])
        if max(self.skipped, self.refused) >= _IN_A_ROW:
            return f"gave up: {self.reason}"
        return None

    def settled(self, world: World) -> None: ...

    def ended(self, world: World, reason: str) -> None: ...


@runtime_checkable
class _Marks(Protocol):
    """An attack with a goal: some examples are to be taken for one class."""

    @property
    def into(self) -> int: ...

    @property
    def target(self) -> str: ...


@runtime_checkable
class _Stamps(Protocol):
    def stamped(self, data: Dataset) -> Dataset: ...


def play(experiment: Experiment) -> dict[str, Any]:
    """Run an experiment to its end, without a folder, and say what it came to.

    Returns:
        `score`, the main metric on the central test set or pooled over the clients; `success`, the share of examples
        that a targeted attack has brought into its class, of those that belong elsewhere; `versions`, `seconds`, and
        `ended`, why, and `higher_is_better`, of the main metric.
    """
    began, watch = time.perf_counter(), _Watch()
    star, workload = experiment.build()
    with torch_threads(experiment.threads):
        try:
            states, reason = experiment.runtime.run(
                star.programs(relays=experiment.runtime.relays), workload.population, watch
            )
            params, own = states[SERVER].streams["model"], _kept(states) if star.algorithm.is_personal else {}
        except DivergedError as error:
            reason, params, own = f"diverged: {error}", watch.params, {}
        central = workload.population.central_test()
        scores, _ = evaluate(workload, star.algorithm, params, own, per_client=not central)
        found = main_score(scores, workload.main.name)
        success = _success(experiment, star.model, params, central)
    if not watch.version and watch.reason:  # no round came to anything: that is no score of the rule
        return _refused(watch.reason)
    score = found.value if found else math.nan
    seconds = round(time.perf_counter() - began, 3)
    told = {"score": score, "success": success, "versions": watch.version, "seconds": seconds, "ended": reason}
    return {**told, "higher_is_better": workload.main.higher_is_better}


def _kept(states: Mapping[NodeId, Any]) -> dict[NodeId, Any]:
    """Client -> what its algorithm keeps there, of those that have something."""
    return {node: state.own for node, state in states.items() if node >= 0 and state is not None}


def _success(experiment: Experiment, model: Any, params: Any, data: Dataset | None) -> float | None:
    attack = experiment.hostile.attack if experiment.hostile else None
    if data is None or not isinstance(attack, _Marks):
        return None
    true = data.columns()[attack.target]
    shown = attack.stamped(data) if isinstance(attack, _Stamps) else data
    sources = getattr(attack, "sources", None)
    chosen = true != attack.into
    if sources is not None:
        chosen &= torch.isin(true, torch.tensor(sources, dtype=true.dtype))
    taken = model.outputs(params, model.spared(shown.columns())).argmax(1)[chosen] == attack.into
    return float(taken.double().mean()) if len(taken) else None


def make_trials(
    trials: Iterable[Trial],
    experiment: Callable[[Trial], Experiment],
    keep: Path,
    *,
    about: str = "",
    said: Callable[[str], object] = len,
) -> list[dict[str, Any]]:
    """Make the trials that were not made yet.

    A rule that does not fit the set-up is no error: its cell says why.

    Args:
        trials: in the order in which they are made.
        experiment: what a trial runs.
        keep: a file of one JSON object per line, which is added to.
        about: what all trials have in common; those of something else in the file are left alone.
        said: is told of each trial that was made.

    Returns:
        One row per trial, in order: its fields, and what `play` gave.
    """
    keep.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    known = {_key(row): row for row in _rows(keep) if row.get("about") == digest}
    found = []
    for trial in trials:
        row = known.get(tuple(trial))
        if row is None:
            row = {**trial._asdict(), "about": digest, **_played(trial, experiment)}
            with keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            said(f"{trial.setting} {trial.rule} / {trial.attack} {trial.share:g}, seed {trial.seed}: {_said(row)}")
        found.append(row)
    return found


def _said(row: Mapping[str, Any]) -> str:
    return row["ended"] if row["score"] is None else f"{row['score']:.4f} in {row['seconds']:.1f} s, {row['ended']}"


def _played(trial: Trial, experiment: Callable[[Trial], Experiment]) -> dict[str, Any]:
    try:
        return play(experiment(trial))
    except (PartwiseError, ValueError) as error:
        return _refused(str(error))


def _refused(reason: str) -> dict[str, Any]:
    return {"score": None, "success": None, "versions": 0, "seconds": 0.0, "ended": f"refused: {reason}"}


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in Trial._fields)


def _rows(keep: Path) -> list[dict[str, Any]]:
    if not keep.exists():
        return []
    rows = []
    for line in keep.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the last line of a run that was killed while it wrote
            continue
    return rows


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of a few values and half the width of its 95 % interval; nan for one alone.

    Example:
        >>> mean, half = interval([0.90, 0.92, 0.94])
        >>> round(mean, 3), round(half, 3)
        (0.92, 0.05)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def _cells(rows: Iterable[Mapping[str, Any]], what: str) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        column = row["attack"] if not row["share"] else f"{row['attack']} {row['share']:g}"
        cell = found.setdefault((row["rule"], column), [])
        if row[what] is not None:
            cell.append(row[what])
    return found


def markdown(rows: Sequence[Mapping[str, Any]], what: str = "score") -> str:
    """A table of rules by attacks: the mean over the seeds with half its 95 % interval, in percent.

    Where less is better, as of a loss, or one is below 0 or above 1, the score is no share and stands as it is.

    Args:
        rows: of one setting, from `make_trials`.
        what: `score` or `success`.
    """
    cells = _cells(rows, what)
    names, columns = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
    if what != "score":
        columns = [c for c in columns if any(cells.get((name, c)) for name in names)]
    lines = ["| rule | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    is_share = what != "score" or _is_share(rows)
    lines += [
        "| " + " | ".join([name, *(_cell(cells.get((name, c)), is_share) for c in columns)]) + " |" for name in names
    ]
    return "\n".join(lines)


def _is_share(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether scores are shares, as accuracy is, of which more is better and none is below 0 or above 1."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    return _more_is_better(rows) and not any(score < 0 or score > 1 for score in scores)


def _more_is_better(rows: Iterable[Mapping[str, Any]]) -> bool:
    return all(row.get("higher_is_better", True) for row in rows)


def _cell(values: list[float] | None, is_share: bool) -> str:
    if not values:
        return "" if values is None else "refused"
    shown = [f"{100 * value:.1f}" if is_share else number(value) for value in interval(values)]
    return shown[0] if len(values) < 2 else " ± ".join(shown)


def heat_map(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Rules by attacks, the darker the better; a cell without a number was refused.

    Raises:
        LookupError: there is nothing to show.
    """
    from matplotlib.figure import Figure

    cells = _cells(rows, "score")
    if not any(cells.values()):
        raise LookupError("heat_map(): needs a trial with a score, got none. Look at what the trials say.")
    names, columns = (list(dict.fromkeys(key[at] for key in cells)) for at in (0, 1))
    shown = [[statistics.fmean(v) if (v := cells.get((n, c))) else math.nan for c in columns] for n in names]
    figure = Figure(figsize=(2.5 + 0.55 * len(columns), 1.8 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots()
    is_share, is_upward = _is_share(rows), _more_is_better(rows)
    finite = [value for line in shown for value in line if math.isfinite(value)]
    low, high = (0.0, 1.0) if is_share or not finite else (min(finite), max(finite))
    image = axes.imshow(shown, cmap="Blues" if is_upward else "Blues_r", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for y, line in enumerate(shown):
        for x, value in enumerate(line):
            text = "–" if math.isnan(value) else f"{100 * value:.0f}" if is_share else number(value)
            is_dark = value > low + 0.6 * (high - low) if is_upward else value < low + 0.4 * (high - low)
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if is_dark else "black")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return figure
