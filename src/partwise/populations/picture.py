"""A population as a picture and in numbers.

Shapes: N clients, n examples, V rows of a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from partwise.core.model import Model
from partwise.core.population import Population
from partwise.populations.sizes import counts_of_test_examples, example_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["describe", "draw"]

Counts = NDArray[np.int64]

_BARS = 60  # clients drawn one by one; beyond, every so many-th
_LABELS = 20  # colours the eye can tell apart


def describe(population: Population, model: Model | None = None) -> dict[str, Any]:
    """The population in numbers, ready for JSON.

    Args:
        population: the clients.
        model: counts the rows of its tables too. Default: examples only.

    Returns:
        `clients`; `examples` and `test_examples` with total and quantiles over clients; `tables`: parameter name
        -> `rows` (held by anybody), `held` (rows per client) and `heat` (clients per held row), with quantiles.

    Example:
        >>> from partwise.populations.partitions import LinearSizes
        >>> from partwise.populations.sources import from_partition
        >>> describe(from_partition({"y": list(range(30))}, LinearSizes(4)))["examples"]["max"]
        12
    """
    sizes, tests = example_counts(population), counts_of_test_examples(population)
    central = population.central_test()
    numbers: dict[str, Any] = {
        "clients": len(sizes),
        "examples": {"total": int(sizes.sum()), **_quantiles(sizes)},
        "test_examples": {"total": int(tests.sum()), **_quantiles(tests)},
        "central_test_examples": len(central) if central is not None else 0,
        "tables": {},
    }
    for table in model.tables if model else ():
        held, heat = _rows(population, model.tables[table] if model else ())
        numbers["tables"][table] = {"rows": len(heat), "held": _quantiles(held), "heat": _quantiles(heat)}
    return numbers


def draw(
    population: Population, path: str | Path | None = None, *, model: Model | None = None, label: str = "y"
) -> Figure:
    """A picture: labels per client and sizes; for models with tables also rows per client and heat by rank.

    Args:
        population: the clients.
        path: where to write it; the ending chooses the format (`.png`, `.svg`, `.pdf`), `.png` where there is
            none. Default: nowhere.
        model: whose tables are drawn.
        label: the column with the labels; left out where it is missing or not whole numbers.

    Returns:
        the matplotlib figure.

    Raises:
        ValueError: the ending is no format of a picture.
    """
    from matplotlib.figure import Figure

    # Without a format, matplotlib would write to another path than this one.
    form = Path(path).suffix[1:].lower() or "png" if path is not None else ""
    if form and form not in Figure().canvas.get_supported_filetypes():
        raise ValueError(
            f"draw(path={str(path)!r}): must end in a format that matplotlib writes, got '.{form}'. "
            "Use .png, .svg or .pdf."
        )
    tables = dict(model.tables) if model else {}
    figure = Figure(figsize=(11, 3.6 * (1 + len(tables))), layout="constrained")
    axes = figure.subplots(1 + len(tables), 2, squeeze=False)
    sizes = example_counts(population)
    _draw_labels(axes[0][0], population, label, sizes)
    _draw_histogram(axes[0][1], sizes, "examples per client")
    for (below, beside), (table, columns) in zip(axes[1:], tables.items(), strict=True):
        held, heat = _rows(population, columns)
        _draw_histogram(below, held, f"rows of {table} per client")
        _draw_heat(beside, heat, table)
    if path is not None:
        figure.savefig(path, dpi=110, format=form)
    return figure


def _quantiles(values: Counts) -> dict[str, Any]:
    if not len(values):
        return dict.fromkeys(("min", "p10", "median", "p90", "max"), 0)
    names = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
    found = {name: float(np.quantile(values, q)) for name, q in names.items()}
    return {name: int(v) if v == int(v) else v for name, v in found.items()}


def _rows(population: Population, columns: tuple[str, ...]) -> tuple[Counts, Counts]:
    """Rows each client's training examples name, (N,), and clients per row that anybody names."""
    held: list[int] = []
    rows: list[Counts] = []
    for client in population.clients:
        data = population.data(client).columns()
        own = torch.cat([data[name].flatten() for name in columns]).unique().cpu().numpy()
        held.append(len(own))
        rows.append(own)
    return np.array(held), np.unique(np.concatenate(rows), return_counts=True)[1]


def _draw_labels(ax: Axes, population: Population, label: str, sizes: Counts) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    clients, stride = list(population.clients), _stride(sizes)
    shown, at = clients[::stride], np.arange(0, len(sizes), stride)  # bars stand at their clients' places
    labels = [_whole_labels(population.data(c).columns().get(label)) for c in shown]
    names = np.unique(np.concatenate([own for own in labels if own is not None] or [np.empty(0, np.int64)]))
    ax.set_xlabel("client" if stride == 1 else f"client (one in {stride} drawn)")
    ax.set_ylabel("examples")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda place, _: str(clients[int(place)]) if 0 <= place < len(clients) else "")
    )
    if not len(names) or any(own is None for own in labels):
        ax.bar(at, sizes[::stride], width=0.8 * stride)
        ax.set_title("examples by client")
        return
    others = len(names) > _LABELS
    bottom = np.zeros(len(shown))
    for name in names[: _LABELS - 1 if others else len(names)]:
        height = np.array([np.count_nonzero(own == name) for own in labels])
        ax.bar(at, height, bottom=bottom, width=stride, label=str(name))
        bottom += height
    if others:
        rest = np.array([len(own) for own in labels if own is not None]) - bottom
        ax.bar(at, rest, bottom=bottom, width=stride, label="others", color="lightgrey")
    ax.set_title(f"examples by client and {label}")
    ax.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")


def _stride(sizes: Counts) -> int:
    return max(1, -(-len(sizes) // _BARS))


def _whole_labels(column: torch.Tensor | None) -> Counts | None:
    if column is None or column.dim() != 1 or column.is_floating_point():
        return None
    found: Counts = column.cpu().numpy()
    return found


def _draw_histogram(ax: Axes, values: Counts, what: str) -> None:
    ax.hist(values, bins=min(40, max(5, len(np.unique(values)))))
    ax.axvline(float(np.median(values)), color="black", linewidth=1, linestyle="--")
    ax.set_title(f"{what}: median {np.median(values):g}, {values.min()} to {values.max()}")
    ax.set_xlabel(what)
    ax.set_ylabel("clients")


def _draw_heat(ax: Axes, heat: Counts, table: str) -> None:
    ax.loglog(np.arange(1, len(heat) + 1), np.sort(heat)[::-1])
    ax.set_title(f"heat of {table}: {len(heat)} rows, median {np.median(heat):g}, up to {heat.max()}")
    ax.set_xlabel("row, by falling heat")
    ax.set_ylabel("clients that hold it")
