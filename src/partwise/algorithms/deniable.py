"""Submodels whose rows can be denied: the server cannot tell which of them a client really has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from partwise.algorithms.answers import UNASKED, Level, answered, said
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, Site, Task
from partwise.core.around import Keeping
from partwise.core.codec import register
from partwise.core.errors import CompositionError, DataError
from partwise.core.index import Index, Rows
from partwise.core.model import Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Dataset, Examples
from partwise.core.rng import derive
from partwise.core.update import Update

__all__ = ["Deniable", "DeniableState", "read_universe", "write_universe"]


@register
class DeniableState(NamedTuple):
    """What a client keeps, for as long as it takes part in anything.

    Args:
        inner: the state of the algorithm inside.
        secret: 32 bytes, from which its answers are drawn.
        lasting: columns of a table -> its lasting answers, (V,) uint8.
    """

    inner: ClientState
    secret: bytes
    lasting: Mapping[str, Tensor]


@dataclass(frozen=True)
class Deniable(Keeping):
    """A client asks for rows that it may not hold, and does not ask for all that it holds.

    It trains on the rows that it both holds and asked for, on the examples that have enough of them: an id that was not
    asked for is replaced, in a column of several, by its nearest neighbour that was; in a column of one, the example is
    left out. It takes as many steps as on all of its examples, whichever are left, since the server sees how many;
    where none are, it goes through the motions and sends no change. Of rows that it does not hold it sends zeros of
    weight 0. Behind a channel that reveals only sums, a yes can be denied; in the clear, the values tell. Algorithms
    with other streams than the model's are refused.

    Args:
        inner: trains and sends rows, such as `FedSubAvg("count")`; none that must know how many clients of the
            population hold a row.
        levels: client c answers by level c modulo how many there are.
        universe: file of the rows that may be asked for, as `write_universe` makes it from a private union; none for
            all rows of every table.
        randomness: `system`: each client draws a secret of its own. `simulated`: secrets follow from the experiment's
            seed, so that a run can be made again; they protect nothing.

    Source: Niu et al., "Billion-scale federated learning on mobile clients: a submodel design with tunable privacy",
        MobiCom 2020, arXiv:1911.02254, phases 2 to 5.
    Differs: histories are mended, not cut; the union is found once, for data that do not change.
    """

    inner: Algorithm
    levels: tuple[Level, ...] = (Level(),)
    universe: str = ""
    randomness: Literal["system", "simulated"] = "system"

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("Deniable(levels=()): needs at least one level, got none. Level() is usual.")
        if self.randomness not in ("system", "simulated"):
            raise ValueError(f"Deniable(randomness={self.randomness!r}): must be 'system' or 'simulated'.")
        streams = sorted(self.inner.aggregators())
        if streams != ["model"]:
            raise CompositionError(
                f"Deniable({type(self.inner).__name__}): hides the rows of one stream, got {streams}. "
                "Use an algorithm that sends the model alone, such as FedSubAvg('count')."
            )

    def discloses(self) -> Sequence[str]:
        every = len(self.levels)
        chosen = "" if every == 1 else f" of clients c with c mod {every} = {{}}"
        drawn = "." if self.randomness == "system" else ", from secrets that anybody can work out: a simulation."
        said = [
            f"Which rows are held can be denied, answers{chosen.format(at)} being drawn by {level!r}: of one row, a "
            f"round tells epsilon {level.epsilon_round:.4g} and all rounds {level.epsilon_ever:.4g}; of r rows, r "
            f"times that. Who believed with chance 0.01 that a row is held believes so with "
            f"{level.posterior(0.01):.3g} after a yes{drawn}"
            for at, level in enumerate(self.levels)
        ]
        return (*super().discloses(), *said)

    @property
    def hides_holders(self) -> bool:
        return True

    def level(self, site: Site) -> Level:
        """By which a client answers."""
        return self.levels[site.client % len(self.levels)]

    def client_init(self, site: Site) -> ClientState:
        is_secret = self.randomness == "system"
        secret = (
            os.urandom(32) if is_secret else derive(site.seed, "simulated secret", site.client).to_bytes(32, "little")
        )
        union = read_universe(self.universe) if self.universe else {}
        lasting = {}
        for name, label in _labels(site).items():
            size = site.like[name].shape[0]
            asked = union.get(name, torch.arange(size))
            if label not in lasting:
                lasting[label] = torch.full((size,), UNASKED, dtype=torch.uint8)
            held = site.table_rows(name)
            lasting[label] = answered(lasting[label], asked, held, self.level(site), secret, label)
        return DeniableState(self.inner.client_init(site), secret, lasting)

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        inner = self.inner.select(task, own.inner, site)
        tables = _labels(site)
        if not tables:
            return inner
        if not isinstance(inner, Rows) or any(inner.rows.get(name) is None for name in tables):
            raise CompositionError(
                f"Deniable({type(self.inner).__name__}): hides which rows are held, got an algorithm that does not "
                "select rows. Use FedSubAvg('count')."
            )
        rows = dict(inner.rows)
        for name, label in tables.items():
            rows[name] = said(own.lasting[label], self.level(site), own.secret, f"{label}|{task.id}")
        return Rows(inner.shapes, rows)

    def examples(self, index: Index, own: ClientState, site: Site) -> Dataset:
        return self._succinct(index, site)[0].localized(index)

    def _succinct(self, index: Index, site: Site) -> tuple[Site, bool]:
        """The site with the examples that it can train on, and whether there are any.

        Where there are none, all of them with other ids, so that it takes as long as ever, if any rows were asked for.
        """
        if not _labels(site):
            return site, True
        assert isinstance(index, Rows)
        columns = dict(site.data.columns())
        kept = torch.ones(len(site.data), dtype=torch.bool)
        for name in _labels(site):
            has = torch.zeros(site.like[name].shape[0], dtype=torch.bool)
            rows = index.rows[name]
            assert rows is not None
            has[rows] = True
            for column in site.model.tables[name]:
                columns[column], ok = _mended(columns[column], has)
                kept &= ok
        has_any = bool(kept.any())
        if not has_any and all(len(rows) for name in _labels(site) if (rows := index.rows[name]) is not None):
            for name in _labels(site):
                first = index.rows[name][:1]  # type: ignore[index]
                columns |= {c: first.to(columns[c].dtype).expand(columns[c].shape) for c in site.model.tables[name]}
            kept = ~kept
        return replace(site, data=Examples({n: c[kept] for n, c in columns.items()}), _memo={}), has_any

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        succinct, _ = self._succinct(index, site)
        plan = self.inner.plan(held, index, task, own.inner, succinct)
        # As many as the examples that are left would say, round by round, how many have a row that was asked for.
        return replace(plan, steps=plan.num_steps(len(site.data)) if len(succinct.data) else 0, epochs=0)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        succinct, has_any = self._succinct(index, site)
        if not has_any:
            trained = Trained({n: torch.zeros_like(v) for n, v in trained.change.items()}, 0, 0.0, trained.seed)
        updates, inner = self.inner.finish(held, trained, index, task, own.inner, succinct)
        if not _labels(site):
            return updates, own._replace(inner=inner)
        assert isinstance(index, Rows)
        update = updates["model"].unpacked()
        if isinstance(update.weight, Mapping):
            raise CompositionError(f"{self!r}: needs one weight for an update, got one for each row.")
        values, weights = dict(update.values()), {n: torch.tensor(float(update.weight)) for n in update.index.shapes}
        for name in _labels(site):
            rows = index.rows[name]
            assert rows is not None
            holds = torch.isin(rows, site.table_rows(name))  # (r,)
            values[name] = values[name] * holds.reshape(-1, *(1,) * (values[name].dim() - 1))
            weights[name] = holds * float(update.weight)
        return {"model": Update(update.index, values, weights)}, own._replace(inner=inner)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return self.inner.aggregators()


def _labels(site: Site) -> dict[str, str]:
    """Table -> its columns: tables that share one have the same rows, and the same answers."""
    tables = [name for name in site.model.tables if name in site.like]
    return {name: ",".join(sorted(site.model.columns_of(name))) for name in tables}


def _mended(ids: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of which all are there, and which examples have any: (n, ...) and (n,) bool."""
    ok = has[ids.long()]
    if ids.dim() == 1:
        return ids, ok
    flat, ok = ids.reshape(len(ids), -1), ok.reshape(len(ids), -1)  # (n, t)
    steps = torch.arange(flat.shape[1])
    before = torch.where(ok, steps, -1).cummax(1).values
    after = torch.where(ok, steps, flat.shape[1]).flip(1).cummin(1).values.flip(1)
    at = torch.where(before >= 0, before, after).clamp(max=flat.shape[1] - 1)
    return flat.gather(1, at).reshape(ids.shape), ok.any(1)


def write_universe(path: str | Path, union: Rows) -> None:
    """Write the rows that may be asked for, as a private union has found them: as `.npz`, under this very name."""
    rows = {name: at for name, at in union.rows.items() if at is not None}
    arrays: dict[str, Any] = {name: at.numpy() for name, at in rows.items()}
    with Path(path).open("wb") as file:  # to a name, numpy might add `.npz`
        np.savez(file, **arrays)


def read_universe(path: str | Path) -> dict[str, Tensor]:
    """Table -> rows, (r,) int64, ascending.

    Raises:
        DataError: the file is missing, or is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: must be a file of write_universe(), got {error}. Write it from a union.") from error
    if any(at.dtype != np.int64 or at.ndim != 1 for at in found.values()):
        raise DataError(f"{path}: must hold row numbers, got others. Write it with write_universe().")
    return {name: torch.from_numpy(np.unique(at)) for name, at in found.items()}
