"""Evaluation: the central test set, and each client's own.

Shapes: n examples in a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from partwise.algorithms.widths import thinned, unit_counts
from partwise.core.algorithm import Algorithm
from partwise.core.errors import CompositionError, DataError, PartwiseError
from partwise.core.kinds import article
from partwise.core.metrics import Metric, reduced_each
from partwise.core.model import Model, Params
from partwise.core.population import Batch, Client, Dataset, Examples, Population
from partwise.core.workload import Workload
from partwise.experiment.words import split_scope, thin_scope
from partwise.populations.arrays import ArrayPopulation
from partwise.populations.sizes import clients_with_tests, counts_of_test_examples
from partwise.runtimes.devices import check_device, precise
from partwise.runtimes.executors.forward import forward_of, plain_of

__all__ = ["ClientScore", "Evaluation", "Score", "evaluate", "summarize"]

_CPU = torch.device("cpu")
_SPEAKING = ("central", "pooled")  # those that speak for a version
_SCOPES = (*_SPEAKING, "mean", "weighted", "p10", "p90", "worst")
_CHUNK = 8192  # examples evaluated at once
# What a CPU evaluates at once of columns in memory: with the activations, of which ids make many times their own bytes,
# it stays in the cache.
_PASS_EXAMPLES, _PASS_BYTES = 3072, 2 << 20
_TRIED = 16  # examples that show what a model does
_ALIGNED = 64  # bytes, as torch aligns what it allocates: some kernels give other last bits elsewhere


class Score(NamedTuple):
    """One number.

    Args:
        name: of the metric.
        scope: `central`; `pooled` over all clients' test examples together; over clients `mean`, `weighted` (by
            examples), `p10`, `p90`, `worst`. `central@0.5` and `pooled@0.5` are those of the model thinned to half.
        value: the number.
    """

    name: str
    scope: str
    value: float


class ClientScore(NamedTuple):
    """One number of one client."""

    client: Client
    name: str
    value: float
    examples: int


@dataclass(frozen=True)
class Evaluation:
    """When and what is evaluated.

    Args:
        every: versions between two evaluations; the first and the last version are always evaluated.
        per_client: also evaluate on each client's own test set.
        target: stop when the main metric reaches this value; None never stops.
        scope: the score that `target` looks at, and by which runs are shown and compared; by default `central`, or
            `pooled` where there is no central test set. Where clients keep a part of the model, `pooled` or `mean` is
            the one that sees it. With `widths=(0.5,)`, `central@0.5` and `pooled@0.5` are scopes too.
        widths: width ratios in (0, 1] at which the model is evaluated as well, thinned to the first units of each
            layer as `thinned` does it with the algorithm: what clients of that width can use. 1 is the model itself.
        device: where the model is evaluated: `cpu`, `cuda`, one of several such as `cuda:1`, or `auto`, a GPU where
            torch finds one. What it makes of the examples is judged in memory.
    """

    every: int = 1
    per_client: bool = True
    target: float | None = None
    scope: str = ""
    widths: tuple[float, ...] = ()
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_device("Evaluation", self.device)
        object.__setattr__(self, "widths", tuple(self.widths))
        written = {f"{ratio:g}" for ratio in self.widths}  # as scores are named
        is_told = len(written) == len(self.widths) and ("1" not in written or 1 in self.widths)
        if not all(0 < ratio <= 1 for ratio in self.widths) or not is_told:
            raise ValueError(
                f"Evaluation(widths={self.widths}): must lie in (0, 1] without repeats, got {self.widths}, of "
                "which scores are told by six digits. (0.25, 0.5) is fine."
            )
        if self.every < 1:
            raise ValueError(
                f"Evaluation(every={self.every}): must be at least 1, got {self.every}. 1 is every version."
            )
        scopes = (*_SCOPES, *(thin_scope(scope, ratio) for scope in _SPEAKING for ratio in self.widths if ratio < 1))
        if self.scope not in ("", *scopes):
            raise ValueError(
                f"Evaluation(scope={self.scope!r}): must be one of {', '.join(scopes)}, got {self.scope!r}. Leave it "
                "out for the central score, or the pooled one where there is none."
            )
        if self.target is not None and math.isnan(self.target):
            raise ValueError(
                f"Evaluation(target={self.target}): must be a number, got {self.target}, which no score reaches. "
                "Leave it out to never stop."
            )
        if self.target is not None and not self.per_client and self._whole_scope not in ("", "central"):
            raise ValueError(
                f"Evaluation(target={self.target}, scope={self.scope!r}, per_client=False): must measure what the "
                f"target looks at, got {self.scope!r}, which is a score over clients. Set per_client=True."
            )

    @property
    def _whole_scope(self) -> str:
        return split_scope(self.scope)[0]

    def check_widths(self, model: Model, like: Params, algorithm: Algorithm) -> None:
        """Refuse widths that this model does not have.

        Args:
            model: what is evaluated.
            like: its parameters, with or without storage.
            algorithm: with which it is trained.

        Raises:
            CompositionError: the model states no widths, or clients keep parameters of their own.
        """
        if not any(ratio < 1 for ratio in self.widths):
            return
        if algorithm.is_personal:
            raise CompositionError(
                f"Evaluation(widths={self.widths}): the model must be that of the server alone, got "
                f"{type(algorithm).__name__}, with which clients keep a part of it. Leave the widths out."
            )
        unit_counts(model, like)

    def check_target(self, population: Population) -> None:
        """Refuse a target that no score of these clients could reach, as none is measured.

        Raises:
            DataError: there are no examples to measure it on.
        """
        if self.target is None or not population.is_open:
            return
        central = population.central_test()
        if self._whole_scope in ("", "central") and central is not None and len(central):
            return
        is_over_clients = self.per_client and self._whole_scope != "central"
        if not is_over_clients or not counts_of_test_examples(population).any():
            raise DataError(
                f"Evaluation(target={self.target}, scope={self.scope!r}, per_client={self.per_client}): must have test "
                "examples to measure the target on, got none. Give the population a central test set"
                f"{'' if self._whole_scope == 'central' else ' or its clients test examples'}, or leave the target out."
            )


def _columns(
    metrics: Sequence[Metric], outputs_of: Callable[[Batch], Tensor], data: Dataset, *, is_cpu: bool
) -> dict[str, dict[str, Tensor]]:
    """Metric -> its columns over the data, each (n,). is_cpu: where the model is."""
    parts: dict[str, dict[str, list[Tensor]]] = {m.name: {} for m in metrics}
    size = _CHUNK
    if isinstance(data, Examples) and len(data) and is_cpu:
        size = max(1, min(_PASS_EXAMPLES, _PASS_BYTES // max(1, sum(c[:1].nbytes for c in data.columns().values()))))
    with torch.no_grad():
        for start in range(0, len(data), size):
            batch = _batch(data, start, min(start + size, len(data)))
            outputs = outputs_of(batch)
            for metric in metrics:
                for column, values in metric.measure(outputs, batch).items():
                    _check_column(metric, column, values, min(size, len(data) - start))
                    parts[metric.name].setdefault(column, []).append(values)
    return {name: {c: torch.cat(v) for c, v in columns.items()} for name, columns in parts.items()}


def _check_column(metric: Metric, column: str, values: object, examples: int) -> None:
    """Refuse what is not one value per example: it could not be told whose they are.

    Raises:
        ValueError: it names the metric.
    """
    if isinstance(values, Tensor) and values.shape[:1] == (examples,):
        return
    got = tuple(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
    raise ValueError(
        f"{metric!r}: measure must give tensors of one value per example, (b,), got {got} as {column!r} for {examples} "
        "examples. What is a number of all of them is for reduce to make."
    )


def _outputs_of(model: Model, params: Params, data: Dataset, device: torch.device) -> Callable[[Batch], Tensor]:
    """A model's outputs, for many batches. data: of which some examples show what it does."""
    if device.type == "cpu":
        return forward_of(model, params, _batch(data, 0, min(_TRIED, len(data))))
    return _own_outputs(device, model, params)


