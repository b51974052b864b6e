"""Figures of runs: each function gives a matplotlib figure, and shows or keeps nothing by itself.

Colours are those of Okabe and Ito, told apart by most people who do not see all colours; runs also differ in their
markers. A figure that has nothing to show raises LookupError.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from partwise.experiment.runs import Point, Run, RunLike, common_score, read_runs
from partwise.experiment.words import bytes_text, count_text, number, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GRID",
    "INK",
    "LINE",
    "MARKERS",
    "client_band",
    "client_scores",
    "heat",
    "metric_by_bytes",
    "metric_by_time",
    "metric_by_version",
    "participation",
    "rows_per_client",
    "training_loss",
]

# Source: Okabe and Ito, "Color Universal Design", 2008; black and yellow are left out, for dark and for white paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, LINE, GRID = "#24292f", "#8c959f", "#e3e6ea"  # of text, of axes, of the grid

_SIZE = (6.4, 4.0)  # inches of 72 units: text of 12 stays readable where a page is as narrow as a phone
_UNITS = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
_POINTS = 400  # drawn per curve over clients
_LEGEND = 70  # letters across a figure
_LOG_FROM = 8.0  # ratio of the largest to the smallest run from which a linear axis would squeeze the smaller


class _Curve(NamedTuple):
    """One run's line. at: the run's place, which gives colour and marker."""

    label: str
    at: int
    x: Sequence[float]
    y: Sequence[float]


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
    spent = [run.last.uplink + run.last.downlink for run in read]
    is_log = max(spent) > _LOG_FROM * max(min(spent), 1)
    return _metric(
        read,
        (metric, scope),
        lambda p: p.uplink + p.downlink,
        target=target,
        x="Bytes sent, uplink + downlink",
        tick=bytes_text,
        is_log=is_log,
    )


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
        x=f"Virtual time in {unit}",
        tick=lambda value: f"{value:,g}",
        is_log=max(spent) > _LOG_FROM * min(spent) > 0,
    )


def training_loss(runs: Iterable[RunLike]) -> Figure:
    """The cohort's mean training loss at each version, thin, and its moving average over a twentieth of the run."""
    read = read_runs(runs)
    curves = []
    with _figure() as (figure, axes):
        for at, run in enumerate(read):
            points = run.scores.get(("train_loss", "cohort"), ())
            versions, values = [p.version for p in points], [p.value for p in points]
            axes.plot(versions, values, color=COLOURS[at % len(COLOURS)], linewidth=0.8, alpha=0.35)
            curves.append(_Curve(run.label, at, versions, _smoothed(values, len(values) // 20)))
        return _draw(
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
        points = [p for p in run.scores[name, scope] if spent(p) > 0 or not is_log]
        curves.append(_Curve(run.label, at, [spent(p) for p in points], [p.value for p in points]))
    y = f"{title_of(name)} ({scope})"
    return _lines(curves, f"metric: {name}", x=x, y=y, tick=tick, is_log=is_log, target=target)


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
        curves.append(_Curve(run.label, at, [100 * i / last for i in picked], [values[i] for i in picked]))
    return _lines(
        curves,
        "client_scores",
        x="Clients from worst to best",
        y=f"{title_of(name)} of one client",
        tick=lambda v: f"{v:.0f} %",
    )


def client_band(runs: Iterable[RunLike], metric: str | None = None) -> Figure:
    """The mean over clients after each evaluated version, in a band from the 10th to the 90th percentile."""
    read = read_runs(runs)
    name = metric or common_score(read)[0]
    curves = []
    with _figure() as (figure, axes):
        for at, run in enumerate(read):
            low, mean, high = (run.scores.get((name, scope), ()) for scope in ("p10", "mean", "p90"))
            if not (low and mean and high):
                continue
            versions = [p.version for p in mean]
            curves.append(_Curve(run.label, at, versions, [p.value for p in mean]))
            edges = [p.value for p in low], [p.value for p in high]
            colour = COLOURS[at % len(COLOURS)]
            axes.fill_between(versions, *edges, color=colour, alpha=0.13, linewidth=0)
            for edge in edges:
                axes.plot(versions, edge, color=colour, linewidth=0.9, alpha=0.75)
        return _draw(
            figure, axes, curves, "client_band", x=read[0].noun.capitalize(), y=f"{title_of(name)} over clients"
        )


def participation(runs: Iterable[RunLike]) -> Figure:
    """How many clients answered how often."""
    read = read_runs(runs)
    curves = []
    for at, run in enumerate(read):
        num_clients = int(run.meta.get("num_clients", len(run.answers)))
        often = Counter(run.answers.values())
        often[0] += num_clients - len(run.answers)
        if run.answers:
            times = range(max(often) + 1)
            curves.append(_Curve(run.label, at, list(times), [often[t] for t in times]))
    if len(curves) > 1 and all(curve.y == curves[0].y for curve in curves):
        curves = [curves[0]._replace(label="all runs alike, for they ask the same clients", at=-1)]
    with _figure() as (figure, axes):
        for at, curve in enumerate(curves):
            axes.stairs(
                curve.y,
                [t - 0.5 for t in (*curve.x, len(curve.x))],
                color=LINE if curve.at < 0 else COLOURS[curve.at % len(COLOURS)],
                linewidth=2.0 + 1.4 * (len(curves) - 1 - at),  # a line beneath remains visible
                fill=len(curves) == 1,
                label=curve.label,
            )
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        x = "Answers of one client in the run" if len(curves) > 1 or len(read) == 1 else "Answers of one client, in each run"
        return _finish(figure, axes, curves, "participation", x=x, y="Clients")


# Data


def heat(runs: Iterable[RunLike]) -> Figure:
    """How many clients touch each row, from the hottest row to the coldest; both axes logarithmic."""
    read = read_runs(runs)
    curves = []
    for run in _distinct(read):
        for name, pairs in (run.population or {}).get("heat", {}).items():
            x, y, rank = [], [], 0
            for holders, rows in pairs:
                if holders:
                    x += [rank + 1, rank + rows]
                    y += [holders, holders]
                rank += rows
            curves.append(_Curve(name, len(curves), x, y))
    return _lines(
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
    rows = next((r for run in read if (r := (run.population or {}).get("rows_touched"))), [])
    positive = sorted(r for r in rows if r > 0)
    with _figure() as (figure, axes):
        if not positive:
            raise LookupError("rows_per_client(): no tables were counted. Keep population_summary() with the run.")
        low, high = positive[0], max(positive[-1], positive[0] + 1)
        edges = [low * (high / low) ** (i / 24) for i in range(25)]
        axes.hist(positive, bins=edges, color=COLOURS[0], edgecolor="white", linewidth=0.5)
        middle = positive[len(positive) // 2]
        axes.axvline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(middle, 1.01, f"median {middle:,}", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
        axes.set_xscale("log")
        _ticks(axes.xaxis, count_text, is_log=True)
        axes.set(xlabel="Rows that one client’s examples touch", ylabel="Clients")
        return figure


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs whose populations differ."""
    found: list[Run] = []
    for run in runs:
        if run.population and all(run.population.get("heat") != (o.population or {}).get("heat") for o in found):
            found.append(run)
    return found


# Drawing


@contextmanager
def _figure() -> Iterator[tuple[Figure, Axes]]:
    """An empty figure in the house's looks; nothing outside it is changed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    looks: dict[str, Any] = {
        "font.size": 12,
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.edgecolor": LINE,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "text.parse_math": False,  # a run may be called anything
    }
    with mpl.rc_context(looks):
        figure = Figure(figsize=_SIZE, layout="constrained")
        yield figure, figure.add_subplot()


def _lines(
    curves: Sequence[_Curve],
    what: str,
    *,
    x: str,
    y: str,
    tick: Callable[[float], str] | None = None,
    is_log: bool = False,
    log_y: bool = False,
    target: float | None = None,
) -> Figure:
    with _figure() as (figure, axes):
        if is_log:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
            _ticks(axes.yaxis, count_text, is_log=True)
        if target is not None:
            axes.axhline(target, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
            where = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom", "fontsize": 11}
            axes.text(0.01, target, number(target), **where)
        _draw(figure, axes, curves, what, x=x, y=y)
        if tick is not None:
            _ticks(axes.xaxis, tick, is_log=is_log)
        return figure


def _draw(figure: Figure, axes: Axes, curves: Sequence[_Curve], what: str, *, x: str, y: str) -> Figure:
    kept = [curve for curve in curves if any(math.isfinite(value) for value in curve.y)]
    for curve in kept:
        colour, marker = COLOURS[curve.at % len(COLOURS)], MARKERS[curve.at % len(MARKERS)]
        ys = [value if math.isfinite(value) else math.nan for value in curve.y]
        ends = [i for i, value in enumerate(ys) if not math.isnan(value)]
        axes.plot(
            curve.x, ys, color=colour, linewidth=2, marker=marker, markersize=6, markevery=[ends[-1]], label=curve.label
        )
    return _finish(figure, axes, kept, what, x=x, y=y)


def _finish(figure: Figure, axes: Axes, curves: Sequence[_Curve], what: str, *, x: str, y: str) -> Figure:
    if not curves:
        raise LookupError(f"{what}: these runs recorded nothing to draw. See Result.table() for what they did.")
    axes.set(xlabel=x, ylabel=y)
    if len(curves) > 1:
        handles = axes.get_legend_handles_labels()[0]
        labels = [curve.label for curve in curves]
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=_columns(labels),
            fontsize=11,
            handlelength=1.3,
            columnspacing=1.3,
            handletextpad=0.5,
        )
    return figure


def _columns(labels: Sequence[str]) -> int:
    """The most columns, filled one after another, in which a legend fits across a figure."""
    for columns in range(len(labels), 1, -1):
        height = -(-len(labels) // columns)
        widths = [max(map(len, labels[at : at + height])) for at in range(0, len(labels), height)]
        if sum(widths) + 6 * len(widths) <= _LEGEND:
            return columns
    return 1


def _smoothed(values: Sequence[float], around: int) -> list[float]:
    """The mean over `around` values before and after each, as far as there are any that are finite."""
    found = []
    for at in range(len(values)):
        near = [v for v in values[max(0, at - around) : at + around + 1] if math.isfinite(v)]
        found.append(sum(near) / len(near) if near else math.nan)
    return found


def _ticks(axis: Any, text: Callable[[float], str], *, is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if is_log:
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        steps = (1.0,) if decades > 2 else (1.0, 3.0) if decades > 1 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=steps, numticks=9))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(text(value))))


def _plain(text: str) -> str:
    """A tick's label without decimals that say nothing: `20.0 MB` is `20 MB`."""
    head, space, unit = text.partition(" ")
    return (head.rstrip("0").rstrip(".") if "." in head else head) + space + unit


def _thinned(values: Sequence[float]) -> list[int]:
    """Positions of at most _POINTS values, evenly spaced, both ends among them."""
    if len(values) <= _POINTS:
        return list(range(len(values)))
    picked = [round(i * (len(values) - 1) / (_POINTS - 1)) for i in range(_POINTS)]
    return [*(a for a, b in pairwise(picked) if a != b), picked[-1]]
