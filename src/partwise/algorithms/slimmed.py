"""Thinner models for weaker clients: HeteroFL, Federated Dropout and FjORD.

Notation: a client's model has the width ratio rho; client i of N is in the cohort C of K; q is a keep probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from partwise.algorithms.widths import (
    held_bytes,
    held_chance,
    input_factors,
    num_units,
    output_factors,
    prefix,
    prefix_shapes,
    thin,
    unit_counts,
)
from partwise.core.aggregate import Aggregator
from partwise.core.algorithm import Algorithm, ClientState, Site, Task, leaves_clients_to
from partwise.core.index import Grid, Index
from partwise.core.mean import Mean
from partwise.core.model import Model, Values
from partwise.core.plan import LocalPlan, LossFn, ModelLoss, Trained
from partwise.core.rng import derive, numpy_generator
from partwise.core.update import Update
from partwise.local import LocalTraining, Nested, Rescaled

__all__ = ["FederatedDropout", "FjORD", "HeteroFL"]


@dataclass(frozen=True)
class HeteroFL(Algorithm):
    """Every client trains the first part of each layer, as wide as it can; each entry is averaged over its holders.

    A client of width ratio rho keeps the first ceil(rho n) of n units of every hidden layer; inputs and classes are
    whole. The mean has uniform weights; what nobody held keeps its value.

    Args:
        local: how a client trains.
        scaler: divide the output of every hidden linear map by rho in training, so that thin and wide models give
            the next layer values of one size. The gradients of a thin model grow by 1 / rho for every such layer, so
            where no normalisation follows, as it does in the paper, bound them (`LocalTraining(max_norm=...)`) or do
            without.
        redraw: width ratios, one of which is drawn for every task with equal chance; empty: each client always has
            its profile's width.
        levels: width ratios, of which a client takes the largest that is not above its profile's width and whose
            parameters fit its profile's memory, in bytes; empty: memory does not matter. What training needs beside
            the parameters (gradients, the optimiser's state, activations) is not counted: leave room for it.

    Source: Diao, Ding and Tarokh, "HeteroFL: computation and communication efficient federated learning for
        heterogeneous clients", ICLR 2021, arXiv:2010.01264.
    Differs: sums updates, not values, which is the same because all holders start alike. No masked cross-entropy.
        Running statistics of a BatchNorm are averaged like its other entries, not gathered after training (the
        paper's static BatchNorm); use `track_running_stats=False` to do without. The model states which axis runs
        over which width (`Model.widths`).
    """

    local: LocalTraining = field(default_factory=LocalTraining)
    scaler: bool = True
    redraw: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("redraw", "levels"):
            ratios = getattr(self, name)
            if not all(0 < ratio <= 1 for ratio in ratios):
                raise ValueError(f"HeteroFL({name}={ratios}): must lie in (0, 1], got {ratios}. Use 1.0 for whole.")
        if self.redraw and self.levels:
            raise ValueError(
                f"HeteroFL(redraw={self.redraw}, levels={self.levels}): a width is drawn or follows from the memory, "
                "got both. Leave one of them out."
            )

    def ratio(self, task: Task, site: Site) -> float:
        """The width ratio of one task.

        Raises:
            ValueError: the client is too weak for the smallest level.
        """
        if self.levels:
            return self._fitting(site)
        if not self.redraw:
            return site.profile.width
        return self.redraw[site.derive("width", task) % len(self.redraw)]

    def _fitting(self, site: Site) -> float:
        """The largest level that a client can hold."""
        memory, width = site.profile.memory, site.profile.width
        for ratio in sorted((r for r in self.levels if r <= width + 1e-9), reverse=True):
            if held_bytes(site.model, site.like, ratio) <= memory:
                return ratio
        least = min(self.levels)
        raise ValueError(
            f"HeteroFL(levels={self.levels}): client {site.client} must have the memory and width for the smallest, "
            f"{held_bytes(site.model, site.like, least)} bytes and {least}, got {memory:g} bytes and {width}. Add a "
            "smaller level, or leave the client out."
        )

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        return prefix(site, self.ratio(task, site))

    def weight(self, site: Site) -> float:
        return 1.0

    def thin_factors(self, model: Model, ratio: float) -> Mapping[str, float]:
        return output_factors(model, 0, 1 / ratio) if self.scaler and ratio < 1 else {}

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        ratio = self.ratio(task, site)
        loss: LossFn = ModelLoss(site.model)
        if self.scaler and ratio < 1:
            loss = Rescaled(loss, output_factors(site.model, site.seed, 1 / ratio))
        return self.local.plan(site, task, loss=loss)

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": Mean("holders")}


@dataclass(frozen=True)
class FederatedDropout(Algorithm):
    """Every client trains a random part of each layer, drawn anew for every task.

    Of every hidden width ceil(q n) of n units are kept, uniformly; inputs and classes are whole. What a hidden layer
    gives to the next is multiplied by 1/q in training (inverted dropout).

    Args:
        keep_prob: q, in (0, 1]; 1 is FedAvg.
        local: how a client trains.
        shared: one draw per round for all clients, instead of one per client.
        estimator: `count`, the mean over the clients that held an entry; `heat`, the sum over the cohort divided by
            the expected number of holders, which is unbiased: clients send their update divided by the entry's chance
            to be kept, and the server divides by the cohort.
        weights: what a client counts for: `samples` or `uniform`.

    Source: Caldas et al., "Expanding the reach of federated learning by reducing client resource requirements",
        arXiv:1812.07210.
    Differs: `heat` is ours. Running means and variances are not divided by a chance, or a variance could become
        negative. Layers that share a stream, as in residual networks, share units by naming one width.
    """

    keep_prob: float = 0.75
    local: LocalTraining = field(default_factory=LocalTraining)
    shared: bool = False
    estimator: Literal["count", "heat"] = "count"
    weights: Literal["uniform", "samples"] = "samples"

    def __post_init__(self) -> None:
        if not 0 < self.keep_prob <= 1:
            raise ValueError(
                f"FederatedDropout(keep_prob={self.keep_prob}): must lie in (0, 1], got {self.keep_prob}. Try 0.75."
            )
        if self.estimator not in ("count", "heat"):
            raise ValueError(
                f"FederatedDropout(estimator={self.estimator!r}): must be 'count' or 'heat', got {self.estimator!r}. "
                "'count' has the lower variance."
            )
        if self.weights not in ("uniform", "samples"):
            raise ValueError(
                f"FederatedDropout(weights={self.weights!r}): must be 'uniform' or 'samples', got {self.weights!r}. "
                "'samples' is usual."
            )

    @property
    def _is_scaled(self) -> bool:
        return self.estimator == "heat" and self.keep_prob < 1

    @property
    def sends_all(self) -> bool:
        return not self._is_scaled

    @property
    def sends_change(self) -> bool:
        return leaves_clients_to(type(self), FederatedDropout) and not self._is_scaled

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        if self.keep_prob == 1:
            return site.whole()
        seed = derive(site.seed, "units", task.version) if self.shared else site.derive("units", task)
        units: dict[str, Tensor] = {}
        for width, total in unit_counts(site.model, site.like).items():
            drawn = numpy_generator(seed, width).choice(total, num_units(self.keep_prob, total), replace=False)
            units[width] = torch.from_numpy(drawn).to(torch.int64).sort().values
        return thin(site.model, site.like, units)

    def weight(self, site: Site) -> float:
        return 1.0 if self.weights == "uniform" else float(len(site.data))

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        loss: LossFn = ModelLoss(site.model)
        if self.keep_prob < 1:
            loss = Rescaled(loss, input_factors(site.model, site.seed, 1 / self.keep_prob))
        return self.local.plan(site, task, loss=loss)

    def finish(
        self, held: Mapping[str, Values], trained: Trained, index: Index, task: Task, own: ClientState, site: Site
    ) -> tuple[dict[str, Update], ClientState]:
        value = {name: trained.change[name] for name in held["model"]}
        if self._is_scaled and isinstance(index, Grid):
            for name in value.keys() - site.model.buffers():
                chance = held_chance(site.model, site.like, name, index.axes[name], self.keep_prob)
                value[name] = value[name] / chance.to(value[name])
        return {"model": Update(index, value, self.weight(site))}, own

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": Mean("holders" if self.estimator == "count" else "cohort")}


@dataclass(frozen=True)
class FjORD(Algorithm):
    """Every client trains all widths up to its own, one drawn per batch, so that any prefix is a usable model.

    The largest width p_max of `widths` that a client's profile allows is what it holds; every batch draws p
    uniformly from the widths up to p_max and takes the loss of the first ceil(p n) units of every hidden layer.
    Each entry is averaged, by examples, over the clients whose p_max covers it.

    Args:
        widths: P, ascending, in (0, 1].
        local: how a client trains.
        distill: self-distillation: the loss at p_max, plus the cross-entropy of width p against the softmax at p_max.

    Source: Horváth, Laskaridis et al., "FjORD: fair and accurate federated learning under heterogeneous targets with
        ordered dropout", NeurIPS 2021, arXiv:2102.13451; code: adap/flower baselines/fjord.
    Differs: a BatchNorm has one set of running statistics, not one per width; a client uploads its prefix only. As in
        the code, an entry that no batch's width reached counts with an update of 0, and weight decay still shrinks
        it.
    """

    widths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    local: LocalTraining = field(default_factory=LocalTraining)
    distill: bool = False

    def __post_init__(self) -> None:
        is_valid = bool(self.widths) and all(0 < p <= 1 for p in self.widths)
        if not is_valid or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(
                f"FjORD(widths={self.widths}): must ascend within (0, 1] without repeats, got {self.widths}. "
                "(0.25, 0.5, 1.0) is fine."
            )

    @property
    def thins(self) -> bool:
        return True

    def choices(self, site: Site) -> tuple[float, ...]:
        """The widths a client trains; the last one is what it holds.

        Raises:
            ValueError: the client is too weak for the smallest width.
        """
        found = tuple(p for p in self.widths if p <= site.profile.width + 1e-9)
        if not found:
            raise ValueError(
                f"FjORD(widths={self.widths}): client {site.client} needs a width of at most {site.profile.width}, got "
                f"none. Add a smaller width, or leave the client out."
            )
        return found

    def select(self, task: Task, own: ClientState, site: Site) -> Index:
        choices = self.choices(site)
        if choices != (1.0,) or self.distill:
            unit_counts(site.model, site.like)  # refuses a model without widths, whatever part is held
        return prefix(site, choices[-1])

    def plan(self, held: Mapping[str, Values], index: Index, task: Task, own: ClientState, site: Site) -> LocalPlan:
        choices = self.choices(site)
        if choices == (1.0,) and not self.distill:
            return self.local.plan(site, task)
        prefixes = tuple(prefix_shapes(site.model, site.like, p) for p in choices)
        return self.local.plan(site, task, loss=Nested(site.model, prefixes, self.distill))

    def aggregators(self) -> Mapping[str, Aggregator]:
        return {"model": Mean("holders")}
