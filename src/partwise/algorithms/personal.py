"""Parts of the model that never leave a client, around any algorithm."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from partwise.core.algorithm import Algorithm, ClientState, Site, Task, held_rows
from partwise.core.around import Keeping
from partwise.core.codec import register
from partwise.core.errors import CompositionError
from partwise.core.index import Grid, Index, members_of
from partwise.core.limits import Limit
from partwise.core.model import Model, Values
from partwise.core.plan import LocalPlan, Trained
from partwise.core.population import Dataset
from partwise.core.update import Update, all_finite

__all__ = ["LocalOnly", "PersonalState"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@register
class PersonalState(NamedTuple):
    """What a client keeps.

    Args:
        inner: the state of the algorithm inside.
        value: name -> the client's own parameters, whole.
    """

    inner: Any
    value: Values


@dataclass(frozen=True)
class LocalOnly(Keeping):
    """An algorithm some of whose parameters stay on the client: trained and used there, never sent.

    With `normalization` it is FedBN. A client that has never been asked starts from the model's initial values, and is
    evaluated with them; the server keeps those values too, and never changes them. So does the model that is evaluated
    on a central test set, which therefore says little; but where there is one, a run goes by it, its target included.
    Have it go by the clients' scores instead: `Evaluation(scope="pooled")`. Of a task whose result is not finite a
    client keeps nothing.

    Args:
        inner: what is done with all other parameters; not one whose clients make the server's model for themselves,
            such as `Ferret`, `OneByte`, `FedRank`, `Mirrored` or `Downlink`, or need all of it, such as `MCPSGD`,
            `AdaAlter` or `Utility`.
        names: parameters that stay, by their full names.
        normalization: also everything in a BatchNorm, its affine map and its running statistics. Modules are told by
            their type; LayerNorm and GroupNorm have no statistics of the data and are shared.

    Source: Li et al., "FedBN: federated learning on non-IID features via local batch normalization", ICLR 2021,
        arXiv:2102.07623; Arivazhagan et al., "Federated learning with personalization layers", arXiv:1912.00818.
    Differs: the released FedBN code looks for "bn" in the parameters' names and misses layers called otherwise.
    """

    inner: Algorithm
    names: tuple[str, ...] = ()
    normalization: bool = True

    def __post_init__(self) -> None:
        if self.names and not self.inner.mirrors:  # of those it is said once it is known what else stays
            self._check_needs(self.names)

    def _check_needs(self, local: Collection[str]) -> None:
        if local and self.inner.needs_all:
            raise CompositionError(
                f"LocalOnly({type(self.inner).__name__}): keeps {min(local)!r} from an algorithm whose clients need "
                "all of the model. Use FedAvg or MMPSGD inside LocalOnly; put Utility around it."
            )

    @property
    def is_personal(self) -> bool:
        return True

    def local_names(self, site: Site) -> frozenset[str]:
        """The parameters that stay on the client.

        Raises:
            ValueError: a name that the model does not have.
        """
        known = site.like.keys()
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {near[0]!r}?" if near else f"The model has {sorted(known)}."
                raise ValueError(
                    f"LocalOnly(names={self.names}): must name parameters of the model, got {name!r}. {hint}"
                )
        found = set(self.names)
        if self.normalization:
            for path, module in site.model.build(site.seed).named_modules():
                if isinstance(module, _BATCH_NORMS):
                    own = [*module.named_parameters(path), *module.named_buffers(path)]
                    found.update(name for name, _ in own if name in known)
        return frozenset(found)

    def limit(self, stream: str) -> Limit:
        return self.inner.limit(stream)

    def client_init(self, site: Site) -> ClientState:
        local = self.local_names(site)
        if local and self.inner.mirrors:
            raise CompositionError(
                f"LocalOnly({type(self.inner).__name__}): keeps {min(local)!r} from an algorithm whose clients make "
                "the server's model for themselves, for which they need all of it. Put Downlink around LocalOnly, or "
                "use an algorithm whose clients fetch the model."
            )
        self._check_needs(local)
        initial = site.model.init(site.seed)
        inner = self.inner.client_init(site.without(local))
        return PersonalState(inner, {name: t for name, t in initial.items() if name in local})

    @property
    def holds_alike(self) -> bool:
        return self.inner.holds_alike

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        index = self.inner.select(task, own.inner, site.without(own.value.keys()))
        thinned = own.value.keys() & site.model.widths.keys()
        if self.inner.thins:  # what is held is whole, and what is trained of it is not
            thinned = {name for name in thinned if any(site.model.widths[name])}
        if thinned and (self.inner.thins or any(isinstance(part, Grid) for part in members_of(index))):
            raise CompositionError(
                f"LocalOnly({type(self.inner).__name__}): what stays on a client is whole, but {min(thinned)!r} "
                "belongs to a thinned layer. Leave it to be averaged, or train whole models."
            )
        self._check_tables(index, own.value.keys(), site.model)
        return index

    def _check_tables(self, index: Index, local: Collection[str], model: Model) -> None:
        """Refuse a table that stays if its ids are renumbered to the rows that are held of another: it is whole."""
        rows = {column: name for name in held_rows(index) for column in model.tables.get(name, ())}
        for name in sorted(model.tables.keys() & local):
            for column in rows.keys() & set(model.tables[name]):
                raise CompositionError(
                    f"LocalOnly({type(self.inner).__name__}): what stays on a client is whole, but the ids "
                    f"{column!r} of {name!r} are those of {rows[column]!r} too, of which it holds some rows. Keep both "
                    "tables, give each a column of its own, or train whole models."
                )

    def fetch(self, index: Index, task: Task, own: ClientState, site: Site) -> Mapping[str, Index] | None:
        return self.inner.fetch(index, task, own.inner, site.without(own.value.keys()))

    def receive(
        self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, Values]:
        return self.inner.receive(held, index, task, own.inner, site.without(own.value.keys()))

    def personalize(self, values: Values, own: ClientState) -> Values:
        if own is None:  # never asked
            return self.inner.personalize(values, None)
        return {**self.inner.personalize(values, own.inner), **own.value}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        return self.inner.plan(held, index, task, own.inner, site.without(own.value.keys()))

    def examples(self, index: Index, own: ClientState, site: Site) -> Dataset:
        return self.inner.examples(index, own.inner, site.without(own.value.keys()))

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        shared = trained._replace(change={n: t for n, t in trained.change.items() if n not in own.value})
        updates, inner = self.inner.finish(held, shared, index, task, own.inner, site.without(own.value.keys()))
        value = {name: t + trained.change[name] for name, t in own.value.items()}
        if not all(map(all_finite, [*shared.change.values(), *value.values()])):
            value = own.value  # or no later task would have a finite result
        return updates, PersonalState(inner, value)

    def report(
        self, held: Mapping[str, Values], trained: Trained, task: Task, own: ClientState, site: Site
    ) -> Mapping[str, float]:
        return self.inner.report(held, trained, task, own.inner, site.without(own.value.keys()))