def _own_outputs(device: torch.device, model: Model, params: Params) -> Callable[[Batch], Tensor]:
    """The same by the model's own modules, on a device; the outputs are brought back."""
    if device.type == "cpu":
        return plain_of(model, params)
    there = {name: t.to(device) for name, t in params.items()}

    def outputs_of(batch: Batch) -> Tensor:
        with precise(device, "highest"):
            return model.outputs(there, {name: batch[name].to(device) for name in model.inputs}).cpu()

    return outputs_of


def _batch(data: Dataset, start: int, stop: int) -> Batch:
    """The examples start..stop, without a copy where that can be."""
    if not isinstance(data, Examples):
        return data.batch(torch.arange(start, stop))
    parts = data.slice(start, stop).columns()
    return {name: t if t.data_ptr() % _ALIGNED == 0 else t.clone() for name, t in parts.items()}


_Group = list[tuple[Client, int]]  # clients and how many test examples they have


def _check_ids(workload: Workload, params: Params, data: Dataset, group: _Group) -> None:
    """Refuse ids that are no rows: the model would fail without a word of whose they are, or take another row.

    Raises:
        DataError: an id outside its table, or none.
    """
    tables = [(name, column) for name, columns in workload.model.tables.items() for column in columns if name in params]
    columns = data.columns() if tables else {}
    for name, column in tables:
        ids, limit = columns[column], len(params[name])
        is_whole = not ids.is_floating_point() and ids.dtype != torch.bool
        low, high = map(int, ids.aminmax()) if is_whole and ids.numel() else (0, 0)
        if not is_whole or low < 0 or high >= limit:
            wrong = (ids < 0) | (ids >= limit) if is_whole else torch.ones(len(ids), 1)
            whose = _whose(workload.population, group, int(wrong.reshape(len(ids), -1).any(1).nonzero()[0]))
            raise DataError(
                f"Model(tables={{{name!r}: ({column!r}, ...)}}): ids must be whole numbers in 0..{limit - 1}, got "
                f"{f'{low}..{high}' if is_whole else ids.dtype}, first in {whose}. Make the table larger or map "
                "the ids."
            )


