"""Figures of runs: each function gives a matplotlib figure, and shows or keeps nothing by itself.

A figure that has nothing to show raises LookupError.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

from partwise.experiment.drawing import (
    COLOURS,
    INK,
    LINE,
    Curve,
    draw_curves,
    draw_lines,
    finish,
    new_figure,
    set_ticks,
)
from partwise.experiment.runs import Point, Run, RunLike, common_score, read_runs
from partwise.experiment.spans import gini, shares
from partwise.experiment.words import bytes_text, count_text, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "client_band",
    "client_scores",
    "client_scores_by_size",
    "differ_much",
    "fairness",
    "heat",
    "metric_by_bytes",
    "metric_by_time",
    "metric_by_version",
    "metric_by_width",
    "participation",
    "rows_per_client",
    "staleness",
    "training_loss",
]

_UNITS = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
_GROUPS = 10  # of clients of similar size
_POINTS = 400  # drawn per curve over clients
_LEAST_TO_MOST = "Clients from least to most often"
_LOG_FROM = 8.0  # ratio of the largest to the smallest run from which a linear axis would squeeze the smaller

# Quality


def metric_by_version(
    runs: Iterable[RunLike], metric: str | None = None, *, scope: str | None = None, target: float | None = None
) -> Figure:
    """A metric after each evaluated version.

    Args:
        runs: folders, or runs that were read.
        metric: the runs' main metric by default.
        scope: as in `compare`.
        target: a level to draw; none by default.
    """
    read = read_runs(runs)
    noun = read[0].noun.capitalize()
    return _metric(read, (metric, scope), lambda p: p.version, target=target, x=noun)


def metric_by_bytes(
    runs: Iterable[RunLike], metric: str | None = None, *, scope: str | None = None, target: float | None = None
) -> Figure:
    """A metric by all bytes sent until then, both ways; the axis is logarithmic where runs differ much."""
    read = read_runs(runs)
    is_log = differ_much(read)
    return _metric(
        read,
        (metric, scope),
        lambda p: p.uplink + p.downlink,
        target=target,
        x="Bytes sent, uplink + downlink",
        tick=bytes_text,
        is_log=is_log,
    )


def differ_much(runs: Iterable[RunLike]) -> bool:
    """Whether the bytes of the runs differ so much that a linear axis would squeeze one of them."""
    spent = [total for run in read_runs(runs) if (total := run.last.uplink + run.last.downlink)]
    return len(spent) > 1 and max(spent) > _LOG_FROM * min(spent)


def metric_by_time(
    runs: Iterable[RunLike], metric: str | None = None, *, scope: str | None = None, target: float | None = None
) -> Figure:
    """A metric by the seconds passed on the runtime's clock."""
    read = read_runs(runs)
    spent = [run.last.seconds for run in read]
    if not max(spent):
        raise LookupError("metric_by_time(): no time passed on the runtime's clock. Give the clients a pace and links.")
    size, unit = next((size, unit) for size, unit in _UNITS if max(spent) >= 2 * size or size == 1)
    return _metric(
        read,
        (metric, scope),
        lambda p: p.seconds / size,
        target=target,
        x=f"{'Virtual time' if all(run.is_virtual for run in read) else 'Time'} in {unit}",
        tick=lambda value: f"{value:,g}",
        is_log=max(spent) > _LOG_FROM * min(spent) > 0,
    )


def metric_by_width(runs: Iterable[RunLike], metric: str | None = None) -> Figure:
    """A metric at the last evaluated version, of the model and of what clients of smaller widths hold of it."""
    read = read_runs(runs)
    name = metric or common_score(read)[0]
    curves = []
    for at, run in enumerate(read):
        found = run.by_width(name)
        curves.append(Curve(run.label, at, [ratio for ratio, _ in found], [value for _, value in found]))
    figure = draw_lines(
        curves,
        "metric_by_width",
        x="Width of the model, as a share of every layer",
        y=title_of(name),
        is_log=True,
        all_markers=True,
    )
    (axes,) = figure.axes
    widths = sorted({ratio for curve in curves for ratio in curve.x})
    axes.set_xticks(widths, [f"{ratio:g}" for ratio in widths])
    axes.minorticks_off()
    return figure


