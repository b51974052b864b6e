"""The figures of a report, each with its title and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from partwise.experiment import plots
from partwise.experiment.compare import Row
from partwise.experiment.runs import Run
from partwise.experiment.words import split_scope, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["View", "about_clients", "about_data", "about_quality", "about_time", "scope_text"]

_SCOPES = {
    "central": "on the central test set",
    "pooled": "on all clients’ test examples together",
    "mean": "in the mean over clients",
    "weighted": "in the mean over clients, weighted by their examples",
    "p10": "at the 10th percentile of the clients",
    "p90": "at the 90th percentile of the clients",
    "worst": "of the worst client",
    "cohort": "of the cohort",
}


def scope_text(scope: str) -> str:
    """Where a score is measured, in words.

    Example:
        >>> scope_text("central@0.25")
        'on the central test set, thinned to 0.25'
    """
    where, ratio = split_scope(scope)
    return _SCOPES.get(where, where) + (f", thinned to {ratio:g}" if ratio < 1 else "")


class View(NamedTuple):
    """A figure to be drawn.

    Args:
        name: letters; no other figure of the report has it.
        title: above it.
        draw: makes it; raises LookupError where there is nothing to show.
        reading: how to read it, in two or three sentences.
    """

    name: str
    title: str
    draw: Callable[[], Figure]
    reading: str


def about_quality(runs: Sequence[Run], rows: Sequence[Row]) -> Iterator[View]:
    """How good the model became, by what was spent on it."""
    name, scope, target = rows[0].metric, rows[0].scope, rows[0].target
    title, noun = title_of(name), runs[0].noun
    which = "higher" if runs[0].higher_is_better(name) else "lower"
    line = " The dashed line is the score to be reached." if target is not None else ""
    quicker = f" A curve further to the left needs fewer {noun}s for the same quality." if len(runs) > 1 else ""
    multiple = " Each step of the axis multiplies the bytes." if plots.differ_much(runs) else ""
    yield View(
        "version",
        f"{title} by {noun}",
        lambda: plots.metric_by_version(runs, name, scope=scope, target=target),
        f"How good the model is after each {noun}, measured {scope_text(scope)}; {which} is better.{line}{quicker}",
    )
    yield View(
        "bytes",
        f"{title} by bytes sent",
        lambda: plots.metric_by_bytes(runs, name, scope=scope, target=target),
        "The same scores by what had been sent until then, to and from all clients. Bytes are those of the encoded "
        f"messages.{multiple}",
    )
    is_virtual = all(run.is_virtual for run in runs)
    yield View(
        "time",
        f"{title} by virtual time" if is_virtual else f"{title} by time",
        lambda: plots.metric_by_time(runs, name, scope=scope, target=target),
        "The same scores by the time that would have passed on clients with the paces and links of this population. "
        "It includes computing and sending; the machine that ran the simulation plays no part."
        if is_virtual
        else "The same scores by the time on the runs’ clocks, which were not all virtual.",
    )
    yield View(
        "widths",
        f"{title} by width",
        lambda: plots.metric_by_width(runs, name),
        "The score at the end of the model, at 1, and of what clients hold that have room for the first units of each "
        "layer only. A flat curve serves weak devices as well as strong ones.",
    )
    yield View(
        "loss",
        "Training loss",
        lambda: plots.training_loss(runs),
        f"The mean loss on what the clients of each {noun} trained on, while they trained: thin as it was, thick as a "
        f"moving average. It jumps, for every {noun} asks other clients. If it rises for long, the rates are too high.",
    )


def about_clients(runs: Sequence[Run], rows: Sequence[Row]) -> Iterator[View]:
    """Whom the model serves, and who made it."""
    name, noun = rows[0].metric, runs[0].noun
    unfair = "rises" if runs[0].higher_is_better(name) else "falls"
    yield View(
        "scores",
        f"{title_of(name)} of every client at the end",
        lambda: plots.client_scores(runs, name),
        "Each client’s score on its own test examples, from the worst client to the best. A flat curve serves all "
        "alike; a steep left end means that some are served badly. Clients with few test examples scatter most.",
    )
    yield View(
        "band",
        f"Spread over clients by {noun}",
        lambda: plots.client_band(runs, name),
        "The line is the mean over clients, each counted once; the band reaches from the 10th to the 90th percentile. "
        "A band that narrows while its line improves means that those behind catch up.",
    )
    yield View(
        "sizes",
        f"{title_of(name)} by amount of data",
        lambda: plots.client_scores_by_size(runs, name),
        "Clients in up to ten groups, from those with the fewest training examples to those with the most, and the "
        f"mean score of each group. A curve that {unfair} says that clients with little data are served worse.",
    )
    yield View(
        "answers",
        "How often clients took part",
        lambda: plots.participation(runs),
        "For each number of answers, how many clients gave that many in the run. Clients at 0 never trained: "
        "what only they hold was not learnt.",
    )
    yield View(
        "fairness",
        "How often clients were committed",
        lambda: plots.fairness(runs),
        "For every client, how many versions have an update of it, from the client with the fewest to the one with the "
        "most. The Gini coefficient is 0 where all have the same number, and near 1 where one has them all.",
    )


def about_time(runs: Sequence[Run]) -> Iterator[View]:
    """Who waited for whom."""
    yield View(
        "staleness",
        "Staleness of what was committed",
        lambda: plots.staleness(runs),
        "The staleness of a reply is the number of versions that were made while its client worked, so that it began "
        "from an older one. Few replies far to the right are those of the slowest clients.",
    )


def about_data(run: Run) -> Iterator[View]:
    """Which part of the model the clients' data touch."""
    yield View(
        "heat",
        "Heat of the rows",
        lambda: plots.heat([run]),
        "The heat of a row is the number of clients whose examples touch it. Where few rows are hot and most are cold, "
        "a plain mean over the cohort drowns a cold row’s update in the many clients that do not have the row.",
    )
    yield View(
        "rows",
        "Rows per client",
        lambda: plots.rows_per_client([run]),
        "How many rows of the model’s tables one client’s examples touch. An algorithm for submodels lets the client "
        "hold, train and send no others.",
    )
