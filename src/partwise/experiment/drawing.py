"""How the figures of runs are drawn: colours, axes, legends.

Colours are those of Okabe and Ito, told apart by most people who do not see all colours; runs also differ in their
markers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from partwise.experiment.words import count_text, number

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GRID",
    "INK",
    "LINE",
    "MARKERS",
    "Curve",
    "draw_curves",
    "draw_lines",
    "finish",
    "look",
    "new_figure",
    "set_ticks",
]

# Source: Okabe and Ito, "Color Universal Design", 2008; black and yellow are left out, for dark and for white paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, LINE, GRID = "#24292f", "#8c959f", "#e3e6ea"  # of text, of axes, of the grid

_SIZE = (6.4, 4.0)  # inches of 72 units: text of 12 stays readable where a page is as narrow as a phone
_LEGEND = 70  # letters across a figure
_LABEL = 60  # letters of a label, beside its line
_ROWS, _ROW = 3, 0.26  # of a legend, for which a figure has room; inches that one more of them takes


class Curve(NamedTuple):
    """One run's line. at: the run's place, which gives colour and marker."""

    label: str
    at: int
    x: Sequence[float]
    y: Sequence[float]


@contextmanager
def new_figure() -> Iterator[tuple[Figure, Axes]]:
    """An empty figure in the house's looks; nothing outside it is changed."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    looks: dict[Any, Any] = {  # matplotlib lists every key it knows as a type of its own
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


def draw_lines(
    curves: Sequence[Curve],
    what: str,
    *,
    x: str,
    y: str,
    tick: Callable[[float], str] | None = None,
    is_log: bool = False,
    log_y: bool = False,
    target: float | None = None,
    all_markers: bool = False,
) -> Figure:
    """A figure of curves; `what` names it in errors, `target` is a level to be reached."""
    with new_figure() as (figure, axes):
        if is_log:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
            set_ticks(axes.yaxis, count_text, is_log=True)
        if target is not None:
            axes.axhline(target, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
            where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "bottom"}
            axes.text(0.01, target, number(target), fontsize=11, **where)
        draw_curves(figure, axes, curves, what, x=x, y=y, all_markers=all_markers)
        if tick is not None:
            set_ticks(axes.xaxis, tick, is_log=is_log)
        return figure


def draw_curves(
    figure: Figure, axes: Axes, curves: Sequence[Curve], what: str, *, x: str, y: str, all_markers: bool = False
) -> Figure:
    """Draw the curves that have a finite value; each has its marker at its end, or at every value."""
    kept = [curve for curve in curves if any(math.isfinite(value) for value in curve.y)]
    handles = []
    for curve in kept:
        colour, marker = look(curve.at)
        ys = [value if math.isfinite(value) else math.nan for value in curve.y]
        ends = [i for i, value in enumerate(ys) if not math.isnan(value)]
        handles += axes.plot(
            curve.x,
            ys,
            color=colour,
            linewidth=2,
            marker=marker,
            markersize=6,
            markevery=None if all_markers else [ends[-1]],
            label=curve.label,
        )
    return finish(figure, axes, kept, what, x=x, y=y, handles=handles)


def finish(
    figure: Figure, axes: Axes, curves: Sequence[Curve], what: str, *, x: str, y: str, handles: Sequence[Artist]
) -> Figure:
    """Labels, and a legend where there are several curves; LookupError where there are none.

    Args:
        figure: of the axes.
        axes: on which the curves are.
        curves: that were drawn.
        what: names the figure in errors.
        x: what its axis says.
        y: what its axis says.
        handles: what was drawn for each curve; matplotlib itself has none of a curve whose name begins with `_`.
    """
    if not curves:
        raise LookupError(f"{what}: these runs recorded nothing to draw. See Result.table() for what they did.")
    axes.set(xlabel=x, ylabel=y)
    for axis, at in ((axes.xaxis, "x"), (axes.yaxis, "y")):
        if axis.get_scale() == "linear" and all(isinstance(v, int) for curve in curves for v in getattr(curve, at)):
            _whole(axis)
    if len(curves) > 1:
        labels = [_label(curve.label) for curve in curves]
        columns = _columns(labels)
        wide, high = _SIZE
        figure.set_size_inches(wide, high + _ROW * max(0, -(-len(labels) // columns) - _ROWS))
        legend = figure.legend(
            handles,
            [str(at) for at in range(len(labels))],
            loc="outside upper left",
            ncols=columns,
            fontsize=11,
            handlelength=1.3,
            columnspacing=1.3,
            handletextpad=0.5,
        )
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set_text(label)  # now, for older releases of matplotlib leave out a label that begins with `_`
    return figure


def look(at: int) -> tuple[str, str]:
    """Colour and marker of a run: where the colours begin again, each has the next marker.

    Example:
        >>> look(0) == look(6), look(0)[0] == look(6)[0]
        (False, True)
    """
    return COLOURS[at % len(COLOURS)], MARKERS[(at + at // len(COLOURS)) % len(MARKERS)]


def _label(text: str) -> str:
    """A name that fits across a figure: of a longer one, the beginning and the end, by which runs differ."""
    return text if len(text) <= _LABEL else f"{text[: _LABEL // 2]}…{text[1 - _LABEL // 2 :]}"


def _columns(labels: Sequence[str]) -> int:
    """The most columns, filled one after another, in which a legend fits across a figure."""
    for columns in range(len(labels), 1, -1):
        height = -(-len(labels) // columns)
        widths = [max(map(len, labels[at : at + height])) for at in range(0, len(labels), height)]
        if sum(widths) + 6 * len(widths) <= _LEGEND:
            return columns
    return 1


def set_ticks(axis: Any, text: Callable[[float], str], *, is_log: bool) -> None:
    """Few ticks at round values, written by `text`."""
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


def _whole(axis: Any) -> None:
    """Ticks of what is counted, at whole numbers: there is no round 0.5."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))


def _plain(text: str) -> str:
    """A tick's label without decimals that say nothing: `20.0 MB` is `20 MB`."""
    head, space, unit = text.partition(" ")
    return (head.rstrip("0").rstrip(".") if "." in head else head) + space + unit