def _whose(population: Population, group: _Group, at: int) -> str:
    """In words, who is tested on an example of a group; without one, all are."""
    for client, examples in group:
        if at < examples:
            return f"the test examples of client {client} ({population.name(client)})"
        at -= examples
    return "the central test set"


def _groups(population: Population, *, alone: bool) -> Iterator[tuple[_Group, Dataset]]:
    """Clients' test sets joined to chunks, so that small clients do not cost a forward pass each."""
    if isinstance(population, ArrayPopulation) and not alone:
        yield from _slices(population)
        return
    group: _Group = []
    members: list[Dataset] = []
    size = 0
    for client in clients_with_tests(population):
        data = population.test_data(client)
        if data is None or not len(data):
            continue
        group.append((client, len(data)))
        members.append(data)
        size += len(data)
        if alone or size >= _CHUNK:
            yield group, _joined(members)
            group, members, size = [], [], 0
    if group:
        yield group, _joined(members)


def _slices(population: ArrayPopulation) -> Iterator[tuple[_Group, Dataset]]:
    """The same of examples that lie in a row: none of them is copied, and no client is looked at by itself."""
    group: _Group = []
    size = 0
    counts = counts_of_test_examples(population)
    for client in clients_with_tests(population):
        group.append((client, int(counts[client])))
        size += group[-1][1]
        if size >= _CHUNK:
            yield group, population.tests_between(group[0][0], client)
            group, size = [], 0
    if group:
        yield group, population.tests_between(group[0][0], group[-1][0])


def _joined(members: Sequence[Dataset]) -> Dataset:
    if len(members) == 1:
        return members[0]
    columns = [member.columns() for member in members]
    return Examples({name: torch.cat([c[name] for c in columns]) for name in columns[0]})


def evaluate(
    workload: Workload,
    algorithm: Algorithm,
    params: Params,
    own: Mapping[Client, Any],
    *,
    per_client: bool,
    widths: Sequence[float] = (),
    device: torch.device = _CPU,
) -> tuple[list[Score], list[ClientScore]]:
    """Scores of the model under `params`, and of thinner ones.

    Args:
        workload: metrics, model and test sets.
        algorithm: knows what a client keeps for itself.
        params: the server's.
        own: client -> its state, for those that have one.
        per_client: whether to look at each client's test set.
        widths: ratios to which the model is thinned for scores of its own, which are central and pooled.
        device: where the model computes.

    Raises:
        DataError: a test example with an id that is no row of its table.
        CompositionError: the model does not work with thinner layers.
    """
    scores, rows = _evaluated(workload, algorithm, params, own, per_client=per_client, device=device)
    for ratio in widths:
        if ratio == 1:
            continue
        thin = thinned(workload.model, params, ratio, algorithm)
        try:
            found, _ = _evaluated(workload, algorithm, thin, own, per_client=per_client, device=device)
        except PartwiseError:
            raise
        except Exception as error:  # whatever a module says of shapes that it does not expect
            raise CompositionError(
                f"Evaluation(widths={tuple(widths)}): the model must work with thinner layers, got {error} at "
                f"{ratio:g}. Leave modules that check their own width out of Model(widths), or leave the widths out."
            ) from error
        scores += [s._replace(scope=thin_scope(s.scope, ratio)) for s in found if s.scope in _SPEAKING]
    return scores, rows