def training_loss(runs: Iterable[RunLike]) -> Figure:
    """The cohort's mean training loss at each version, thin, and its moving average over a twentieth of the run."""
    read = read_runs(runs)
    curves = []
    with new_figure() as (figure, axes):
        for at, run in enumerate(read):
            points = run.scores.get(("train_loss", "cohort"), ())
            versions, values = [p.version for p in points], [p.value for p in points]
            axes.plot(versions, values, color=COLOURS[at % len(COLOURS)], linewidth=0.8, alpha=0.35)
            curves.append(Curve(run.label, at, versions, _smoothed(values, len(values) // 20)))
        return draw_curves(
            figure, axes, curves, "training_loss", x=read[0].noun.capitalize(), y="Training loss of the cohort"
        )


def _metric(
    runs: Sequence[Run],
    which: tuple[str | None, str | None],
    spent: Callable[[Point], float],
    *,
    target: float | None,
    x: str,
    tick: Callable[[float], str] | None = None,
    is_log: bool = False,
) -> Figure:
    name, scope = common_score(runs, *which)
    curves = []
    for at, run in enumerate(runs):
        points = [p for p in run.scores[name, scope] if not is_log or p.version > 0 < spent(p)]
        curves.append(Curve(run.label, at, [spent(p) for p in points], [p.value for p in points]))
    y = f"{title_of(name)} ({scope})"
    return draw_lines(curves, f"metric: {name}", x=x, y=y, tick=tick, is_log=is_log, target=target)


# Clients


def client_scores(runs: Iterable[RunLike], metric: str | None = None) -> Figure:
    """Every client's score at the last evaluated version, from the worst client to the best."""
    read = read_runs(runs)
    name = metric or common_score(read)[0]
    curves = []
    for at, run in enumerate(read):
        values = sorted(c.value for c in run.clients.get(name, ()) if math.isfinite(c.value))
        if not run.higher_is_better(name):
            values.reverse()
        picked = _thinned(values)
        last = max(len(values) - 1, 1)
        curves.append(Curve(run.label, at, [100 * i / last for i in picked], [values[i] for i in picked]))
    return draw_lines(
        curves,
        "client_scores",
        x="Clients from worst to best",
        y=f"{title_of(name)} of one client",
        tick=lambda v: f"{v:.0f} %",
    )


def client_scores_by_size(runs: Iterable[RunLike], metric: str | None = None) -> Figure:
    """Clients' scores at the last evaluated version, averaged in ten groups of clients with similarly many examples.

    Clients with as many examples are in one group, so that there are fewer groups where many clients are alike.
    """
    read = read_runs(runs)
    name = metric or common_score(read)[0]
    curves = []
    for at, run in enumerate(read):
        sizes = run.sizes
        found = sorted(
            (sizes[c.client], c.value)
            for c in run.clients.get(name, ())
            if math.isfinite(c.value) and sizes.get(c.client, 0) > 0
        )
        groups, counts = min(_GROUPS, len(found)), [n for n, _ in found]
        starts = {bisect_left(counts, counts[len(found) * i // groups]) for i in range(groups)}
        cuts = [*sorted(starts), len(found)] if len(starts) > 1 else []
        parts = [found[a:b] for a, b in pairwise(cuts)]
        x, y = [median(n for n, _ in part) for part in parts], [fmean(v for _, v in part) for part in parts]
        curves.append(Curve(run.label, at, x, y))
    return draw_lines(
        curves,
        "client_scores_by_size",
        x="Training examples of a client",
        y=f"Mean {title_of(name)} of clients",
        tick=count_text,
        is_log=True,
        all_markers=True,
    )


def client_band(runs: Iterable[RunLike], metric: str | None = None) -> Figure:
    """The mean over clients after each evaluated version, in a band from the 10th to the 90th percentile."""
    read = read_runs(runs)
    name = metric or common_score(read)[0]
    curves: list[Curve] = []
    with new_figure() as (figure, axes):
        for at, run in enumerate(read):
            low, mean, high = (run.scores.get((name, scope), ()) for scope in ("p10", "mean", "p90"))
            if not (low and mean and high):
                continue
            versions = [p.version for p in mean]
            curves.append(Curve(run.label, at, versions, [p.value for p in mean]))
            edges = [p.value for p in low], [p.value for p in high]
            colour = COLOURS[at % len(COLOURS)]
            axes.fill_between(versions, *edges, color=colour, alpha=0.13, linewidth=0)
            for edge in edges:
                axes.plot(versions, edge, color=colour, linewidth=0.9, alpha=0.75)
        return draw_curves(
            figure, axes, curves, "client_band", x=read[0].noun.capitalize(), y=f"{title_of(name)} over clients"
        )


def participation(runs: Iterable[RunLike]) -> Figure:
    """How many clients answered how often."""
    read = read_runs(runs)
    curves = []
    for at, run in enumerate(read):
        often = Counter(run.answers.values())
        often[0] += run.num_clients - len(run.answers)
        if run.answers:
            times = range(max(often) + 1)
            curves.append(Curve(run.label, at, list(times), [often[t] for t in times]))
    if len(curves) > 1 and all(curve.y == curves[0].y for curve in curves):
        curves = [curves[0]._replace(label="all runs alike, for they ask the same clients", at=-1)]
    is_one = len(curves) > 1 or len(read) == 1
    x = "Answers of one client in the run" if is_one else "Answers of one client, in each run"
    return _stairs(curves, "participation", x=x, y="Clients")


def _stairs(curves: Sequence[Curve], what: str, *, x: str, y: str) -> Figure:
    """Counts by a whole number from 0 on; a single run's are filled."""
    with new_figure() as (figure, axes):
        handles = [
            axes.stairs(
                curve.y,
                [t - 0.5 for t in (*curve.x, len(curve.x))],
                color=LINE if curve.at < 0 else COLOURS[curve.at % len(COLOURS)],
                linewidth=2.0 + 1.4 * (len(curves) - 1 - at),  # a line beneath remains visible
                fill=len(curves) == 1,
                label=curve.label,
            )
            for at, curve in enumerate(curves)
        ]
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        return finish(figure, axes, curves, what, x=x, y=y, handles=handles)


def fairness(runs: Iterable[RunLike]) -> Figure:
    """How often each client's updates were committed, from the client least often to the one most often."""
    curves = []
    for at, run in enumerate(read_runs(runs)):
        often = shares(run.commits, run.num_clients)
        if sum(often) and often[0] < often[-1]:
            picked, last = _thinned(often), len(often) - 1
            label = f"{run.label} (Gini {gini(often):.2f})"
            curves.append(Curve(label, at, [100 * i / last for i in picked], [often[i] for i in picked]))
    x = f"Clients from least to most often; Gini {curves[0].label[-5:-1]}" if len(curves) == 1 else _LEAST_TO_MOST
    return draw_lines(curves, "fairness", x=x, y="Commits with a client’s update", tick=lambda v: f"{v:.0f} %")


# Time


def staleness(runs: Iterable[RunLike]) -> Figure:
    """How many committed replies were how stale."""
    curves, at = list[Curve](), 0
    for at, run in enumerate(read_runs(runs)):
        often = Counter(s for commit in run.commits for s in commit.staleness)
        if any(often):  # where nothing was stale, there is nothing to show
            counts = range(max(often) + 1)
            curves.append(Curve(run.label, at, list(counts), [often[s] for s in counts]))
    whose = f", {curves[0].label}" if len(curves) == 1 < at + 1 else ""
    return _stairs(curves, "staleness", x=f"Versions made since the work began{whose}", y="Committed replies")


# Data


def heat(runs: Iterable[RunLike]) -> Figure:
    """How many clients touch each row, from the hottest row to the coldest; both axes logarithmic."""
    read = read_runs(runs)
    curves: list[Curve] = []
    for run in _distinct(read):
        for name, pairs in (run.population or {}).get("heat", {}).items():
            x: list[float] = []
            y: list[float] = []
            rank = 0
            for holders, rows in pairs:
                if holders:
                    x += [rank + 1, rank + rows]
                    y += [holders, holders]
                rank += rows
            curves.append(Curve(name, len(curves), x, y))
    return draw_lines(
        curves,
        "heat",
        x="Row, from hottest to coldest",
        y="Clients that touch the row",
        tick=count_text,
        is_log=True,
        log_y=True,
    )


def rows_per_client(runs: Iterable[RunLike]) -> Figure:
    """How many rows of the tables the clients' examples touch, as a histogram with logarithmic bins."""
    read = read_runs(runs)
    counted = [rows for run in read if (rows := (run.population or {}).get("rows_touched"))]
    positive = sorted(rows for rows in counted[0] if rows > 0) if counted else []
    with new_figure() as (figure, axes):
        if not positive:
            raise LookupError("rows_per_client(): no tables were counted. Keep population_summary() with the run.")
        low, high = positive[0], max(positive[-1], positive[0] + 1)
        edges = [low * (high / low) ** (i / 24) for i in range(25)]
        axes.hist(positive, bins=edges, color=COLOURS[0], edgecolor="white", linewidth=0.5)
        middle = positive[len(positive) // 2]
        axes.axvline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(middle, 1.01, f"median {middle:,}", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        axes.set_xscale("log")
        set_ticks(axes.xaxis, count_text, is_log=True)
        axes.set(xlabel="Rows that one client’s examples touch", ylabel="Clients")
        return figure


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs whose populations differ."""
    found: list[Run] = []
    for run in runs:
        if run.population and all(run.population.get("heat") != (o.population or {}).get("heat") for o in found):
            found.append(run)
    return found


# Thinning


def _smoothed(values: Sequence[float], around: int) -> list[float]:
    """The mean over `around` values before and after each, as far as there are any that are finite."""
    found = []
    for at in range(len(values)):
        near = [v for v in values[max(0, at - around) : at + around + 1] if math.isfinite(v)]
        found.append(sum(near) / len(near) if near else math.nan)
    return found


def _thinned(values: Sequence[float]) -> list[int]:
    """Positions of at most _POINTS values, evenly spaced, both ends among them."""
    if len(values) <= _POINTS:
        return list(range(len(values)))
    picked = [round(i * (len(values) - 1) / (_POINTS - 1)) for i in range(_POINTS)]
    return [*(a for a, b in pairwise(picked) if a != b), picked[-1]]