def _evaluated(
    workload: Workload,
    algorithm: Algorithm,
    params: Params,
    own: Mapping[Client, Any],
    *,
    per_client: bool,
    device: torch.device,
) -> tuple[list[Score], list[ClientScore]]:
    """Scores of one model."""
    scores: list[Score] = []
    central = workload.population.central_test()
    is_cpu = device.type == "cpu" and all(t.is_cpu for t in params.values())
    if central is not None and len(central):
        _check_ids(workload, params, central, [])
        outputs_of = _outputs_of(workload.model, params, central, device)
        columns = _columns(workload.metrics, outputs_of, central, is_cpu=is_cpu)
        scores += [Score(m.name, "central", _number(m, m.reduce(columns[m.name]))) for m in workload.metrics]
    if not per_client:
        return scores, []
    personal, common = algorithm.is_personal, None
    rows: list[ClientScore] = []
    pooled: dict[str, dict[str, list[Tensor]]] = {m.name: {} for m in workload.metrics}
    for group, data in _groups(workload.population, alone=personal):
        if personal:
            used = algorithm.personalize(dict(params), own.get(group[0][0]))
            _check_ids(workload, used, data, group)
            outputs_of = _own_outputs(device, workload.model, used)
        else:
            _check_ids(workload, params, data, group)
            outputs_of = common = common or _outputs_of(workload.model, params, data, device)
        columns = _columns(workload.metrics, outputs_of, data, is_cpu=is_cpu)
        for metric in workload.metrics:
            for name, column in columns[metric.name].items():
                pooled[metric.name].setdefault(name, []).append(column)
            rows += _per_client(metric, columns[metric.name], group)
    for metric in workload.metrics:
        if pooled[metric.name]:
            merged = {c: torch.cat(v) for c, v in pooled[metric.name].items()}
            scores.append(Score(metric.name, "pooled", _number(metric, metric.reduce(merged))))
            scores += summarize(metric, [r for r in rows if r.name == metric.name])
    return scores, rows


def _per_client(
    metric: Metric, columns: Mapping[str, Tensor], group: Sequence[tuple[Client, int]]
) -> list[ClientScore]:
    values = reduced_each(metric, columns, [examples for _, examples in group])
    of_each = zip(group, values, strict=True)
    return [ClientScore(c, metric.name, _number(metric, v), examples) for (c, examples), v in of_each]


def _number(metric: Metric, value: object) -> float:
    """What a metric comes to, as Python's own number.

    Raises:
        TypeError: it is no number; it names the metric.
    """
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    got = "None" if value is None else article(type(value).__name__)
    raise TypeError(f"{metric!r}: reduce must give a number, or nan where there is none, got {got}. Return a float.")


def _quantile(values: Tensor, share: float) -> float:
    """Between two values on the line that joins them; between two that are infinite, as between any that are alike."""
    below, above = (float(torch.quantile(values, share, interpolation=side)) for side in ("lower", "higher"))
    return below if below == above else float(torch.quantile(values, share))


def summarize(metric: Metric, rows: Sequence[ClientScore]) -> list[Score]:
    """Mean, weighted mean, 10th and 90th percentile and worst over clients where the metric is defined."""
    kept = [r for r in rows if not math.isnan(r.value)]
    if not kept:
        return []
    values = torch.tensor([r.value for r in kept], dtype=torch.float64)
    weights = torch.tensor([r.examples for r in kept], dtype=torch.float64)
    low, high = _quantile(values, 0.1), _quantile(values, 0.9)
    worst = values.min() if metric.higher_is_better else values.max()
    found = {
        "mean": float(values.mean()),
        "weighted": float((values * weights).sum() / weights.sum()),
        "p10": low,
        "p90": high,
        "worst": float(worst),
    }
    return [Score(metric.name, scope, value) for scope, value in found.items()]
